// Philox, uniforms and Box-Muller normals of one counter, on the host and in CUDA. philox.h is the same for vectors and
// says what the numbers are; its constants are here.
//
// Operation by operation the arithmetic of philox.h, fma where that has fma and nowhere else: units that include this
// are compiled without contraction (-ffp-contract=off, nvcc --fmad=false).
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "float_bits.h"

namespace {

// ---- constants; the coefficients are explained in python/generant/ops/random.py ----

constexpr uint32_t kPhiloxA = 0xD2511F53u, kPhiloxB = 0xCD9E8D57u;        // multipliers
constexpr uint32_t kPhiloxKey0 = 0x9E3779B9u, kPhiloxKey1 = 0xBB67AE85u;  // added to the key after every round
constexpr uint64_t kLowWords = 1ull << 63;          // the counters of the lower halves of float64 elements

constexpr float kLog32[] = {-0x1.645ed0p-3f, 0x1.2432bep-2f, -0x1.317452p-2f, 0x1.538248p-2f, -0x1.98d7f2p-2f, 0x1.000382p-1f,
                            -0x1.5556d8p-1f};
constexpr float kSin32[] = {-0x1.2d9302p-15f, 0x1.465e92p-9f, -0x1.4abbbap-4f, 0x1.921fb6p-1f};
constexpr float kCos32[] = {-0x1.4e8448p-12f, 0x1.03b090p-6f, -0x1.3bd39cp-2f, 1.0f};
constexpr float kLogTwo32[] = {-0x1.63p0f, 0x1.bd0106p-12f};              // of -2 log 2: head and tail
constexpr int32_t kSqrtHalf32 = 0x3F3504F3, kMiddle32 = kSqrtHalf32 + (32 << 23);   // the bits of sqrt(1/2), of 2^32 sqrt(1/2)

constexpr double kLog[] = {0x1.2f05634bd54d7p-3, 0x1.39a1babe2ac94p-3, 0x1.74663ee81c020p-3, 0x1.c71c52095f033p-3,
                           0x1.24924941f121fp-2, 0x1.999999997fdb8p-2, 0x1.5555555555592p-1};
constexpr double kSin[] = {0x1.e3eed5cfb0124p-38, -0x1.e30063a0372b0p-30, 0x1.50782fca38d4fp-22, -0x1.32d2cce2d5363p-15,
                           0x1.466bc67758700p-9, -0x1.4abbce625be41p-4, 0x1.921fb54442d18p-1};
constexpr double kCos[] = {-0x1.b263c353b6c7bp-42, 0x1.f9cc40acd6483p-34, -0x1.a6d1ec7e0bd42p-26, 0x1.e1f5068367b28p-19,
                           -0x1.55d3c7e3c9280p-12, 0x1.03c1f081b5aaep-6, -0x1.3bd3cc9be45dep-2, 1.0};
constexpr double kLogTwo[] = {0x1.62e42fee00000p-1, 0x1.a39ef35793c76p-33};
constexpr int64_t kSqrtHalf = 0x3FE6A09E667F3BCDll, kMiddle = kSqrtHalf + (64ll << 52);

// ---- what both sides call by one name ----

#ifdef __CUDA_ARCH__
HOST_DEVICE float fused(float a, float b, float c) { return fmaf(a, b, c); }
HOST_DEVICE double fused(double a, double b, double c) { return ::fma(a, b, c); }
HOST_DEVICE float root(float a) { return sqrtf(a); }
HOST_DEVICE double root(double a) { return ::sqrt(a); }
#else
HOST_DEVICE float fused(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
HOST_DEVICE double fused(double a, double b, double c) { return __builtin_fma(a, b, c); }
HOST_DEVICE float root(float a) { return __builtin_sqrtf(a); }
HOST_DEVICE double root(double a) { return __builtin_sqrt(a); }
#endif

// k[0] x^(N-1) + ... + k[N-1]. Coefficients by number, for a GPU has no address of theirs.
template <const auto& k, size_t i = 1> HOST_DEVICE double horner_from(double p, double x) {
  if constexpr (i == sizeof k / sizeof k[0]) {
    return p;
  } else {
    constexpr double next = k[i];
    return horner_from<k, i + 1>(p * x + next, x);
  }
}
template <const auto& k, size_t i = 1> HOST_DEVICE float horner_from(float p, float x) {
  if constexpr (i == sizeof k / sizeof k[0]) {
    return p;
  } else {
    constexpr float next = k[i];
    return horner_from<k, i + 1>(fused(p, x, next), x);
  }
}
template <const auto& k, class T> HOST_DEVICE T horner_of(T x) {
  constexpr T first = k[0];
  return horner_from<k>(first, x);
}

// ---- bits ----

HOST_DEVICE void multiply(uint32_t a, uint32_t b, uint32_t& high, uint32_t& low) {
#ifdef __CUDA_ARCH__
  asm("{.reg .u64 p; mul.wide.u32 p, %2, %3; mov.b64 {%1, %0}, p;}" : "=r"(high), "=r"(low) : "r"(a), "r"(b));  // one instruction
#else
  const uint64_t p = uint64_t(a) * b;
  high = uint32_t(p >> 32), low = uint32_t(p);
#endif
}

// Ten rounds, in place.
HOST_DEVICE void philox4x32(uint32_t (&x)[4], uint32_t k0, uint32_t k1) {
#ifdef __CUDA_ARCH__
#pragma unroll
#endif
  for (int r = 0; r < 10; ++r) {
    uint32_t p_high, p_low, q_high, q_low;
    multiply(kPhiloxA, x[0], p_high, p_low);
    multiply(kPhiloxB, x[2], q_high, q_low);
    x[0] = q_high ^ x[1] ^ k0, x[1] = q_low;
    x[2] = p_high ^ x[3] ^ k1, x[3] = p_low;
    k0 += kPhiloxKey0, k1 += kPhiloxKey1;
  }
}

// The words of elements 4 counter .. 4 counter + 3.
HOST_DEVICE void words_of(uint64_t seed, uint64_t stream, uint64_t counter, uint32_t (&w)[4]) {
  w[0] = uint32_t(counter), w[1] = uint32_t(counter >> 32), w[2] = uint32_t(stream), w[3] = uint32_t(stream >> 32);
  philox4x32(w, uint32_t(seed), uint32_t(seed >> 32));
}
HOST_DEVICE void words_of(uint64_t seed, uint64_t stream, uint64_t counter, uint64_t (&w)[4]) {
  uint32_t high[4], low[4];
  words_of(seed, stream, counter, high);
  words_of(seed, stream, counter | kLowWords, low);
  for (int i = 0; i < 4; ++i) w[i] = uint64_t(high[i]) << 32 | low[i];
}

// ---- numbers ----

HOST_DEVICE float uniform_of(uint32_t w) { return float(int32_t(w >> 8)) * 0x1p-24f; }
HOST_DEVICE double uniform_of(uint64_t w) { return double(int64_t(w >> 11)) * 0x1p-53; }

HOST_DEVICE void normal_pair(uint32_t a, uint32_t b, float& x, float& y) {
  const int32_t j = same_bits<int32_t>(float(a) + 0.5f) - kMiddle32;
  const float e = float(j >> 23);
  const float t = same_bits<float>((j & 0x7FFFFF) + kSqrtHalf32) - 1.0f;
  const float z = t * t;
  constexpr float head = kLogTwo32[0], tail = kLogTwo32[1];
  const float p = fused(e, tail, (horner_of<kLog32>(t) * t) * z) + z;
  const float r = root(fused(e, head, fused(t, -2.0f, p)));

  const float v = float(int32_t(b << 2)) * 0x1p-31f;
  const float w = v * v;
  const float s = horner_of<kSin32>(w) * v, c = horner_of<kCos32>(w);

  const uint32_t quadrant = b + 0x20000000u;        // in the two highest bits
  const bool odd = (quadrant & 0x40000000u) != 0;
  x = same_bits<float>(same_bits<uint32_t>(r * (odd ? s : c)) ^ ((quadrant + 0x40000000u) & 0x80000000u));
  y = same_bits<float>(same_bits<uint32_t>(r * (odd ? c : s)) ^ (quadrant & 0x80000000u));
}

HOST_DEVICE void normal_pair(uint64_t a, uint64_t b, double& x, double& y) {
  const int64_t j = same_bits<int64_t>(double(a) + 0.5) - kMiddle;
  const double e = double(j >> 52);
  const double t = same_bits<double>((j & 0xFFFFFFFFFFFFFll) + kSqrtHalf) - 1.0;
  const double s = t / (2.0 + t), z = s * s, h = 0.5 * (t * t);
  const double g = s * (h + z * horner_of<kLog>(z));
  constexpr double head = kLogTwo[0], tail = kLogTwo[1];
  const double log = e * head - ((h - (g + e * tail)) - t);
  const double r = root(-2.0 * log);

  const double v = double(int64_t(b << 2)) * 0x1p-63;
  const double w = v * v;
  const double sine = horner_of<kSin>(w) * v, cosine = horner_of<kCos>(w);

  const uint64_t quadrant = b + (1ull << 61);
  const bool odd = (quadrant & (1ull << 62)) != 0;
  x = same_bits<double>(same_bits<uint64_t>(r * (odd ? sine : cosine)) ^ ((quadrant + (1ull << 62)) & (1ull << 63)));
  y = same_bits<double>(same_bits<uint64_t>(r * (odd ? cosine : sine)) ^ (quadrant & (1ull << 63)));
}

// Elements 4 counter .. 4 counter + 3 of the arrays `uniform` and `normal` of a key.
struct UniformOne {
  template <class T> HOST_DEVICE static void draw(uint64_t seed, uint64_t stream, uint64_t counter, T (&z)[4]) {
    typename BitsOf<T>::type w[4];
    words_of(seed, stream, counter, w);
    for (int i = 0; i < 4; ++i) z[i] = uniform_of(w[i]);
  }
};
struct NormalOne {
  template <class T> HOST_DEVICE static void draw(uint64_t seed, uint64_t stream, uint64_t counter, T (&z)[4]) {
    typename BitsOf<T>::type w[4];
    words_of(seed, stream, counter, w);
    normal_pair(w[0], w[1], z[0], z[1]);
    normal_pair(w[2], w[3], z[2], z[3]);
  }
};

}  // namespace
