// A convolution with one to four output channels: the last layer of a decoder, or the gradient in an image.
//
// A matrix product would fill a quarter of a tile or less. Here the lanes run over input channels: every output is a
// dot product, a few pixels at a time share the loads of the filter, and the lanes are added in a fixed order at the end.
// Channels of the copied input (patch_tile.h) and of the packed filter are padded with zeros to whole vectors.
//
// In the gradient of the filter the lanes are channels too, and each of the few numbers of g is spread over them.
#pragma once
#include "conv.h"
#include "implicit_gemm.h"

namespace {

struct FewPlan {
  Window window;
  Strip strip;
  int64_t windows_h, windows_w, windows, channels;   // channels: padded
  int64_t packed_bytes, worker_bytes, bytes;
};

template <class T> static FewPlan few_plan(const TapConv<T>& s, int threads) {
  constexpr int L = kLanes<T>;
  const TapList& t = s.list;
  FewPlan a{};
  if (t.count == 0 || s.n * s.p * s.q == 0) return a;
  a.channels = ceil_div(s.c, L) * L;
  a.strip = {s.h, s.w, s.c, s.step_h, s.step_w, t.first_h, t.first_w, t.last_h - t.first_h + 1,
             t.last_w - t.first_w + 1, 0, 0, a.channels};
  for (int64_t most = kWindow;; most /= 2) {
    a.window = window_of(s.n, s.p, s.q, most);
    a.strip.rows = (a.window.rows - 1) * s.step_h + a.strip.span_h;
    a.strip.columns = (a.window.columns - 1) * s.step_w + a.strip.span_w;
    if (most <= 36 || a.strip.size(a.window) * int64_t(sizeof(T)) <= 256 * 1024) break;
  }
  a.windows_h = ceil_div(s.p, a.window.rows);
  a.windows_w = ceil_div(s.q, a.window.columns);
  a.windows = ceil_div(s.n, a.window.samples) * a.windows_h * a.windows_w;
  a.packed_bytes = round64(t.count * (s.o * a.channels * int64_t(sizeof(T)) + int64_t(sizeof(int64_t))));
  a.worker_bytes = round64(a.strip.size(a.window) * int64_t(sizeof(T)));
  a.bytes = a.packed_bytes + a.worker_bytes * threads;
  return a;
}

// P pixels x O outputs. filter: [tap][O][channels].
template <class T, int P, int O>
static void few_pixels(const T* const* pixel, const int64_t* offsets, int64_t taps, int64_t channels, const T* filter,
                       T* const* y) {
  constexpr int L = kLanes<T>;
  vec<T> acc[P][O] = {};
  for (int64_t t = 0; t < taps; ++t, filter += O * channels) {
    const int64_t at = offsets[t];
    for (int64_t k = 0; k < channels; k += L) {
      vec<T> x[P];
#pragma GCC unroll 8
      for (int p = 0; p < P; ++p) x[p] = load(pixel[p] + at + k);
#pragma GCC unroll 8
      for (int o = 0; o < O; ++o) {
        const vec<T> f = load(filter + o * channels + k);
#pragma GCC unroll 8
        for (int p = 0; p < P; ++p) acc[p][o] = fma(x[p], f, acc[p][o]);
      }
    }
  }
  for (int p = 0; p < P; ++p)
    for (int o = 0; o < O; ++o) y[p][o] = lane_sum<T>(acc[p][o]);
}

constexpr int few_tile(int outputs) { return outputs == 1 ? 8 : outputs == 2 ? 4 : outputs == 3 ? 3 : 2; }  // chains

template <class T> using FewPixels = void (*)(const T* const*, const int64_t*, int64_t, int64_t, const T*, T* const*);
template <class T> static FewPixels<T> few_pixels_of(int64_t outputs, bool tile) {
  switch (outputs) {
    case 1: return tile ? few_pixels<T, few_tile(1), 1> : few_pixels<T, 1, 1>;
    case 2: return tile ? few_pixels<T, few_tile(2), 2> : few_pixels<T, 1, 2>;
    case 3: return tile ? few_pixels<T, few_tile(3), 3> : few_pixels<T, 1, 3>;
    default: return tile ? few_pixels<T, few_tile(4), 4> : few_pixels<T, 1, 4>;
  }
}

template <class T> static int64_t few_outputs_scratch(const Call& c, const TapConv<T>& s) {
  return few_plan(s, c.threads).bytes;
}

// s.groups is 1 and s.o at most 4. scratch: few_outputs_scratch() bytes.
template <class T> static void few_outputs(const Call& c, const TapConv<T>& s, void* scratch) {
  const FewPlan a = few_plan(s, c.threads);
  if (s.n * s.p * s.q == 0 || s.o == 0) return;
  if (s.list.count == 0) return no_taps(s);
  char* const bytes = static_cast<char*>(scratch);
  T* const filter = reinterpret_cast<T*>(bytes);
  int64_t* const offsets = reinterpret_cast<int64_t*>(filter + s.list.count * s.o * a.channels);
  for (int64_t t = 0; t < s.list.count; ++t) {
    const Tap& tap = s.list.taps[t];
    offsets[t] = ((tap.row - s.list.first_h) * a.strip.columns + tap.column - s.list.first_w) * a.strip.pitch;
    const T* from = s.weights + tap.index * s.w_matrix;
    T* to = filter + t * s.o * a.channels;
    for (int64_t o = 0; o < s.o; ++o)
      for (int64_t k = 0; k < a.channels; ++k)
        to[o * a.channels + k] = k >= s.c ? T(0) : s.w_rows ? from[k * s.w_ld + o] : from[o * s.w_ld + k];
  }
  const int64_t tile = few_tile(int(s.o));
  const FewPixels<T> many = few_pixels_of<T>(s.o, true), one = few_pixels_of<T>(s.o, false);
  parallel(c, a.windows, [&](int64_t window, int worker) {
    const int64_t q0 = window % a.windows_w * a.window.columns, n_q = least(a.window.columns, s.q - q0);
    const int64_t p0 = window / a.windows_w % a.windows_h * a.window.rows, n_p = least(a.window.rows, s.p - p0);
    const int64_t n0 = window / (a.windows_w * a.windows_h) * a.window.samples, n_n = least(a.window.samples, s.n - n0);
    T* const strip = reinterpret_cast<T*>(bytes + a.packed_bytes + worker * a.worker_bytes);
    copy_strip(a.strip, s.x, n0, n_n, p0, n_p, q0, n_q, [](int64_t) { return true; }, strip);
    const T* pixel[kWindow];
    T* to[kWindow];
    int64_t id[kWindow], m = 0;
    for (int64_t k = 0; k < n_n; ++k)
      for (int64_t i = 0; i < n_p; ++i)
        for (int64_t j = 0; j < n_q; ++j, ++m) {
          pixel[m] = strip + ((k * a.strip.rows + i * s.step_h) * a.strip.columns + j * s.step_w) * a.strip.pitch;
          id[m] = ((n0 + k) * s.y_h + (p0 + i) * s.out_step_h + s.out_first_h) * s.y_w +
                  (q0 + j) * s.out_step_w + s.out_first_w;
          to[m] = s.y + id[m] * s.o;
        }
    int64_t i = 0;
    for (; i + tile <= m; i += tile) many(pixel + i, offsets, s.list.count, a.channels, filter, to + i);
    for (; i < m; ++i) one(pixel + i, offsets, s.list.count, a.channels, filter, to + i);
    if (s.finish) finish_pixels(s, id, m, 0, s.o);
  });
}

// ---- the gradient in the filter ------------------------------------------------------------------------------------

struct FewDwPlan {
  Window window;
  Strip strip;
  int64_t windows_h, windows_w, windows, channels, groups;
  int64_t filter, partial_bytes, worker_bytes, bytes;      // filter: numbers of one group's share
};

template <class T> static FewDwPlan few_dw_plan(const Conv& s, int threads) {
  constexpr int L = kLanes<T>;
  FewDwPlan a{};
  a.channels = ceil_div(s.c, L) * L;
  a.strip = {s.h, s.w, s.c, s.stride_h, s.stride_w, -s.top, -s.left, (s.kh - 1) * s.dilation_h + 1,
             (s.kw - 1) * s.dilation_w + 1, 0, 0, a.channels};
  for (int64_t most = kWindow;; most /= 2) {
    a.window = window_of(s.n, s.p, s.q, most);
    a.strip.rows = (a.window.rows - 1) * s.stride_h + a.strip.span_h;
    a.strip.columns = (a.window.columns - 1) * s.stride_w + a.strip.span_w;
    if (most <= 36 || a.strip.size(a.window) * int64_t(sizeof(T)) <= 256 * 1024) break;
  }
  a.windows_h = ceil_div(s.p, a.window.rows);
  a.windows_w = ceil_div(s.q, a.window.columns);
  a.windows = ceil_div(s.n, a.window.samples) * a.windows_h * a.windows_w;
  a.groups = least(16, a.windows);
  a.filter = s.kh * s.kw * s.o * a.channels;
  a.partial_bytes = round64(a.groups * a.filter * int64_t(sizeof(T)));
  a.worker_bytes = round64(a.strip.size(a.window) * int64_t(sizeof(T)));
  a.bytes = a.partial_bytes + a.worker_bytes * threads;
  return a;
}

template <class T> static int64_t few_outputs_dw_scratch(const Call& c, const Conv& s) {
  return few_dw_plan<T>(s, c.threads).bytes;
}

// to[O][channels] += sum over the runs of g[.][O] x[.][V vectors of channels].
template <class T, int O, int V>
static void few_filter(const T* x, const Run* runs, int64_t count, int64_t step, const T* g, int64_t channels, T* to) {
  constexpr int L = kLanes<T>;
  vec<T> acc[O][V] = {};
  for (int64_t r = 0; r < count; ++r) {
    const T* from = x + runs[r].offset;
    for (int64_t p = 0; p < runs[r].length; ++p, from += step, g += O) {
      vec<T> f[O];
#pragma GCC unroll 8
      for (int o = 0; o < O; ++o) f[o] = broadcast(g[o]);
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) {
        const vec<T> k = load(from + v * L);
#pragma GCC unroll 8
        for (int o = 0; o < O; ++o) acc[o][v] = fma(k, f[o], acc[o][v]);
      }
    }
  }
  for (int o = 0; o < O; ++o)
    for (int v = 0; v < V; ++v) store(to + o * channels + v * L, load(to + o * channels + v * L) + acc[o][v]);
}

