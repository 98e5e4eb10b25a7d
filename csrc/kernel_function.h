// Kernel functions k(x, y) = phi(q) and their derivatives phi', phi'' in q, on vectors, for all kernels of the pairwise
// ops. q is what a tile of pairwise_tile.h holds: |x - y|^2, |x - y|_1 or <x, y> (`form`). Several bandwidths mean the
// sum of their kernels.
//
// Which kernel it is, is looked up once per tile or block, not compiled into the loops that make them: with three
// instruction sets and two types those would be compiled fifty times over. Every pair pays a store and a load for it.
// Errors are a few ulp of the value, and of the exponent times the value.
#pragma once
#include <math.h>
#include "kernel.h"
#include "kernel_parameters.h"
#include "pairwise_tile.h"
#include "simd.h"
#include "vmath.h"

namespace {

// 2^t for any t: 0 where it underflows, inf where it overflows, NaN stays NaN. One degree more than exp2_negative: its
// error of 3e-9 does not add up in sums of values that all lie near 1.
inline vf exp2_any(vf t) {
#if defined(__AVX512F__)
  const vf r = _mm512_reduce_ps(t, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  const vf low = broadcast(-126.0f), high = broadcast(129.0f), magic = broadcast(0x1.8p23f);
  t = t < low ? low : t;
  t = t > high ? high : t;
  const vf z = t + magic, r = t - (z - magic);
#endif
  const vf p = horner(r, broadcast(0x1.417a9ap-13f), 0x1.5f0948p-10f, 0x1.3b2dd2p-7f, 0x1.c6af7ap-5f, 0x1.ebfbdcp-3f,
                      0x1.62e43p-1f, 1.0f);
#if defined(__AVX512F__)
  return _mm512_maskz_scalef_ps(0xffff, p, t - r);
#else
  return p * (vf)(((vmask<float>)z << 23) + (126 << 23)) * 2.0f;   // 2^(n - 1): 2^128 p is finite for p < 1
#endif
}
inline vd exp2_any(vd t) {
  const vd low = broadcast(-1022.0), high = broadcast(1025.0), magic = broadcast(0x1.8p52);
  t = t < low ? low : t;
  t = t > high ? high : t;
  const vd z = t + magic, r = (t - (z - magic)) * broadcast(0x1.62e42fefa39efp-1);
  return exp_near_0(r) * (vd)(((vmask<double>)z << 52) + (1022ll << 52)) * 2.0;
}

// log(1 + u) for u >= 0, relatively exact for small u: what rounding 1 + u loses is added to first order.
inline vf log1p_positive(vf u) {
  const vf w = 1.0f + u, y = vlog(w) + (u - (w - 1.0f)) / w;
  return w < __builtin_inff() ? y : w;
}
inline vd log1p_positive(vd u) { return vlog1p_unit(u); }

template <class T> struct KernelFunction : KernelParameters<T> {
  using P = KernelParameters<T>;
  using P::P, P::kernel, P::count, P::scale, P::rate, P::rate2, P::step, P::gamma, P::coef0, P::alpha, P::wide_gamma;
  using P::degree;

  // q[v] becomes phi(q[v]), phi'(q[v]) or phi''(q[v]) for v < count. Vectors come in pairs, as in a row of a tile.
  // Logarithmic weights, IN BASE 2 (log2 e times the natural ones), are added to the exponent: log_row[v / 2], one
  // scalar for the pair, and log_lane[v % 2], one per lane; either may be null. For rbf, laplace, laplacian, exp_dot.
  // phi' and phi'' are 0 at q = 0 where they have no limit there (kernels with a kink).
  template <int kOrder>
  __attribute__((noinline)) void apply(vec<T>* q, int n, const T* log_row = nullptr,
                                       const vec<T>* log_lane = nullptr) const {
    const vec<T> zero{};
    switch (kernel) {
      case kRbf: case kLaplacian: case kExpDot:
        if (log_row || log_lane) return weighted<kOrder>(q, n, log_row, log_lane);
        if (count > 1) return mixture<kOrder>(q, n);
        if (kernel == kExpDot) {
          for (int v = 0; v < n; ++v) q[v] = times<kOrder>(exp2_any(q[v] * scale[0]), 0);
        } else if (kernel == kRbf || kOrder == 0) {
          for (int v = 0; v < n; ++v) q[v] = times<kOrder>(exp2_negative(q[v] * scale[0]), 0);
        } else {
          for (int v = 0; v < n; ++v) q[v] = kink(q[v], times<kOrder>(exp2_negative(q[v] * scale[0]), 0));
        }
        return;
      case kLaplace:
        if (log_row || log_lane) return weighted<kOrder>(q, n, log_row, log_lane);
        if (kOrder == 0) {
          for (int v = 0; v < n; ++v) q[v] = sqrt(q[v]);
          if (count > 1) return mixture<0>(q, n);
          for (int v = 0; v < n; ++v) q[v] = exp2_negative(q[v] * scale[0]);
          return;
        }
        for (int v = 0; v < n; ++v) {
          const vec<T> s = q[v], r = sqrt(s);
          vec<T> one{}, two{};                       // first and second derivative in r
          for (int b = 0; b < count; ++b) {
            const vec<T> e = exp2_negative(r * scale[b]);
            one = fma(e, broadcast(-rate[b]), one);
            if (kOrder == 2) two = fma(e, broadcast(rate2[b]), two);
          }
          q[v] = kink(s, radial<kOrder>(s, r, one, two));
        }
        return;
      case kPolynomial:
        if (kOrder == 0) {
          for (int v = 0; v < n; ++v) q[v] = integer_power(fma(q[v], broadcast(gamma), broadcast(coef0)), degree);
          return;
        }
        for (int v = 0; v < n; ++v) {
          if (degree <= kOrder) {
            q[v] = broadcast(degree < kOrder ? T(0) : T(kOrder == 1 ? wide_gamma : 2 * wide_gamma * wide_gamma));
          } else {
            const vec<T> b = fma(q[v], broadcast(gamma), broadcast(coef0));
            const double f = kOrder == 1 ? wide_gamma * degree : wide_gamma * wide_gamma * degree * (degree - 1);
            q[v] = integer_power(b, degree - kOrder) * T(f);
          }
        }
        return;
      case kEnergy:
        for (int v = 0; v < n; ++v) {
          const vec<T> s = q[v], r = sqrt(s);
          if constexpr (kOrder == 0) q[v] = -r;
          else q[v] = kink(s, radial<kOrder>(s, r, broadcast(T(-1)), zero));
        }
        return;
      case kRationalQuadratic: return rational<kOrder>(q, n);
      default: return matern<kOrder>(q, n);
    }
  }

 private:
  // What has no limit at q = 0 is 0 there; NaN stays.
  static vec<T> kink(vec<T> q, vec<T> v) { return q == 0 ? vec<T>{} : v; }

  // The derivatives in s = r^2 of a function of r, from those in r.
  template <int kOrder> static vec<T> radial(vec<T> s, vec<T> r, vec<T> one, vec<T> two) {
    const vec<T> half = T(0.5) / r;
    if constexpr (kOrder == 1) return one * half;
    return fma(one, -(half + half), two) * (T(0.25) / s);
  }

  // The derivative of exp(-rate q): times -rate, rate^2.
  template <int kOrder> vec<T> times(vec<T> e, int b) const {
    if constexpr (kOrder == 1) return e * -rate[b];
    if constexpr (kOrder == 2) return e * rate2[b];
    return e;
  }

  // Sum of the exponentials of all bandwidths: of the widest, then by squaring where rates are powers of two apart.
  template <int kOrder> void mixture(vec<T>* q, int n) const {
    for (int v = 0; v < n; ++v) {
      const vec<T> z = q[v];
      vec<T> e{}, sum{};
      for (int b = 0; b < count; ++b) {
        if (step[b] == 0) e = exp2_negative(z * scale[b]);
        for (int k = 0; k < step[b]; ++k) e = e * e;
        sum += times<kOrder>(e, b);
      }
      q[v] = kOrder > 0 && kernel == kLaplacian ? kink(z, sum) : sum;
    }
  }

  // The same with logarithmic weights.
  template <int kOrder> void weighted(vec<T>* q, int n, const T* log_row, const vec<T>* log_lane) const {
    for (int v = 0; v < n; ++v) {
      const vec<T> s = q[v], z = kernel == kLaplace ? sqrt(s) : s;
      vec<T> log = log_lane ? log_lane[v & 1] : vec<T>{};
      if (log_row) log += log_row[v >> 1];
      vec<T> sum{}, two{};
      for (int b = 0; b < count; ++b) {
        const vec<T> e = exp2_any(fma(z, broadcast(scale[b]), log));
        sum += times<kOrder>(e, b);
        if constexpr (kOrder == 2)
          if (kernel == kLaplace) two = fma(e, broadcast(-rate[b]), two);
      }
      if constexpr (kOrder == 0) {
        q[v] = sum;
      } else {
        if (kernel == kLaplace) sum = kOrder == 1 ? radial<1>(s, z, sum, sum) : radial<2>(s, z, two, sum);
        q[v] = kernel == kLaplace || kernel == kLaplacian ? kink(s, sum) : sum;
      }
    }
  }

  // (1 + rate s)^-alpha and its derivatives: (1 + rate s)^-(alpha + order) times -rate alpha, rate^2 alpha (alpha + 1).
  template <int kOrder> void rational(vec<T>* q, int n) const {
    const double a = double(alpha), power = a + kOrder;
    const int64_t twice = int64_t(2 * power);
    const bool half_integer = double(twice) == 2 * power && twice <= 16, odd = twice & 1;
    const T factor = T(kOrder == 0 ? 1 : kOrder == 1 ? -a : a * (a + 1)), p2 = T(-power * kLog2E);
    for (int v = 0; v < n; ++v) {
      const vec<T> s = q[v];
      vec<T> sum{};
      for (int b = 0; b < count; ++b) {
        const vec<T> u = s * rate[b];
        vec<T> k;
        if (half_integer) {
          const vec<T> base = 1 + u;
          k = T(1) / (twice == 1 ? sqrt(base) : integer_power(odd ? sqrt(base) : base, odd ? twice : twice / 2));
        } else {
          k = exp2_negative(log1p_positive(u) * p2);
        }
        if constexpr (kOrder == 1) k = k * rate[b];
        if constexpr (kOrder == 2) k = k * rate2[b];
        sum += k;
      }
      q[v] = kOrder == 0 ? sum : sum * factor;
    }
  }

  // With c = rate r: (1 + c) e^-c, and (1 + c + c^2 / 3) e^-c. The second derivative of the first grows as 1 / r.
  template <int kOrder> void matern(vec<T>* q, int n) const {
    for (int v = 0; v < n; ++v) {
      const vec<T> s = q[v], r = sqrt(s);
      vec<T> sum{};
      for (int b = 0; b < count; ++b) {
        const vec<T> e = exp2_negative(r * scale[b]);
        vec<T> c = r * rate[b], k;
        c = c > 1000 ? broadcast(T(1000)) : c;       // e is 0 there: no inf times 0
        if (kernel == kMatern32) {
          if constexpr (kOrder == 0) k = fma(c, e, e);
          if constexpr (kOrder == 1) k = e * (T(-0.5) * rate2[b]);
          if constexpr (kOrder == 2) k = e * (T(0.25) * rate2[b] * rate[b]) / r;
        } else {
          if constexpr (kOrder == 0) k = e * fma(c, fma(c, broadcast(T(1.0 / 3)), broadcast(T(1))), broadcast(T(1)));
          if constexpr (kOrder == 1) k = fma(c, e, e) * (T(-1.0 / 6) * rate2[b]);
          if constexpr (kOrder == 2) k = e * (T(1.0 / 12) * rate2[b] * rate2[b]);
        }
        sum += k;
      }
      q[v] = kOrder == 2 && kernel == kMatern32 ? kink(s, sum) : sum;
    }
  }
};

}  // namespace
