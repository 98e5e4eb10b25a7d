// Random numbers in registers: Philox4x32-10, uniforms and Box-Muller normals with the same bits on every machine.
//
// Element e is word e % 4 of the counter (e / 4, stream) under the key `seed`; float64 takes 32 lower bits from
// counter (e / 4 + 2^63, stream). The arithmetic is python/generant/ops/random.py's, operation by operation: the order
// is the contract, so nothing here may be re-associated, and fma is exact even where the machine has none.
// Salmon, Moraes, Dror and Shaw (2011). Coefficients: see random.py.
//
// A block is as many counters as a float vector has lanes. They lie in 64-bit lanes, even ones in one vector and odd
// ones in another, because that is what the 32 x 32 -> 64 bit multiply reads and writes: no shuffles between rounds.
#pragma once
#include "philox_one.h"
#include "simd.h"

namespace {

typedef uint64_t vw __attribute__((vector_size(kVectorBytes)));
constexpr uint64_t kLow32 = 0xFFFFFFFFull;

inline vw mul_low(vw a, uint32_t m) {               // the lower halves only; the upper ones may hold anything
#if defined(__AVX512F__)
  return (vw)_mm512_maskz_mul_epu32(0xFF, (__m512i)a, _mm512_set1_epi64(m));
#elif defined(__AVX2__)
  return (vw)_mm256_mul_epu32((__m256i)a, _mm256_set1_epi64x(m));
#elif defined(__SSE2__)
  return (vw)_mm_mul_epu32((__m128i)a, _mm_set1_epi64x(m));
#else
  return (a & kLow32) * m;
#endif
}

// Everything about a stretch of counters (high, low = 0 ..) that does not depend on `low`. Rounds 1 and 2 are half
// constant: only word 0 of the counter varies.
struct Philox {
  uint64_t key[10][2];                              // round keys
  uint64_t x1, x2, y2, w2;

  Philox(uint64_t seed, uint64_t stream, uint64_t high) {
    uint32_t k0 = uint32_t(seed), k1 = uint32_t(seed >> 32);
    for (int r = 0; r < 10; ++r) {
      key[r][0] = k0, key[r][1] = k1;
      k0 += kPhiloxKey0, k1 += kPhiloxKey1;
    }
    const uint64_t q = uint64_t(kPhiloxB) * uint32_t(stream);
    const uint32_t c0 = uint32_t(q >> 32) ^ uint32_t(high) ^ uint32_t(key[0][0]);
    const uint64_t p = uint64_t(kPhiloxA) * c0;
    x1 = (stream >> 32) ^ key[0][1];                // round 1: c2 = high(A c0) ^ x1
    x2 = uint32_t(q) ^ key[1][0];                   // round 2: c0 = high(B c2) ^ x2
    y2 = (p >> 32) ^ key[1][1];                     //          c2 = low(A c0) ^ y2
    w2 = uint32_t(p);                               //          c3
  }

