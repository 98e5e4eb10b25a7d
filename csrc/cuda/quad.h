// Four elements at a time: what one Philox counter makes, and a store of 16 bytes (float).
//
// Quad q of a row covers its elements 4 q .. 4 q + 3; the last one of a row may be shorter.
#pragma once
#include "../philox_one.h"
#include "elementwise.h"
#include "pieces.h"

namespace {

constexpr int kQuadThreads = 256;

template <class T> using Quad = Pack<T, 4>;

template <class T> HOST_DEVICE bool on_quad(const T* p) { return reinterpret_cast<uintptr_t>(p) % sizeof(Quad<T>) == 0; }

// Elements [first, m) of four (the others 0); aligned: p may be read as a quad.
template <class T> __device__ inline Quad<T> read(const T* p, int m, bool aligned, int first = 0) {
  if (aligned && m - first == 4) return *reinterpret_cast<const Quad<T>*>(p);
  Quad<T> a;
  GENERANT_UNROLL
  for (int k = 0; k < 4; ++k) a.v[k] = k >= first && k < m ? p[k] : T(0);
  return a;
}
template <class T> __device__ inline void write(T* p, const Quad<T>& a, int m, bool aligned, int first = 0) {
  if (aligned && m - first == 4) {
    *reinterpret_cast<Quad<T>*>(p) = a;
    return;
  }
  GENERANT_UNROLL
  for (int k = 0; k < 4; ++k)
    if (k >= first && k < m) p[k] = a.v[k];
}

__device__ inline int left(int64_t e, int64_t end) { return end - e < 4 ? int(end - e) : 4; }

// `count` rows of `row` elements as one sequence of quads, no quad across two rows.
struct Rows {
  int64_t count, row, each;                          // each: quads per row

  static Rows of(int64_t count, int64_t row) { return {count, row, ceil_div(row, 4)}; }
  HOST_DEVICE int64_t quads() const { return count * each; }
  __device__ int64_t row_of(int64_t quad) const { return count == 1 ? 0 : quotient(quad, each); }
};

}  // namespace
