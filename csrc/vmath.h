// Elementary functions on vectors, made of +, -, *, fma and integer operations.
//
// float: minimax polynomials, a few ulp (the bound stands at each). double: libm lane by lane, since float64 is here
// for checking, not for speed.
#pragma once
#include <math.h>
#include "simd.h"

namespace {

// exp(x), 2 ulp: degree 5 on [-ln2/2, ln2/2], the exponent added as an integer. Below -87.3 the result is 0
// (subnormals are flushed), above 88.7 it is inf; NaN stays NaN.
inline vf vexp(vf x) {
  const vf lo = broadcast(-87.33654f), hi = broadcast(88.72283f);
  const vf xc = x < lo ? lo : (x > hi ? hi : x);
  const vf z = fma(xc, broadcast(0x1.715476p+0f), broadcast(0x1.8p23f));
  const vf n = z - broadcast(0x1.8p23f);
  vf r = fma(n, broadcast(-0x1.62e400p-1f), xc);
  r = fma(n, broadcast(-0x1.7f7d1cp-20f), r);
  vf p = fma(broadcast(0x1.0F9F9Cp-7f), r, broadcast(0x1.573A1Ap-5f));
  p = fma(p, r, broadcast(0x1.555A80p-3f));
  p = fma(p, r, broadcast(0x1.FFFDC6p-2f));
  p = fma(p, r, broadcast(0x1.FFFFF6p-1f));
  p = fma(p, r, broadcast(1.0f));
  vmask<float> k = (vmask<float>)z;
  k = k << 23;
  vf y = (vf)((vmask<float>)p + k);
  y = x < lo ? vf{} : y;
  y = x > hi ? broadcast(__builtin_inff()) : y;
  return x != x ? x : y;
}
inline vd vexp(vd x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = __builtin_exp(x[i]);
  return x;
}

// Horner's rule, highest coefficient first.
template <class V> inline V horner(V, V p) { return p; }
template <class V, class... C> inline V horner(V x, V p, float c, C... rest) {
  return horner(x, fma(p, x, broadcast(c)), rest...);
}

// log(1 + t) for t in [sqrt(1/2) - 1, sqrt(2) - 1], plus e * ln 2.
inline vf log_reduced(vf t, vf e) {
  const vf p = horner(t, broadcast(0x1.14573ep-4f), -0x1.de3bf8p-4f, 0x1.e6f08cp-4f, -0x1.fc220ep-4f, 0x1.233766p-3f,
                      -0x1.555c4ep-3f, 0x1.99a4b6p-3f, -0x1.000006p-2f, 0x1.555548p-2f);
  const vf z = t * t;
  vf y = fma(e, broadcast(-2.12194440e-4f), p * t * z);
  y = fma(z, broadcast(-0.5f), y);
  return fma(e, broadcast(0.693359375f), t + y);
}

// log(x), 1.5 ulp; subnormals too. -inf at 0, NaN below, inf at inf.
inline vf vlog(vf x) {
  const vmask<float> tiny = x < 0x1p-126f;
  vmask<float> i = (vmask<float>)(tiny ? x * 0x1p23f : x);
  const vmask<float> e = (i - 0x3f3504f3) >> 23;
  const vf m = (vf)(i - (e << 23));
  vf y = log_reduced(m - 1.0f, __builtin_convertvector(e + (tiny & -23), vf));
  y = x < __builtin_inff() ? y : x;                       // inf, NaN
  y = x > 0.0f ? y : (x == 0.0f ? broadcast(-__builtin_inff()) : (x != x ? x : broadcast(__builtin_nanf(""))));
  return y;
}

// log(1 + u) for u in [0, 1], 1.5 ulp and relatively exact for small u.
inline vf vlog1p_unit(vf u) {
  const vmask<float> upper = u > 0.41421356f;             // then log 2 + log(1 + (u - 1) / 2)
  return log_reduced(upper ? (u - 1.0f) * 0.5f : u, upper ? broadcast(1.0f) : vf{});
}

// tanh(x), 2.5 ulp: e / (e + 2) with e = exp(2 |x|) - 1 kept relatively exact.
inline vf vtanh(vf x) {
  const vf a = vabs(x), xc = a > 10.0f ? broadcast(20.0f) : a + a;
  const vf z = fma(xc, broadcast(0x1.715476p+0f), broadcast(0x1.8p23f));
  const vf n = z - broadcast(0x1.8p23f);
  vf r = fma(n, broadcast(-0x1.62e400p-1f), xc);
  r = fma(n, broadcast(-0x1.7f7d1cp-20f), r);
  vf p = horner(r, broadcast(0x1.6c5586p-10f), 0x1.1223eep-7f, 0x1.5555bap-5f, 0x1.5554b6p-3f, 0.5f);
  p = fma(p * r, r, r);                                   // exp(r) - 1
  const vf s = (vf)(((vmask<float>)z << 23) + 0x3f800000);  // 2^n
  const vf e = fma(s, p, s - 1.0f);
  const vf y = e / (e + 2.0f);
  return (vf)((vmask<float>)y | ((vmask<float>)x & (-2147483647 - 1)));
}

// erf(x), 2 ulp: x + x P(x^2) below 1, 1 - Q(|x|) up to 3.92, where float has reached 1.
inline vf verf(vf x) {
  const vf a = vabs(x), s = x * x;
  const vf p = horner(s, broadcast(0x1.496aaap-14f), -0x1.a3f732p-11f, 0x1.5405bap-8f, -0x1.b7f90ep-6f, 0x1.ce2cf8p-4f,
                      -0x1.81273ep-2f, 0x1.06eba8p-3f);
  const vf u = (a - 2.46f) * 0.684931506849315f;
  const vf q = horner(u, broadcast(0x1.c0c46ap-11f), -0x1.ac28a0p-10f, -0x1.2a04fcp-9f, 0x1.29f716p-7f, -0x1.089abap-7f,
                      -0x1.ac4cfep-8f, 0x1.d6441ap-6f, -0x1.7169f8p-5f, 0x1.70adcap-5f, -0x1.f56080p-6f, 0x1.c88302p-7f,
                      -0x1.fc4d82p-9f, 0x1.07e360p-11f);
  const vmask<float> sign = (vmask<float>)x & (-2147483647 - 1);
  const vf upper = a >= 3.92f ? broadcast(1.0f) : 1.0f - q;
  return a < 1.0f ? fma(x, p, x) : (x != x ? x : (vf)((vmask<float>)upper | sign));
}

// sin and cos, 2 ulp: reduced by multiples of pi/2 in double, beyond 1e5 by libm.
template <bool Cosine> inline vf sin_or_cos(vf x) {
  float lanes[kLanes<float>];
  int32_t quadrant[kLanes<float>];
  store(lanes, x);
  bool large = false;
  for (int i = 0; i < kLanes<float>; ++i) {
    const bool in_range = __builtin_fabsf(lanes[i]) <= 1e5f;
    large |= !in_range;
    const double v = in_range ? lanes[i] : 0.0, z = v * 0x1.45f306dc9c883p-1 + 0x1.8p52, n = z - 0x1.8p52;
    int64_t bits;
    memcpy(&bits, &z, sizeof bits);
    quadrant[i] = int32_t(bits) + int(Cosine);
    lanes[i] = float((v - n * 0x1.921fb5p+0) - n * 0x1.110b4611a6263p-26);
  }
  const vf r = load(lanes), r2 = r * r;
  vmask<float> q;
  memcpy(&q, quadrant, sizeof q);
  const vf ps = fma(horner(r2, broadcast(-1.9515295891e-4f), 8.3321608736e-3f, -1.6666654611e-1f) * r2, r, r);
  const vf p4 = horner(r2, broadcast(2.443315711809948e-5f), -1.388731625493765e-3f, 4.166664568298827e-2f);
  const vf pc = fma(p4 * r2, r2, fma(r2, broadcast(-0.5f), broadcast(1.0f)));
  vf y = (q & 1) != 0 ? pc : ps;
  y = (vf)((vmask<float>)y ^ ((q & 2) << 30));
  if (large)
    for (int i = 0; i < kLanes<float>; ++i)
      if (const double v = x[i]; !(__builtin_fabs(v) <= 1e5))
        y[i] = float(Cosine ? __builtin_cos(v) : __builtin_sin(v));
  return y;
}
inline vf vsin(vf x) { return sin_or_cos<false>(x); }
inline vf vcos(vf x) { return sin_or_cos<true>(x); }

// double, and powers of either: libm lane by lane. A float is raised in double.
#define GENERANT_LANES(name, function)                                         \
  inline vd name(vd x) {                                                       \
    for (int i = 0; i < kLanes<double>; ++i) x[i] = function(x[i]);            \
    return x;                                                                  \
  }
GENERANT_LANES(vlog, __builtin_log)
GENERANT_LANES(vlog1p_unit, __builtin_log1p)
GENERANT_LANES(vtanh, __builtin_tanh)
GENERANT_LANES(verf, __builtin_erf)
GENERANT_LANES(vsin, __builtin_sin)
GENERANT_LANES(vcos, __builtin_cos)
#undef GENERANT_LANES

inline vf vpow(vf x, double p) {
  for (int i = 0; i < kLanes<float>; ++i) x[i] = float(__builtin_pow(double(x[i]), p));
  return x;
}
inline vd vpow(vd x, double p) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = __builtin_pow(x[i], p);
  return x;
}

}  // namespace
