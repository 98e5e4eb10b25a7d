// Elementwise rows: name(x), name_bwd(g, r) = g f'(r), name_bwd2(h, g, r) = h g f''(r); the functions are those of
// ../activation_math.h.
#include "activation_math.h"
#include "elementwise.h"

namespace {

template <class F> struct Value {
  F row;
  template <class T> __device__ T operator()(T x) const { return row.template f<T>(x); }
};
template <class F> struct Gradient {
  F row;
  template <class T> __device__ T operator()(T g, T r) const { return g * row.template d<T>(r); }
};
template <class F> struct Gradient2 {
  F row;
  template <class T> __device__ T operator()(T h, T g, T r) const { return h * g * row.template d2<T>(r); }
};

// A functor with parameters is made from the attributes; the others are empty.
template <class F> inline F make(const double* attr) {
  if constexpr (__is_constructible(F, const double*)) return F(attr);
  else return F{};
}

}  // namespace

#define ROW1(op, F) \
  KERNEL(op) { map(c, size(c.out[0]), Value<F>{make<F>(c.attr)}, out<T>(c), in<T>(c, 0)); }
#define ROW2(op, F) \
  ROW1(op, F)       \
  KERNEL(op##_bwd) { map(c, size(c.out[0]), Gradient<F>{make<F>(c.attr)}, out<T>(c), in<T>(c, 0), in<T>(c, 1)); }
#define ROW3(op, F) \
  ROW2(op, F)       \
  KERNEL(op##_bwd2) { map(c, size(c.out[0]), Gradient2<F>{make<F>(c.attr)}, out<T>(c), in<T>(c, 0), in<T>(c, 1), in<T>(c, 2)); }

ROW2(relu, Relu)
ROW2(leaky_relu, SlopedRelu)
ROW3(sigmoid, Sigmoid)
ROW3(silu, Silu)
ROW3(gelu, Gelu)
ROW3(tanh, Tanh)
ROW3(softplus, Softplus)
ROW3(exp, Exp)
ROW3(log, Log)
ROW3(sqrt, Sqrt)
ROW3(rsqrt, Rsqrt)
ROW3(square, Square)
ROW3(reciprocal, Reciprocal)
ROW2(abs, Abs)
ROW3(sin, Sin)
ROW3(cos, Cos)
ROW3(erf, Erf)
ROW3(power, Power)
ROW2(clip, Clip)
ROW1(affine, Affine)
