// The activation functions on vectors: f, and its first two derivatives.
//
// Each functor has f(x), d(r) = f'(x) and d2(r) = d/dr of d, where r is x or, where the derivative is cheaper in it,
// y = f(x) (python/generant/ops/activation.py says which: `ref`). Shared by the elementwise kernels and by the
// epilogue of matmul. All of them are finite for |x| <= 1e4, keep NaN, and take their limits at infinity.
#pragma once
#include "vmath.h"

namespace {

struct Relu {                                                                        // r = y
  template <class T> static vec<T> f(vec<T> x) { return x <= T(0) ? vec<T>{} : x; }  // NaN is not <= 0, so it stays
  template <class T> static vec<T> d(vec<T> y) { return y > T(0) ? broadcast(T(1)) : vec<T>{}; }
};

struct LeakyRelu {                                                                   // r = y; the default slope
  template <class T> static vec<T> f(vec<T> x) { return x > T(0) ? x : x * T(0.2); }
  template <class T> static vec<T> d(vec<T> y) { return y > T(0) ? broadcast(T(1)) : broadcast(T(0.2)); }
};

struct Sigmoid {                                                                     // r = y
  template <class T> static vec<T> f(vec<T> x) { return broadcast(T(1)) / (vexp(-x) + T(1)); }
  template <class T> static vec<T> d(vec<T> y) { return y * (T(1) - y); }
  template <class T> static vec<T> d2(vec<T> y) { return T(1) - (y + y); }
};

// x limited to [-big, big], NaN kept: for x beside a factor that vanishes faster than x grows (inf * 0 would be NaN).
template <class T> inline vec<T> finite(vec<T> x, T big) {
  return x < -big ? broadcast(-big) : (x > big ? broadcast(big) : x);
}
template <class T> inline vec<T> finite_below(vec<T> x, T big) { return x < -big ? broadcast(-big) : x; }

struct Silu {                                                                        // r = x
  template <class T> static vec<T> f(vec<T> x) {                      // no division of x: with denormals it takes three times as long
    return finite_below(x, T(1e30)) * (broadcast(T(1)) / (vexp(-x) + T(1)));
  }
  template <class T> static vec<T> d(vec<T> x) {
    const vec<T> s = Sigmoid::f<T>(x);
    return s * (T(1) + finite(x, T(1e30)) * (T(1) - s));
  }
  template <class T> static vec<T> d2(vec<T> x) {
    const vec<T> s = Sigmoid::f<T>(x);
    return s * (T(1) - s) * (T(2) + finite(x, T(1e30)) * (T(1) - (s + s)));
  }
};

// x * Phi(x), Phi the standard normal distribution function (exact, by erf).
struct Gelu {                                                                        // r = x
  template <class T> static vec<T> phi(vec<T> x) { return vexp(x * x * T(-0.5)) * T(0.3989422804014326779); }
  template <class T> static vec<T> cdf(vec<T> x) { return verf(x * T(0.70710678118654752440)) * T(0.5) + T(0.5); }
  template <class T> static vec<T> f(vec<T> x) {
    const vec<T> xc = finite_below(x, T(1e18));
    return xc * cdf<T>(xc);
  }
  template <class T> static vec<T> d(vec<T> x) {
    const vec<T> xc = finite(x, T(1e18));
    return cdf<T>(xc) + xc * phi<T>(xc);
  }
  template <class T> static vec<T> d2(vec<T> x) {
    const vec<T> xc = finite(x, T(1e18));
    return phi<T>(xc) * (T(2) - xc * xc);
  }
};

struct Tanh {                                                                        // r = y
  template <class T> static vec<T> f(vec<T> x) { return vtanh(x); }
  template <class T> static vec<T> d(vec<T> y) { return T(1) - y * y; }
  template <class T> static vec<T> d2(vec<T> y) { return y * T(-2); }
};

struct Softplus {                                                                    // r = x
  template <class T> static vec<T> f(vec<T> x) {
    return (x <= T(0) ? vec<T>{} : x) + vlog1p_unit(vexp(-vabs(x)));
  }
  template <class T> static vec<T> d(vec<T> x) { return Sigmoid::f<T>(x); }
  template <class T> static vec<T> d2(vec<T> x) {
    const vec<T> s = Sigmoid::f<T>(x);
    return s * (T(1) - s);
  }
};

}  // namespace
