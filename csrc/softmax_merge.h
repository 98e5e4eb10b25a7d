// Softmax in parts: the largest score and the sum of powers of two from there, and how two parts become one.
//
// Scores are in base 2. A part in which every key is hidden has the top -inf and the sum 0, and counts from 0 instead, so
// that nothing is -inf - -inf. A score of +inf or NaN makes its row NaN.
#pragma once
#include "host_device.h"

namespace {

// What scores are counted from.
template <class T> HOST_DEVICE T base_of(T top) { return top == -T(__builtin_inff()) ? T(0) : top; }

// The larger; a NaN is left to the sum.
template <class T> HOST_DEVICE T larger(T a, T b) { return b > a ? b : a; }

// 1 / sum, or 0 for a query that sees no key.
template <class T> HOST_DEVICE T share_of(T sum) { return sum == T(0) ? T(0) : T(1) / sum; }

}  // namespace
