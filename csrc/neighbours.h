// Searches over all pairs: the k nearest (knn) and how many lie inside a ball (radius_count). See cpu/pairwise.cpp.
//
// They are exact by construction: a tile only rules pairs out (or surely in), by a distance with a rigorous error bound,
// and every pair it leaves is measured again from the raw rows in float64. So their result does not depend on schedule
// or threads.
#pragma once
#include "pairwise_tile.h"

namespace {

// ---- knn ---------------------------------------------------------------------------------------------------------

// Squared distances are kept as the bits of a float64 >= 0, whose order as integers is the order of the numbers, then
// inf, then NaN; kEmpty is above them all.
constexpr uint64_t kInfinity = 0x7ff0000000000000ull, kNan = 0x7ff8000000000000ull, kEmpty = ~0ull;

inline uint64_t to_key(double s) {
  if (s != s) return kNan;
  uint64_t key;
  __builtin_memcpy(&key, &s, 8);
  return key;
}
inline double from_key(uint64_t key) {
  double s;
  __builtin_memcpy(&s, &key, 8);
  return s;
}

// Insert (key, j) into a list of k sorted by (key, index).
inline void insert(uint64_t* keys, int64_t* index, int64_t k, uint64_t key, int64_t j) {
  int64_t at = k - 1;
  if (key > keys[at] || (key == keys[at] && j > index[at])) return;
  for (; at > 0 && (key < keys[at - 1] || (key == keys[at - 1] && j < index[at - 1])); --at) {
    keys[at] = keys[at - 1];
    index[at] = index[at - 1];
  }
  keys[at] = key;
  index[at] = j;
}

// What a tile must show for a pair to be looked at. With s the computed sum of squared differences, its relative error
// is below (d + 2) unit, so |x - y|^2 <= t implies s <= reach(t). In the expanded form the accumulators start at
// -(1/2 - e)|y|^2 and end at a = that + <x, y>; each of the d + 1 roundings and those of centring cost at most
// unit (|x|^2 + |y|^2), e = (2d + 32) unit covers them twice over, and |x - y|^2 <= t implies
// a >= (1/2 - e)|x|^2 - reach(t). Rows whose norm is not finite or could overflow are packed as zeros with a side that
// lets every pair through.
template <class T> struct Filter {
  double relative;
  bool gemm;
  explicit Filter(const Pairs<T>& p) : relative((2.0 * double(p.d) + 32) * double(Limits<T>::unit)), gemm(p.gemm) {}
  T side_y(double norm, T* row, int64_t d, int stride) const {
    if (norm < double(Limits<T>::huge)) return T(-norm * (0.5 - relative));
    for (int64_t k = 0; k < d; ++k) row[k * stride] = 0;
    return T(__builtin_inf());
  }
  T side_x(double norm, T* row, int64_t d, int stride) const {
    if (norm < double(Limits<T>::huge)) return T(norm * (0.5 - relative));
    for (int64_t k = 0; k < d; ++k) row[k * stride] = 0;
    return T(__builtin_nan(""));
  }
  T reach(uint64_t key) const {
    if (key >= kInfinity) return T(__builtin_inf());
    const double t = from_key(key), tiny = double(Limits<T>::tiny);
    const double r = gemm ? t * (0.5 + 8 * double(Limits<T>::unit)) + tiny : t * (1 + relative) + tiny;
    return r < double(Limits<T>::huge) ? T(r) : T(__builtin_inf());
  }
};

// The k nearest found so far of every row, and how far a row still looks. With y absent a pair enters two lists, one of
// them another task's, so lists change under a lock per block of rows. What a list holds in the end is the same in
// whatever order pairs arrive, and a reach read too early is only too long.
template <class T> struct Nearest {
  int64_t k, *index;
  uint64_t* keys;
  T* reach;
  uint8_t* locks;

  T look(int64_t row) const {
    T r;
    __atomic_load(reach + row, &r, __ATOMIC_RELAXED);
    return r;
  }
  T offer(const Filter<T>& filter, int64_t row, uint64_t key, int64_t j) const {
    insert(keys + row * k, index + row * k, k, key, j);
    T r = filter.reach(keys[row * k + k - 1]);
    __atomic_store(reach + row, &r, __ATOMIC_RELAXED);
    return r;
  }
  void prefetch(int64_t row) const {
    __builtin_prefetch(keys + row * k);
    __builtin_prefetch(index + row * k);
  }
  void lock(int64_t block) const {
    while (__atomic_test_and_set(locks + block, __ATOMIC_ACQUIRE)) {
#if defined(__x86_64__)
      __builtin_ia32_pause();
#endif
    }
  }
  void unlock(int64_t block) const { __atomic_clear(locks + block, __ATOMIC_RELEASE); }
};

static_assert(kBlockRows % kTileColumns<float> == 0 && kBlockRows % kTileColumns<double> == 0, "a panel in a block");

template <class T> struct Candidate {                // row of the block, column of the panel, what the tile showed
  int32_t row, column;
  T value;
};

// kSelf: pairs j > i only, for both lists.
template <class T, bool kGemm, bool kSelf>
void search_block(const Pairs<T>& p, const Filter<T>& filter, const Nearest<T>& lists, int64_t block, int64_t phase,
                  const T* packed, const T* sides, Candidate<T>* candidates) {
  constexpr int lanes = kLanes<T>, columns = kTileColumns<T>;
  const int64_t i0 = block * kBlockRows, i1 = i0 + kBlockRows < p.n ? i0 + kBlockRows : p.n;
  T reach[kBlockRows], reach_y[columns];
  for (int64_t i = i0; i < i1; ++i) reach[i - i0] = lists.look(i);
  int64_t panel = p.first_panel(phase);
  if (kSelf && i0 / columns > panel) panel = i0 / columns;
  for (const int64_t last = p.last_panel(phase); panel < last; ++panel) {
    const int64_t j0 = panel * columns;
    const T* b = p.packed_y + (panel - p.first_panel(phase)) * columns * p.d;
    const T* side = p.sides_y + (panel - p.first_panel(phase)) * columns;
    const uint32_t real = p.m - j0 >= columns ? ~0u : (1u << (p.m - j0)) - 1;
    int64_t found = 0;
    if (kSelf)
      for (int l = 0; l < columns; ++l) reach_y[l] = j0 + l < p.m ? lists.look(j0 + l) : T(0);
    for (int64_t i = i0; i < i1 && !(kSelf && j0 + columns <= i); i += kTileRows) {
      Tile<T> tile = {};
      if constexpr (kGemm) {
        const vec<T> s0 = load(side), s1 = load(side + lanes);
#pragma GCC unroll 16
        for (int r = 0; r < kTileRows; ++r) tile.at[r][0] = s0, tile.at[r][1] = s1;
      }
      accumulate<!kGemm>(tile, packed + (i - i0) * p.d, b, p.d);
      const int count = i1 - i < kTileRows ? int(i1 - i) : kTileRows;
      for (int r = 0; r < count; ++r) {
        const int row = int(i - i0) + r;
        vec<T> r0 = broadcast(reach[row]), r1 = r0;
        if (kSelf) r0 = vmax(load(reach_y), r0), r1 = vmax(load(reach_y + lanes), r1);
        if (kGemm) r0 = sides[row] - r0, r1 = sides[row] - r1;
        const vec<T> v0 = tile.at[r][0], v1 = tile.at[r][1];
        uint32_t near = kGemm ? lanes_not_above(r0, v0) | lanes_not_above(r1, v1) << lanes
                              : lanes_not_above(v0, r0) | lanes_not_above(v1, r1) << lanes;
        if (__builtin_expect(near != 0, 0)) {
          near &= real;
          if (kSelf && j0 <= i0 + row) near &= i0 + row - j0 < 31 ? ~0u << (i0 + row - j0 + 1) : 0;
          T value[columns];
          store(value, v0);
          store(value + lanes, v1);
          for (; near; near &= near - 1) {
            const int l = __builtin_ctz(near);
            const T* y = p.y + (j0 + l) * p.d;
            constexpr int64_t line = 64 / int64_t(sizeof(T));
            for (int64_t f = 0; f < p.d && f < 8 * line; f += line) __builtin_prefetch(y + f);
            if (kSelf) lists.prefetch(j0 + l);
            candidates[found++] = {row, l, value[l]};
          }
        }
      }
    }
    // Settled a panel at a time: by then the rows are in cache, and most bounds of a first panel have moved.
    if (found == 0) continue;
    const int64_t other = j0 / kBlockRows;             // a panel lies in one block; locks are taken in rising order
    if (kSelf) lists.lock(block);
    if (kSelf && other != block) lists.lock(other);
    for (int64_t t = 0; t < found; ++t) {
      const Candidate<T> at = candidates[t];
      const T edge = kGemm ? sides[at.row] - at.value : at.value;
      const bool for_row = !(edge > reach[at.row]), for_column = kSelf && !(edge > reach_y[at.column]);
      if (!for_row && !for_column) continue;
      const int64_t i = i0 + at.row, j = j0 + at.column;
      const uint64_t key = to_key(square_distance(p.x + i * p.d, p.y + j * p.d, p.d));
      if (for_row) reach[at.row] = lists.offer(filter, i, key, j);
      if (for_column) reach_y[at.column] = lists.offer(filter, j, key, i);
    }
    if (kSelf && other != block) lists.unlock(other);
    if (kSelf) lists.unlock(block);
  }
}

template <class T> struct SearchPlan {
  Carve scratch;
  Pairs<T> pairs;
  Nearest<T> lists;
  Candidate<T>* candidates;
  explicit SearchPlan(const Call& c) : scratch{static_cast<char*>(c.scratch)}, pairs(c, true, scratch) {
    const int64_t n = pairs.n;
    lists.k = int64_t(c.attr[0]);
    lists.index = out<int64_t>(c, 1);
    lists.keys = scratch.take<uint64_t>(n * lists.k);
    lists.reach = scratch.take<T>(n);
    lists.locks = scratch.take<uint8_t>(pairs.blocks);
    candidates = scratch.take<Candidate<T>>((c.threads > 1 ? c.threads : 1) * kBlockRows * kTileColumns<T>);
  }
};
template <class T> int64_t knn_scratch(const Call& c) {
  Call counting = c;
  counting.scratch = nullptr;
  return SearchPlan<T>(counting).scratch.used;
}

template <class T, bool kGemm, bool kSelf> void search(const Call& c, const SearchPlan<T>& plan) {
  const Pairs<T>& p = plan.pairs;
  const Nearest<T>& lists = plan.lists;
  const Filter<T> filter(p);
  const int64_t k = lists.k;
  parallel_range(c, p.n, 4096, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin * k; t < end * k; ++t) lists.keys[t] = kEmpty, lists.index[t] = -1;
    for (int64_t i = begin; i < end; ++i) lists.reach[i] = T(__builtin_inf());
  });
  for (int64_t b = 0; b < p.blocks; ++b) lists.locks[b] = 0;
  for (int64_t phase = 0; phase < p.phases(); ++phase) {
    p.pack_phase(c, phase, [&](double norm, T* row, int stride, int64_t) {
      return filter.side_y(norm, row, p.d, stride);
    });
    parallel(c, p.blocks, [&](int64_t block, int worker) {
      if (kSelf && p.last_panel(phase) * kTileColumns<T> <= block * kBlockRows) return;
      const T* packed = p.pack_block(block, worker, [&](double norm, T* row, int stride, int64_t) {
        return filter.side_x(norm, row, p.d, stride);
      });
      search_block<T, kGemm, kSelf>(p, filter, lists, block, phase, packed, p.sides_x + worker * kBlockRows,
                                    plan.candidates + worker * kBlockRows * kTileColumns<T>);
    });
  }
  T* distance = out<T>(c, 0);
  parallel_range(c, p.n * k, 16384, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) distance[t] = T(__builtin_sqrt(from_key(lists.keys[t])));
  });
}