  // V vectors of counters, word 0 in the lower halves; the result in the lower halves as well.
  template <int V> inline __attribute__((always_inline)) void run(const vw (&low)[V], vw (&c)[V][4]) const {
    for (int v = 0; v < V; ++v) {
      const vw p = mul_low(low[v], kPhiloxA);
      const vw q = mul_low((p >> 32) ^ x1, kPhiloxB);
      c[v][0] = (q >> 32) ^ x2, c[v][1] = q, c[v][2] = p ^ y2, c[v][3] = w2 - vw{};
    }
#pragma GCC unroll 8
    for (int r = 2; r < 10; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        const vw p = mul_low(c[v][0], kPhiloxA), q = mul_low(c[v][2], kPhiloxB);
        c[v][0] = (q >> 32) ^ c[v][1] ^ key[r][0], c[v][1] = q;
        c[v][2] = (p >> 32) ^ c[v][3] ^ key[r][1], c[v][3] = p;
      }
  }
};

// ---- the pinned arithmetic ----

#if defined(__SSE2__) && !defined(__FMA__)
// In double the product is exact and the sum is rounded to odd, which makes the second rounding harmless
// (Boldo and Melquiond 2008).
inline __m128d round_to_odd_fma(__m128d a, __m128d b, __m128d c) {
  const __m128d p = a * b, s = p + c, t = s - p;
  const __m128d lost = (p - (s - t)) + (c - t);
  const vmask<double> bits = (vmask<double>)s;
  const vmask<double> inexact_even = ((vmask<double>)(lost != __m128d{})) & ((bits & 1) - 1);
  const vmask<double> toward_zero = ((vmask<double>)lost ^ bits) < 0;
  return (__m128d)(bits + (inexact_even & (toward_zero | 1)));
}
#endif

inline vf exact_fma(vf a, vf b, vf c) {
#if defined(__FMA__)
  return fma(a, b, c);
#elif defined(__SSE2__)
  const __m128d low = round_to_odd_fma(_mm_cvtps_pd(a), _mm_cvtps_pd(b), _mm_cvtps_pd(c));
  const __m128d high = round_to_odd_fma(_mm_cvtps_pd(_mm_movehl_ps(a, a)), _mm_cvtps_pd(_mm_movehl_ps(b, b)),
                                        _mm_cvtps_pd(_mm_movehl_ps(c, c)));
  return _mm_movelh_ps(_mm_cvtpd_ps(low), _mm_cvtpd_ps(high));
#else
  for (int i = 0; i < kLanes<float>; ++i) a[i] = __builtin_fmaf(a[i], b[i], c[i]);
  return a;
#endif
}

inline vf to_float(vu x) {                          // rounded once, as uint32 -> float32 must be
#if defined(__AVX512F__)
  return _mm512_cvtepu32_ps((__m512i)x);
#else
  const vf high = __builtin_convertvector((vmask<float>)(x >> 16), vf);
  const vf low = __builtin_convertvector((vmask<float>)(x & 0xFFFFu), vf);
  return high * 65536.0f + low;
#endif
}

struct Uniform {                                    // [0, 1): the leading 24 or 53 bits
  static inline void draw(const vu (&w)[4], vf (&z)[4]) {
    for (int i = 0; i < 4; ++i) z[i] = __builtin_convertvector((vmask<float>)(w[i] >> 8), vf) * 0x1p-24f;
  }
  static inline void draw(const vw (&w)[4], vd (&z)[4]) {
    for (int i = 0; i < 4; ++i) z[i] = __builtin_convertvector((vmask<double>)(w[i] >> 11), vd) * 0x1p-53;
  }
};

template <int N> inline vd horner(const double (&k)[N], vd x) {
  vd p = broadcast(k[0]);
#pragma GCC unroll 8
  for (int i = 1; i < N; ++i) p = p * x + k[i];
  return p;
}

template <int N> inline __attribute__((always_inline)) vf exact_horner(const float (&k)[N], vf x) {
  vf p = broadcast(k[0]);
#pragma GCC unroll 8
  for (int i = 1; i < N; ++i) p = exact_fma(p, x, broadcast(k[i]));
  return p;
}

struct Normal {                                     // sqrt(-2 log u) (cos 2 pi v, sin 2 pi v)
  static inline __attribute__((always_inline)) void pair(vu a, vu b, vf& x, vf& y) {
    typedef vmask<float> vi;
    const vi j = (vi)(to_float(a) + 0.5f) - kMiddle32;
    const vf e = __builtin_convertvector(j >> 23, vf);
    const vf t = (vf)((j & 0x7FFFFF) + kSqrtHalf32) - 1.0f;
    const vf z = t * t;
    vf p = exact_horner(kLog32, t);
    p = exact_fma(e, broadcast(kLogTwo32[1]), (p * t) * z) + z;
    const vf r = sqrt(exact_fma(e, broadcast(kLogTwo32[0]), exact_fma(t, broadcast(-2.0f), p)));

    const vf v = __builtin_convertvector((vi)(b << 2), vf) * 0x1p-31f;
    const vf w = v * v;
    const vf s = exact_horner(kSin32, w) * v, c = exact_horner(kCos32, w);

    const vu quadrant = b + 0x20000000u;            // in the two highest bits
    const auto odd = (quadrant & 0x40000000u) != 0;
    x = (vf)((vu)(r * (odd ? s : c)) ^ ((quadrant + 0x40000000u) & 0x80000000u));
    y = (vf)((vu)(r * (odd ? c : s)) ^ (quadrant & 0x80000000u));
  }

