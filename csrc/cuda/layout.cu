// Copies and conversions; see csrc/cpu/layout.cpp.
#include "elementwise.h"

namespace {

struct Same {
  template <class T> __device__ T operator()(T x) const { return x; }
};

}  // namespace

KERNEL(assign_) { map(c, size(c.in[0]), Same{}, static_cast<T*>(c.in[0].data), in<T>(c, 1)); }
