// How scores bound squared distances: what the searches of CPU and GPU rule pairs out by; score_block.h derives it.
#pragma once
#include "float_bits.h"
#include "kernel_parameters.h"

namespace {

// e is relative to |x|^2 + |y|^2 of the packed rows (expanded form) or to |x - y|^2 (difference form).
template <class T> struct Bound {
  double e, tiny;
  bool gemm;
  T widen;
  Bound() = default;
  Bound(double e, bool gemm, double tiny = double(Limits<T>::tiny)) : e(e), tiny(tiny), gemm(gemm) {
    widen = T(gemm ? e < 0.1 ? (1 + 3 * e) / (1 - 6 * e) : HUGE_VAL : 1 + 5 * e);
  }
  // The largest `low` of a pair with |x - y|^2 <= t, where t may carry the rounding errors of its measurement.
  HOST_DEVICE T reach(double t) const {
    const double r = (gemm ? 0.5 * t : t * (1 + e)) * (1 + e) + tiny;
    return r < double(Limits<T>::huge) ? T(r) : T(HUGE_VAL);
  }
  // What a row of x with |x|^2 = norm adds to a `low` for `follow`.
  HOST_DEVICE T slack(double norm) const { return gemm ? T(5 * e * norm * (1 + 4 * double(Limits<T>::unit))) : T(0); }
  // reach() of every |x - y|^2 that a pair with this finite `low` may have.
  HOST_DEVICE T follow(T low, T slack) const { return (low + slack) * widen + 2 * T(tiny); }
  // `low` - 5 e |x|^2 below this (and finite): surely |x - y|^2 < t, also after rounding the distance to T.
  HOST_DEVICE T surely(double t) const {
    const double huge = double(Limits<T>::huge);
    if (t > 16 * huge) return T(HUGE_VAL);           // no pair of usable rows is that far
    return t > 0 && t < huge ? T((gemm ? 0.5 * t : t) * (1 - 8 * e) - 2 * tiny) : -T(HUGE_VAL);
  }
};

// Squared distances are kept as the bits of a float64 >= 0, whose order as integers is the order of the numbers, then
// inf, then NaN; kEmpty is above them all.
constexpr uint64_t kInfinity = 0x7ff0000000000000ull, kNan = 0x7ff8000000000000ull, kEmpty = ~0ull;

HOST_DEVICE uint64_t to_key(double s) { return s != s ? kNan : same_bits<uint64_t>(s); }
HOST_DEVICE double from_key(uint64_t key) { return same_bits<double>(key); }

}  // namespace
