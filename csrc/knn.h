// The k nearest rows (knn), by the scores of score_block.h.
//
// Every row keeps a list of candidates by score, and drops what is beyond the k-th best score by more than the error
// bound. Only if too much is left in a list are pairs measured before the end. With y absent every pair is scored once
// and offered to both rows.
#pragma once
#include "nearest.h"

namespace {

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

// sorted: ascending, `vectors` whole vectors. Puts v in its place and drops the largest.
template <class T> inline void put_in_order(T* sorted, int64_t vectors, T v) {
  constexpr int lanes = kLanes<T>;
  vmask<T> up;                                       // of two vectors: the last lane of the first, then the second
  for (int l = 0; l < lanes; ++l) up[l] = lanes - 1 + l;
  for (int64_t t = vectors - 1; t >= 0; --t) {
    const vec<T> at = load(sorted + t * lanes);
    const vec<T> before = t > 0 ? load(sorted + (t - 1) * lanes) : broadcast(-T(__builtin_inf()));
#if defined(__clang__)
    vec<T> shifted = before;
    for (int l = 0; l < lanes; ++l) shifted[l] = l ? at[l - 1] : before[lanes - 1];
#else
    const vec<T> shifted = __builtin_shuffle(before, at, up);
#endif
    store(sorted + t * lanes, vmin(at, vmax(shifted, broadcast(v))));
  }
}

// to[..] = the lanes of low and column[..] in mask, in order; room for a whole vector. Returns how many.
template <class T>
inline int32_t append(T* to, uint32_t* to_column, vec<T> low, const uint32_t* column, uint32_t mask) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    const __m512i j = _mm512_maskz_compress_epi32(__mmask16(mask), _mm512_loadu_si512(column));
    store(to, vec<T>(_mm512_maskz_compress_ps(__mmask16(mask), low)));
    _mm512_storeu_si512(to_column, j);
  } else {
    const __m256i j = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(column));
    store(to, vec<T>(_mm512_maskz_compress_pd(__mmask8(mask), low)));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to_column), _mm256_maskz_compress_epi32(__mmask8(mask), j));
  }
  return __builtin_popcount(mask);
#else
  int32_t count = 0;
  for (; mask; mask &= mask - 1, ++count) {
    const int l = __builtin_ctz(mask);
    const uint32_t j = column[l];
    to[count] = low[l], to_column[count] = j;
  }
  return count;
#endif
}

inline void prefetch_row(const void* row, int64_t bytes) {
  const char* p = static_cast<const char*>(row);
  for (int64_t f = 0; f < bytes && f < 512; f += 64) __builtin_prefetch(p + f);
}

