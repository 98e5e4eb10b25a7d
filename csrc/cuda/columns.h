// Sums down the columns of (rows, c) matrices, in chunks of rows: what the backward passes of all normalisations share.
//
// A thread has one pack of columns; up to 32 neighbouring threads have neighbouring packs, the others of a block the next
// rows. Chunks depend on the shape of one sample only. Their sums are in double: partial (sample, chunk, 2, c).
#pragma once
#include "packs.h"

namespace {

constexpr int kColumnThreads = 256;
constexpr int kColumnRun = 32;                       // rows added up in T before they go to double

struct ColumnGrid {
  int64_t rows, c;                                   // of a sample
  int lanes, slices;                                 // threads side by side, and one behind the other
  int64_t tiles, chunk, chunks;                      // tiles of columns; rows per chunk, chunks per sample

  int64_t blocks(int64_t n) const { return n * chunks * tiles; }
  int64_t partials(int64_t n) const { return n * chunks * 2 * c; }
};

template <class T> inline ColumnGrid column_grid(int64_t rows, int64_t c) {
  ColumnGrid s{rows, c, 1, 1, 1, 1, 0};
  const int64_t packs = ceil_div(c, kPack<T>);
  while (s.lanes < kWarp && s.lanes < packs) s.lanes *= 2;
  s.slices = kColumnThreads / s.lanes;
  s.tiles = ceil_div(packs, s.lanes);
  const int64_t elements = rows * c >= (1 << 22) ? 16384 : 8192, enough = elements / (s.lanes * kPack<T>), few = ceil_div(rows, 512);
  s.chunk = padded(enough > few ? enough : few, s.slices);
  s.chunks = ceil_div(rows, s.chunk);
  return s;
}

// Where a thread is: a pack of columns from `column` on, of which n are there, and rows begin, begin + slices, ... < end.
template <class T> struct ColumnPlace {
  int64_t sample, chunk, column, n, begin, end;
  int lane, slice;
  __device__ ColumnPlace(const ColumnGrid& s, int64_t block) {
    const int64_t tile = block % s.tiles, rest = block / s.tiles;
    chunk = rest % s.chunks, sample = rest / s.chunks;
    lane = threadIdx.x % s.lanes, slice = threadIdx.x / s.lanes;
    column = (tile * s.lanes + lane) * kPack<T>, n = s.c - column;
    begin = chunk * s.chunk + slice;
    end = (chunk + 1) * s.chunk < s.rows ? (chunk + 1) * s.chunk : s.rows;
  }
};

// f(from, to) halves the slices of a block until one is left: slice `from` is to be added to slice `to`, which is this
// thread's. Between the steps there is a barrier.
template <class F> __device__ inline void halve_slices(int slice, int slices, F f) {
  for (int half = slices / 2; half > 0; half /= 2) {
    __syncthreads();
    if (slice < half) f(slice + half);
  }
}

// The two sums that `f` makes of x and g: f.column(place, lanes) is what it wants to know of a pack of columns (all threads
// call it), f.add(that, x, g, row, s0, s1) adds one row.
template <class T, class F>
__global__ void __launch_bounds__(kColumnThreads, 2)
column_sums(const T* x, const T* g, F f, ColumnGrid s, double* partial, bool wide) {
  constexpr int N = kPack<T>, kAhead = 4;
  __shared__ double sums[2 * N][kColumnThreads];
  const ColumnPlace<T> at(s, blockIdx.x);
  const auto own = f.column(at, s.lanes);
  double total[2 * N] = {};
  T s0[N] = {}, s1[N] = {};
  int held = 0;
  const int64_t first = at.sample * s.rows;
  auto flush = [&] {
    GENERANT_UNROLL
    for (int k = 0; k < N; ++k) total[k] += double(s0[k]), total[N + k] += double(s1[k]), s0[k] = s1[k] = T(0);
    held = 0;
  };
  for (int64_t r = at.begin; r < at.end && at.n > 0; r += kAhead * s.slices) {
    PackOf<T> a[kAhead], b[kAhead];
    const int64_t offset = (first + r) * s.c + at.column;
    GENERANT_UNROLL
    for (int k = 0; k < kAhead; ++k) {
      const int64_t n = r + k * s.slices < at.end ? at.n : 0;
      a[k] = load_pack(x + offset + k * s.slices * s.c, n, wide), b[k] = load_pack(g + offset + k * s.slices * s.c, n, wide);
    }
    GENERANT_UNROLL
    for (int k = 0; k < kAhead; ++k)
      if (r + k * s.slices < at.end) f.add(own, a[k], b[k], first + r + k * s.slices, s0, s1);
    if ((held += kAhead) == kColumnRun) flush();
  }
  flush();
  GENERANT_UNROLL
  for (int k = 0; k < 2 * N; ++k) sums[k][threadIdx.x] = total[k];
  halve_slices(at.slice, s.slices, [&](int from) {
    GENERANT_UNROLL
    for (int k = 0; k < 2 * N; ++k) sums[k][threadIdx.x] += sums[k][from * s.lanes + at.lane];
  });
  if (at.slice != 0) return;
  double* to = partial + (at.sample * s.chunks + at.chunk) * 2 * s.c + at.column;
  each_lane<T>(at.n, [&](int k) { to[k] = sums[k][threadIdx.x], to[s.c + k] = sums[N + k][threadIdx.x]; });
}

// out_i (c) = sum over lines of x (lines, 2, c)[:, i], in a fixed order; an output may be null.
template <class T> __global__ void __launch_bounds__(1024) sum_lines(const double* x, int64_t lines, int64_t c, T* out0, T* out1) {
  __shared__ double sums[2][kWarp][kWarp];
  const int lane = threadIdx.x % kWarp, slice = threadIdx.x / kWarp;
  const int64_t column = int64_t(blockIdx.x) * kWarp + lane;
  double a = 0, b = 0;
  if (column < c)
    for (int64_t i = slice; i < lines; i += kWarp) a += x[2 * i * c + column], b += x[(2 * i + 1) * c + column];
  sums[0][slice][lane] = a, sums[1][slice][lane] = b;
  halve_slices(slice, kWarp, [&](int from) {
    sums[0][slice][lane] += sums[0][from][lane], sums[1][slice][lane] += sums[1][from][lane];
  });
  if (slice == 0 && column < c) {
    if (out0) out0[column] = T(sums[0][0][lane]);
    if (out1) out1[column] = T(sums[1][0][lane]);
  }
}

}  // namespace