// ---- radius_count ------------------------------------------------------------------------------------------------

enum RadiusAttr { kClosed };

template <class T> struct CountPlan {
  Carve scratch;
  Pairs<T> pairs;
  T* margin;                                         // per packed row of y: how far above its bound a pair is surely in
  explicit CountPlan(const Call& c)
      : scratch{static_cast<char*>(c.scratch)}, pairs(c, true, scratch),
        margin(scratch.take<T>(pairs.phase_panels * kTileColumns<T>)) {}
};
template <class T> int64_t radius_count_scratch(const Call& c) {
  Call counting = c;
  counting.scratch = nullptr;
  return CountPlan<T>(counting).scratch.used;
}

// The bounds are those of Filter with t = radius^2, which belongs to y: difference form, s <= side_y; expanded form,
// a >= side_x where a starts at -(1/2 - e)|y|^2 + radius^2 (1/2 + e). Pairs beyond their margin are in without one.
template <class T, bool kGemm>
void count_block(const Pairs<T>& p, T expand, const T* margin, const T* radius, bool closed, int64_t block,
                 int64_t phase, const T* packed, const T* sides, int64_t* inside, int64_t* members) {
  constexpr int lanes = kLanes<T>, columns = kTileColumns<T>;
  const int64_t i0 = block * kBlockRows, i1 = i0 + kBlockRows < p.n ? i0 + kBlockRows : p.n;
  for (int64_t panel = p.first_panel(phase), last = p.last_panel(phase); panel < last; ++panel) {
    const int64_t j0 = panel * columns, at = (panel - p.first_panel(phase)) * columns;
    const T* b = p.packed_y + at * p.d;
    const vec<T> s0 = load(p.sides_y + at), s1 = load(p.sides_y + at + lanes);
    const uint32_t real = p.m - j0 >= columns ? ~0u : (1u << (p.m - j0)) - 1;
    for (int64_t i = i0; i < i1; i += kTileRows) {
      Tile<T> tile = {};
      if constexpr (kGemm) {
#pragma GCC unroll 16
        for (int r = 0; r < kTileRows; ++r) tile.at[r][0] = s0, tile.at[r][1] = s1;
      }
      accumulate<!kGemm>(tile, packed + (i - i0) * p.d, b, p.d);
      const int64_t count = i1 - i < kTileRows ? i1 - i : kTileRows;
      for (int64_t r = 0; r < count; ++r) {
        const vec<T> v0 = tile.at[r][0], v1 = tile.at[r][1];
        const vec<T> limit = broadcast(kGemm ? sides[i - i0 + r] : T(0));
        uint32_t found = kGemm ? lanes_not_above(limit, v0) | lanes_not_above(limit, v1) << lanes
                               : lanes_not_above(v0, s0) | lanes_not_above(v1, s1) << lanes;
        if (__builtin_expect(found != 0, 0)) {
          found &= real;
          T value[columns];
          store(value, v0);
          store(value + lanes, v1);
          const int64_t row = i + r;
          for (; found; found &= found - 1) {
            const int64_t l = __builtin_ctz(found), j = j0 + l;
            const T edge = margin[at + l];             // NaN where nothing is sure
            bool in = kGemm ? value[l] > limit[0] * expand + edge : value[l] < edge;
            if (!in) {
              const T s = T(__builtin_sqrt(square_distance(p.x + row * p.d, p.y + j * p.d, p.d)));
              in = closed ? s <= radius[j] : s < radius[j];
            }
            inside[row] += in;
            if (in) __atomic_fetch_add(members + j, 1, __ATOMIC_RELAXED);
          }
        }
      }
    }
  }
}

