// The k nearest rows: for every row of x and part of y the lowest lows, then the few of them that the bound leaves.
//
// A row's list is spread over a warp, kEach entries per lane, in order. A pair enters it if its low is within reach: what
// the k-th lowest low so far may turn out to be. In the end all entries within reach are measured, and the first k by
// (distance, index) are the result. If more pairs may be within reach than a list holds (many equal distances), or a row's
// norm is of no use, the row is left to exact_rows.h.
#pragma once
#include "search.h"

namespace {

constexpr uint32_t kNoColumn = ~0u;
template <int E> constexpr int kList = kWarp * E;
// Ranks that a list serves: there is room for as many again, or so, that the bound cannot tell from the k-th.
template <int E> constexpr int64_t kMostRanks = E == 1 ? 20 : 100;
// Lists of float32 fit beside the tile; others stay in global memory, where they are seldom needed.
template <class T, int E> constexpr bool kListsShared = sizeof(T) == 4 && E == 1;

template <class T, int E> struct Best {
  T low[E];
  uint32_t column[E];

  __device__ void clear() {
    GENERANT_UNROLL
    for (int e = 0; e < E; ++e) low[e] = T(HUGE_VAL), column[e] = kNoColumn;
  }
  __device__ void read(const T* lows, const uint32_t* columns) {
    GENERANT_UNROLL
    for (int e = 0; e < E; ++e) low[e] = lows[e * kWarp + threadIdx.x % kWarp], column[e] = columns[e * kWarp + threadIdx.x % kWarp];
  }
  __device__ void write(T* lows, uint32_t* columns) const {
    GENERANT_UNROLL
    for (int e = 0; e < E; ++e) lows[e * kWarp + threadIdx.x % kWarp] = low[e], columns[e * kWarp + threadIdx.x % kWarp] = column[e];
  }
  // v takes its place, behind what equals it, and the last one drops out.
  __device__ void put(T v, uint32_t j) {
    const int lane = threadIdx.x % kWarp;
    int before = 0;
    GENERANT_UNROLL
    for (int e = 0; e < E; ++e) before += __popc(__ballot_sync(0xffffffffu, low[e] <= v));
    GENERANT_UNROLL
    for (int e = E - 1; e >= 0; --e) {
      T from = __shfl_up_sync(0xffffffffu, low[e], 1);
      uint32_t from_column = __shfl_up_sync(0xffffffffu, column[e], 1);
      if (e > 0) {
        const T last = warp_from(low[e > 0 ? e - 1 : 0], kWarp - 1);
        const uint32_t last_column = warp_from(column[e > 0 ? e - 1 : 0], kWarp - 1);
        if (lane == 0) from = last, from_column = last_column;
      }
      const int at = e * kWarp + lane;
      if (at > before) low[e] = from, column[e] = from_column;
      if (at == before) low[e] = v, column[e] = j;
    }
  }
  __device__ T at(int rank) const {
    T v = low[0];
    GENERANT_UNROLL
    for (int e = 1; e < E; ++e)
      if (rank / kWarp == e) v = low[e];
    return warp_from(v, rank % kWarp);
  }
  __device__ int filled() const {
    int n = 0;
    GENERANT_UNROLL
    for (int e = 0; e < E; ++e) n += __popc(__ballot_sync(0xffffffffu, column[e] != kNoColumn));
    return n;
  }
};

template <class T> struct Ranks {
  int k;
  const T *scale, *weight;                           // of the columns, or null; weight: 1 / scale^2, rounded down. k is 1 then
};

// What `reach` becomes by the list, whose last addition was (v, j). Entries of unknown distance come first and say nothing.
template <class T, int E>
__device__ inline T shorter(T reach, const Best<T, E>& best, const Search<T>& s, const Ranks<T>& r, T slack, T v, int64_t j) {
  const T huge = Limits<T>::huge;
  T next;
  if (r.scale) {
    const T w = r.weight[j];
    if (!(v > -huge) || w == 0 || w >= huge) return reach;
    next = ((v + slack * w) * s.bound.widen + T(2 * s.bound.tiny) * w) * (1 + 16 * Limits<T>::unit) + Limits<T>::tiny;
  } else {
    const T first = best.at(0), last = best.at(r.k - 1);
    if (!(first > -huge && last < huge)) return reach;
    next = s.bound.follow(last, slack);
  }
  return next < reach ? next : reach;
}

// Lists of a row and part: [n][parts][kList<E>].
template <class T> struct Lists {
  T *low, *reach;                                    // reach: [n][parts]
  uint32_t* column;
};

template <class T, int E> constexpr size_t candidate_bytes() {
  return sizeof(T) * kSearchNumbers<T> + (kListsShared<T, E> ? kTileRows<T> * kList<E> * (sizeof(T) + sizeof(uint32_t)) : 0);
}
static_assert(candidate_bytes<float, 1>() <= kMaxShared && candidate_bytes<double, 1>() <= kMaxShared);

template <class T, int E>
__global__ void find_candidates(Search<T> s, Ranks<T> r, Lists<T> lists) {
  DYNAMIC_SHARED(T, shared);
  const Points<T>& p = s.points;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t i0 = int64_t(blockIdx.x) * kTileRows<T>, i1 = i0 + warp * 16;
  T* const half = shared + warp * kHalfRows<T>;      // lows that are within reach, of rows of one h
  const int rows = i1 < p.n ? int(min(int64_t(16), p.n - i1)) : 0;
  // The list of row q of the warp.
  T* const list_low = kListsShared<T, E> ? shared + kSearchNumbers<T> + warp * 16 * kList<E> : lists.low + (i1 * s.parts + blockIdx.y) * kList<E>;
  uint32_t* const list_column = kListsShared<T, E> ? reinterpret_cast<uint32_t*>(shared + kSearchNumbers<T> + kTileRows<T> * kList<E>) + warp * 16 * kList<E>
                                                  : lists.column + (i1 * s.parts + blockIdx.y) * kList<E>;
  const int64_t step = (kListsShared<T, E> ? 1 : s.parts) * kList<E>;

  for (int q = 0; q < rows; ++q) {
    Best<T, E> nothing;
    nothing.clear();
    nothing.write(list_low + q * step, list_column + q * step);
  }
  T reach[2] = {T(HUGE_VAL), T(HUGE_VAL)}, slack[2] = {};
  if (p.expanded && rows > 0)
    GENERANT_UNROLL
    for (int h = 0; h < 2; ++h) slack[h] = p.low_x[i0 + own_row(h)];

  each_tile(s, shared, [&](const Scores<T>& v, int64_t j0) {
    GENERANT_UNROLL
    for (int h = 0; h < 2; ++h) {
      const int64_t i = i0 + own_row(h);
      T w[kStrips][2];
      bool any = false;
      GENERANT_UNROLL
      for (int strip = 0; strip < kStrips; ++strip)
        GENERANT_UNROLL
        for (int c = 0; c < 2; ++c) {
          const int64_t j = j0 + own_column(strip) + c;
          T low = v.at[strip][2 * h + c];
          if (r.weight && j < p.m) low *= r.weight[j];
          const bool within = !(low > reach[h]) && low != T(HUGE_VAL) && i < p.n && j < p.m && !(p.self && i == j);
          w[strip][c] = !within ? T(HUGE_VAL) : low == low ? low : -T(HUGE_VAL);
          any = any || within;
        }
      const unsigned lanes = __ballot_sync(0xffffffffu, any);
      if (lanes == 0) continue;
      __syncwarp();
      GENERANT_UNROLL
      for (int strip = 0; strip < kStrips; ++strip)
        *reinterpret_cast<Pack<T, 2>*>(half + lane / 4 * kScoreStride + own_column(strip)) = Pack<T, 2>{{w[strip][0], w[strip][1]}};
      __syncwarp();
#pragma unroll 1
      for (int g = 0; g < 8; ++g) {
        if (((lanes >> (4 * g)) & 15) == 0) continue;
        T far = warp_from(reach[h], 4 * g);
        const T own_slack = warp_from(slack[h], 4 * g);
        T* const low_of = list_low + (g + 8 * h) * step;
        uint32_t* const column_of = list_column + (g + 8 * h) * step;
        Best<T, E> best;
        best.read(low_of, column_of);
#pragma unroll 1
        for (int side = 0; side < kTileColumns; side += kWarp) {
          const T mine = half[g * kScoreStride + side + lane];
          for (unsigned marks = __ballot_sync(0xffffffffu, mine < T(HUGE_VAL)); marks; marks &= marks - 1) {
            const int l = __ffs(int(marks)) - 1;
            const T low = warp_from(mine, l);
            if (low > far) continue;
            best.put(low, uint32_t(j0 + side + l));
            far = shorter(far, best, s, r, own_slack, low, j0 + side + l);
          }
        }
        best.write(low_of, column_of);
        if (lane / 4 == g) reach[h] = far;
      }
    }
  });

  if (lane % 4 == 0 && rows > 0)
    GENERANT_UNROLL
    for (int h = 0; h < 2; ++h)
      if (i0 + own_row(h) < p.n) lists.reach[(i0 + own_row(h)) * s.parts + blockIdx.y] = reach[h];
  if (kListsShared<T, E>)
    for (int q = 0; q < rows; ++q) {
      const int64_t to = ((i1 + q) * s.parts + blockIdx.y) * kList<E>;
      Best<T, E> best;
      best.read(list_low + q * step, list_column + q * step);
      best.write(lists.low + to, lists.column + to);
    }
}

constexpr int kFinishThreads = 128;

// A warp per row: the lists of all parts as one, its entries within reach measured and ranked. left[i]: this cannot be known.
template <class T, int E>
__global__ void finish_rows(Search<T> s, Ranks<T> r, Lists<T> lists, T* distance, int64_t* index, uint8_t* left) {
  const Points<T>& p = s.points;
  const int64_t i = global_thread() / kWarp;
  if (i >= p.n) return;
  const int lane = threadIdx.x % kWarp;
  const T slack = p.expanded ? p.low_x[i] : T(0);
  T reach = T(HUGE_VAL);
  for (int64_t part = lane; part < s.parts; part += kWarp) reach = min(reach, lists.reach[i * s.parts + part]);
  reach = warp_reduce(reach, Min{});
  Best<T, E> best;
  const int64_t first = i * s.parts * kList<E>;
  best.read(lists.low + first, lists.column + first);
#pragma unroll 1
  for (int64_t at = first + kList<E>; at < first + s.parts * kList<E>; at += kWarp) {
    const T low = lists.low[at + lane];
    const uint32_t column = lists.column[at + lane];
    for (unsigned marks = __ballot_sync(0xffffffffu, low < T(HUGE_VAL) && !(low > reach)); marks; marks &= marks - 1) {
      const int l = __ffs(int(marks)) - 1;
      const T v = warp_from(low, l);
      const uint32_t j = warp_from(column, l);
      if (v > reach) continue;
      best.put(v, j);
      reach = shorter(reach, best, s, r, slack, v, int64_t(j));
    }
  }
  const int filled = best.filled();
  const bool known = filled == p.m - p.self || (reach < T(HUGE_VAL) && (filled < kList<E> || best.at(kList<E> - 1) > reach));
  if (lane == 0) left[i] = !known;
  if (!known) return;

  uint64_t key[E];
  int rank[E] = {}, count[E];
  GENERANT_UNROLL
  for (int e = 0; e < E; ++e) {
    key[e] = kEmpty;
    count[e] = __popc(__ballot_sync(0xffffffffu, best.column[e] != kNoColumn && !(best.low[e] > reach)));
    for (int q = 0; q < count[e]; q += kWarp / kGroup) {
      const int at = q + lane / kGroup;
      const int64_t j = warp_from(best.column[e], at < count[e] ? at : q);
      double t = square_distance(p.x + i * p.d, p.y + j * p.d, p.d);
      if (r.scale) t /= double(r.scale[j]) * double(r.scale[j]);
      const double mine = warp_from(t, lane % (kWarp / kGroup) * kGroup);
      if (lane >= q && lane < q + kWarp / kGroup && lane < count[e]) key[e] = to_key(mine);
    }
  }
  GENERANT_UNROLL
  for (int e = 0; e < E; ++e)
    for (int l = 0; l < count[e]; ++l) {
      const uint64_t its = warp_from(key[e], l);
      const uint32_t column = warp_from(best.column[e], l);
      GENERANT_UNROLL
      for (int f = 0; f < E; ++f) rank[f] += its < key[f] || (its == key[f] && column < best.column[f]);
    }
  GENERANT_UNROLL
  for (int e = 0; e < E; ++e)
    if (lane < count[e] && rank[e] < r.k) {
      distance[i * r.k + rank[e]] = T(__dsqrt_rn(from_key(key[e])));
      index[i * r.k + rank[e]] = best.column[e];
    }
}

// Weights of scaled columns, see Ranks; 0 and `huge` say that the bound cannot be relied on.
template <class T> __global__ void weigh_columns(int64_t m, const T* scale, T* weight) {
  const int64_t j = global_thread();
  if (j >= m) return;
  const double w = 1 / (double(scale[j]) * double(scale[j])), huge = double(Limits<T>::huge);
  weight[j] = !(w < huge) ? Limits<T>::huge : w < double(Limits<T>::tiny) * 0x1p24 ? T(0) : T(w * (1 - 4 * double(Limits<T>::unit)));
}

}  // namespace