// What is known of every row's k nearest: an exact list (keys, index), candidates (low, column) not measured yet, the
// lowest k lows so far and, from them, how far the row still looks. With y absent a pair enters two rows' lists, one of
// them another task's, so they change under a lock per block of rows. What comes out in the end is the same in whatever
// order pairs arrive, and a reach read too early is only too long.
template <class T> struct Lists {
  int64_t k, full, capacity, vectors, *index;
  uint64_t* keys;
  T *low, *lowest, *reach;                           // [n][capacity], [n][vectors], [n]
  uint32_t* column;
  int32_t* count;
  uint8_t* locks;

  T look(int64_t i) const {
    T r;
    __atomic_load(reach + i, &r, __ATOMIC_RELAXED);
    return r;
  }
  void shorten(int64_t i, T r) const {
    if (r < reach[i]) __atomic_store(reach + i, &r, __ATOMIC_RELAXED);
  }
  void prefetch(int64_t i) const {
    const int64_t at = i * capacity + __atomic_load_n(count + i, __ATOMIC_RELAXED);
    __builtin_prefetch(low + at, 1);
    __builtin_prefetch(column + at, 1);
    __builtin_prefetch(lowest + i * vectors * kLanes<T>, 1);
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

template <class T> struct Knn {
  Scores<T> s;
  Lists<T> lists;

  void measure(int64_t i, int64_t j) const {
    const uint64_t key = to_key(square_distance(s.x + i * s.d, s.y + j * s.d, s.d));
    insert(lists.keys + i * lists.k, lists.index + i * lists.k, lists.k, key, j);
  }
  void measure_all(int64_t i) const {
    const uint32_t* column = lists.column + i * lists.capacity;
    for (int64_t t = 0; t < lists.count[i]; ++t) measure(i, column[t]);
    lists.count[i] = 0;
  }
  void exact_reach(int64_t i) const {
    const uint64_t key = lists.keys[i * lists.k + lists.k - 1];
    if (key < kInfinity) lists.shorten(i, s.bound.reach(from_key(key)));
  }
  void prune(int64_t i) const {
    T* low = lists.low + i * lists.capacity;
    uint32_t* column = lists.column + i * lists.capacity;
    const int64_t count = lists.count[i];
    const vec<T> reach = broadcast(lists.reach[i]);
    int32_t kept = 0;
    for (int64_t t = 0; t < count; t += kLanes<T>) {
      const vec<T> v = load(low + t);
      uint32_t mask = lanes_not_above(v, reach);
      if (count - t < kLanes<T>) mask &= (1u << (count - t)) - 1;
      kept += append(low + kept, column + kept, v, column + t, mask);
    }
    lists.count[i] = kept;
  }
  void make_room(int64_t i) const {
    prune(i);
    if (lists.count[i] <= (lists.k + lists.full) / 2) return;
    measure_all(i);                                  // scores cannot tell them apart
    exact_reach(i);
  }
  // What a new candidate means for the others.
  void follow(int64_t i, T low) const {
    T* lowest = lists.lowest + i * lists.vectors * kLanes<T>;
    put_in_order(lowest, lists.vectors, low);
    const T kth = lowest[lists.k - 1];
    if (kth < Limits<T>::huge) lists.shorten(i, s.bound.follow(kth, s.slack[i]));
    if (lists.count[i] >= lists.full) make_room(i);
  }
  void offer(int64_t i, T low, int64_t j) const {
    if (!(low > -Limits<T>::huge && low < Limits<T>::huge)) {
      measure(i, j);
      exact_reach(i);
      return;
    }
    const int64_t at = i * lists.capacity + lists.count[i]++;
    lists.low[at] = low, lists.column[at] = uint32_t(j);
    follow(i, low);
  }
  // A reach from the best scores of groups of columns: `rank` pairs are at least as near as the rank-th of them.
  template <bool kGemm> void seed(int64_t i, T low_x, const T* v, int64_t columns, int64_t rank) const {
    if (rank <= 8) seed_groups<kGemm, 16>(i, low_x, v, columns, rank);
    else if (rank <= 32) seed_groups<kGemm, 64>(i, low_x, v, columns, rank);
  }
  template <bool kGemm, int kGroups>
  void seed_groups(int64_t i, T low_x, const T* v, int64_t columns, int64_t rank) const {
    constexpr int lanes = kLanes<T>, parts = kGroups / lanes, width = parts * lanes;
    if (columns < 3 * width) return;
    vec<T> best[parts];
    for (int p = 0; p < parts; ++p) best[p] = load(v + p * lanes);
    for (int64_t j = width; j + width <= columns; j += width)
#pragma GCC unroll 16
      for (int p = 0; p < parts; ++p) best[p] = better<kGemm>(load(v + j + p * lanes), best[p]);
    T low[width], sorted[width];
    const vec<T> limit = broadcast(-Limits<T>::huge);
    for (int p = 0; p < parts; ++p) {
      const vec<T> l = kGemm ? low_x - best[p] : low_x + best[p];
      if (lanes_not_above(l, limit)) return;         // a row that must be measured
      store(low + p * lanes, l);
      store(sorted + p * lanes, broadcast(T(__builtin_inf())));
    }
    for (int l = 0; l < width; ++l) put_in_order(sorted, ceil_div(rank, lanes), low[l]);
    lists.shorten(i, s.bound.follow(sorted[rank - 1], s.slack[i]));
  }

  template <bool kGemm> void scan_row(int64_t i, T low_x, const T* v, int64_t j0, int64_t columns) const {
    constexpr int lanes = kLanes<T>, parts = 4;
    if (lists.reach[i] == T(__builtin_inf())) seed<kGemm>(i, low_x, v, columns, lists.k);
    vec<T> limit = broadcast(kGemm ? low_x - lists.reach[i] : low_x + lists.reach[i]);
    for (int64_t j = 0; j < columns; j += parts * lanes) {     // scores of whole panels exist beyond `columns`
      const int64_t left = columns - j, here = left >= parts * lanes ? parts : ceil_div(left, lanes);
      vec<T> best = load(v + j);
      if (here == parts) {
#pragma GCC unroll 4
        for (int q = 1; q < parts; ++q) best = better<kGemm>(load(v + j + q * lanes), best);
      } else {
        for (int64_t q = 1; q < here; ++q) best = better<kGemm>(load(v + j + q * lanes), best);
      }
      if (__builtin_expect(lanes_within<kGemm>(best, limit) == 0, 1)) continue;
      uint64_t mask = 0;
      for (int64_t q = 0; q < here; ++q)
        mask |= uint64_t(lanes_within<kGemm>(load(v + j + q * lanes), limit)) << (q * lanes);
      if (left < parts * lanes) mask &= (uint64_t(1) << left) - 1;
      for (; mask; mask &= mask - 1) {
        const int64_t l = j + __builtin_ctzll(mask);
        offer(i, kGemm ? low_x - v[l] : low_x + v[l], j0 + l);
      }
      limit = broadcast(kGemm ? low_x - lists.reach[i] : low_x + lists.reach[i]);
    }
  }
};

static_assert(kBlockRows % kTileColumns<float> == 0 && kBlockRows % kTileColumns<double> == 0, "a chunk is a block");

template <class T> struct PairScore {
  int32_t row, column;
  T low;
};

// x with itself: the pairs j > i of two blocks, for the lists of both.
template <class T, bool kGemm> void scan_blocks(const Knn<T>& knn, const ScoreBlock<T>& b, PairScore<T>* found) {
  constexpr int lanes = kLanes<T>;
  const Lists<T>& lists = knn.lists;
  const bool diagonal = b.i == b.j;
  T reach[kBlockRows];
  for (int64_t l = 0; l < kBlockRows; ++l) reach[l] = l < b.columns ? lists.look(b.j + l) : T(0);
  PairScore<T>* end = found;
  for (int64_t r = 0; r < b.rows; ++r) {
    const T* row = b.scores + r * kBlockRows;
    const vec<T> own = broadcast(lists.look(b.i + r)), low = broadcast(b.low_x[r]);
    for (int64_t l = diagonal ? r / lanes * lanes : 0; l < b.columns; l += lanes) {
      const vec<T> far = vmax(load(reach + l), own);
      uint32_t mask = lanes_within<kGemm>(load(row + l), kGemm ? low - far : low + far);
      if (__builtin_expect(mask == 0, 1)) continue;
      if (b.columns - l < lanes) mask &= (1u << (b.columns - l)) - 1;
      if (diagonal && l <= r) mask &= ~0u << (r - l) << 1;
      for (; mask; mask &= mask - 1) {
        const int64_t at = l + __builtin_ctz(mask);
        lists.prefetch(b.j + at);
        *end++ = {int32_t(r), int32_t(at), kGemm ? b.low_x[r] - row[at] : b.low_x[r] + row[at]};
      }
    }
  }
  if (end == found) return;
  const int64_t block = b.i / kBlockRows, other = b.j / kBlockRows;
  lists.lock(block);                                 // locks are taken in rising order
  if (other != block) lists.lock(other);
  for (const PairScore<T>* at = found; at < end; ++at) {
    const int64_t i = b.i + at->row, j = b.j + at->column;
    if (!(at->low > lists.reach[i])) knn.offer(i, at->low, j);
    if (!(at->low > lists.reach[j])) knn.offer(j, at->low, i);
  }
  if (other != block) lists.unlock(other);
  lists.unlock(block);
}

template <class T> struct KnnPlan {
  Carve scratch;
  Knn<T> knn;
  PairScore<T>* found;
  T* sample;
  int64_t samples;
  explicit KnnPlan(const Call& c)
      : scratch{static_cast<char*>(c.scratch)}, knn{Scores<T>(c, c.in[1], c.in[1].data == nullptr, scratch), {}} {
    const Scores<T>& s = knn.s;
    Lists<T>& l = knn.lists;
    l.k = int64_t(c.attr[0]);
    l.full = l.k + (l.k > 19 ? l.k : 19);
    l.capacity = l.full + 2 * kLanes<T>;             // pruning reads and writes whole vectors
    l.vectors = ceil_div(l.k, kLanes<T>);
    l.index = out<int64_t>(c, 1);
    l.keys = scratch.take<uint64_t>(s.n * l.k);
    l.low = scratch.take<T>(s.n * l.capacity);
    l.column = scratch.take<uint32_t>(s.n * l.capacity);
    l.count = scratch.take<int32_t>(s.n);
    l.reach = scratch.take<T>(s.n);
    l.lowest = scratch.take<T>(s.n * l.vectors * kLanes<T>);
    l.locks = scratch.take<uint8_t>(s.blocks);
    samples = s.d <= 32 ? kMostSamples : s.d <= 128 ? kMostSamples / 2 : kMostSamples / 4;
    if (!s.self || s.m < 16 * samples) samples = 0;
    found = scratch.take<PairScore<T>>(s.self ? s.workers * kBlockRows * kBlockRows : 0);
    sample = scratch.take<T>(samples * s.d);
  }
};
template <class T> int64_t knn_scratch(const Call& c) {
  Call counting = c;
  counting.scratch = nullptr;
  return KnnPlan<T>(counting).scratch.used;
}

template <class T, bool kGemm> void find_neighbours(const Call& c, const KnnPlan<T>& plan) {
  const Knn<T>& knn = plan.knn;
  const Scores<T>& s = knn.s;
  const Lists<T>& lists = knn.lists;
  const int64_t k = lists.k;
  s.find_centre(c);
  parallel_range(c, s.n, 4096, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin * k; t < end * k; ++t) lists.keys[t] = kEmpty, lists.index[t] = -1;
    for (int64_t i = begin; i < end; ++i) lists.reach[i] = T(__builtin_inf()), lists.count[i] = 0;
    for (int64_t t = begin * lists.vectors * kLanes<T>; t < end * lists.vectors * kLanes<T>; ++t)
      lists.lowest[t] = T(__builtin_inf());
  });
  for (int64_t b = 0; b < s.blocks; ++b) lists.locks[b] = 0;
  if (plan.samples > 0) {                            // else the first blocks would be candidates for all rows
    for (int64_t t = 0; t < plan.samples; ++t)
      __builtin_memcpy(plan.sample + t * s.d, s.y + s.m / plan.samples * t * s.d, size_t(s.d) * sizeof(T));
    s.pack_columns(c, plan.sample, 0, plan.samples, [](int64_t, double, bool) {});
    parallel(c, s.blocks, [&](int64_t block, int worker) {
      s.pack_rows(block, worker, true);
      const T* low = s.low_x + worker * s.block_rows;
      s.template each_row<kGemm>(block, worker, plan.samples, [&](int64_t r, const T* v) {
        knn.template seed<kGemm>(block * s.block_rows + r, low[r], v, plan.samples, k + 1);
      });
    });
  }
  for (int64_t first = 0; first < s.m; first += s.phase) {
    const int64_t end = s.phase_end(first);
    s.pack_columns(c, s.y, first, end, [&](int64_t j, double norm, bool) {
      if (s.self && j < s.m) s.slack[j] = s.bound.slack(norm);
    });
    parallel(c, s.blocks, [&](int64_t block, int worker) {
      if (s.self && end <= block * s.block_rows) return;
      s.pack_rows(block, worker, !s.self);
      s.template each_chunk<kGemm>(block, worker, first, end, [&](const ScoreBlock<T>& b) {
        if (s.self) scan_blocks<T, kGemm>(knn, b, plan.found + worker * kBlockRows * kBlockRows);
        for (int64_t r = 0; !s.self && r < b.rows; ++r)
          knn.template scan_row<kGemm>(b.i + r, b.low_x[r], b.scores + r * s.chunk, b.j, b.columns);
      });
    });
  }
  T* distance = out<T>(c, 0);
  parallel(c, ceil_div(s.n, 64), [&](int64_t t, int) {
    for (int64_t i = t * 64; i < s.n && i < t * 64 + 64; ++i) {
      if (i == t * 64) knn.prune(i);
      if (i + 1 < s.n && i + 1 < t * 64 + 64) {
        knn.prune(i + 1);
        for (int64_t q = 0; q < lists.count[i + 1]; ++q)
          prefetch_row(s.y + lists.column[(i + 1) * lists.capacity + q] * s.d, s.d * int64_t(sizeof(T)));
      }
      knn.measure_all(i);
      for (int64_t q = i * k; q < i * k + k; ++q) distance[q] = T(__builtin_sqrt(from_key(lists.keys[q])));
    }
  });
}

}  // namespace
