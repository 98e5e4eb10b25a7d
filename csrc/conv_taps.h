// The passes of a convolution as lists of filter taps for tap_conv().
//
// conv2d_dx with a stride is one convolution per phase of the input pixels, each with the taps that meet it.
#pragma once
#include "conv.h"
#include "implicit_gemm.h"

namespace {

inline int64_t taps_bytes(const Conv& s) { return round64(s.kh * s.kw * int64_t(sizeof(Tap))); }

inline TapList forward_taps(const Conv& s, Tap* to) {
  TapList list{};
  list.taps = to;
  for (int64_t i = 0; i < s.kh; ++i)
    for (int64_t j = 0; j < s.kw; ++j)
      add_tap(list, to, {i * s.dilation_h - s.top, j * s.dilation_w - s.left, i * s.kw + j});
  return list;
}

template <class T>
static TapConv<T> forward_conv(const Conv& s, Tap* taps, const T* x, const T* w, T* y, Finish finish, const void* context) {
  return {x, s.n, s.h, s.w, s.c, s.p, s.q, s.stride_h, s.stride_w, y, s.p, s.q, s.o, 1, 1, 0, 0, forward_taps(s, taps),
          w, s.group_c() * s.o, s.group_o(), s.o, true, s.groups, finish, context};
}

// ---- gradient in x: phases ------------------------------------------------------------------------------------------

// Taps of the input pixels with rows a + k * stride_h and columns b + k * stride_w, as seen from g.
inline TapList phase_taps(const Conv& s, int64_t a, int64_t b, Tap* to) {
  TapList list{};
  list.taps = to;
  for (int64_t i = 0; i < s.kh; ++i)
    for (int64_t j = 0; j < s.kw; ++j) {
      const int64_t row = a + s.top - i * s.dilation_h, column = b + s.left - j * s.dilation_w;
      if (row % s.stride_h == 0 && column % s.stride_w == 0)
        add_tap(list, to, {row / s.stride_h, column / s.stride_w, i * s.kw + j});
    }
  return list;
}

template <class T>
static TapConv<T> phase_conv(const Conv& s, int64_t a, int64_t b, Tap* taps, const T* g, const T* w, T* dx) {
  return {g, s.n, s.p, s.q, s.o, ceil_div(s.h - a, s.stride_h), ceil_div(s.w - b, s.stride_w), 1, 1,
          dx, s.h, s.w, s.c, s.stride_h, s.stride_w, a, b, phase_taps(s, a, b, taps),
          w, s.group_c() * s.o, s.group_o(), s.o, false, s.groups, nullptr, nullptr};
}

// body(a, b) for every phase that has pixels.
template <class F> inline void phases(const Conv& s, F body) {
  for (int64_t a = 0; a < least(s.stride_h, s.h); ++a)
    for (int64_t b = 0; b < least(s.stride_w, s.w); ++b) body(a, b);
}

}  // namespace