constexpr int few_vectors(int outputs) { return outputs <= 2 ? 4 : 2; }

template <class T> using FewFilter = void (*)(const T*, const Run*, int64_t, int64_t, const T*, int64_t, T*);
template <class T> static FewFilter<T> few_filter_of(int64_t outputs, bool tile) {
  switch (outputs) {
    case 1: return tile ? few_filter<T, 1, few_vectors(1)> : few_filter<T, 1, 1>;
    case 2: return tile ? few_filter<T, 2, few_vectors(2)> : few_filter<T, 2, 1>;
    case 3: return tile ? few_filter<T, 3, few_vectors(3)> : few_filter<T, 3, 1>;
    default: return tile ? few_filter<T, 4, few_vectors(4)> : few_filter<T, 4, 1>;
  }
}

// s.groups is 1 and s.o at most 4. scratch: few_outputs_dw_scratch() bytes.
template <class T> static void few_outputs_dw(const Call& c, const Conv& s, const T* x, const T* g, T* dw, void* scratch) {
  const FewDwPlan a = few_dw_plan<T>(s, c.threads);
  char* const bytes = static_cast<char*>(scratch);
  T* const partial = reinterpret_cast<T*>(bytes);
  const FewFilter<T> many = few_filter_of<T>(s.o, true), one = few_filter_of<T>(s.o, false);
  const int64_t wide = few_vectors(int(s.o)) * kLanes<T>;
  parallel(c, a.groups, [&](int64_t group, int worker) {
    T* const strip = reinterpret_cast<T*>(bytes + a.partial_bytes + worker * a.worker_bytes);
    T* const sums = partial + group * a.filter;
    memset(sums, 0, size_t(a.filter) * sizeof(T));
    for (int64_t window = a.windows * group / a.groups; window < a.windows * (group + 1) / a.groups; ++window) {
      const int64_t q0 = window % a.windows_w * a.window.columns, n_q = least(a.window.columns, s.q - q0);
      const int64_t p0 = window / a.windows_w % a.windows_h * a.window.rows, n_p = least(a.window.rows, s.p - p0);
      const int64_t n0 = window / (a.windows_w * a.windows_h) * a.window.samples;
      const int64_t n_n = least(a.window.samples, s.n - n0);
      copy_strip(a.strip, x, n0, n_n, p0, n_p, q0, n_q, [](int64_t) { return true; }, strip);
      Run runs[kWindow];
      int64_t n_runs = 0;
      for (int64_t k = 0; k < n_n; ++k)
        for (int64_t i = 0; i < n_p; ++i)
          runs[n_runs++] = {(k * a.strip.rows + i * s.stride_h) * a.strip.columns * a.strip.pitch, n_q};
      const T* const gs = g + ((n0 * s.p + p0) * s.q + q0) * s.o;
      for (int64_t t = 0; t < s.kh * s.kw; ++t) {
        const int64_t row = t / s.kw * s.dilation_h, column = t % s.kw * s.dilation_w;
        const T* const from = strip + (row * a.strip.columns + column) * a.strip.pitch;
        T* const to = sums + t * s.o * a.channels;
        int64_t k = 0;
        for (; k + wide <= a.channels; k += wide)
          many(from + k, runs, n_runs, s.stride_w * a.strip.pitch, gs, a.channels, to + k);
        for (; k < a.channels; k += kLanes<T>)
          one(from + k, runs, n_runs, s.stride_w * a.strip.pitch, gs, a.channels, to + k);
      }
    }
  });
  parallel_range(c, s.kh * s.kw * s.c, 1024, [&](int64_t i, int64_t end) {
    for (; i < end; ++i)
      for (int64_t o = 0; o < s.o; ++o) {
        T sum = 0;
        for (int64_t group = 0; group < a.groups; ++group)
          sum += partial[group * a.filter + (i / s.c * s.o + o) * a.channels + i % s.c];
        dw[i * s.o + o] = sum;
      }
  });
}

}  // namespace
