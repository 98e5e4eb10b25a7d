// transpose(r): a square of kLanes x kLanes numbers in kLanes vectors, in place, by log2(kLanes) rounds of exchanges.
#pragma once
#include "simd.h"

namespace {

template <int... I> struct Lanes {};
template <int L> struct LanesOf;
template <> struct LanesOf<2> { using type = Lanes<0, 1>; };
template <> struct LanesOf<4> { using type = Lanes<0, 1, 2, 3>; };
template <> struct LanesOf<8> { using type = Lanes<0, 1, 2, 3, 4, 5, 6, 7>; };
template <> struct LanesOf<16> { using type = Lanes<0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15>; };

// One step of the transpose: exchange the odd groups of S lanes of a with the even ones of b.
template <class T, int S, int... I> inline void exchange(vec<T>& a, vec<T>& b, Lanes<I...>) {
  constexpr int L = kLanes<T>;
#if defined(__clang__)
  const vec<T> low = __builtin_shufflevector(a, b, (I & S ? L + I - S : I)...);
  b = __builtin_shufflevector(a, b, (I & S ? L + I : I + S)...);
#else
  const vec<T> low = __builtin_shuffle(a, b, vmask<T>{(I & S ? L + I - S : I)...});
  b = __builtin_shuffle(a, b, vmask<T>{(I & S ? L + I : I + S)...});
#endif
  a = low;
}

template <class T, int S = kLanes<T> / 2> inline void transpose(vec<T>* r) {
#pragma GCC unroll 16
  for (int i = 0; i < kLanes<T>; ++i)
    if (!(i & S)) exchange<T, S>(r[i], r[i + S], typename LanesOf<kLanes<T>>::type{});
  if constexpr (S > 1) transpose<T, S / 2>(r);
}

}  // namespace
