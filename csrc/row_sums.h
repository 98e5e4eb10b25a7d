// Vectors along one row of any length: loads and stores of a last, shorter vector, sums in a fixed order, and f over the
// vectors of a row.
#pragma once
#include "simd.h"

namespace {

// Lanes below n.
template <class T> inline vmask<T> first_lanes(int64_t n) {
  vmask<T> i;
  for (int k = 0; k < kLanes<T>; ++k) i[k] = k;
  return i < (vmask<T>{} + decltype(i[0] + 0)(n));
}

// Sum of all lanes by halves, in registers.
template <class T, class V> inline T sum_lanes(V v) {
  constexpr int n = int(sizeof(V) / sizeof(T));
  if constexpr (n <= 4) {
    T a[n];
    memcpy(a, &v, sizeof v);
    if constexpr (n == 4) return (a[0] + a[2]) + (a[1] + a[3]);
    else return a[0] + a[1];
  } else {
    typedef T half __attribute__((vector_size(sizeof(V) / 2)));
    half a, b;
    memcpy(&a, &v, sizeof a);
    memcpy(&b, reinterpret_cast<const char*>(&v) + sizeof a, sizeof b);
    return sum_lanes<T>(half(a + b));
  }
}

// sum over j of f(x_j), f given vectors at offset j, in a fixed order: four vectors of partial sums.
template <class T, class F> inline T row_sum(int64_t d, F f) {
  constexpr int L = kLanes<T>;
  vec<T> a[4] = {};
  int64_t j = 0;
  for (; j + 4 * L <= d; j += 4 * L)
    for (int k = 0; k < 4; ++k) a[k] += f(j + k * L, L);
  for (int k = 0; j < d; j += L, ++k) {
    const int64_t n = d - j < L ? d - j : L;
    const vec<T> v = f(j, n);
    a[k] += n < L ? (first_lanes<T>(n) ? v : vec<T>{}) : v;
  }
  return sum_lanes<T>((a[0] + a[1]) + (a[2] + a[3]));
}

template <class T> inline vec<T> load_n(const T* p, int64_t n) {
  return n == kLanes<T> ? load(p) : load_first(p, n);
}
template <class T> inline void store_n(T* p, vec<T> v, int64_t n) {
  if (n == kLanes<T>) store(p, v);
  else store_first(p, v, n);
}

// f(j, n) for the vectors of a row: n lanes from offset j.
template <class T, class F> inline void row_map(int64_t d, F f) {
  constexpr int L = kLanes<T>;
  int64_t j = 0;
  for (; j + L <= d; j += L) f(j, int64_t(L));
  if (j < d) f(j, d - j);
}

}  // namespace
