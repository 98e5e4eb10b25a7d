// What reductions are on the CPU and on the GPU: the monoids, and the passes that an array's axes ask for.
//
// Neighbouring axes of the same kind are merged, so an array is a chain of kept and reduced groups. The innermost
// reduced group is removed by one pass over (batch, reduced, kept) and leaves doubles; then the next, and so on: one
// pass in all common cases (everything, last axis, leading axes).
//
// Everything is accumulated in double. Sums of doubles carry their rounding errors along (Knuth's two-sum), so that in
// either precision the result is the rounded exact sum but for contrived inputs; memory is the limit all the same.
#pragma once
#include "host_device.h"
#include "kernel.h"

namespace {

// ---- the monoids: V is a vector of doubles or one double ----

template <class Source> struct SumOf;

// Sums of floats are exact enough in double.
template <> struct SumOf<float> {
  template <class V> struct State { V s; };
  template <class V> HOST_DEVICE static State<V> zero() { return {V{}}; }
  template <class V> HOST_DEVICE static void add(State<V>& a, V x) { a.s += x; }
  template <class V> HOST_DEVICE static void merge(State<V>& a, const State<V>& b) { a.s += b.s; }
  HOST_DEVICE static double value(const State<double>& a) { return a.s; }
  template <class V> static State<double> lane(const State<V>& a, int i) { return {a.s[i]}; }
};

// A sum s with the rounding errors e it has left behind.
template <> struct SumOf<double> {
  template <class V> struct State { V s, e; };
  template <class V> HOST_DEVICE static State<V> zero() { return {V{}, V{}}; }
  template <class V> HOST_DEVICE static void add(State<V>& a, V x) {
    const V t = a.s + x, z = t - a.s;
    a.e += (a.s - (t - z)) + (x - z);
    a.s = t;
  }
  template <class V> HOST_DEVICE static void merge(State<V>& a, const State<V>& b) {
    add(a, b.s);
    a.e += b.e;
  }
  HOST_DEVICE static double value(const State<double>& a) { return a.s - a.s == 0 ? a.s + a.e : a.s; }  // e is NaN beside infinity
  template <class V> static State<double> lane(const State<V>& a, int i) { return {a.s[i], a.e[i]}; }
};

template <class Source> struct MaxOf {
  template <class V> struct State { V m; };
  template <class V> HOST_DEVICE static State<V> zero() { return {V{} - __builtin_inf()}; }
  template <class V> HOST_DEVICE static void add(State<V>& a, V x) { a.m = (x > a.m) | (x != x) ? x : a.m; }
  template <class V> HOST_DEVICE static void merge(State<V>& a, const State<V>& b) { add(a, b.m); }
  HOST_DEVICE static double value(const State<double>& a) { return a.m; }
  template <class V> static State<double> lane(const State<V>& a, int i) { return {a.m[i]}; }
};

template <class Op> using Total = typename Op::template State<double>;

// ---- the chain of passes ----

struct Pass {
  int64_t batch, reduced, kept;              // from (batch, reduced, kept) to (batch, kept)
};

struct Passes {
  int n = 0;
  Pass pass[generant::kMaxDims];
  int64_t count = 1;                         // elements that go into one output

  Passes(const Array& x, const bool* reduced) {
    int64_t length[generant::kMaxDims];
    bool kind[generant::kMaxDims];
    int groups = 0;
    for (int i = 0; i < x.ndim; ++i) {
      if (reduced[i]) count *= x.shape[i];
      if (x.shape[i] == 1) continue;
      if (groups > 0 && kind[groups - 1] == reduced[i]) {
        length[groups - 1] *= x.shape[i];
      } else {
        length[groups] = x.shape[i], kind[groups] = reduced[i];
        ++groups;
      }
    }
    int64_t kept = 1;
    for (int i = groups - 1; i >= 0; --i) {
      if (!kind[i]) {
        kept *= length[i];
        continue;
      }
      int64_t batch = 1;
      for (int j = 0; j < i; ++j) batch *= length[j];
      pass[n++] = {batch, length[i], kept};
    }
    if (n == 0) pass[n++] = {1, 1, kept};    // nothing to reduce: a copy
  }

  // Results of all passes but the last, two of which are alive at a time.
  int64_t between() const {
    int64_t most = 0;
    for (int i = 0; i + 1 < n; ++i) most = pass[i].batch * pass[i].kept > most ? pass[i].batch * pass[i].kept : most;
    return most;
  }
};

// Which axes the attributes (keepdims, axis) reduce: axis is a count and that many axes, not negative.
inline void axes_of_attr(const Call& c, bool* reduced) {
  for (int i = 0; i < generant::kMaxDims; ++i) reduced[i] = false;
  for (int i = 0; i < int(c.attr[1]); ++i) reduced[int(c.attr[2 + i])] = true;
}

// Which axes an array of out's shape would be broadcast along.
inline void axes_of_shape(const Call& c, bool* reduced) {
  const int lead = c.in[0].ndim - c.out[0].ndim;
  for (int i = 0; i < c.in[0].ndim; ++i) reduced[i] = i < lead || c.out[0].shape[i - lead] == 1;
}

}  // namespace
