// micro_runs_of() of tile.h, for the unit that compiles it (cpu/matmul.cpp), and for one with terms of its own.
//
// Such a unit declares multiply_add(), broadcast() and VecOf for its type before it includes this.
#pragma once
#include "tile.h"

namespace {

template <class V> inline V multiply_add(V a, V b, V acc) { return fma(a, b, acc); }

}  // namespace

namespace generant::GENERANT_NAMESPACE {

template <class T, int MR, int NV>
static void micro_runs(const T* const* a, const Run* runs, int64_t count, int64_t step, const T* __restrict b,
                       typename Terms<T>::Sum* const* c, int64_t last, bool add) {
  using S = typename Terms<T>::Sum;
  constexpr int L = kLanes<T>;
  vec<S> acc[MR][NV];
  const T* row[MR];
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i) {
    row[i] = a[i];
#pragma GCC unroll 8
    for (int j = 0; j < NV; ++j) {
      acc[i][j] = vec<S>{};
      __builtin_prefetch(c[i] + j * L, 1);
    }
  }
  for (int64_t r = 0; r < count; ++r) {
    const int64_t end = runs[r].offset + runs[r].length * step;
    for (int64_t p = runs[r].offset; p != end; p += step) {
      vec<T> bv[NV];
#pragma GCC unroll 8
      for (int j = 0; j < NV; ++j) bv[j] = load(b + j * L);
#pragma GCC unroll 16
      for (int i = 0; i < MR; ++i) {
        const vec<T> av = broadcast(row[i][p]);
#pragma GCC unroll 8
        for (int j = 0; j < NV; ++j) acc[i][j] = multiply_add(av, bv[j], acc[i][j]);
      }
      b += kTileCols<T>;
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < NV; ++j) {
      S* q = c[i] + j * L;
      if (j < NV - 1 || last == L) store(q, add ? load(q) + acc[i][j] : acc[i][j]);
      else store_first(q, add ? load_first(q, last) + acc[i][j] : acc[i][j], last);
    }
  }
}

template <class T, int NV> MicroRuns<T> micro_runs_of(int64_t rows) {
#define GENERANT_ROWS_(r) case r: return micro_runs<T, r, NV>;
  switch (rows) {
    GENERANT_ROWS_(1) GENERANT_ROWS_(2) GENERANT_ROWS_(3) GENERANT_ROWS_(4) GENERANT_ROWS_(5)
#if defined(__AVX512F__)
    GENERANT_ROWS_(6) GENERANT_ROWS_(7) GENERANT_ROWS_(8) GENERANT_ROWS_(9) GENERANT_ROWS_(10) GENERANT_ROWS_(11)
#endif
    default: return micro_runs<T, kTileRows, NV>;
  }
#undef GENERANT_ROWS_
}

}  // namespace generant::GENERANT_NAMESPACE
