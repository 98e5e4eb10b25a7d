// What a call of attention or attention_bwd is about: its sizes and where a head begins in every array.
#pragma once
#include "host_device.h"
#include "kernel.h"

namespace {

constexpr double kLog2E = 1.4426950408889634074, kLn2 = 0.69314718055994530942;

// q (n, t, heads, d), k (n, s, heads, d), v (n, s, heads, e), bias (1 or n, 1 or heads, t, s) or null.
template <class T> struct Heads {
  int64_t n, t, s, heads, d, e;
  const T *q, *k, *v, *bias;
  int64_t bias_n, bias_h;                            // strides, 0 where the bias is shared
  bool causal;
  double scale;

  // first: which input q is; attr: causal, scale.
  Heads(const Call& c, int first) {
    const Array *q0 = c.in + first, *k0 = q0 + 1, *v0 = q0 + 2, *b0 = q0 + 3;
    n = q0->shape[0], t = q0->shape[1], heads = q0->shape[2], d = q0->shape[3], s = k0->shape[1], e = v0->shape[3];
    q = in<T>(c, first), k = in<T>(c, first + 1), v = in<T>(c, first + 2), bias = in<T>(c, first + 3);
    bias_h = bias && b0->shape[1] > 1 ? t * s : 0;
    bias_n = bias && b0->shape[0] > 1 ? b0->shape[1] * t * s : 0;
    causal = c.attr[0] != 0;
    scale = c.attr[1] == c.attr[1] ? c.attr[1] : 1 / __builtin_sqrt(double(d > 0 ? d : 1));
  }
  // Row 0 of a head in an array of so many columns per head.
  HOST_DEVICE int64_t at(int64_t sample, int64_t rows, int64_t head, int64_t columns) const {
    return (sample * rows * heads + head) * columns;
  }
  HOST_DEVICE const T* bias_of(int64_t sample, int64_t head) const {
    return bias ? bias + sample * bias_n + head * bias_h : nullptr;
  }
  // Keys that queries below `end` can see.
  HOST_DEVICE int64_t visible(int64_t end) const { return causal && end < s ? end : s; }
};

}  // namespace
