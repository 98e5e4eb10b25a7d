// The block products that attention is made of, and the packing around them.
//
// Queries lie in the lanes: a panel is kTileCols queries (two vectors), and everything that belongs to it is a matrix of
// so many columns: q^T (d rows), scores (one row per key), out^T (e rows). Row maxima and sums over the keys are then
// sums of vectors, without a horizontal step, scores are at once the right operand of the next product, and keys and
// values are broadcast from rows as they lie in memory.
//
// A product walks down a panel in tiles of kTileRows x kTileCols that stay in registers over the contracted index; what
// becomes of a tile is up to the functor. Every element is one chain of fma from zero in rising index, whatever the tile.
// Operands are numbers, or pairs of bfloat16 (gemm_bf16.h), whose `fma` is a dot product.
#pragma once
#include "gemm_bf16.h"

namespace {

// What becomes of finished tiles.
template <class T> struct StoreMax {                 // keeps the largest of every column
  vec<T> top[2];
  template <int MR> __attribute__((always_inline)) void operator()(vec<T> (&acc)[MR][2], T* c, int64_t ldc) {
    vec<T> m0 = top[0], m1 = top[1];
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i) {
      store(c + i * ldc, acc[i][0]);
      store(c + i * ldc + kLanes<T>, acc[i][1]);
      m0 = vmax(acc[i][0], m0);
      m1 = vmax(acc[i][1], m1);
    }
    top[0] = m0, top[1] = m1;
  }
};
template <class T> struct Store {
  template <int MR> __attribute__((always_inline)) void operator()(vec<T> (&acc)[MR][2], T* c, int64_t ldc) {
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i) store(c + i * ldc, acc[i][0]), store(c + i * ldc + kLanes<T>, acc[i][1]);
  }
};
template <class T> struct ScaleAdd {                 // c = factor c + tile
  vec<T> factor[2];
  template <int MR> __attribute__((always_inline)) void operator()(vec<T> (&acc)[MR][2], T* c, int64_t ldc) {
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i) {
      store(c + i * ldc, fma(load(c + i * ldc), factor[0], acc[i][0]));
      store(c + i * ldc + kLanes<T>, fma(load(c + i * ldc + kLanes<T>), factor[1], acc[i][1]));
    }
  }
};
template <class T> struct Add {
  template <int MR> __attribute__((always_inline)) void operator()(vec<T> (&acc)[MR][2], T* c, int64_t ldc) {
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i) {
      store(c + i * ldc, load(c + i * ldc) + acc[i][0]);
      store(c + i * ldc + kLanes<T>, load(c + i * ldc + kLanes<T>) + acc[i][1]);
    }
  }
};

inline vf fma(pairs a, pairs b, vf c) { return dot_pairs(c, a, b); }

// `count` tiles of MR rows each. kRows: a(i, p) = a[i * lda + p], else a[p * lda + i].
template <class T, int MR, bool kRows, class A, class F>
__attribute__((noinline)) static void tiles(int64_t count, int64_t k, const A* __restrict a, int64_t lda,
                                            const A* __restrict b, int64_t ldb, T* __restrict c, int64_t ldc, F& out) {
  constexpr int L = kLanes<T>;
  F f = out;
  for (int64_t t = 0; t < count; ++t) {
    vec<T> acc[MR][2] = {};
    const A *pa = a, *pb = b;
    for (int64_t p = 0; p < k; ++p) {
      const vec<A> b0 = load(pb), b1 = load(pb + L);
#pragma GCC unroll 16
      for (int i = 0; i < MR; ++i) {
        const vec<A> av = broadcast(kRows ? pa[i * lda] : pa[i]);
        acc[i][0] = fma(av, b0, acc[i][0]);
        acc[i][1] = fma(av, b1, acc[i][1]);
      }
      pa += kRows ? 1 : lda;
      pb += ldb;
    }
    f.template operator()<MR>(acc, c, ldc);
    a += kRows ? MR * lda : MR;
    c += MR * ldc;
  }
  out = f;
}

template <class T, bool kRows, class A, class F>
static void tiles_of(int64_t rows, int64_t count, int64_t k, const A* a, int64_t lda, const A* b, int64_t ldb, T* c,
                     int64_t ldc, F& out) {
#define GENERANT_ROWS_(r) case r: return tiles<T, r, kRows>(count, k, a, lda, b, ldb, c, ldc, out);
  switch (rows) {
    GENERANT_ROWS_(1) GENERANT_ROWS_(2) GENERANT_ROWS_(3) GENERANT_ROWS_(4) GENERANT_ROWS_(5)
#if defined(__AVX512F__)
    GENERANT_ROWS_(6) GENERANT_ROWS_(7) GENERANT_ROWS_(8) GENERANT_ROWS_(9) GENERANT_ROWS_(10) GENERANT_ROWS_(11)
#endif
    default: return tiles<T, kTileRows, kRows>(count, k, a, lda, b, ldb, c, ldc, out);
  }
#undef GENERANT_ROWS_
}

