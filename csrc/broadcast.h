// Walking broadcast operands in the order of a dense output.
//
// A Broadcast merges neighbouring dimensions wherever both operands allow it, so that most cases end as one row loop:
// equal shapes are one dimension of step 1, a bias is (rows, d) with steps (0, 1), a column is steps (1, 0). Operands
// whose inner dimension is short are first spread into a small buffer, so that (n, 3) + (3) runs on full vectors.
#pragma once
#include "kernel.h"
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

struct Broadcast {
  int ndim = 0;                              // merged dimensions, outermost first
  int64_t shape[generant::kMaxDims + 1];
  int64_t step[2][generant::kMaxDims + 1];   // of each operand, 0 where it is broadcast

  // y has the broadcast shape of operands a and b (pass the same array twice if there is only one).
  __attribute__((noinline)) Broadcast(const Array& a, const Array& b, const Array& y) {
    const Array* operand[2] = {&a, &b};
    int64_t full[2] = {1, 1};                // elements to the right of the dimension
    // Built innermost first, reversed below.
    for (int r = 0; r < y.ndim; ++r) {
      const int64_t n = y.shape[y.ndim - 1 - r];
      int64_t s[2];
      for (int k = 0; k < 2; ++k) {
        const int64_t own = r < operand[k]->ndim ? operand[k]->shape[operand[k]->ndim - 1 - r] : 1;
        s[k] = own == 1 ? 0 : full[k];
        full[k] *= own;
      }
      if (n == 1) continue;
      if (ndim > 0 && s[0] == step[0][ndim - 1] * shape[ndim - 1] && s[1] == step[1][ndim - 1] * shape[ndim - 1]) {
        shape[ndim - 1] *= n;
      } else {
        shape[ndim] = n, step[0][ndim] = s[0], step[1][ndim] = s[1];
        ++ndim;
      }
    }
    if (ndim == 0) shape[0] = 1, step[0][0] = 0, step[1][0] = 0, ndim = 1;
    for (int i = 0, j = ndim - 1; i < j; ++i, --j) {
      swap(shape[i], shape[j]);
      swap(step[0][i], step[0][j]);
      swap(step[1][i], step[1][j]);
    }
  }

  static void swap(int64_t& a, int64_t& b) { const int64_t t = a; a = b, b = t; }
  int64_t inner() const { return shape[ndim - 1]; }
  int64_t inner_step(int k) const { return step[k][ndim - 1]; }

  // Offset of operand k at flat output index i.
  int64_t offset(int k, int64_t i) const {
    int64_t at = 0;
    for (int j = ndim - 1; j >= 0; --j) {
      at += i % shape[j] * step[k][j];
      i /= shape[j];
    }
    return at;
  }

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
