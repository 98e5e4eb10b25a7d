// A permutation of axes in its fewest: axes of one element are dropped, neighbours that stay neighbours are merged.
#pragma once
#include "host_device.h"
#include "kernel.h"

namespace {

struct Permutation {                                // in the order of the output
  int ndim = 0;
  int64_t shape[generant::kMaxDims], from[generant::kMaxDims], to[generant::kMaxDims];  // elements in one step, in the input and in the output

  // attr: NaN for the axes reversed, or their number and the axes.
  Permutation(const Array& x, const double* attr) {
    int64_t step[generant::kMaxDims + 1];
    step[x.ndim] = 1;
    for (int i = x.ndim; i-- > 0;) step[i] = step[i + 1] * x.shape[i];
    for (int i = 0; i < x.ndim; ++i) {
      const int given = attr[0] == attr[0] ? int(attr[1 + i]) : -1 - i, axis = given < 0 ? given + x.ndim : given;
      const int64_t n = x.shape[axis];
      if (n == 1) continue;
      if (ndim > 0 && from[ndim - 1] == step[axis]) shape[ndim - 1] *= n;
      else shape[ndim++] = n;
      from[ndim - 1] = step[axis + 1];
    }
    if (ndim == 0) shape[0] = 1, from[0] = 1, ndim = 1;
    int64_t n = 1;
    for (int i = ndim; i-- > 0; n *= shape[i]) to[i] = n;
  }

  // The axis that is last in the input.
  int last_of_input() const {
    int j = 0;
    while (from[j] != 1) ++j;
    return j;
  }

  // Adds the offsets of place i among all axes but the last and `without`.
  HOST_DEVICE void locate(int64_t i, int without, int64_t& a, int64_t& b) const {
    for (int k = ndim - 1; k-- > 0;) {
      if (k == without) continue;
      const int64_t rest = i / shape[k], index = i - rest * shape[k];
      a += index * from[k], b += index * to[k];
      i = rest;
    }
  }
};

}  // namespace
