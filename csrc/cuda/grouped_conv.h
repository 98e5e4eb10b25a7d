// Convolutions in groups of few channels (depthwise filters above all): a thread per element of the result, no tiles.
//
// Neighbouring threads have neighbouring channels, so that loads and stores are whole lines. A group too small to fill a
// tile of the engine (gemm.h) is served by this.
#pragma once
#include "conv_tasks.h"

namespace {

constexpr int kGroupThreads = 128;

inline bool small_groups(const Conv& s) { return s.groups > 1 && s.group_c() * s.group_o() < 256; }

struct GroupGeometry {
  int64_t n;
  int h, w, c, kh, kw, o, p, q, stride_h, stride_w, top, left, dilation_h, dilation_w, group_c, group_o;
  explicit GroupGeometry(const Conv& s)
      : n(s.n), h(int(s.h)), w(int(s.w)), c(int(s.c)), kh(int(s.kh)), kw(int(s.kw)), o(int(s.o)), p(int(s.p)), q(int(s.q)),
        stride_h(int(s.stride_h)), stride_w(int(s.stride_w)), top(int(s.top)), left(int(s.left)), dilation_h(int(s.dilation_h)),
        dilation_w(int(s.dilation_w)), group_c(int(s.group_c())), group_o(int(s.group_o())) {}
};

template <bool rounded, class T> __device__ inline T operand(T x) {
  if constexpr (rounded) return round_to_bf16(x);
  else return x;
}

// The element of an (n, rows, columns, channels) array at `at`.
struct Place {
  int channel, column, row;
  int64_t sample;
  __device__ Place(int64_t at, int rows, int columns, int channels) {
    int64_t rest = at / channels;
    channel = int(at - rest * channels);
    const int64_t line = rest / columns;
    column = int(rest - line * columns), sample = line / rows, row = int(line - sample * rows);
  }
};

template <bool rounded, class T>
__global__ void __launch_bounds__(kGroupThreads) group_forward(GroupGeometry s, const T* x, const T* w, Layer<T> layer) {
  const int64_t at = global_thread();
  if (at >= s.n * s.p * s.q * s.o) return;
  const Place y(at, s.p, s.q, s.o);
  const int first = y.channel / s.group_o * s.group_c;
  const T* image = x + (y.sample * s.h * s.w * s.c + first);
  T sum = 0;
  for (int i = 0; i < s.kh; ++i) {
    const int row = y.row * s.stride_h - s.top + i * s.dilation_h;
    if (unsigned(row) >= unsigned(s.h)) continue;
    for (int j = 0; j < s.kw; ++j) {
      const int column = y.column * s.stride_w - s.left + j * s.dilation_w;
      if (unsigned(column) >= unsigned(s.w)) continue;
      const T* pixel = image + int64_t(row * s.w + column) * s.c;
      const T* filter = w + (int64_t(i * s.kw + j) * s.group_c * s.o + y.channel);
      for (int k = 0; k < s.group_c; ++k) sum += operand<rounded>(pixel[k]) * operand<rounded>(filter[int64_t(k) * s.o]);
    }
  }
  if (layer.bias) sum += layer.bias[y.channel];
  if (layer.residual) sum += layer.residual[at];
  if (layer.h) layer.h[at] = sum;
  layer.y[at] = activate(layer.activation, sum);
}

template <bool rounded, class T>
__global__ void __launch_bounds__(kGroupThreads) group_backward(GroupGeometry s, const T* g, const T* w, T* dx) {
  const int64_t at = global_thread();
  if (at >= s.n * s.h * s.w * s.c) return;
  const Place x(at, s.h, s.w, s.c);
  const int group = x.channel / s.group_c, of_group = x.channel - group * s.group_c;
  const T* image = g + (x.sample * s.p * s.q * s.o + group * s.group_o);
  T sum = 0;
  for (int i = 0; i < s.kh; ++i) {
    const int above = x.row + s.top - i * s.dilation_h, row = above / s.stride_h;
    if (above < 0 || row * s.stride_h != above || row >= s.p) continue;
    for (int j = 0; j < s.kw; ++j) {
      const int before = x.column + s.left - j * s.dilation_w, column = before / s.stride_w;
      if (before < 0 || column * s.stride_w != before || column >= s.q) continue;
      const T* pixel = image + int64_t(row * s.q + column) * s.o;
      const T* filter = w + ((int64_t(i * s.kw + j) * s.group_c + of_group) * s.o + group * s.group_o);
      for (int k = 0; k < s.group_o; ++k) sum += operand<rounded>(pixel[k]) * operand<rounded>(filter[k]);
    }
  }
  dx[at] = sum;
}

// One element of dw over the pixels of a split, in chains of 64.
template <bool rounded, class T>
__global__ void __launch_bounds__(kGroupThreads) group_filter(GroupGeometry s, Divide by_pixels, Divide by_columns, int64_t per_split,
                                                              const T* x, const T* g, T* to) {
  const int64_t size = int64_t(s.kh) * s.kw * s.group_c * s.o, at = global_thread();
  if (at >= size) return;
  const Place w(at, s.kw, s.group_c, s.o);           // sample, row, column, channel: i, j, c, o
  const int i = int(w.sample), j = w.row, channel = w.channel / s.group_o * s.group_c + w.column;
  const int pixels = s.p * s.q;
  const int64_t all = s.n * pixels, begin = blockIdx.y * per_split, end = min(all, begin + per_split), sample0 = pixels > 0 ? begin / pixels : 0;
  const T* const image = x + (sample0 * s.h * s.w * s.c + channel);
  const T* const gradient = g + (begin * s.o + w.channel);
  const int first = int(begin - sample0 * pixels), count = int(end > begin ? end - begin : 0);
  T total = 0, sum = 0;
  for (int k = 0; k < count; ++k) {
    const int pixel = first + k, sample = by_pixels(pixel), rest = pixel - sample * pixels, p = by_columns(rest), q = rest - p * s.q;
    const int row = p * s.stride_h - s.top + i * s.dilation_h, column = q * s.stride_w - s.left + j * s.dilation_w;
    if (unsigned(row) < unsigned(s.h) && unsigned(column) < unsigned(s.w)) {
      const int64_t line = int64_t(sample) * s.h + row;
      sum += operand<rounded>(image[(line * s.w + column) * s.c]) * operand<rounded>(gradient[int64_t(k) * s.o]);
    }
    if (k % 64 == 63) total += sum, sum = 0;
  }
  to[blockIdx.y * size + at] = total + sum;
}

}  // namespace
