// What the engine of gemm.h multiplies for a convolution: the pixels that a filter meets as rows of a matrix that is never
// formed.
//
// The forward pass and the gradient in x are the same sum over filter taps (i, j) and channels; with a stride the
// gradient has one set of taps per phase of the pixels. In the gradient in w pixels are what is summed over.
#pragma once
#include "activation_math.h"
#include "convolve.h"
#include "gemm.h"

namespace {

// n / d for n < 2^31, by a product. Granlund, Montgomery (1994), figure 4.1.
struct Divide {
  uint32_t d, factor, shift;
  HOST_DEVICE explicit Divide(uint32_t by) : d(by > 0 ? by : 1), shift(0) {
    while (shift < 31 && (1u << shift) < d) ++shift;
    factor = uint32_t(((uint64_t(1) << 32) * ((uint64_t(1) << shift) - d)) / d + 1);
  }
  __device__ int operator()(int n) const { return int((__umulhi(uint32_t(n), factor) + uint32_t(n)) >> shift); }
};

// One axis of a convolution: sizes of x and y, and the filter's.
struct AxisOf {
  int in, out, kernel, stride, before, dilation, common;    // common: greatest common divisor of stride and dilation
};

// What is done along it: place p of the grid reads pixels p * in_stride + offset + i * step for every i < taps, which meet
// the filter's first + i * period, and makes pixel p * out_stride + out_offset.
struct Axis {
  int grid, in_stride, offset, step, taps, first, period, out_stride, out_offset;
};

HOST_DEVICE Axis forward_axis(const AxisOf& a) { return {a.out, a.stride, -a.before, a.dilation, a.kernel, 0, 1, 1, 0}; }

// The gradient at pixels phase, phase + stride, ... of x: read y, make x.
HOST_DEVICE Axis backward_axis(const AxisOf& a, int phase) {
  const int period = a.stride / a.common;
  int first = 0;
  while (first < period && (phase + a.before - first * a.dilation) % a.stride != 0) ++first;
  const bool any = first < period && first < a.kernel;
  return {(a.in - phase + a.stride - 1) / a.stride, 1, (phase + a.before - first * a.dilation) / a.stride, -a.dilation / a.common,
          any ? (a.kernel - first + period - 1) / period : 0, first, period, a.stride, phase};
}

// ---- forward pass and gradient in x ----

template <class T> struct TapArgs {
  const T *x, *w;                                    // what is read, g in the gradient
  Layer<T> layer;
  int64_t samples;
  AxisOf rows, columns;
  int c, made_c, in_group, out_group;                // channels that are read and made, and of each a group's
  int groups, phases_h, phases_w, filter_columns, filter_c, filter_o;
  int64_t x_group, w_group, y_group;                 // from one group to the next
  T* parts;                                          // null, or where every split's sums go, part_size for each
  int64_t part_size;
  int split_steps;                                   // steps of a split
  bool wide_x, wide_w, wide_y;                       // 16 bytes are never cut and never unaligned
};

constexpr int kOutside = -(1 << 29);                 // a coordinate outside every image

template <Precision P, class S, bool kBack> struct TapTask {
  static constexpr bool kAlongA = true, kAlongB = kBack;
  using T = typename NumberOf<P>::type;
  using Args = TapArgs<T>;
  using L = GemmLayout<P, S, kAlongA, kAlongB>;
  static constexpr int kVector = 16 / sizeof(T), kPerRow = kDepth / kVector, kStep = S::kThreads / kPerRow;
  static constexpr int kSlots = S::kM / kStep;       // rows of a per thread

  const Args& args;
  Axis rows, columns;
  Divide by_channels, by_columns;
  int64_t m, m0;                                     // rows of the product, this tile's first
  int n0, depth, height, width, group, first_step, steps;
  const T* image[kSlots];
  int row[kSlots], column[kSlots];

  __device__ explicit TapTask(const Args& a) : args(a), by_channels(uint32_t(a.in_group)), by_columns(1) {
    group = blockIdx.y % args.groups;
    const int phase = blockIdx.y / args.groups;
    if constexpr (kBack) {
      rows = backward_axis(args.rows, phase / args.phases_w), columns = backward_axis(args.columns, phase % args.phases_w);
      height = args.rows.out, width = args.columns.out;
    } else {
      rows = forward_axis(args.rows), columns = forward_axis(args.columns);
      height = args.rows.in, width = args.columns.in;
    }
    by_columns = Divide(uint32_t(columns.taps));
    const int tiles = (args.out_group + S::kN - 1) / S::kN;
    m = args.samples * rows.grid * columns.grid;
    m0 = int64_t(blockIdx.x / tiles) * S::kM, n0 = blockIdx.x % tiles * S::kN;
    depth = rows.taps * columns.taps * args.in_group;
    steps = m0 < m ? (depth + kDepth - 1) / kDepth : 0, first_step = 0;
    if (!kBack && args.parts) {
      first_step = blockIdx.z * args.split_steps;
      steps = max(min(steps - first_step, args.split_steps), 0);
    }
    GENERANT_UNROLL
    for (int s = 0; s < kSlots; ++s) {
      const int64_t at = m0 + threadIdx.x / kPerRow + s * kStep;
      image[s] = args.x, row[s] = kOutside, column[s] = 0;
      if (at < m) {
        const int64_t line = at / columns.grid, sample = line / rows.grid;
        image[s] += sample * height * width * args.c + group * args.x_group;
        row[s] = int(line - sample * rows.grid) * rows.in_stride + rows.offset;
        column[s] = int(at - line * columns.grid) * columns.in_stride + columns.offset;
      }
    }
  }

  // Elements k, ... of this thread's rows of a and, where k is b's inner dimension, of b.
  template <int count> __device__ void copy_along(int k, int to, T* a, T* b, bool of_a, bool of_b) const {
    const bool inside = k < depth;
    const int tap = by_channels(k), channel = k - tap * args.in_group;
    const int i = by_columns(tap), j = tap - i * columns.taps;
    if (of_a) {
      GENERANT_UNROLL
      for (int s = 0; s < kSlots; ++s) {
        const int y = row[s] + i * rows.step, x = column[s] + j * columns.step;
        const bool real = inside && unsigned(y) < unsigned(height) && unsigned(x) < unsigned(width);
        const T* from = image[s] + (int64_t(y * width + x) * args.c + channel);
        copy_async<count * sizeof(T)>(a + L::PanelA::at(threadIdx.x / kPerRow + s * kStep, to), real ? from : args.x, real);
      }
    }
    if constexpr (kBack) {
      if (of_b) {
        const int at = (rows.first + i * rows.period) * args.filter_columns + columns.first + j * columns.period;
        const T* w = args.w + (int64_t(at) * args.filter_c * args.filter_o + group * args.w_group + channel);
        GENERANT_UNROLL
        for (int n = threadIdx.x / kPerRow; n < S::kN; n += kStep) {
          const bool real = inside && n0 + n < args.out_group;
          copy_async<count * sizeof(T)>(b + L::PanelB::at(n, to), real ? w + int64_t(n0 + n) * args.filter_o : args.w, real);
        }
      }
    }
  }

  __device__ void load(int i, T* a, T* b) const {
    const int step = first_step + i, to = threadIdx.x % kPerRow * kVector, k = step * kDepth + to;
    const bool wide_b = kBack && args.wide_w;
    if (args.wide_x || wide_b) copy_along<kVector>(k, to, a, b, args.wide_x, wide_b);
    if (!args.wide_x || (kBack && !args.wide_w)) {
#pragma unroll 1
      for (int e = 0; e < kVector; ++e) copy_along<1>(k + e, to + e, a, b, !args.wide_x, !args.wide_w);
    }
    if constexpr (!kBack) {
      constexpr int kRow = S::kN / kVector;
      GENERANT_UNROLL
      for (int v = threadIdx.x; v < kDepth * kRow; v += S::kThreads) {
        const int r = v / kRow, n = v % kRow * kVector, at = step * kDepth + r, left = args.out_group - n0 - n;
        const T* from = args.w + (int64_t(at) * args.filter_o + group * args.w_group + n0 + n);
        if (args.wide_w) {
          const bool real = at < depth && left > 0;
          copy_async<16>(b + L::PanelB::at(n, r), real ? from : args.w, real);
        } else {
          GENERANT_UNROLL
          for (int e = 0; e < kVector; ++e) {
            const bool real = at < depth && left > e;
            copy_async<sizeof(T)>(b + L::PanelB::at(n + e, r), real ? from + e : args.w, real);
          }
        }
      }
    }
  }

  __device__ void store(int r, int n, Pack<T, kVector> v) const {
    const int64_t at = m0 + r;
    const int left = args.out_group - n0 - n;
    if (at >= m || left <= 0) return;
    int64_t pixel = at;
    if constexpr (kBack) {
      if (args.phases_h * args.phases_w > 1) {
        const int64_t line = at / columns.grid, sample = line / rows.grid;
        pixel = (sample * args.rows.in + (line - sample * rows.grid) * rows.out_stride + rows.out_offset) * args.columns.in
                + (at - line * columns.grid) * columns.out_stride + columns.out_offset;
      }
    }
    const int64_t to = pixel * args.made_c + group * args.y_group + n0 + n;
    if constexpr (kBack) put(args.layer.y + to, v, left);
    else if (args.parts) put(args.parts + blockIdx.z * args.part_size + to, v, left);
    else finish(args.layer, to, group * args.out_group + n0 + n, v, left);
  }

  __device__ void put(T* to, const Pack<T, kVector>& v, int left) const {
    if (args.wide_y) {
      *reinterpret_cast<Pack<T, kVector>*>(to) = v;
    } else {
      GENERANT_UNROLL
      for (int e = 0; e < kVector; ++e)
        if (e < left) to[e] = v.v[e];
    }
  }

  __device__ void finish(const Layer<T>& layer, int64_t to, int channel, Pack<T, kVector> v, int left) const {
    if (layer.bias) {
      GENERANT_UNROLL
      for (int e = 0; e < kVector; ++e)
        if (e < left) v.v[e] += layer.bias[channel + e];
    }
    if (layer.residual) {
      GENERANT_UNROLL
      for (int e = 0; e < kVector; ++e)
        if (e < left) v.v[e] += layer.residual[to + e];
    }
    if (layer.h) put(layer.h + to, v, left);
    if (layer.activation) with_activation(layer.activation, [&](auto f) {
      GENERANT_UNROLL
      for (int e = 0; e < kVector; ++e) v.v[e] = f.template f<T>(v.v[e]);
      return 0;
    });
    put(layer.y + to, v, left);
  }
};

template <Precision P, class S> struct ForwardTask : TapTask<P, S, false> { using TapTask<P, S, false>::TapTask; };
template <Precision P, class S> struct BackwardTask : TapTask<P, S, true> { using TapTask<P, S, true>::TapTask; };

// ---- gradient in w ----

template <class T> struct FilterArgs {
  const T *x, *g;
  T* to;                                             // dw, or one after the other for every split
  int64_t samples, per_split, split_size;            // pixels that a split sums, and the numbers it makes
  AxisOf rows, columns;
  int c, o, group_c, group_o, groups;
  Divide by_pixels, by_columns;                      // of y
  bool wide_x, wide_g, wide_y;
};

template <Precision P, class S> struct FilterTask {
  static constexpr bool kAlongA = false, kAlongB = false;
  using T = typename NumberOf<P>::type;
  using Args = FilterArgs<T>;
  using L = GemmLayout<P, S, kAlongA, kAlongB>;
  static constexpr int kVector = 16 / sizeof(T);

  const Args& args;
  const T *x, *g;                                    // from the sample on in which the split begins
  int m0, n0, m, group, first, depth, steps;         // first: the split's first pixel in there; depth: how many pixels it has
  T* to;

  __device__ explicit FilterTask(const Args& a) : args(a) {
    group = blockIdx.y;
    const int tiles = (args.group_o + S::kN - 1) / S::kN;
    m0 = blockIdx.x / tiles * S::kM, n0 = blockIdx.x % tiles * S::kN;
    m = args.rows.kernel * args.columns.kernel * args.group_c;
    const int64_t pixels = int64_t(args.rows.out) * args.columns.out, all = args.samples * pixels;
    const int64_t begin = blockIdx.z * args.per_split, end = min(all, begin + args.per_split);
    const int64_t sample = pixels > 0 ? begin / pixels : 0;
    first = int(begin - sample * pixels), depth = int(max(end - begin, int64_t(0)));
    steps = (depth + kDepth - 1) / kDepth;
    x = args.x + (sample * args.rows.in * args.columns.in * args.c + group * args.group_c);
    g = args.g + (begin * args.o + group * args.group_o);
    to = args.to + blockIdx.z * args.split_size;
  }

  // Element (k, row) of a: `count` channels of a pixel.
  template <int count> __device__ void copy_x(int k, int sample, int p, int q, int r, int to_k, T* a) const {
    const int at = m0 + r;
    const int tap = at / args.group_c, channel = at - tap * args.group_c;
    const int i = tap / args.columns.kernel, j = tap - i * args.columns.kernel;
    const int y = p * args.rows.stride - args.rows.before + i * args.rows.dilation;
    const int z = q * args.columns.stride - args.columns.before + j * args.columns.dilation;
    const bool real = k < depth && at < m && unsigned(y) < unsigned(args.rows.in) && unsigned(z) < unsigned(args.columns.in);
    const int64_t line = int64_t(sample) * args.rows.in + y;
    copy_async<count * sizeof(T)>(a + L::PanelA::at(r, to_k),
                                  real ? x + ((line * args.columns.in + z) * args.c + channel) : args.x, real);
  }

  __device__ void load(int step, T* a, T* b) const {
    constexpr int kRowA = S::kM / kVector, kRowB = S::kN / kVector;
    const int pixels = args.rows.out * args.columns.out;
    GENERANT_UNROLL
    for (int v = threadIdx.x; v < kDepth * kRowA; v += S::kThreads) {
      const int to_k = v / kRowA, r = v % kRowA * kVector, k = step * kDepth + to_k, pixel = first + k;
      const int sample = args.by_pixels(pixel), rest = pixel - sample * pixels;
      const int p = args.by_columns(rest), q = rest - p * args.columns.out;
      if (args.wide_x) {
        copy_x<kVector>(k, sample, p, q, r, to_k, a);
      } else {
#pragma unroll 1
        for (int e = 0; e < kVector; ++e) copy_x<1>(k, sample, p, q, r + e, to_k, a);
      }
    }
    GENERANT_UNROLL
    for (int v = threadIdx.x; v < kDepth * kRowB; v += S::kThreads) {
      const int r = v / kRowB, n = v % kRowB * kVector, k = step * kDepth + r, left = args.group_o - n0 - n;
      const T* from = g + (int64_t(k) * args.o + n0 + n);
      if (args.wide_g) {
        const bool real = k < depth && left > 0;
        copy_async<16>(b + L::PanelB::at(n, r), real ? from : args.g, real);
      } else {
        GENERANT_UNROLL
        for (int e = 0; e < kVector; ++e) {
          const bool real = k < depth && left > e;
          copy_async<sizeof(T)>(b + L::PanelB::at(n + e, r), real ? from + e : args.g, real);
        }
      }
    }
  }

  __device__ void store(int r, int n, const Pack<T, kVector>& v) const {
    const int left = args.group_o - n0 - n;
    if (m0 + r >= m || left <= 0) return;
    T* at = to + (int64_t(m0 + r) * args.o + group * args.group_o + n0 + n);
    if (args.wide_y) {
      *reinterpret_cast<Pack<T, kVector>*>(at) = v;
    } else {
      GENERANT_UNROLL
      for (int e = 0; e < kVector; ++e)
        if (e < left) at[e] = v.v[e];
    }
  }
};

}  // namespace
