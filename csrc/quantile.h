// quantile(a, n, probability): of n numbers >= 0, by counting digits of their bits: one pass over the numbers per digit,
// no sorting, no copy. Bits of floats that are not negative are in the order of the numbers; NaN is above all.
#pragma once
#include "float_bits.h"
#include "kernel.h"

namespace {

constexpr int kDigit = 11;                          // bits of a digit, except the last of a number

// The quantile lies `weight` of the way from number `rank` (from 0) of n in order to the next one.
struct QuantilePlace {
  int64_t rank;
  double weight;
};
HOST_DEVICE QuantilePlace quantile_place(int64_t n, double probability) {
  const double at = double(n - 1) * probability;
  const int64_t rank = int64_t(at);
  return {rank, at - double(rank)};
}
template <class T> HOST_DEVICE T quantile_between(T found, T next, double weight) { return found + T(weight) * (next - found); }

// Interpolated between the two nearest of the numbers in order, as NumPy and torch do.
template <class T> __attribute__((noinline)) T quantile(const T* a, int64_t n, double probability) {
  typedef typename BitsOf<T>::type U;
  constexpr int kBits = int(sizeof(T)) * 8;
  const QuantilePlace place = quantile_place(n, probability);
  const int64_t rank = place.rank;
  const auto bits = [=](int64_t i) { U u; memcpy(&u, a + i, sizeof u); return u; };
  U prefix = 0;                                     // the digits found so far
  int64_t rest = rank, equal = n;                   // rank among the numbers with this prefix, and how many they are
  for (int low = kBits; low > 0;) {
    const int width = low < kDigit ? low : kDigit, known = low;
    low -= width;
    uint32_t count[1 << kDigit] = {};
    for (int64_t i = 0; i < n; ++i) {
      const U u = bits(i);
      if (known == kBits || u >> (known % kBits) == prefix) ++count[u >> low & ((U(1) << width) - 1)];
    }
    U digit = 0;
    while (rest >= int64_t(count[digit])) rest -= count[digit++];
    equal = count[digit];
    prefix = U(prefix << width | digit);
  }
  T found, next;
  memcpy(&found, &prefix, sizeof found);
  next = found;
  if (rest + 1 >= equal && rank + 1 < n) {          // the following number is a larger one
    U least = ~U(0);
    for (int64_t i = 0; i < n; ++i)
      if (bits(i) > prefix && bits(i) < least) least = bits(i);
    memcpy(&next, &least, sizeof next);
  }
  return quantile_between(found, next, place.weight);
}

}  // namespace
