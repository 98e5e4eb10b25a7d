// The gradient of a convolution in its filter: a product that contracts over pixels.
//
// Row (tap, channel) of the filter is the dot product of the numbers that tap reads with the gradient, over all pixels.
// In a strip of padded input (patch_tile.h) those numbers are runs at one fixed distance for all taps, so the micro-kernel
// of the forward pass serves, walking over pixels instead of channels. Pixels are cut into windows, one chain of fma
// each; windows into at most kPixelGroups groups whose sums are kept apart and added in order at the end. All of that
// depends on shapes only.
#pragma once
#include "conv.h"
#include "patch_tile.h"

namespace {

constexpr int64_t kPixelGroups = 16;
constexpr int64_t kDwWindow = 192;           // pixels per chain: a panel of g is 12 KiB
constexpr int64_t kPartialBytes = 16 << 20;  // of all groups together

struct DwPlan {
  bool in_place;
  Window window;
  Strip strip;
  int64_t windows_h, windows_w, windows;
  int64_t rows, panels, columns;             // of a filter: taps x channels of a group; panels per group, of all groups
  int64_t pixel_groups, splits;
  int64_t partial_bytes, worker_bytes, panel_bytes, bytes;
};

template <class T> static DwPlan dw_plan(const Conv& s, int threads) {
  constexpr int NR = kTileCols<T>;
  DwPlan a{};
  // Walking over pixels, numbers an even count of cache lines apart would share few cache sets.
  constexpr int64_t line = 64 / int64_t(sizeof(T));
  const int64_t pitch = s.c % (2 * line) == 0 ? s.c + line : s.c;
  a.in_place = s.top + s.left + s.bottom + s.right == 0 && pitch == s.c;
  Strip& strip = a.strip;
  strip = {s.h, s.w, s.c, s.stride_h, s.stride_w, -s.top, -s.left, (s.kh - 1) * s.dilation_h + 1,
           (s.kw - 1) * s.dilation_w + 1, 0, 0, pitch};
  for (int64_t most = kDwWindow;; most /= 2) {
    a.window = window_of(s.n, s.p, s.q, most);
    strip.rows = a.in_place ? s.h : (a.window.rows - 1) * s.stride_h + strip.span_h;
    strip.columns = a.in_place ? s.w : (a.window.columns - 1) * s.stride_w + strip.span_w;
    if (a.in_place || most <= 48 || strip.size(a.window) * int64_t(sizeof(T)) <= 512 * 1024) break;
  }
  a.windows_h = ceil_div(s.p, a.window.rows);
  a.windows_w = ceil_div(s.q, a.window.columns);
  a.windows = ceil_div(s.n, a.window.samples) * a.windows_h * a.windows_w;
  a.rows = s.kh * s.kw * s.group_c();
  a.panels = ceil_div(s.group_o(), NR);
  a.columns = a.panels * s.groups;
  const int64_t filter = a.rows * s.o * int64_t(sizeof(T));
  a.pixel_groups = least(least(kPixelGroups, a.windows), kPartialBytes / filter);
  if (a.pixel_groups < 1) a.pixel_groups = 1;
  a.splits = least(a.columns, ceil_div(8, a.pixel_groups));
  a.partial_bytes = a.pixel_groups > 1 ? a.pixel_groups * round64(filter) : 0;
  a.panel_bytes = kDwWindow * NR * int64_t(sizeof(T));
  a.worker_bytes = a.panel_bytes + (a.in_place ? 0 : round64(strip.size(a.window) * int64_t(sizeof(T))));
  a.bytes = a.partial_bytes + a.worker_bytes * threads;
  return a;
}

template <class T> static int64_t conv_dw_scratch(const Call& c, const Conv& s) {
  return dw_plan<T>(s, c.threads).bytes;
}

// The window's share of every filter row, for the columns [column0, column1). x: the window in the strip.
template <class T>
static void dw_window(const Conv& s, const DwPlan& a, const T* x, const Run* runs, int64_t n_runs, const T* g, int64_t m,
                      int64_t column0, int64_t column1, T* panel, T* dw, bool add) {
  constexpr int L = kLanes<T>, NR = kTileCols<T>;
  const int64_t group_c = s.group_c(), group_o = s.group_o(), step = s.stride_w * a.strip.pitch;
  const int64_t tiles = ceil_div(a.rows, kTileRows);
  for (int64_t column = column0; column < column1; ++column) {
    const int64_t group = column / a.panels, j = column % a.panels * NR;
    const int64_t w = least(NR, group_o - j), last = w > L ? w - L : w, first = group * group_o + j;
    pack_copy<T>(m, g + first, s.o, w, NR, panel);
    int64_t channel = 0, tap_h = 0, tap_w = 0;
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t i = tile_start(a.rows, tiles, t), rows = tile_start(a.rows, tiles, t + 1) - i;
      const T* from[kTileRows];
      T* to[kTileRows];
      for (int64_t r = 0; r < rows; ++r) {
        from[r] = x + (tap_h * s.dilation_h * a.strip.columns + tap_w * s.dilation_w) * a.strip.pitch +
                  group * group_c + channel;
        to[r] = dw + (i + r) * s.o + first;
        if (++channel == group_c) {
          channel = 0;
          if (++tap_w == s.kw) tap_w = 0, ++tap_h;
        }
      }
      const MicroRuns<T> f = w > L ? micro_runs_of<T, 2>(rows) : micro_runs_of<T, 1>(rows);
      f(from, runs, n_runs, step, panel, to, last, add);
    }
  }
}

