// Kernel functions and their first derivatives of one number, for all kernels of the pairwise ops; csrc/kernel_function.h
// is the same for vectors. Which kernel it is, is looked up per pair: a branch that all threads take alike.
#pragma once
#include "device.h"
#include "kernel_parameters.h"

namespace {

template <class T> struct DeviceKernel : KernelParameters<T> {
  using P = KernelParameters<T>;
  using P::P, P::kernel, P::count, P::scale, P::rate, P::rate2, P::step, P::gamma, P::coef0, P::alpha, P::wide_gamma;
  using P::degree;

  __device__ static float power_of_2(float t) { return exp2f(t); }
  __device__ static double power_of_2(double t) { return exp2(t); }
  __device__ static float root(float s) { return sqrtf(s); }
  __device__ static double root(double s) { return sqrt(s); }
  __device__ static float log_of(float u) { return log1pf(u); }
  __device__ static double log_of(double u) { return log1p(u); }

  // phi(q), phi'(q) or phi''(q), with 2^log in the exponent of kernels that have one (0: none). What has no limit at
  // q = 0 is 0 there.
  template <int kOrder> __device__ T operator()(T q, T log) const {
    switch (kernel) {
      case kRbf: case kLaplacian: case kExpDot: {
        const T sum = exponentials<kOrder>(q, log);
        return kOrder > 0 && kernel == kLaplacian && q == 0 ? T(0) : sum;
      }
      case kLaplace: {
        const T r = root(q);
        if constexpr (kOrder == 0) return exponentials<0>(r, log);
        T one = 0, two = 0;                          // first and second derivative in r
        for (int b = 0; b < count; ++b) {
          const T e = power_of_2(r * scale[b] + log);
          one -= e * rate[b], two += e * rate2[b];
        }
        return q == 0 ? T(0) : radial<kOrder>(q, r, one, two);
      }
      case kPolynomial: {
        if (degree < kOrder) return T(0);
        const T b = degree == kOrder ? T(1) : integer_power(q * gamma + coef0, degree - kOrder);
        const double n = double(degree), g = wide_gamma;
        return kOrder == 0 ? b : b * T(kOrder == 1 ? g * n : g * g * n * (n - 1));
      }
      case kEnergy: {
        const T r = root(q);
        if constexpr (kOrder == 0) return -r;
        return q == 0 ? T(0) : radial<kOrder>(q, r, T(-1), T(0));
      }
      case kRationalQuadratic: return rational<kOrder>(q);
      default: return matern<kOrder>(q);
    }
  }

 private:
  // The derivatives in s = r^2 of a function of r, from those in r.
  template <int kOrder> __device__ static T radial(T s, T r, T one, T two) {
    const T half = T(0.5) / r;
    if constexpr (kOrder == 1) return one * half;
    return (two - one * (half + half)) * (T(0.25) / s);
  }

  // Sum of the exponentials of all bandwidths: of the widest, then by squaring where rates are powers of two apart.
  template <int kOrder> __device__ T exponentials(T z, T log) const {
    T e = 0, sum = 0;
    for (int b = 0; b < count; ++b) {
      if (step[b] == 0 || log != 0) e = power_of_2(z * scale[b] + log);
      else
        for (int k = 0; k < step[b]; ++k) e = e * e;
      sum += kOrder == 0 ? e : e * (kOrder == 1 ? -rate[b] : rate2[b]);
    }
    return sum;
  }

  // (1 + rate s)^-alpha and its derivatives: (1 + rate s)^-(alpha + order) times -rate alpha, rate^2 alpha (alpha + 1).
  template <int kOrder> __device__ T rational(T s) const {
    const double a = double(alpha), power = a + kOrder;
    const int twice = 2 * power <= 16 ? int(2 * power) : 0;
    const bool half_integer = twice > 0 && double(twice) == 2 * power;
    T sum = 0;
    for (int b = 0; b < count; ++b) {
      const T u = s * rate[b];
      T k;
      if (half_integer) {
        const T base = twice & 1 ? root(1 + u) : 1 + u;
        k = T(1) / integer_power(base, twice & 1 ? twice : twice / 2);
      } else {
        k = power_of_2(log_of(u) * T(-power * kLog2E));
      }
      sum += kOrder == 0 ? k : k * (kOrder == 1 ? rate[b] : rate2[b]);
    }
    return kOrder == 0 ? sum : sum * T(kOrder == 1 ? -a : a * (a + 1));
  }

  // With c = rate r: (1 + c) e^-c, and (1 + c + c^2 / 3) e^-c. The second derivative of the first grows as 1 / r.
  template <int kOrder> __device__ T matern(T s) const {
    const T r = root(s);
    T sum = 0;
    for (int b = 0; b < count; ++b) {
      const T e = power_of_2(r * scale[b]);
      T c = r * rate[b], k;
      c = c > 1000 ? T(1000) : c;                    // e is 0 there: no inf times 0
      if (kernel == kMatern32) {
        if constexpr (kOrder == 0) k = c * e + e;
        if constexpr (kOrder == 1) k = e * (T(-0.5) * rate2[b]);
        if constexpr (kOrder == 2) k = e * (T(0.25) * rate2[b] * rate[b]) / r;
      } else {
        if constexpr (kOrder == 0) k = e * (c * (c * T(1.0 / 3) + 1) + 1);
        if constexpr (kOrder == 1) k = (c * e + e) * (T(-1.0 / 6) * rate2[b]);
        if constexpr (kOrder == 2) k = e * (T(1.0 / 12) * rate2[b] * rate2[b]);
      }
      sum += k;
    }
    return kOrder == 2 && kernel == kMatern32 && s == 0 ? T(0) : sum;
  }
};

}  // namespace