  static inline void pair(vw a, vw b, vd& x, vd& y) {
    typedef vmask<double> vi;
    const vi j = (vi)(__builtin_convertvector(a, vd) + 0.5) - kMiddle;
    const vd e = __builtin_convertvector(j >> 52, vd);
    const vd t = (vd)((j & 0xFFFFFFFFFFFFFll) + kSqrtHalf) - 1.0;
    const vd s = t / (2.0 + t), z = s * s, h = 0.5 * (t * t);
    const vd p = horner(kLog, z);
    const vd g = s * (h + z * p);
    const vd log = e * kLogTwo[0] - ((h - (g + e * kLogTwo[1])) - t);
    const vd r = sqrt(-2.0 * log);

    const vd v = __builtin_convertvector((vi)(b << 2), vd) * 0x1p-63;
    const vd w = v * v;
    const vd sine = horner(kSin, w) * v, cosine = horner(kCos, w);

    const vw quadrant = b + (1ull << 61);
    const auto odd = (quadrant & (1ull << 62)) != 0;
    x = (vd)((vw)(r * (odd ? sine : cosine)) ^ ((quadrant + (1ull << 62)) & (1ull << 63)));
    y = (vd)((vw)(r * (odd ? cosine : sine)) ^ (quadrant & (1ull << 63)));
  }

