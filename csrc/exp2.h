// exp2_negative(t): 2^t for t <= 0, the exponential of kernel values and of softmax weights.
#pragma once
#include "simd.h"

namespace {

// 2^t for t <= 0, 1 ulp, exactly 1 at 0 and 0 at -inf; NaN stays NaN. Without AVX-512 results below 2^-126.5 are 0.
inline vf exp2_negative(vf t) {
#if defined(__AVX512F__)
  const vf r = _mm512_reduce_ps(t, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  const vf low = broadcast(-127.0f), magic = broadcast(0x1.8p23f + 127);   // the exponent's bias is in it
  t = vmax(low, t);
  const vf z = t + magic, r = t - (z - magic);
#endif
  vf p = fma(broadcast(0x1.5bba14p-10f), r, broadcast(0x1.3cea88p-7f));
  p = fma(p, r, broadcast(0x1.c6b752p-5f));
  p = fma(p, r, broadcast(0x1.ebf9bcp-3f));
  p = fma(p, r, broadcast(0x1.62e42ap-1f));
  p = fma(p, r, broadcast(1.0f));
#if defined(__AVX512F__)
  return _mm512_maskz_scalef_ps(0xffff, p, t - r);      // plain scalef warns in GCC 12
#else
  return p * (vf)((vmask<float>)z << 23);
#endif
}
inline vd exp_near_0(vd r) {                         // e^r, |r| <= log(2) / 2, by Taylor to degree 13: 2 ulp
  vd p = broadcast(1.0 / 6227020800.0);
  constexpr double c[] = {1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880, 1.0 / 40320, 1.0 / 5040,
                          1.0 / 720, 1.0 / 120, 1.0 / 24, 1.0 / 6, 0.5, 1.0, 1.0};
#pragma GCC unroll 16
  for (double a : c) p = fma(p, r, broadcast(a));
  return p;
}
inline vd exp2_negative(vd t) {
  const vd low = broadcast(-1023.0), magic = broadcast(0x1.8p52 + 1023);
  t = vmax(low, t);
  const vd z = t + magic, r = (t - (z - magic)) * broadcast(0x1.62e42fefa39efp-1);
  return exp_near_0(r) * (vd)((vmask<double>)z << 52);
}

}  // namespace
