// Walking broadcast operands in the order of a dense output.
//
// Dimensions are merged first (merged_dims.h), so that most cases end as one row loop. Operands whose inner dimension is
// short are spread into a small buffer, so that (n, 3) + (3) runs on full vectors.
#pragma once
#include "merged_dims.h"
#include "simd.h"

namespace {

constexpr int64_t kSpread = 1024;            // elements of a spread buffer
constexpr int64_t kShortRow = 64;            // below this inner size operands are spread

// Written in vectors, as -O2 leaves such loops scalar.
template <class T> inline void fill_row(T* to, T value, int64_t n) {
  constexpr int L = kLanes<T>;
  const vec<T> v = broadcast(value);
  int64_t j = 0;
  for (; j + L <= n; j += L) store(to + j, v);
  for (; j < n; ++j) to[j] = value;
}
template <class T> inline void copy_row(T* to, const T* from, int64_t n) {
  constexpr int L = kLanes<T>;
  int64_t j = 0;
  for (; j + L <= n; j += L) store(to + j, load(from + j));
  for (; j < n; ++j) to[j] = from[j];
}

struct Broadcast : MergedDims {
  using MergedDims::MergedDims;

  // Copies operand k at flat output indices [begin, begin + n) to `to`.
  template <class T>
  __attribute__((noinline)) void spread(int k, const T* from, int64_t begin, int64_t n, T* to) const {
    int64_t index[generant::kMaxDims + 1], rest = begin, at = 0;
    for (int j = ndim - 1; j >= 0; --j) {
      index[j] = rest % shape[j];
      rest /= shape[j];
      at += index[j] * step[k][j];
    }
    const int64_t inner_n = inner(), s = inner_step(k);
    int64_t i = 0;
    while (i < n) {
      int64_t run = inner_n - index[ndim - 1];
      if (run > n - i) run = n - i;
      if (s == 0) fill_row(to + i, from[at], run);
      else copy_row(to + i, from + at, run);   // operands are dense: the innermost step is 1
      i += run;
      at += run * s;
      index[ndim - 1] += run;
      for (int j = ndim - 1; j >= 0 && index[j] == shape[j]; --j) {
        at -= shape[j] * step[k][j];
        index[j] = 0;
        if (j > 0) at += step[k][j - 1], ++index[j - 1];
      }
    }
  }
};

}  // namespace
