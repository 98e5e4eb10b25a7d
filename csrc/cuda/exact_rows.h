// The k nearest rows by measuring every pair: for any k, and for rows that candidates.h leaves.
//
// A block per row. Pairs that come before the k-th so far wait in a queue; a full queue is sorted and merged into the row's
// sorted list, every element going straight to its place, from one half of the scratch memory to the other.
#pragma once
#include "candidates.h"

namespace {

constexpr int kExactThreads = 256, kQueue = 512;
constexpr int64_t kRowsPerBlock = 16;

struct Entry {
  uint64_t key;
  uint32_t column;
  HOST_DEVICE bool operator<(const Entry& o) const { return key < o.key || (key == o.key && column < o.column); }
};

// Entries of sorted[0, n) that come before e.
__device__ inline int64_t entries_before(const Entry* sorted, int64_t n, Entry e) {
  int64_t lo = 0;
  while (n > 0) {
    const int64_t half = n / 2;
    if (sorted[lo + half] < e) lo += half + 1, n -= half + 1;
    else n = half;
  }
  return lo;
}

// The first k of two sorted lists. The whole block calls this, which begins and ends with a barrier.
__device__ inline void merge_sorted(const Entry* a, int64_t na, const Entry* b, int64_t nb, int64_t k, Entry* to) {
  __syncthreads();
  for (int64_t t = threadIdx.x; t < na + nb; t += kExactThreads) {
    const Entry e = t < na ? a[t] : b[t - na];
    const int64_t place = t < na ? t + entries_before(b, nb, e) : t - na + entries_before(a, na, e);
    if (place < k) to[place] = e;
  }
  __syncthreads();
}

__device__ inline void sort_queue(Entry* queue) {
  for (int size = 2; size <= kQueue; size *= 2)
    for (int step = size / 2; step > 0; step /= 2) {
      __syncthreads();
      const int t = threadIdx.x, low = t / step * 2 * step + t % step, high = low + step;
      const bool rising = (low & size) == 0;
      const Entry a = queue[low], b = queue[high];
      if ((b < a) == rising) queue[low] = b, queue[high] = a;
    }
  __syncthreads();
}

// Rows of `only` that are set, or all of them. lists: [blocks][2][k].
template <class T>
__global__ void exact_rows(Search<T> s, int64_t k, const T* scale, const uint8_t* only, Entry* lists, T* distance, int64_t* index) {
  __shared__ Entry queue[kQueue];
  __shared__ int waiting;
  const Points<T>& p = s.points;
  const int64_t first = int64_t(blockIdx.x) * kRowsPerBlock, end = min(first + kRowsPerBlock, p.n);
  for (int64_t i = first; i < end; ++i) {
    if (only && !only[i]) continue;
    Entry *list = lists + int64_t(blockIdx.x) * 2 * k, *next = list + k, last = {kEmpty, kNoColumn};
    int64_t have = 0;
    __syncthreads();
    if (threadIdx.x == 0) waiting = 0;
    __syncthreads();
    for (int64_t base = 0; base < p.m; base += kExactThreads) {
      for (int u = 0; u < kExactThreads; u += kExactThreads / kGroup) {
        const int64_t j = base + u + threadIdx.x / kGroup, real = j < p.m ? j : 0;
        double t = square_distance(p.x + i * p.d, p.y + real * p.d, p.d);
        if (scale) t /= double(scale[real]) * double(scale[real]);
        const Entry e = {to_key(t), uint32_t(j)};
        if (threadIdx.x % kGroup == 0 && j < p.m && !(p.self && i == j) && e < last) queue[atomicAdd(&waiting, 1)] = e;
      }
      __syncthreads();
      const int count = waiting;
      __syncthreads();
      if (count <= kQueue - kExactThreads && base + kExactThreads < p.m) continue;
      for (int t = threadIdx.x; t < kQueue; t += kExactThreads)
        if (t >= count) queue[t] = {kEmpty, kNoColumn};
      if (threadIdx.x == 0) waiting = 0;
      sort_queue(queue);
      merge_sorted(list, have, queue, count, k, next);
      Entry* const was = list;
      list = next, next = was;
      have = min(have + count, k);
      if (have == k) last = list[k - 1];
    }
    for (int64_t q = threadIdx.x; q < k; q += kExactThreads) {
      distance[i * k + q] = T(__dsqrt_rn(from_key(list[q].key)));
      index[i * k + q] = list[q].column;
    }
  }
}

// ---- the whole search ----

template <class T> struct KnnPlan {
  Carve scratch;
  Search<T> search;
  Ranks<T> ranks;
  T* weight;
  Lists<T> lists;
  uint8_t* left;
  Entry* exact;
  int64_t k, blocks;
  bool few;                                          // lists serve k

  KnnPlan(const Call& c, int64_t k_, const T* scale)
      : scratch{static_cast<char*>(c.scratch)}, search(c, c.in[1], scratch), k(k_), few(k <= kMostRanks<4>) {
    const Points<T>& p = search.points;
    const int64_t size = p.n * search.parts;
    weight = scratch.take<T>(scale && few ? p.m : 0);
    ranks = {int(k), scale, scale ? weight : nullptr};
    lists.reach = scratch.take<T>(few ? size : 0);
    lists.low = scratch.take<T>(few ? size * list() : 0);
    lists.column = scratch.take<uint32_t>(few ? size * list() : 0);
    left = scratch.take<uint8_t>(few ? p.n : 0);
    blocks = ceil_div(p.n, kRowsPerBlock);
    exact = scratch.take<Entry>(blocks * 2 * k);
  }
  int64_t list() const { return k <= kMostRanks<1> ? kList<1> : kList<4>; }

  template <int E> void find(const Call& c) const {
    const Points<T>& p = search.points;
    launch(c, find_candidates<T, E>, search.grid(), kTileThreads<T>, candidate_bytes<T, E>(), search, ranks, lists);
    launch(c, finish_rows<T, E>, grid_of(ceil_div(p.n, kFinishThreads / kWarp)), kFinishThreads, 0, search, ranks, lists, out<T>(c, 0),
           out<int64_t>(c, 1), left);
  }
  void run(const Call& c) const {
    const Points<T>& p = search.points;
    if (p.n == 0 || k == 0) return;
    if (few) {
      search.prepare(c);
      if (ranks.scale) launch(c, weigh_columns<T>, grid_of(ceil_div(p.m, 256)), 256, 0, p.m, ranks.scale, weight);
      if (k <= kMostRanks<1>) find<1>(c);
      else find<4>(c);
    }
    launch(c, exact_rows<T>, grid_of(blocks), kExactThreads, 0, search, k, ranks.scale, few ? left : nullptr, exact, out<T>(c, 0),
           out<int64_t>(c, 1));
  }
};

}  // namespace
