// The three passes of a convolution in a given precision: which kernel on which tiles, and in how many splits.
//
// Shapes of tiles follow how much there is to do, which never shows in the result (gemm.h). Long sums with few results are
// split, the parts added in their order by a second pass: the sum over pixels in the gradient in w, and in the forward pass
// that of a sample with few pixels (a linear layer of many inputs). There only the sample's shape decides.
#pragma once
#include "grouped_conv.h"

namespace {

constexpr int64_t kEnoughTiles = 120;                // large tiles that keep a GPU busy; half a wave of large GPUs
constexpr int64_t kSplitTiles = 264;                 // blocks wanted of a product with a long sum
constexpr int64_t kLeastSplit = 256, kSplitBytes = 64 << 20;
constexpr int64_t kForwardSplit = 1024, kMostForwardSplits = 8;   // products of a part, parts
constexpr int64_t kFewTiles = 128;                   // pixels times tiles of columns of a sample that is split

inline int common_divisor(int a, int b) { return b == 0 ? a : common_divisor(b, a % b); }
inline AxisOf axis_of(int64_t in, int64_t out, int64_t kernel, int64_t stride, int64_t before, int64_t dilation) {
  return {int(in), int(out), int(kernel), int(stride), int(before), int(dilation), common_divisor(int(stride), int(dilation))};
}
inline AxisOf rows_of(const Conv& s) { return axis_of(s.h, s.p, s.kh, s.stride_h, s.top, s.dilation_h); }
inline AxisOf columns_of(const Conv& s) { return axis_of(s.w, s.q, s.kw, s.stride_w, s.left, s.dilation_w); }

// Whether 16 bytes at every `channels` elements are never cut and never unaligned.
template <class T> inline bool whole_vectors(int64_t channels, int64_t group, const void* at) {
  constexpr int64_t V = 16 / sizeof(T);
  return channels % V == 0 && group % V == 0 && reinterpret_cast<uintptr_t>(at) % 16 == 0;
}

template <class S> inline int64_t tiles_of(int64_t m, int64_t n) { return ceil_div(m, S::kM) * ceil_div(n, S::kN); }

template <Precision P, template <Precision, class> class Task, bool narrow, class T>
inline void launch_taps(const Call& c, const TapArgs<T>& a, int64_t m, int64_t z = 1) {
  const int64_t n = a.out_group, y = int64_t(a.groups) * a.phases_h * a.phases_w;
  if constexpr (P == kFloatProduct && narrow)
    if (n <= Narrow::kN) return launch_gemm<P, Narrow, Task>(c, grid_of(tiles_of<Narrow>(m, n), y, z), a);
  if constexpr (P != kDoubleProduct)
    if (n > Small::kN && tiles_of<Large>(m, n) * y * z >= kEnoughTiles)
      return launch_gemm<P, Large, Task>(c, grid_of(tiles_of<Large>(m, n), y, z), a);
  launch_gemm<P, Small, Task>(c, grid_of(tiles_of<Small>(m, n), y, z), a);
}

template <class T> inline TapArgs<T> taps_of(const Conv& s, const T* x, const T* w) {
  TapArgs<T> a{};
  a.x = x, a.w = w, a.samples = s.n, a.rows = rows_of(s), a.columns = columns_of(s);
  a.groups = int(s.groups), a.phases_h = a.phases_w = 1, a.filter_columns = int(s.kw), a.filter_c = int(s.group_c()), a.filter_o = int(s.o);
  return a;
}

struct ForwardSplit {
  int64_t splits, steps, samples;                    // steps of a split, samples at a time
};

template <class T> inline ForwardSplit forward_split(const Conv& s) {
  const int64_t depth = s.kh * s.kw * s.c, pixels = s.p * s.q;
  ForwardSplit a{depth / kForwardSplit, 0, s.n};
  if (a.splits < 2 || s.groups > 1 || s.n == 0 || pixels * s.o == 0 || pixels * ceil_div(s.o, Small::kN) > kFewTiles) return {1, 0, s.n};
  if (a.splits > kMostForwardSplits) a.splits = kMostForwardSplits;
  a.steps = ceil_div(ceil_div(depth, kDepth), a.splits), a.splits = ceil_div(ceil_div(depth, kDepth), a.steps);
  const int64_t one = a.splits * pixels * s.o * int64_t(sizeof(T));
  if (a.samples * one > kSplitBytes) a.samples = one < kSplitBytes ? kSplitBytes / one : 1;
  return a;
}

template <class T> inline int64_t forward_split_bytes(const Conv& s) {
  const ForwardSplit a = forward_split<T>(s);
  return a.splits > 1 ? a.splits * a.samples * s.p * s.q * s.o * int64_t(sizeof(T)) : 0;
}

// The layer of the sums of parts, element by element.
template <class T> struct SumParts {
  const T* parts;
  int64_t splits, size, columns;
  Layer<T> layer;
  __device__ void operator()(int64_t i) const {
    T v = 0;
    for (int64_t k = 0; k < splits; ++k) v += parts[k * size + i];
    if (layer.bias) v += layer.bias[i % columns];
    if (layer.residual) v += layer.residual[i];
    if (layer.h) layer.h[i] = v;
    layer.y[i] = activate(layer.activation, v);
  }
};

template <class T> inline Layer<T> from_element(const Layer<T>& a, int64_t i) {
  return {a.bias, a.residual ? a.residual + i : nullptr, a.y + i, a.h ? a.h + i : nullptr, a.activation};
}

// scratch: forward_split_bytes, or null for a sum in one piece.
template <Precision P, class T>
inline void forward_pass(const Call& c, const Conv& s, const T* x, const T* w, const Layer<T>& layer, void* scratch) {
  if (small_groups(s)) {
    const int64_t blocks = ceil_div(s.n * s.p * s.q * s.o, kGroupThreads);
    return launch(c, group_forward<P == kBf16Product, T>, grid_of(blocks), kGroupThreads, 0, GroupGeometry(s), x, w, layer);
  }
  TapArgs<T> a = taps_of(s, x, w);
  a.layer = layer, a.c = int(s.c), a.made_c = int(s.o), a.in_group = int(s.group_c()), a.out_group = int(s.group_o());
  a.x_group = s.group_c(), a.w_group = a.y_group = s.group_o();
  a.wide_x = whole_vectors<T>(s.c, s.group_c(), x), a.wide_w = whole_vectors<T>(s.o, s.group_o(), w);
  a.wide_y = whole_vectors<T>(s.o, s.group_o(), layer.y) && reinterpret_cast<uintptr_t>(layer.h) % 16 == 0;
  const ForwardSplit split = forward_split<T>(s);
  if (!scratch || split.splits == 1) return launch_taps<P, ForwardTask, true>(c, a, s.n * s.p * s.q);
  a.parts = static_cast<T*>(scratch), a.split_steps = int(split.steps);
  a.wide_y = whole_vectors<T>(s.o, s.o, scratch);
  for (int64_t first = 0; first < s.n; first += split.samples) {
    const int64_t samples = s.n - first < split.samples ? s.n - first : split.samples, m = samples * s.p * s.q;
    a.x = x + first * s.h * s.w * s.c, a.samples = samples, a.part_size = m * s.o;
    launch_taps<P, ForwardTask, true>(c, a, m, split.splits);
    each(c, m * s.o, SumParts<T>{a.parts, split.splits, a.part_size, s.o, from_element(layer, first * s.p * s.q * s.o)});
  }
}

template <Precision P, class T> inline void backward_pass(const Call& c, const Conv& s, const T* g, const T* w, T* dx) {
  if (small_groups(s)) {
    const int64_t blocks = ceil_div(s.n * s.h * s.w * s.c, kGroupThreads);
    return launch(c, group_backward<P == kBf16Product, T>, grid_of(blocks), kGroupThreads, 0, GroupGeometry(s), g, w, dx);
  }
  TapArgs<T> a = taps_of(s, g, w);
  a.layer.y = dx, a.c = int(s.o), a.made_c = int(s.c), a.in_group = int(s.group_o()), a.out_group = int(s.group_c());
  a.phases_h = int(s.stride_h < s.h ? s.stride_h : s.h), a.phases_w = int(s.stride_w < s.w ? s.stride_w : s.w);
  a.x_group = a.w_group = s.group_o(), a.y_group = s.group_c();
  a.wide_x = whole_vectors<T>(s.o, s.group_o(), g), a.wide_w = whole_vectors<T>(s.o, s.group_o(), w);
  a.wide_y = whole_vectors<T>(s.c, s.group_c(), dx);
  launch_taps<P, BackwardTask, false>(c, a, s.n * ceil_div(s.h, s.stride_h) * ceil_div(s.w, s.stride_w));
}

// ---- gradient in w ----

struct FilterSplit {
  bool large;
  int64_t splits, per_split, size;
};

template <Precision P> inline FilterSplit filter_split(const Conv& s) {
  const int64_t m = s.kh * s.kw * s.group_c(), n = s.group_o(), pixels = s.n * s.p * s.q;
  FilterSplit a{P != kDoubleProduct && m > Small::kM && n > Small::kN, 1, 0, m * s.o};
  int64_t blocks = (a.large ? tiles_of<Large>(m, n) : tiles_of<Small>(m, n)) * s.groups, wanted = kSplitTiles, most = kSplitTiles;
  if (small_groups(s)) blocks = ceil_div(a.size, kGroupThreads), wanted = 8 * kSplitTiles;
  const int64_t fit = kSplitBytes / (8 * (a.size > 0 ? a.size : 1));
  if (most > fit) most = fit;
  if (most > ceil_div(pixels, kLeastSplit)) most = ceil_div(pixels, kLeastSplit);
  a.splits = ceil_div(wanted, blocks > 0 ? blocks : 1);
  if (a.splits > most) a.splits = most;
  if (a.splits < 1) a.splits = 1;
  a.per_split = padded(ceil_div(pixels, a.splits), kDepth);
  a.splits = pixels > 0 ? ceil_div(pixels, a.per_split) : 1;
  return a;
}

template <Precision P> inline int64_t filter_bytes(const Conv& s) {
  const FilterSplit a = filter_split<P>(s);
  return a.splits > 1 ? a.splits * a.size * int64_t(sizeof(typename NumberOf<P>::type)) : 0;
}

template <class T> struct SumSplits {
  const T* from;
  T* to;
  int64_t splits, size;
  __device__ void operator()(int64_t i) const {
    T sum = 0;
    for (int64_t k = 0; k < splits; ++k) sum += from[k * size + i];
    to[i] = sum;
  }
};

template <Precision P, class T> inline void filter_pass(const Call& c, const Conv& s, const T* x, const T* g, T* dw, void* scratch) {
  const FilterSplit split = filter_split<P>(s);
  T* const to = split.splits > 1 ? static_cast<T*>(scratch) : dw;
  const Divide by_pixels(uint32_t(s.p * s.q)), by_columns{uint32_t(s.q)};
  if (small_groups(s)) {
    launch(c, group_filter<P == kBf16Product, T>, grid_of(ceil_div(split.size, kGroupThreads), split.splits), kGroupThreads, 0,
           GroupGeometry(s), by_pixels, by_columns, split.per_split, x, g, to);
  } else {
    const bool wide_y = whole_vectors<T>(s.o, s.group_o(), to) && split.size % (16 / sizeof(T)) == 0;
    const FilterArgs<T> a = {x, g, to, s.n, split.per_split, split.size, rows_of(s), columns_of(s), int(s.c), int(s.o), int(s.group_c()),
                             int(s.group_o()), int(s.groups), by_pixels, by_columns, whole_vectors<T>(s.c, s.group_c(), x),
                             whole_vectors<T>(s.o, s.group_o(), g), wide_y};
    const int64_t m = s.kh * s.kw * s.group_c(), n = s.group_o();
    bool done = false;
    if constexpr (P != kDoubleProduct)
      if (split.large) launch_gemm<P, Large, FilterTask>(c, grid_of(tiles_of<Large>(m, n), s.groups, split.splits), a), done = true;
    if (!done) launch_gemm<P, Small, FilterTask>(c, grid_of(tiles_of<Small>(m, n), s.groups, split.splits), a);
  }
  if (split.splits > 1) each(c, split.size, SumSplits<T>{to, dw, split.splits, split.size});
}

}  // namespace
