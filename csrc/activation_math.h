// The elementwise functions: f, and its first two derivatives.
//
// Each functor has f(x), d(r) = f'(x) and d2(r) = d/dr of d, where r is x or, where the derivative is cheaper in it,
// y = f(x) (python/generant/ops/activation.py says which: `ref`). Shared by the elementwise kernels and by the
// epilogues of matmul and conv. The activations are finite for |x| <= 1e4, keep NaN, and take their limits at infinity.
//
// vec<T> and its functions come from vmath.h (SIMD vectors) or from cuda/activation_math.h (one number), whichever the
// unit has included before.
#pragma once
#include "host_device.h"

namespace {

template <class T> HOST_DEVICE vec<T> one() { return broadcast(T(1)); }

struct Identity {
  template <class T> HOST_DEVICE static vec<T> f(vec<T> x) { return x; }
};

struct Relu {                                                                        // r = y
  template <class T> HOST_DEVICE static vec<T> f(vec<T> x) { return x <= T(0) ? vec<T>{} : x; }   // NaN is not <= 0
  template <class T> HOST_DEVICE static vec<T> d(vec<T> y) { return y > T(0) ? broadcast(T(1)) : vec<T>{}; }
};

struct LeakyRelu {                                                                   // r = y; the default slope
  template <class T> HOST_DEVICE static vec<T> f(vec<T> x) { return x > T(0) ? x : x * T(0.2); }
  template <class T> HOST_DEVICE static vec<T> d(vec<T> y) { return y > T(0) ? broadcast(T(1)) : broadcast(T(0.2)); }
};

struct Sigmoid {                                                                     // r = y
  template <class T> HOST_DEVICE static vec<T> f(vec<T> x) { return broadcast(T(1)) / (vexp(-x) + T(1)); }
  template <class T> HOST_DEVICE static vec<T> d(vec<T> y) { return y * (T(1) - y); }
  template <class T> HOST_DEVICE static vec<T> d2(vec<T> y) { return T(1) - (y + y); }
};

// x limited to [-big, big], NaN kept: for x beside a factor that vanishes faster than x grows (inf * 0 would be NaN).
template <class T> HOST_DEVICE vec<T> finite(vec<T> x, T big) {
  return x < -big ? broadcast(-big) : (x > big ? broadcast(big) : x);
}
template <class T> HOST_DEVICE vec<T> finite_below(vec<T> x, T big) { return x < -big ? broadcast(-big) : x; }

struct Silu {                                                                        // r = x
  template <class T> HOST_DEVICE static vec<T> f(vec<T> x) {          // no division of x: with denormals it takes three times as long
    return finite_below(x, T(1e30)) * (broadcast(T(1)) / (vexp(-x) + T(1)));
  }
  template <class T> HOST_DEVICE static vec<T> d(vec<T> x) {
    const vec<T> s = Sigmoid::f<T>(x);
    return s * (T(1) + finite(x, T(1e30)) * (T(1) - s));
  }
  template <class T> HOST_DEVICE static vec<T> d2(vec<T> x) {
    const vec<T> s = Sigmoid::f<T>(x);
    return s * (T(1) - s) * (T(2) + finite(x, T(1e30)) * (T(1) - (s + s)));
  }
};

// x * Phi(x), Phi the standard normal distribution function (exact, by erf).
struct Gelu {                                                                        // r = x
  template <class T> HOST_DEVICE static vec<T> phi(vec<T> x) { return vexp(x * x * T(-0.5)) * T(0.3989422804014326779); }
  template <class T> HOST_DEVICE static vec<T> cdf(vec<T> x) { return verf(x * T(0.70710678118654752440)) * T(0.5) + T(0.5); }
  template <class T> HOST_DEVICE static vec<T> f(vec<T> x) {
    const vec<T> xc = finite_below(x, T(1e18));
    return xc * cdf<T>(xc);
  }
  template <class T> HOST_DEVICE static vec<T> d(vec<T> x) {
    const vec<T> xc = finite(x, T(1e18));
    return cdf<T>(xc) + xc * phi<T>(xc);
  }
  template <class T> HOST_DEVICE static vec<T> d2(vec<T> x) {
    const vec<T> xc = finite(x, T(1e18));
    return phi<T>(xc) * (T(2) - xc * xc);
  }
};

struct Tanh {                                                                        // r = y
  template <class T> HOST_DEVICE static vec<T> f(vec<T> x) { return vtanh(x); }
  template <class T> HOST_DEVICE static vec<T> d(vec<T> y) { return T(1) - y * y; }
  template <class T> HOST_DEVICE static vec<T> d2(vec<T> y) { return y * T(-2); }
};

struct Softplus {                                                                    // r = x
  template <class T> HOST_DEVICE static vec<T> f(vec<T> x) {
    return (x <= T(0) ? vec<T>{} : x) + vlog1p_unit(vexp(-vabs(x)));
  }
  template <class T> HOST_DEVICE static vec<T> d(vec<T> x) { return Sigmoid::f<T>(x); }
  template <class T> HOST_DEVICE static vec<T> d2(vec<T> x) {
    const vec<T> s = Sigmoid::f<T>(x);
    return s * (T(1) - s);
  }
};

// ---- functions beyond activations ----

struct SlopedRelu {                                                                  // r = y
  double slope;
  explicit SlopedRelu(const double* attr) : slope(attr[0]) {}
  template <class T> HOST_DEVICE vec<T> f(vec<T> x) const { return x > T(0) ? x : x * T(slope); }
  template <class T> HOST_DEVICE vec<T> d(vec<T> y) const { return y > T(0) ? one<T>() : broadcast(T(slope)); }
};

struct Exp {                                                                         // r = y
  template <class T> HOST_DEVICE static vec<T> f(vec<T> x) { return vexp(x); }
  template <class T> HOST_DEVICE static vec<T> d(vec<T> y) { return y; }
  template <class T> HOST_DEVICE static vec<T> d2(vec<T>) { return one<T>(); }
};

struct Log {
  template <class T> HOST_DEVICE static vec<T> f(vec<T> x) { return vlog(x); }
  template <class T> HOST_DEVICE static vec<T> d(vec<T> x) { return T(1) / x; }
  template <class T> HOST_DEVICE static vec<T> d2(vec<T> x) { return T(-1) / (x * x); }
};

struct Sqrt {                                                                        // r = y
  template <class T> HOST_DEVICE static vec<T> f(vec<T> x) { return sqrt(x); }
  template <class T> HOST_DEVICE static vec<T> d(vec<T> y) { return T(0.5) / y; }
  template <class T> HOST_DEVICE static vec<T> d2(vec<T> y) { return T(-0.5) / (y * y); }
};

struct Rsqrt {                                                                       // r = y
  template <class T> HOST_DEVICE static vec<T> f(vec<T> x) { return T(1) / sqrt(x); }
  template <class T> HOST_DEVICE static vec<T> d(vec<T> y) { return y * y * y * T(-0.5); }
  template <class T> HOST_DEVICE static vec<T> d2(vec<T> y) { return y * y * T(-1.5); }
};

struct Square {
  template <class T> HOST_DEVICE static vec<T> f(vec<T> x) { return x * x; }
  template <class T> HOST_DEVICE static vec<T> d(vec<T> x) { return x + x; }
  template <class T> HOST_DEVICE static vec<T> d2(vec<T>) { return broadcast(T(2)); }
};

struct Reciprocal {                                                                  // r = y
  template <class T> HOST_DEVICE static vec<T> f(vec<T> x) { return T(1) / x; }
  template <class T> HOST_DEVICE static vec<T> d(vec<T> y) { return -(y * y); }
  template <class T> HOST_DEVICE static vec<T> d2(vec<T> y) { return y * T(-2); }
};

struct Abs {
  template <class T> HOST_DEVICE static vec<T> f(vec<T> x) { return vabs(x); }
  template <class T> HOST_DEVICE static vec<T> d(vec<T> x) { return x > T(0) ? one<T>() : (x < T(0) ? -one<T>() : x); }
};

struct Sin {
  template <class T> HOST_DEVICE static vec<T> f(vec<T> x) { return vsin(x); }
  template <class T> HOST_DEVICE static vec<T> d(vec<T> x) { return vcos(x); }
  template <class T> HOST_DEVICE static vec<T> d2(vec<T> x) { return -vsin(x); }
};

struct Cos {
  template <class T> HOST_DEVICE static vec<T> f(vec<T> x) { return vcos(x); }
  template <class T> HOST_DEVICE static vec<T> d(vec<T> x) { return -vsin(x); }
  template <class T> HOST_DEVICE static vec<T> d2(vec<T> x) { return -vcos(x); }
};

struct Erf {
  template <class T> HOST_DEVICE static vec<T> f(vec<T> x) { return verf(x); }
  template <class T> HOST_DEVICE static vec<T> d(vec<T> x) { return vexp(-(x * x)) * T(1.1283791670955126); }
  template <class T> HOST_DEVICE static vec<T> d2(vec<T> x) {
    const vec<T> xc = finite(x, T(1e18));
    return xc * vexp(-(xc * xc)) * T(-2.2567583341910252);
  }
};

// coefficient * x ** p, by multiplication and square roots where p allows it with few roundings.
struct Monomial {
  double coefficient, p;
  int kind;
  enum { kZero, kConstant, kLinear, kSquare, kCube, kInverse, kInverseSquare, kRoot, kInverseRoot, kAny };
  Monomial(double coefficient, double p) : coefficient(coefficient), p(p) {
    constexpr double exponents[] = {0, 1, 2, 3, -1, -2, 0.5, -0.5};
    kind = kAny;
    for (int i = 0; i < 8; ++i)
      if (p == exponents[i]) kind = kConstant + i;
    if (coefficient == 0) kind = kZero;
  }
  template <class T> HOST_DEVICE vec<T> at(vec<T> x) const {
    const T k = T(coefficient);
    switch (kind) {
      case kZero: return vec<T>{};
      case kConstant: return broadcast(k);
      case kLinear: return x * k;
      case kSquare: return x * x * k;
      case kCube: return x * x * x * k;
      case kInverse: return k / x;
      case kInverseSquare: return k / (x * x);
      case kRoot: return sqrt(x) * k;
      case kInverseRoot: return k / vabs(sqrt(x));         // inf at -0 too
      default: return vpow(x, p) * k;
    }
  }
};

struct Power {
  Monomial f0, f1, f2;
  explicit Power(const double* a) : f0(1, a[0]), f1(a[0], a[0] - 1), f2(a[0] * (a[0] - 1), a[0] - 2) {}
  template <class T> HOST_DEVICE vec<T> f(vec<T> x) const { return f0.template at<T>(x); }
  template <class T> HOST_DEVICE vec<T> d(vec<T> x) const { return f1.template at<T>(x); }
  template <class T> HOST_DEVICE vec<T> d2(vec<T> x) const { return f2.template at<T>(x); }
};

// None arrives as NaN and limits nothing, since comparisons with it are false.
struct Clip {
  double low, high;
  explicit Clip(const double* attr) : low(attr[0]), high(attr[1]) {}
  template <class T> HOST_DEVICE vec<T> f(vec<T> x) const {
    const T lo = T(low), hi = T(high);
    x = x < lo ? broadcast(lo) : x;
    return x > hi ? broadcast(hi) : x;
  }
  template <class T> HOST_DEVICE vec<T> d(vec<T> x) const {
    const T lo = T(low), hi = T(high);
    return (x < lo) | (x > hi) | (x != x) ? vec<T>{} : one<T>();
  }
};

struct Affine {
  double scale, shift;
  explicit Affine(const double* attr) : scale(attr[0]), shift(attr[1]) {}
  template <class T> HOST_DEVICE vec<T> f(vec<T> x) const { return fma(x, broadcast(T(scale)), broadcast(T(shift))); }
};

}  // namespace
