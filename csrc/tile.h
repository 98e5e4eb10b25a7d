// The tile of all matrix products and convolutions: its size, and the micro-kernels that hold it in registers.
//
// The micro-kernels are large, so they are compiled once per instruction set, in cpu/matmul.cpp (micro.h).
#pragma once
#include "kernel.h"
#include "simd.h"

namespace generant::GENERANT_NAMESPACE {

#if defined(__AVX512F__)
constexpr int kTileRows = 12, kFewRows = 3;  // 24 accumulators + 2 of B + 1 of A in 32 registers
#else
constexpr int kTileRows = 6, kFewRows = 1;   // 12 accumulators + 2 of B + 1 of A (+ 1 product without FMA) in 16
#endif
template <class T> constexpr int kTileCols = 2 * kLanes<T>;
template <class T> constexpr int kWideCols = 8 * kLanes<T>;  // of the tile for few rows, which only streams B
// A packed tile of A has its rows of kTileRows numbers padded to whole vectors: aligned stores of full cache lines are
// several times faster than dense ones that straddle lines.
template <class T> constexpr int kTileStride = (kTileRows + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
#if defined(__AVX512F__)
constexpr bool kPadEdge = false;
#else
constexpr bool kPadEdge = true;            // no masked loads: a ragged panel of B is always packed, with zeros
#endif

// (k, a, lda, b, ldb, c, ldc, last, add, next, step):
// c[rows][n] (+)= sum_p a(i, p) b[p][n], n <= NV vectors, of which the last holds `last` columns.
// kRows: a(i, p) = a[i * lda + p], else a[p * lda + i]. Unless NV = 8, the k lines next[p * step] are fetched meanwhile, one
// at a time: a burst of them would hold up the loads.
template <class T>
using Micro = void (*)(int64_t, const T*, int64_t, const T*, int64_t, T*, int64_t, int64_t, bool, const T*, int64_t);
// For a tile of 1 <= rows <= kTileRows (NV = 8: kFewRows); NV = 1, 2 or 8.
template <class T, int NV, bool kRows> Micro<T> micro_of(int64_t rows);

// What a run holds: numbers, or (conv_bf16.cpp) pairs of them. A pair counts as one term of a sum.
template <class T> struct Terms {
  using Sum = T;
  static constexpr bool kNumbers = true;
  static constexpr int64_t count(int64_t numbers) { return numbers; }
};

struct Run {
  int64_t offset, length;  // numbers offset, offset + step, ... of every row
};

// (a, runs, count, step, b, c, last, add):
// c[rows][n] (+)= sum over the runs and p < length of a[i][offset + p * step] b[.][n]; the rows of b follow each other,
// kTileCols apart. n <= NV <= 2 vectors, of which the last holds `last` columns. One chain of fma per element.
template <class T>
using MicroRuns = void (*)(const T* const*, const Run*, int64_t, int64_t, const T*, typename Terms<T>::Sum* const*, int64_t,
                           bool);
template <class T, int NV> MicroRuns<T> micro_runs_of(int64_t rows);

// to[p][i] = from[i * ld + p] for i < w, zero for w <= i < width, a multiple of the vector. `next` rows further on the
// caller will want the next tile.
template <class T>
void pack_transpose(int64_t k, const T* from, int64_t ld, int64_t w, int64_t width, int64_t next, T* to);

}  // namespace generant::GENERANT_NAMESPACE

namespace {

[[maybe_unused]] inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// Tiles of the rows [0, m): sizes differ by at most one, so no tile is much less efficient than the others.
[[maybe_unused]] inline int64_t tile_start(int64_t m, int64_t tiles, int64_t i) { return m / tiles * i + least(i, m % tiles); }

// to[p][i] = from[p * ld + i] for i < w, zero for w <= i < width, a multiple of the vector.
template <class T> static void pack_copy(int64_t k, const T* from, int64_t ld, int64_t w, int64_t width, T* to) {
  constexpr int L = kLanes<T>;
  for (int64_t p = 0; p < k; ++p, from += ld, to += width)
    for (int64_t i = 0; i < width; i += L) {
      const int64_t left = w - i;
      store(to + i, left >= L ? load(from + i) : load_first(from + i, left < 0 ? 0 : left));
    }
}

}  // namespace