// scratch: conv_dw_scratch() bytes.
template <class T> static void conv_dw(const Call& c, const Conv& s, const T* x, const T* g, T* dw, void* scratch) {
  const int64_t filter = s.kh * s.kw * s.group_c() * s.o;
  const DwPlan a = dw_plan<T>(s, c.threads);
  char* const bytes = static_cast<char*>(scratch);
  const int64_t stride = a.pixel_groups > 1 ? a.partial_bytes / a.pixel_groups / int64_t(sizeof(T)) : 0;
  T* const partial = a.pixel_groups > 1 ? reinterpret_cast<T*>(bytes) : dw;
  Call call = c;
  if (double(s.n * s.p * s.q) * double(filter) < 1e6) call.threads = 1;
  parallel(call, a.pixel_groups * a.splits, [&](int64_t task, int worker) {
    char* const mine = bytes + a.partial_bytes + worker * a.worker_bytes;
    T *const panel = reinterpret_cast<T*>(mine), *const strip = reinterpret_cast<T*>(mine + a.panel_bytes);
    const int64_t part = task / a.splits, split = task % a.splits;
    const int64_t begin = a.windows * part / a.pixel_groups, end = a.windows * (part + 1) / a.pixel_groups;
    for (int64_t window = begin; window < end; ++window) {
      const int64_t q0 = window % a.windows_w * a.window.columns, n_q = least(a.window.columns, s.q - q0);
      const int64_t p0 = window / a.windows_w % a.windows_h * a.window.rows, n_p = least(a.window.rows, s.p - p0);
      const int64_t n0 = window / (a.windows_w * a.windows_h) * a.window.samples;
      const int64_t n_n = least(a.window.samples, s.n - n0);
      const T* from = x + ((n0 * s.h + p0 * s.stride_h) * s.w + q0 * s.stride_w) * s.c;
      if (!a.in_place) {
        copy_strip(a.strip, x, n0, n_n, p0, n_p, q0, n_q, [&](int64_t r) {
          for (int64_t i = 0; i < s.kh; ++i) {             // a dilated filter skips rows
            const int64_t d = r - i * s.dilation_h;
            if (d >= 0 && d % s.stride_h == 0 && d / s.stride_h < n_p) return true;
          }
          return false;
        }, strip);
        from = strip;
      }
      Run runs[kDwWindow];
      int64_t n_runs = 0;
      for (int64_t k = 0; k < n_n; ++k)
        for (int64_t i = 0; i < n_p; ++i)
          runs[n_runs++] = {(k * a.strip.rows + i * s.stride_h) * a.strip.columns * a.strip.pitch, n_q};
      dw_window(s, a, from, runs, n_runs, g + ((n0 * s.p + p0) * s.q + q0) * s.o, n_n * n_p * n_q,
                a.columns * split / a.splits, a.columns * (split + 1) / a.splits, panel, partial + part * stride,
                window > begin);
    }
  });
  if (a.pixel_groups == 1) return;
  parallel_range(c, filter, 4096, [&](int64_t i, int64_t end) {
    constexpr int L = kLanes<T>;
    for (; i < end; i += L) {
      const int64_t n = least(L, end - i);
      vec<T> sum{};
      for (int64_t part = 0; part < a.pixel_groups; ++part) {
        const T* from = partial + part * stride + i;
        sum += n == L ? load(from) : load_first(from, n);
      }
      if (n == L) store(dw + i, sum);
      else store_first(dw + i, sum, n);
    }
  });
}

}  // namespace
