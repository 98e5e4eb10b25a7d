// The dimensions of two broadcast operands in the order of a dense output, merged wherever both operands allow it.
//
// Most cases end as one row: equal shapes are one dimension of step 1, a bias is (rows, d) with steps (0, 1), a column is
// steps (1, 0). Host and device share this.
#pragma once
#include "kernel.h"

namespace {

struct MergedDims {
  int ndim = 0;                              // merged dimensions, outermost first
  int64_t shape[generant::kMaxDims + 1];
  int64_t step[2][generant::kMaxDims + 1];   // of each operand, 0 where it is broadcast

  // y has the broadcast shape of operands a and b (pass the same array twice if there is only one).
  __attribute__((noinline)) MergedDims(const Array& a, const Array& b, const Array& y) {
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
};

}  // namespace