  template <class U, class V> static inline __attribute__((always_inline)) void draw(const U (&w)[4], V (&z)[4]) {
    pair(w[0], w[1], z[0], z[1]);
    pair(w[2], w[3], z[2], z[3]);
  }
};

// ---- blocks of elements in memory order ----

template <class T> constexpr int kBlock = 4 * kLanes<T>;

// Which counter of a block a float lane holds: transposing within 128 bits then leaves whole vectors in order.
constexpr uint32_t counter_at(int lane) { return uint32_t(lane % 4 * (kLanes<float> / 4) + lane / 4); }

// z[i] lane l = word i of the counter at lane l  ->  the block's elements in order, counters as `counter_at` says.
inline void in_order(vf (&z)[4]) {
#if defined(__AVX512F__)
  const vf a = _mm512_unpacklo_ps(z[0], z[1]), b = _mm512_unpackhi_ps(z[0], z[1]);
  const vf c = _mm512_unpacklo_ps(z[2], z[3]), d = _mm512_unpackhi_ps(z[2], z[3]);
  z[0] = (vf)_mm512_unpacklo_pd((vd)a, (vd)c), z[1] = (vf)_mm512_unpackhi_pd((vd)a, (vd)c);
  z[2] = (vf)_mm512_unpacklo_pd((vd)b, (vd)d), z[3] = (vf)_mm512_unpackhi_pd((vd)b, (vd)d);
#elif defined(__AVX2__)
  const vf a = _mm256_unpacklo_ps(z[0], z[1]), b = _mm256_unpackhi_ps(z[0], z[1]);
  const vf c = _mm256_unpacklo_ps(z[2], z[3]), d = _mm256_unpackhi_ps(z[2], z[3]);
  z[0] = (vf)_mm256_unpacklo_pd((vd)a, (vd)c), z[1] = (vf)_mm256_unpackhi_pd((vd)a, (vd)c);
  z[2] = (vf)_mm256_unpacklo_pd((vd)b, (vd)d), z[3] = (vf)_mm256_unpackhi_pd((vd)b, (vd)d);
#else
  float buffer[4 * kLanes<float>];
  for (int l = 0; l < kLanes<float>; ++l)
    for (int i = 0; i < 4; ++i) buffer[4 * counter_at(l) + uint32_t(i)] = z[i][l];
  for (int i = 0; i < 4; ++i) z[i] = load(buffer + i * kLanes<float>);
#endif
}
inline void in_order(vd (&z)[4]) {
  double buffer[4 * kLanes<double>];
  for (int l = 0; l < kLanes<double>; ++l)
    for (int i = 0; i < 4; ++i) buffer[4 * l + i] = z[i][l];
  for (int i = 0; i < 4; ++i) z[i] = load(buffer + i * kLanes<double>);
}

template <class T> struct Generator;

template <> struct Generator<float> {
  Philox philox;
  vw even, odd;

  Generator(const uint64_t* key, int64_t begin) : philox(key[0], key[1], uint64_t(begin) >> 34) {
    for (int i = 0; i < kLanes<double>; ++i) even[i] = counter_at(2 * i), odd[i] = counter_at(2 * i + 1);
  }
  // B consecutive blocks from counter `first` on; more than one, so that the chains of multiplies overlap.
  template <class Draw, int B>
  inline __attribute__((always_inline)) void blocks(uint64_t first, vf (&z)[B][4]) const {
    vw low[2 * B], c[2 * B][4];
    for (int i = 0; i < B; ++i) {
      const uint64_t at = first + uint64_t(i * kLanes<float>);
      low[2 * i] = even + at, low[2 * i + 1] = odd + at;
    }
    philox.run<2 * B>(low, c);
#pragma GCC unroll 4
    for (int i = 0; i < B; ++i) {
      vu w[4];
      for (int j = 0; j < 4; ++j) w[j] = (vu)((c[2 * i][j] & kLow32) | (c[2 * i + 1][j] << 32));
      Draw::draw(w, z[i]);
      in_order(z[i]);
    }
  }
};

template <> struct Generator<double> {
  Philox high, low;
  vw lane;

  Generator(const uint64_t* key, int64_t begin)
      : high(key[0], key[1], uint64_t(begin) >> 34), low(key[0], key[1], (uint64_t(begin) >> 34) | (kLowWords >> 32)) {
    for (int i = 0; i < kLanes<double>; ++i) lane[i] = uint64_t(i);
  }
  template <class Draw, int B> inline void blocks(uint64_t first, vd (&z)[B][4]) const {
    for (int i = 0; i < B; ++i) {
      const vw at[1] = {lane + (first + uint64_t(i * kLanes<double>))};
      vw a[1][4], b[1][4], w[4];
      high.run<1>(at, a);
      low.run<1>(at, b);
      for (int j = 0; j < 4; ++j) w[j] = (a[0][j] << 32) | (b[0][j] & kLow32);
      Draw::draw(w, z[i]);
      in_order(z[i]);
    }
  }
};

// f(e, z, n) for every vector of the elements [begin, end): z holds elements e .. e + n - 1. `begin` is a multiple of
// kBlock<T>, and the range does not cross a multiple of 2^34 (where the upper counter word would change).
template <class T, class Draw, class F>
inline void generate(const uint64_t* key, int64_t begin, int64_t end, F&& f) {
  constexpr int B = sizeof(T) == 4 ? 2 : 1, N = kLanes<T>;  // blocks at once; of doubles one has two chains already
  const Generator<T> g(key, begin);
  int64_t e = begin;
  vec<T> z[B][4];
  for (; e + B * kBlock<T> <= end; e += B * kBlock<T>) {
    g.template blocks<Draw, B>(uint64_t(e) / 4, z);
#pragma GCC unroll 8
    for (int i = 0; i < 4 * B; ++i) f(e + i * N, z[i / 4][i % 4], N);
  }
  for (; e < end; e += kBlock<T>) {
    vec<T> last[1][4];
    g.template blocks<Draw, 1>(uint64_t(e) / 4, last);
    for (int i = 0; i < 4 && e + i * N < end; ++i)
      f(e + i * N, last[0][i], e + i * N + N <= end ? N : int(end - e - i * N));
  }
}

}  // namespace
