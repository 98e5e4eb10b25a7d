// What tile.h declares; include it in one unit only.
#pragma once
#include "tile.h"
#include "transpose.h"

namespace generant::GENERANT_NAMESPACE {

// c[MR][n] (+)= sum_p a(i, p) b[p][n], n <= NV vectors, of which the last holds `last` columns.
// kRows: a(i, p) = a[i * lda + p], else a[p * lda + i].
template <class T, int MR, int NV, bool kRows>
static void micro(int64_t k, const T* __restrict a, int64_t lda, const T* __restrict b, int64_t ldb, T* __restrict c,
                  int64_t ldc, int64_t last, bool add, [[maybe_unused]] const T* next, [[maybe_unused]] int64_t step) {
  constexpr int L = kLanes<T>;
  vec<T> acc[MR][NV];
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < NV; ++j) {
      acc[i][j] = vec<T>{};
      __builtin_prefetch(c + i * ldc + j * L, 1);
    }
  }
  for (int64_t p = 0; p < k; ++p) {
    vec<T> bv[NV];
#pragma GCC unroll 8
    for (int j = 0; j < NV - 1; ++j) bv[j] = load(b + j * L);
#if defined(__AVX512F__)
    bv[NV - 1] = load_first(b + (NV - 1) * L, last);
#else
    bv[NV - 1] = load(b + (NV - 1) * L);
#endif
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i) {
      const vec<T> av = broadcast(kRows ? a[i * lda] : a[i]);
#pragma GCC unroll 8
      for (int j = 0; j < NV; ++j) acc[i][j] = fma(av, bv[j], acc[i][j]);
    }
    if constexpr (NV <= 2) {
      __builtin_prefetch(next);
      next += step;
    }
    a += kRows ? 1 : lda;
    b += ldb;
  }
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i) {
    T* row = c + i * ldc;
#pragma GCC unroll 8
    for (int j = 0; j < NV; ++j) {
      T* q = row + j * L;
      if (j < NV - 1) store(q, add ? load(q) + acc[i][j] : acc[i][j]);
      else if (last == L) store(q, add ? load(q) + acc[i][j] : acc[i][j]);
      else store_first(q, add ? load_first(q, last) + acc[i][j] : acc[i][j], last);
    }
  }
}

template <class T, int NV, bool kRows> Micro<T> micro_of(int64_t rows) {
  if constexpr (NV > 2) {
#if defined(__AVX512F__)
    if (rows == 2) return micro<T, 2, NV, kRows>;
    if (rows == 3) return micro<T, 3, NV, kRows>;
#endif
    return micro<T, 1, NV, kRows>;
  }
#define GENERANT_ROWS_(r) case r: return micro<T, r, NV, kRows>;
  switch (rows) {
    GENERANT_ROWS_(1) GENERANT_ROWS_(2) GENERANT_ROWS_(3) GENERANT_ROWS_(4) GENERANT_ROWS_(5)
#if defined(__AVX512F__)
    GENERANT_ROWS_(6) GENERANT_ROWS_(7) GENERANT_ROWS_(8) GENERANT_ROWS_(9) GENERANT_ROWS_(10) GENERANT_ROWS_(11)
#endif
    default: return micro<T, kTileRows, NV, kRows>;
  }
#undef GENERANT_ROWS_
}

template <class T>
void pack_transpose(int64_t k, const T* from, int64_t ld, int64_t w, int64_t width, int64_t next, T* to) {
  constexpr int L = kLanes<T>;
  for (int64_t i = 0; i < width; i += L) {
    const int64_t left = w - i, n = left < 0 ? 0 : left < L ? left : L;
    for (int64_t p = 0; p < k; p += L) {
      const int64_t rows = k - p < L ? k - p : L;
      const T* q = from + i * ld + p;
      T* o = to + p * width + i;
      vec<T> r[L];
#pragma GCC unroll 16
      for (int s = 0; s < L; ++s) {
        r[s] = s >= n ? vec<T>{} : rows == L ? load(q + s * ld) : load_first(q + s * ld, rows);
        __builtin_prefetch(q + (next + s) * ld);
      }
      transpose<T>(r);
#pragma GCC unroll 16
      for (int s = 0; s < L; ++s)
        if (s < rows) store(o + s * width, r[s]);
    }
  }
}

}  // namespace generant::GENERANT_NAMESPACE
