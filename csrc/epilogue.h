// The epilogue of a product or a convolution: bias, residual and activation on a tile while it is in L1.
//
// It uses the same vector functions as activation.cpp, so a fused op has the bits of the separate ones.
#pragma once
#include "activation_math.h"

namespace {

template <class T> struct Layer {
  const T* bias;           // one per column, or null
  const T* residual;       // like y, or null
  T *y, *h;                // h may be null
  int64_t ld;
};

struct Identity {
  template <class T> static vec<T> f(vec<T> x) { return x; }
};

// The tile holds the sums, in h if it is wanted and in y otherwise; leave h = sums + bias + residual and y = f(h).
template <class T, class F>
static void finish_layer(const void* context, int64_t i, int64_t j, int64_t m, int64_t n) {
  constexpr int L = kLanes<T>;
  const Layer<T>& s = *static_cast<const Layer<T>*>(context);
  for (int64_t q = 0; q < n; q += L) {
    const int64_t w = n - q;
    if (w >= L) {
      const vec<T> b = s.bias ? load(s.bias + j + q) : vec<T>{};
      for (int64_t r = i; r < i + m; ++r) {
        const int64_t at = r * s.ld + j + q;
        vec<T> v = load((s.h ? s.h : s.y) + at) + b;
        if (s.residual) v += load(s.residual + at);
        if (s.h) store(s.h + at, v);
        store(s.y + at, F::template f<T>(v));
      }
    } else {
      const vec<T> b = s.bias ? load_first(s.bias + j + q, w) : vec<T>{};
      for (int64_t r = i; r < i + m; ++r) {
        const int64_t at = r * s.ld + j + q;
        vec<T> v = load_first((s.h ? s.h : s.y) + at, w) + b;
        if (s.residual) v += load_first(s.residual + at, w);
        if (s.h) store_first(s.h + at, v, w);
        store_first(s.y + at, F::template f<T>(v), w);
      }
    }
  }
}

// In the order of ACTIVATIONS in ops/matmul.py.
template <class T> static void (*activation_of(int a))(const void*, int64_t, int64_t, int64_t, int64_t) {
  switch (a) {
    case 0: return finish_layer<T, Relu>;
    case 1: return finish_layer<T, LeakyRelu>;
    case 2: return finish_layer<T, Silu>;
    case 3: return finish_layer<T, Gelu>;
    case 4: return finish_layer<T, Tanh>;
    case 5: return finish_layer<T, Sigmoid>;
    default: return finish_layer<T, Softplus>;
  }
}

}  // namespace