template <class T, bool kGemm> void count(const Call& c, const Pairs<T>& p, T* margin) {
  const T* radius = in<T>(c, 2);
  const bool closed = c.attr[kClosed] != 0;
  int64_t *inside = out<int64_t>(c, 0), *members = out<int64_t>(c, 1);
  const Filter<T> filter(p);
  const double e = filter.relative, tiny = double(Limits<T>::tiny);
  for (int64_t j = 0; j < p.m; ++j) members[j] = 0;
  for (int64_t i = 0; i < p.n; ++i) inside[i] = 0;
  for (int64_t phase = 0; phase < p.phases(); ++phase) {
    p.pack_phase(c, phase, [&](double norm, T* row, int stride, int64_t j) {
      const double r = j < p.m ? double(radius[j]) : 0, reach = r * r;
      T& edge = margin[j - p.first_panel(phase) * kTileColumns<T>];
      edge = T(__builtin_nan(""));
      if (!kGemm) {
        if (r > 0) edge = T(reach * (1 - e) - tiny);
        const double side = reach * (1 + e) + tiny;
        return side < double(Limits<T>::huge) ? T(side) : T(__builtin_nan(""));
      }
      const T side = filter.side_y(norm, row, p.d, stride);
      if (!(reach < double(Limits<T>::huge)) || !(norm < double(Limits<T>::huge))) return T(__builtin_inf());
      if (r > 0) edge = T(2 * e * (norm + reach) + tiny);
      return T(double(side) + reach * (0.5 + e) + tiny);
    });
    parallel(c, p.blocks, [&](int64_t block, int worker) {
      const T* packed = p.pack_block(block, worker, [&](double norm, T* row, int stride, int64_t) {
        return kGemm ? filter.side_x(norm, row, p.d, stride) : T(0);
      });
      count_block<T, kGemm>(p, T((0.5 + e) / (0.5 - e) * (1 + e)), margin, radius, closed, block, phase, packed,
                            p.sides_x + worker * kBlockRows, inside, members);
    });
  }
}

}  // namespace
