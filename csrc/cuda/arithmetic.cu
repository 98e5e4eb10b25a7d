// a op b with broadcasting (broadcast.h).
#include "broadcast.h"

#define BINARY(op, Name, expression)                                                    \
  namespace {                                                                           \
  struct Name {                                                                         \
    template <class T> __device__ T operator()(T a, T b) const { return expression; }   \
  };                                                                                    \
  }                                                                                     \
  KERNEL(op) { broadcast_map<T>(c, c.in[0], c.in[1], Name{}); }

BINARY(add, Add, a + b)
BINARY(sub, Subtract, a - b)
BINARY(mul, Multiply, a * b)
BINARY(div, Divide, a / b)
BINARY(maximum, Larger, a > b || a != a ? a : b)
BINARY(minimum, Smaller, a < b || a != a ? a : b)
BINARY(heaviside, Heaviside, a > b ? T(1) : a == b ? T(0.5) : T(0))
