// Vectors of float and double as wide as the instruction set this unit is compiled for.
//
// GCC/Clang vector extensions: arithmetic, comparison and `mask ? a : b` are operators. What they lack is wrapped here
// and nowhere else. vec<float> has kLanes<float> lanes (16, 8 or 4), vec<double> half as many. An instruction set
// without fused multiply-add rounds twice in `fma`; code whose bits are promised uses philox.h's exact emulation.
#pragma once
#include <stdint.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <class T> constexpr int kLanes = kVectorBytes / int(sizeof(T));

template <class T> struct VecOf;
template <> struct VecOf<float> {
  typedef float type __attribute__((vector_size(kVectorBytes)));
  typedef float unaligned __attribute__((vector_size(kVectorBytes), aligned(4), may_alias));
  typedef int32_t mask __attribute__((vector_size(kVectorBytes)));
};
template <> struct VecOf<double> {
  typedef double type __attribute__((vector_size(kVectorBytes)));
  typedef double unaligned __attribute__((vector_size(kVectorBytes), aligned(8), may_alias));
  typedef int64_t mask __attribute__((vector_size(kVectorBytes)));
};
template <class T> using vec = typename VecOf<T>::type;
template <class T> using vmask = typename VecOf<T>::mask;      // also the integer vector of the same lane width
using vf = vec<float>;
using vd = vec<double>;
typedef uint32_t vu __attribute__((vector_size(kVectorBytes)));

template <class T> inline vec<T> load(const T* p) { return *reinterpret_cast<const typename VecOf<T>::unaligned*>(p); }
template <class T> inline void store(T* p, vec<T> v) { *reinterpret_cast<typename VecOf<T>::unaligned*>(p) = v; }
template <class T> inline vec<T> broadcast(T x) { return x - vec<T>{}; }

// The first n lanes (0 <= n <= kLanes); the others are zero when loaded, untouched when stored.
template <class T> inline vec<T> load_first(const T* p, int64_t n) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) return _mm512_maskz_loadu_ps(__mmask16((1u << n) - 1), p);
  else return _mm512_maskz_loadu_pd(__mmask8((1u << n) - 1), p);
#else
  vec<T> v{};
  memcpy(&v, p, size_t(n) * sizeof(T));
  return v;
#endif
}
template <class T> inline void store_first(T* p, vec<T> v, int64_t n) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) _mm512_mask_storeu_ps(p, __mmask16((1u << n) - 1), v);
  else _mm512_mask_storeu_pd(p, __mmask8((1u << n) - 1), v);
#else
  memcpy(p, &v, size_t(n) * sizeof(T));
#endif
}

#if defined(__AVX512F__)
inline vf fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
inline vd fma(vd a, vd b, vd c) { return _mm512_fmadd_pd(a, b, c); }
inline vf sqrt(vf a) { return _mm512_maskz_sqrt_ps(0xffff, a); }  // the plain form makes GCC 12 warn
inline vd sqrt(vd a) { return _mm512_maskz_sqrt_pd(0xff, a); }
#elif defined(__AVX2__)
inline vf fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
inline vd fma(vd a, vd b, vd c) { return _mm256_fmadd_pd(a, b, c); }
inline vf sqrt(vf a) { return _mm256_sqrt_ps(a); }
inline vd sqrt(vd a) { return _mm256_sqrt_pd(a); }
#else
inline vf fma(vf a, vf b, vf c) { return a * b + c; }
inline vd fma(vd a, vd b, vd c) { return a * b + c; }
inline vf sqrt(vf a) { for (int i = 0; i < kLanes<float>; ++i) a[i] = __builtin_sqrtf(a[i]); return a; }
inline vd sqrt(vd a) { for (int i = 0; i < kLanes<double>; ++i) a[i] = __builtin_sqrt(a[i]); return a; }
#endif

// b where a is NaN: a comparison with NaN is false, so put the operand whose NaN must survive second.
template <class V> inline V vmax(V a, V b) { return a > b ? a : b; }
#if defined(__AVX512F__)
inline vf vmax(vf a, vf b) { return _mm512_maskz_max_ps(0xffff, a, b); }  // as sqrt
inline vd vmax(vd a, vd b) { return _mm512_maskz_max_pd(0xff, a, b); }
#elif defined(__AVX2__)                          // GCC compares and blends where b may be NaN
inline vf vmax(vf a, vf b) { return _mm256_max_ps(a, b); }
inline vd vmax(vd a, vd b) { return _mm256_max_pd(a, b); }
#elif defined(__SSE2__)
inline vf vmax(vf a, vf b) { return _mm_max_ps(a, b); }
inline vd vmax(vd a, vd b) { return _mm_max_pd(a, b); }
#endif
template <class V> inline V vmin(V a, V b) { return a < b ? a : b; }
inline vf vabs(vf a) { return (vf)((vmask<float>)a & 0x7fffffff); }
inline vd vabs(vd a) { return (vd)((vmask<double>)a & 0x7fffffffffffffffll); }

// Sum of all lanes in a fixed (pairwise) order.
template <class T> inline T lane_sum(vec<T> v) {
  T a[kLanes<T>];
  store(a, v);
  for (int n = kLanes<T> / 2; n > 0; n /= 2)
    for (int i = 0; i < n; ++i) a[i] += a[i + n];
  return a[0];
}
template <class T> inline T lane_max(vec<T> v) {
  T m = v[0];
  for (int i = 1; i < kLanes<T>; ++i) m = v[i] > m ? v[i] : m;
  return m;
}

}  // namespace
