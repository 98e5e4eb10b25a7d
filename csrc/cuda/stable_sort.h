// Positions 0 ... n - 1 sorted stably by keys in 0 ... limit: a radix sort by eight bits, whose result does not depend on
// the order in which blocks run.
//
// A pass counts the digits of every tile, sums the counts over tiles and digits, and moves the positions of a tile to where
// their digit's numbers begin, in order: lanes with the same digit find their rank by ballots.
#pragma once
#include "block.h"

namespace {

constexpr int kSortThreads = 256, kDigits = 256, kSortSteps = 8, kSumCountsThreads = 1024;
constexpr int64_t kSortTile = int64_t(kSortThreads) * kSortSteps;

struct SortScratch {                         // what a sort of n positions needs
  int64_t n, tiles;
  explicit SortScratch(int64_t n) : n(n), tiles(ceil_div(n, kSortTile)) {}
  int64_t bytes() const { return 4 * (4 * n + kDigits * tiles); }
};

struct Sorted { uint32_t *keys, *positions, *other_keys, *other_positions; };

// Counts of digits, digit by digit and then tile by tile.
__global__ void count_digits_kernel(int64_t n, int64_t tiles, int shift, const uint32_t* keys, uint32_t* counts) {
  __shared__ uint32_t count[kDigits];
  count[threadIdx.x] = 0;
  __syncthreads();
  const int64_t begin = int64_t(blockIdx.x) * kSortTile;
  for (int k = 0; k < kSortSteps; ++k) {
    const int64_t i = begin + k * kSortThreads + threadIdx.x;
    if (i < n) atomicAdd(&count[keys[i] >> shift & (kDigits - 1)], 1u);
  }
  __syncthreads();
  counts[threadIdx.x * tiles + blockIdx.x] = count[threadIdx.x];
}

// counts[i] = the sum of those before i; one block.
__global__ void __launch_bounds__(kSumCountsThreads) sum_counts_kernel(int64_t n, uint32_t* counts) {
  __shared__ uint32_t warp_total[kWarp];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
  uint32_t before = 0;
  for (int64_t begin = 0; begin < n; begin += blockDim.x) {
    const int64_t i = begin + threadIdx.x;
    const uint32_t own = i < n ? counts[i] : 0;
    uint32_t sum = own;                      // of the lanes up to this one
    for (int delta = 1; delta < kWarp; delta *= 2) {
      const uint32_t other = __shfl_up_sync(0xffffffffu, sum, delta);
      if (lane >= delta) sum += other;
    }
    if (lane == kWarp - 1) warp_total[warp] = sum;
    __syncthreads();
    uint32_t all = 0;
    for (int w = 0; w < warps; ++w) {
      if (w == warp) sum += all;
      all += warp_total[w];
    }
    if (i < n) counts[i] = before + sum - own;
    before += all;
    __syncthreads();
  }
}

__global__ void move_kernel(int64_t n, int64_t tiles, int shift, const uint32_t* keys, const uint32_t* positions, const uint32_t* begins,
                            uint32_t* to_keys, uint32_t* to_positions) {
  constexpr int kWarps = kSortThreads / kWarp;
  __shared__ uint32_t next[kDigits], of_warp[kWarps][kDigits];
  const int t = threadIdx.x, lane = t % kWarp, warp = t / kWarp;
  next[t] = begins[t * tiles + blockIdx.x];
  for (int k = 0; k < kSortSteps; ++k) {
    for (int w = 0; w < kWarps; ++w) of_warp[w][t] = 0;
    __syncthreads();
    const int64_t i = int64_t(blockIdx.x) * kSortTile + k * kSortThreads + t;
    const bool there = i < n;
    const uint32_t key = there ? keys[i] : 0, digit = key >> shift & (kDigits - 1);
    unsigned same = __ballot_sync(0xffffffffu, there);
    for (int b = 0; b < 8; ++b) {
      const unsigned set = __ballot_sync(0xffffffffu, digit >> b & 1);
      same &= digit >> b & 1 ? set : ~set;
    }
    const int rank = __popc(same & ((1u << lane) - 1));
    if (there && rank == 0) of_warp[warp][digit] = __popc(same);
    __syncthreads();
    uint32_t at = next[t];                   // thread t has digit t: places of the warps, one after the other
    for (int w = 0; w < kWarps; ++w) {
      const uint32_t count = of_warp[w][t];
      of_warp[w][t] = at;
      at += count;
    }
    next[t] = at;
    __syncthreads();
    if (there) {
      const uint32_t to = of_warp[warp][digit] + rank;
      to_keys[to] = key;
      to_positions[to] = positions ? positions[i] : uint32_t(i);
    }
    __syncthreads();
  }
}

// key(i) is a __device__ function; n < 2^32. The result is in keys and positions of what is returned.
template <class Key> __global__ void keys_kernel(int64_t n, Key key, uint32_t* keys) {
  const int64_t i = global_thread();
  if (i < n) keys[i] = key(i);
}

template <class Key> inline Sorted sort_positions(const Call& c, int64_t n, uint32_t limit, Key key, void* scratch) {
  const SortScratch s(n);
  uint32_t* u = static_cast<uint32_t*>(scratch);
  Sorted a{u, u + n, u + 2 * n, u + 3 * n};
  uint32_t* counts = u + 4 * n;
  launch(c, keys_kernel<Key>, grid_of(ceil_div(n, kSortThreads)), kSortThreads, 0, n, key, a.keys);
  for (int shift = 0; shift == 0 || (shift < 32 && limit >> shift); shift += 8) {
    launch(c, count_digits_kernel, grid_of(s.tiles), kSortThreads, 0, n, s.tiles, shift, a.keys, counts);
    launch(c, sum_counts_kernel, 1, kSumCountsThreads, 0, kDigits * s.tiles, counts);
    launch(c, move_kernel, grid_of(s.tiles), kSortThreads, 0, n, s.tiles, shift, a.keys, shift ? a.positions : nullptr, counts,
           a.other_keys, a.other_positions);
    a = {a.other_keys, a.other_positions, a.keys, a.positions};
  }
  return a;
}

}  // namespace
