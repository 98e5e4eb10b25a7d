// Total<T>: a sum of vectors in double; doubles carry their rounding errors along (Knuth's two-sum).
#pragma once
#include "simd.h"

namespace {

template <class T> struct Total {
  vd a{}, b{};
  void add(vec<T> x) {
    if constexpr (sizeof(T) == 4) {
      typedef float half __attribute__((vector_size(kVectorBytes / 2)));
      half low, high;
      memcpy(&low, &x, sizeof low);
      memcpy(&high, reinterpret_cast<const char*>(&x) + sizeof low, sizeof high);
      a += __builtin_convertvector(low, vd);
      b += __builtin_convertvector(high, vd);
    } else {
      const vd t = a + x, z = t - a;
      b += (a - (t - z)) + (x - z);
      a = t;
    }
  }
  void add(const Total& x) {
    if constexpr (sizeof(T) == 4) a += x.a;
    else add(x.a);
    b += x.b;
  }
  double value() const {
    if constexpr (sizeof(T) == 4) return lane_sum<double>(a + b);
    const double s = lane_sum<double>(a);
    return __builtin_isfinite(s) ? s + lane_sum<double>(b) : s;
  }
};

}  // namespace
