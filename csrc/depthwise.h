// Depthwise convolution: every channel has a filter of its own, so channels are the lanes and nothing is packed.
//
// A 3 x 3 filter with stride 1 or 2 takes four pixels of a row at a time, whose inputs overlap; everything else, and
// the pixels beside the border, adds one tap after the other to the pixel, which stays in L1. Taps outside the input are
// left out. Every element is one chain of fma over its taps in order.
#pragma once
#include "conv.h"
#include "parallel.h"
#include "simd.h"

namespace {

// The indices i of [0, count) for which i * stride + first is in [0, size): [begin, end).
struct Span {
  int64_t begin, end;
};
inline Span span_inside(int64_t count, int64_t stride, int64_t first, int64_t size) {
  int64_t begin = first >= 0 ? 0 : ceil_div(-first, stride), end = size <= first ? 0 : ceil_div(size - first, stride);
  if (end > count) end = count;
  if (begin > end) begin = end;
  return {begin, end};
}

template <class T> inline vec<T> load_n(const T* p, int64_t n) { return n >= kLanes<T> ? load(p) : load_first(p, n); }
template <class T> inline void store_n(T* p, vec<T> v, int64_t n) {
  if (n >= kLanes<T>) store(p, v);
  else store_first(p, v, n);
}

// y[c] (+)= x[c] * w[c].
template <class T> static void add_tap(int64_t c, const T* x, const T* w, T* y, bool add) {
  constexpr int L = kLanes<T>;
  int64_t k = 0;
  for (; k + L <= c; k += L) store(y + k, fma(load(x + k), load(w + k), add ? load(y + k) : vec<T>{}));
  if (k < c) {
    const int64_t n = c - k;
    store_first(y + k, fma(load_first(x + k, n), load_first(w + k, n), add ? load_first(y + k, n) : vec<T>{}), n);
  }
}

// Q pixels of a row, S apart in x, under W taps of each of `rows` filter rows. x: the first tap of the first pixel;
// x_row, w_row: from one filter row to the next; w_tap: from one tap to the next, negative for a turned filter.
template <class T, int Q, int S, int W>
static void pixels_of_row(int64_t c, int64_t rows, const T* x, int64_t x_row, const T* w, int64_t w_row, int64_t w_tap,
                          T* y, int64_t y_pixel) {
  constexpr int L = kLanes<T>, X = (Q - 1) * S + W;
  const auto channels = [&](int64_t k, auto read, auto write) {
    vec<T> acc[Q] = {};
    const T *xr = x + k, *wr = w + k;
    for (int64_t i = 0; i < rows; ++i, xr += x_row, wr += w_row) {
      vec<T> f[W];
#pragma GCC unroll 8
      for (int j = 0; j < W; ++j) f[j] = read(wr + j * w_tap);
#pragma GCC unroll 16
      for (int j = 0; j < X; ++j) {
        const vec<T> v = read(xr + j * c);
#pragma GCC unroll 8
        for (int q = 0; q < Q; ++q)
          if (j - q * S >= 0 && j - q * S < W) acc[q] = fma(v, f[j - q * S], acc[q]);
      }
    }
#pragma GCC unroll 8
    for (int q = 0; q < Q; ++q) write(y + q * y_pixel + k, acc[q]);
  };
  int64_t k = 0;
  for (; k + L <= c; k += L) channels(k, [](const T* p) { return load(p); }, [](T* p, vec<T> v) { store(p, v); });
  const int64_t n = c - k;
  if (n > 0) channels(k, [n](const T* p) { return load_first(p, n); }, [n](T* p, vec<T> v) { store_first(p, v, n); });
}

constexpr int64_t kDepthwiseGrain = 16384;   // multiplications per task, about

// The forward pass; with stride 1 also the gradient in x, which is the same with the filter turned round.
// finish(pixel, count): pixels of y, counted through all samples, are final.
template <class T, class F>
static void depthwise(const Call& call, const Conv& s, const T* x, const T* w, bool turned, T* y, F finish) {
  const int64_t taps = s.kh * s.kw, w_tap = turned ? -s.c : s.c, w_row = turned ? -s.kw * s.c : s.kw * s.c;
  if (turned) w += (taps - 1) * s.c;
  const bool unrolled = s.kw == 3 && s.dilation_w == 1 && s.stride_w <= 2;
  const Span columns = {span_inside(s.q, s.stride_w, -s.left, s.w).begin,      // where every tap of a row is inside
                        span_inside(s.q, s.stride_w, (s.kw - 1) * s.dilation_w - s.left, s.w).end};
  parallel_range(call, s.n * s.p, ceil_div(kDepthwiseGrain, s.q * s.c * taps), [&](int64_t row, int64_t end) {
    for (; row < end; ++row) {
      const int64_t sample = row / s.p, h0 = row % s.p * s.stride_h - s.top;
      const Span inside = span_inside(s.kh, s.dilation_h, h0, s.h);            // filter rows that meet the input
      const T* const xs = x + (sample * s.h + h0 + inside.begin * s.dilation_h) * s.w * s.c;
      const T* const ws = w + inside.begin * w_row;
      const int64_t rows = inside.end - inside.begin, x_row = s.dilation_h * s.w * s.c;
      T* const ys = y + row * s.q * s.c;
      for (int64_t q = 0; q < s.q;) {
        const int64_t w0 = q * s.stride_w - s.left;
        const bool whole = unrolled && q >= columns.begin && q < columns.end;
        int64_t done = 1;
        if (whole && q + 4 <= columns.end) {
          done = 4;
          if (s.stride_w == 1)
            pixels_of_row<T, 4, 1, 3>(s.c, rows, xs + w0 * s.c, x_row, ws, w_row, w_tap, ys + q * s.c, s.c);
          else
            pixels_of_row<T, 4, 2, 3>(s.c, rows, xs + w0 * s.c, x_row, ws, w_row, w_tap, ys + q * s.c, s.c);
        } else if (whole) {
          pixels_of_row<T, 1, 1, 3>(s.c, rows, xs + w0 * s.c, x_row, ws, w_row, w_tap, ys + q * s.c, s.c);
        } else {
          bool add = false;
          for (int64_t i = 0; i < rows; ++i)
            for (int64_t j = 0; j < s.kw; ++j) {
              const int64_t at = w0 + j * s.dilation_w;
              if (at < 0 || at >= s.w) continue;
              add_tap(s.c, xs + i * x_row + at * s.c, ws + i * w_row + j * w_tap, ys + q * s.c, add);
              add = true;
            }
          if (!add) memset(ys + q * s.c, 0, size_t(s.c) * sizeof(T));
        }
        q += done;
      }
      finish(row * s.q, s.q);
    }
  });
}

// The gradient in x for any stride: a pixel gathers the taps that met it.
template <class T> static void depthwise_dx(const Call& call, const Conv& s, const T* g, const T* w, T* dx) {
  if (s.stride_h == 1 && s.stride_w == 1) {
    Conv t = s;
    t.h = s.p, t.w = s.q, t.p = s.h, t.q = s.w;
    t.top = (s.kh - 1) * s.dilation_h - s.top, t.left = (s.kw - 1) * s.dilation_w - s.left;
    depthwise(call, t, g, w, true, dx, [](int64_t, int64_t) {});
    return;
  }
  const int64_t grain = ceil_div(kDepthwiseGrain, s.w * s.c * s.kh * s.kw);
  parallel_range(call, s.n * s.h, grain, [&](int64_t row, int64_t end) {
    for (; row < end; ++row) {
      const int64_t sample = row / s.h, h = row % s.h + s.top;
      for (int64_t k = 0; k < s.w; ++k) {
        T* const to = dx + (row * s.w + k) * s.c;
        bool add = false;
        for (int64_t i = 0; i < s.kh; ++i) {
          const int64_t p = h - i * s.dilation_h;
          if (p < 0 || p % s.stride_h || p / s.stride_h >= s.p) continue;
          for (int64_t j = 0; j < s.kw; ++j) {
            const int64_t q = k + s.left - j * s.dilation_w;
            if (q < 0 || q % s.stride_w || q / s.stride_w >= s.q) continue;
            const int64_t pixel = (sample * s.p + p / s.stride_h) * s.q + q / s.stride_w;
            add_tap(s.c, g + pixel * s.c, w + (i * s.kw + j) * s.c, to, add);
            add = true;
          }
        }
        if (!add) memset(to, 0, size_t(s.c) * sizeof(T));
      }
    }
  });
}

// ---- the gradient in the filter ------------------------------------------------------------------------------------

// w[j][c] += sum over `count` pixels of x[.][j * x_tap + c] * g[.][c], J taps of a row, two vectors of channels at a time.
template <class T, int J>
static void row_dw(int64_t c, int64_t count, const T* x, int64_t x_pixel, int64_t x_tap, const T* g, T* w) {
  constexpr int L = kLanes<T>;
  int64_t k = 0;
  for (; k + 2 * L <= c; k += 2 * L) {
    vec<T> a[J][2] = {};
    const T *xp = x + k, *gp = g + k;
    for (int64_t q = 0; q < count; ++q, xp += x_pixel, gp += c) {
      const vec<T> g0 = load(gp), g1 = load(gp + L);
#pragma GCC unroll 8
      for (int j = 0; j < J; ++j) {
        a[j][0] = fma(load(xp + j * x_tap), g0, a[j][0]);
        a[j][1] = fma(load(xp + j * x_tap + L), g1, a[j][1]);
      }
    }
#pragma GCC unroll 8
    for (int j = 0; j < J; ++j)
      for (int i = 0; i < 2; ++i) store(w + j * c + k + i * L, load(w + j * c + k + i * L) + a[j][i]);
  }
  for (; k < c; k += L) {
    const int64_t n = c - k;
    vec<T> a[J] = {};
    const T *xp = x + k, *gp = g + k;
    for (int64_t q = 0; q < count; ++q, xp += x_pixel, gp += c)
      for (int j = 0; j < J; ++j) a[j] = fma(load_n(xp + j * x_tap, n), load_n(gp, n), a[j]);
    for (int j = 0; j < J; ++j) store_n(w + j * c + k, load_n(w + j * c + k, n) + a[j], n);
  }
}

constexpr int64_t kDepthwiseGroups = 16;     // groups of rows whose sums are kept apart and added in order

inline int64_t depthwise_groups(const Conv& s) {
  return s.n * s.p < kDepthwiseGroups ? s.n * s.p : kDepthwiseGroups;
}
template <class T> static int64_t depthwise_dw_scratch(const Conv& s) {
  return depthwise_groups(s) * s.kh * s.kw * s.c * int64_t(sizeof(T));
}

template <class T>
static void depthwise_dw(const Call& call, const Conv& s, const T* x, const T* g, T* dw, void* scratch) {
  const int64_t filter = s.kh * s.kw * s.c, groups = depthwise_groups(s);
  T* const partial = static_cast<T*>(scratch);
  parallel(call, groups, [&](int64_t group, int) {
    T* const to = partial + group * filter;
    memset(to, 0, size_t(filter) * sizeof(T));
    for (int64_t row = s.n * s.p * group / groups; row < s.n * s.p * (group + 1) / groups; ++row) {
      const int64_t sample = row / s.p, h0 = row % s.p * s.stride_h - s.top;
      const T* const gs = g + row * s.q * s.c;
      for (int64_t i = 0; i < s.kh; ++i) {
        const int64_t h = h0 + i * s.dilation_h;
        if (h < 0 || h >= s.h) continue;
        const T* const xs = x + (sample * s.h + h) * s.w * s.c;
        T* const wi = to + i * s.kw * s.c;
        Span all = {0, 0};                   // pixels for which three taps are inside
        if (s.kw == 3) {
          const Span a = span_inside(s.q, s.stride_w, -s.left, s.w);
          const Span b = span_inside(s.q, s.stride_w, 2 * s.dilation_w - s.left, s.w);
          if (a.begin < b.end) {
            all = {a.begin, b.end};
            row_dw<T, 3>(s.c, all.end - all.begin, xs + (all.begin * s.stride_w - s.left) * s.c, s.stride_w * s.c,
                         s.dilation_w * s.c, gs + all.begin * s.c, wi);
          }
        }
        for (int64_t j = 0; j < s.kw; ++j) {
          const int64_t w0 = j * s.dilation_w - s.left;
          const Span a = span_inside(s.q, s.stride_w, w0, s.w);
          const Span parts[2] = {{a.begin, all.begin < a.end ? all.begin : a.end},
                                 {all.end > a.begin ? all.end : a.begin, a.end}};
          for (int part = all.begin < all.end ? 0 : 1; part < 2; ++part) {
            const Span& b = parts[part];
            if (b.begin < b.end)
              row_dw<T, 1>(s.c, b.end - b.begin, xs + (b.begin * s.stride_w + w0) * s.c, s.stride_w * s.c, 0,
                           gs + b.begin * s.c, wi + j * s.c);
          }
        }
      }
    }
  });
  parallel_range(call, filter, 1024, [&](int64_t i, int64_t end) {
    for (; i < end; ++i) {
      T sum = 0;
      for (int64_t group = 0; group < groups; ++group) sum += partial[group * filter + i];
      dw[i] = sum;
    }
  });
}

}  // namespace