// One panel: out(c[m][kTileCols], a b) with a (m, k) and b (k, kTileCols). Tiles differ by at most one row.
template <class T, bool kRows, class A, class F>
static void multiply(int64_t m, int64_t k, const A* a, int64_t lda, const A* b, int64_t ldb, T* c, int64_t ldc,
                     F& out) {
  if (m == 0) return;
  const int64_t count = ceil_div(m, kTileRows), rows = m / count, larger = m % count;
  if (larger) {
    tiles_of<T, kRows>(rows + 1, larger, k, a, lda, b, ldb, c, ldc, out);
    a += larger * (rows + 1) * (kRows ? lda : 1);
    c += larger * (rows + 1) * ldc;
  }
  tiles_of<T, kRows>(rows, count - larger, k, a, lda, b, ldb, c, ldc, out);
}

// ---- packing -----------------------------------------------------------------------------------------------------

template <class T> inline vec<T> load_up_to(const T* p, int64_t n) {
  return n >= kLanes<T> ? load(p) : load_first(p, n < 0 ? 0 : n);
}
template <class T> inline void store_up_to(T* p, vec<T> v, int64_t n) {
  if (n >= kLanes<T>) store(p, v);
  else if (n > 0) store_first(p, v, n);
}

// to[i][0..width) = from[i * ld + ..], width numbers each, rows of `to_ld`; columns from width on become zero.
template <class T>
static void copy_rows(int64_t rows, int64_t width, const T* from, int64_t ld, T* to, int64_t to_ld) {
  constexpr int L = kLanes<T>;
  for (int64_t i = 0; i < rows; ++i, from += ld, to += to_ld) {
    int64_t c = 0;
    for (; c + L <= width; c += L) store(to + c, load(from + c));
    if (c < width) {
      if (c + L <= to_ld) store(to + c, load_first(from + c, width - c)), c += L;
      else store_first(to + c, load_first(from + c, width - c), width - c), c = to_ld;
    }
    for (; c + L <= to_ld; c += L) store(to + c, vec<T>{});
  }
}

// A panel: to[p][i] = factor from[i * ld + p] for i < rows, zero for rows <= i < kTileCols; p < k.
template <class T>
static void pack_panel(int64_t k, const T* from, int64_t ld, int64_t rows, T factor, T* to) {
  constexpr int L = kLanes<T>, W = kTileCols<T>;
  const vec<T> f = broadcast(factor);
  for (int64_t i = 0; i < W; i += L) {
    const int64_t n = rows - i < 0 ? 0 : rows - i;
    for (int64_t p = 0; p < k; p += L) {
      const int64_t left = k - p;
      const T* q = from + i * ld + p;
      vec<T> r[L];
      if (n >= L && left >= L) {
#pragma GCC unroll 16
        for (int s = 0; s < L; ++s) r[s] = load(q + s * ld) * f;
      } else {
#pragma GCC unroll 16
        for (int s = 0; s < L; ++s) r[s] = s < n ? load_up_to(q + s * ld, left) * f : vec<T>{};
      }
      transpose<T>(r);
      T* o = to + p * W + i;
#pragma GCC unroll 16
      for (int s = 0; s < L; ++s)
        if (s < left) store(o + s * W, r[s]);
    }
  }
}

// The way back: to[i * ld + p] = factor[i] from[p][i] for i < rows, p < k.
template <class T>
static void unpack_panel(int64_t k, const T* from, const vec<T>* factor, int64_t rows, T* to, int64_t ld) {
  constexpr int L = kLanes<T>, W = kTileCols<T>;
  for (int64_t i = 0; i < rows; i += L)
    for (int64_t p = 0; p < k; p += L) {
      const int64_t left = k - p;
      const T* o = from + p * W + i;
      vec<T> r[L];
#pragma GCC unroll 16
      for (int s = 0; s < L; ++s) r[s] = s < left ? load(o + s * W) * factor[i / L] : vec<T>{};
      transpose<T>(r);
      T* q = to + i * ld + p;
#pragma GCC unroll 16
      for (int s = 0; s < L; ++s)
        if (i + s < rows) store_up_to(q + s * ld, r[s], left);
    }
}

}  // namespace
