// Sums over runs of elements: one per sample, or one of everything. float32 terms of a pack are added in float32, packs
// and all else in double, in an order that depends on the lengths only.
#pragma once
#include "packs.h"

namespace {

constexpr int64_t kRun = 16384;                      // elements one block sums
constexpr int64_t kShortRun = 1024;                  // up to which a few lanes sum a sample
constexpr int kSumThreads = 256;

inline int64_t runs_of(int64_t each) { return each > 0 ? ceil_div(each, kRun) : 1; }
// Scratch for sums over `samples` samples of `each` elements.
inline int64_t sums_bytes(int64_t samples, int64_t each) {
  return runs_of(each) > 1 ? samples * runs_of(each) * int64_t(sizeof(double)) : 0;
}

template <class T> __device__ inline double pack_sum(const PackOf<T>& v, int64_t n) {
  T sum = T(0);
  each_lane<T>(n, [&](int k) { sum += v.v[k]; });
  return double(sum);
}

// One block per run. terms(j, n): the terms of elements j ... j + n - 1, at most a pack of them.
template <class T, class Terms, class Finish>
__global__ void __launch_bounds__(kSumThreads) run_sums(Terms terms, Finish finish, int64_t each, int64_t runs, double* partial) {
  __shared__ double shared[kWarp];
  constexpr int kAhead = sizeof(T) == 4 ? 4 : 2, N = kPack<T>, step = kSumThreads * N;
  const int64_t i = blockIdx.x / runs, run = blockIdx.x % runs, base = i * each;
  const int64_t end = (run + 1) * kRun < each ? (run + 1) * kRun : each;
  double sum = 0;
  for (int64_t j = run * kRun + threadIdx.x * N; j < end; j += kAhead * step) {
    PackOf<T> v[kAhead];
    GENERANT_UNROLL
    for (int k = 0; k < kAhead; ++k) v[k] = terms(base + j + k * step, end - j - k * step);
    GENERANT_UNROLL
    for (int k = 0; k < kAhead; ++k) sum += pack_sum<T>(v[k], end - j - k * step);
  }
  sum = block_sum(sum, shared);
  if (threadIdx.x != 0) return;
  if (runs > 1) partial[blockIdx.x] = sum;
  else finish(i, sum);
}

// `lanes` neighbouring lanes per sample.
template <class T, class Terms, class Finish>
__global__ void __launch_bounds__(kSumThreads) short_sums(Terms terms, Finish finish, int64_t samples, int64_t each, int lanes) {
  constexpr int N = kPack<T>;
  const int64_t i = global_thread() / lanes;
  double sum = 0;
  for (int64_t j = threadIdx.x % lanes * N; i < samples && j < each; j += lanes * N)
    sum += pack_sum<T>(terms(i * each + j, each - j), each - j);
  sum = warp_sum(sum, lanes);
  if (i < samples && threadIdx.x % lanes == 0) finish(i, sum);
}

// finish(i, sum of the n numbers of line i), one block per line.
template <class Finish> __global__ void __launch_bounds__(kSumThreads) line_sums(const double* x, int64_t n, Finish finish) {
  __shared__ double shared[kWarp];
  double sum = 0;
  for (int64_t j = threadIdx.x; j < n; j += kSumThreads) sum += x[blockIdx.x * n + j];
  sum = block_sum(sum, shared);
  if (threadIdx.x == 0) finish(int64_t(blockIdx.x), sum);
}

// finish(i, sum of terms) for every sample. partial: sums_bytes() of scratch.
template <class T, class Terms, class Finish>
inline void sums(const Call& c, int64_t samples, int64_t each, Terms terms, Finish finish, double* partial) {
  if (each <= kShortRun) {
    int lanes = 1;
    while (lanes < kWarp && lanes * kPack<T> < each) lanes *= 2;
    return launch(c, short_sums<T, Terms, Finish>, grid_of(ceil_div(samples, kSumThreads / lanes)), kSumThreads, 0, terms, finish, samples,
                  each, lanes);
  }
  const int64_t runs = runs_of(each);
  launch(c, run_sums<T, Terms, Finish>, grid_of(samples * runs), kSumThreads, 0, terms, finish, each, runs, partial);
  if (runs > 1) launch(c, line_sums<Finish>, grid_of(samples), kSumThreads, 0, partial, runs, finish);
}

}  // namespace
