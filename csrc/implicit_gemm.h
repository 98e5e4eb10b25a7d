// tap_conv(): a convolution as a product with a left matrix that is never formed, for any list of filter taps.
//
//   y[n, i * out_step_h + out_first_h, j * out_step_w + out_first_w, o]
//     = sum over taps t and channels c of x[n, i * step_h + t.row, j * step_w + t.column, c] * matrix[t.index][c, o]
// for all (i, j) of a grid, zero outside x. A strided convolution is one such grid. Its gradient in x is
// stride_h * stride_w of them, one per phase of the pixels, each with only the taps that meet it, so no product has a
// zero from between the pixels as a factor; so is a convolution of an image enlarged by repeating pixels.
//
// Weights are packed once per call into panels. A task copies a window of the input with its border (patch_tile.h) and
// multiplies it with the panels. Every element is a sum of chains of fma over at most kConvDepth products in the order
// (tap, channel), so its bits depend neither on the batch nor on the threads.
//
// U is what strips and panels hold: the numbers T as they are, or (conv_bf16.cpp) pairs of channels.
#pragma once
#include "epilogue.h"
#include "patch_tile.h"

namespace {

constexpr int64_t kConvDepth = 320;        // terms per chain: 9 taps x 32 channels are one chain. Decides bits
constexpr int64_t kWindow = 144;           // pixels per window: a multiple of every tile

struct Tap {
  int64_t row, column;                     // of x, seen from the first pixel of the grid
  int64_t index;                           // of the matrix it multiplies with
};

// The extent of a list of taps: what scratch depends on.
struct TapList {
  const Tap* taps;
  int64_t count, first_h, last_h, first_w, last_w;
};

inline void add_tap(TapList& list, Tap* to, const Tap& t) {  // to may be null: count and extent only
  if (list.count == 0 || t.row < list.first_h) list.first_h = t.row;
  if (list.count == 0 || t.row > list.last_h) list.last_h = t.row;
  if (list.count == 0 || t.column < list.first_w) list.first_w = t.column;
  if (list.count == 0 || t.column > list.last_w) list.last_w = t.column;
  if (to) to[list.count] = t;
  ++list.count;
}

template <class T> struct TapConv {
  const T* x; int64_t n, h, w, c;
  int64_t p, q, step_h, step_w;            // the grid
  T* y; int64_t y_h, y_w, o;               // all of y, not only the grid
  int64_t out_step_h, out_step_w, out_first_h, out_first_w;
  TapList list;
  // matrix[index] of group g starts at weights + index * w_matrix + g * w_group. w_rows: stored (c / groups) rows of
  // w_ld numbers, of which o / groups are the group's; else the transpose, (o / groups) rows.
  const T* weights; int64_t w_matrix, w_group, w_ld; bool w_rows;
  int64_t groups;
  // Called once per finished tile: rows [i, i + m) (pixels of y, counted through all samples) and columns [j, j + n).
  Finish finish;
  const void* context;
};

// ---- plan --------------------------------------------------------------------------------------------------------

struct TapPlan {
  bool in_place;                           // no border: the input is its own strip
  Window window;
  Strip strip;
  int64_t windows_h, windows_w, windows;
  int64_t k, steps, depth;                 // terms per element, chains, terms per chain
  int64_t panels, columns, splits;         // panels per group, of all groups; tasks per window
  int64_t runs_bytes, packed_bytes, worker_bytes, bytes;
  bool serial;
};

template <class T, class U> static TapPlan tap_plan(const TapConv<T>& s, int threads) {
  constexpr int NR = kTileCols<U>;
  const TapList& t = s.list;
  TapPlan a{};
  const int64_t group_c = Terms<U>::count(s.c / s.groups);
  a.k = t.count * group_c;
  a.panels = ceil_div(s.o / s.groups, NR);
  a.columns = a.panels * s.groups;
  if (a.k == 0 || s.n * s.p * s.q == 0 || s.o == 0) return a;
  a.steps = ceil_div(a.k, kConvDepth);
  a.depth = ceil_div(a.k, a.steps);
  a.in_place = Terms<U>::kNumbers && t.first_h >= 0 && t.first_w >= 0 && (s.p - 1) * s.step_h + t.last_h < s.h &&
               (s.q - 1) * s.step_w + t.last_w < s.w;
  Strip& strip = a.strip;
  strip = {s.h, s.w, s.c, s.step_h, s.step_w, t.first_h, t.first_w, t.last_h - t.first_h + 1, t.last_w - t.first_w + 1,
           0, 0, a.in_place ? s.c : pitch_of<U>(s.groups * group_c), s.groups};
  for (int64_t most = kWindow;; most /= 2) {
    a.window = window_of(s.n, s.p, s.q, most);
    strip.rows = (a.window.rows - 1) * s.step_h + strip.span_h;
    strip.columns = (a.window.columns - 1) * s.step_w + strip.span_w;
    if (a.in_place || most <= 36 || strip.size(a.window) * int64_t(sizeof(U)) <= 256 * 1024) break;
  }
  a.windows_h = ceil_div(s.p, a.window.rows);
  a.windows_w = ceil_div(s.q, a.window.columns);
  a.windows = ceil_div(s.n, a.window.samples) * a.windows_h * a.windows_w;
  a.serial = threads <= 1 || double(s.n * s.p * s.q) * double(a.k) * double(s.o / s.groups) < 1e6;
  const int64_t wanted = a.serial ? 1 : 4 * threads;
  a.splits = least(a.columns, ceil_div(wanted, a.windows));
  a.runs_bytes = round64((t.count + a.steps) * int64_t(sizeof(Run)) + (a.steps + 1) * int64_t(sizeof(int64_t)));
  a.packed_bytes = round64(a.columns * a.k * NR * int64_t(sizeof(U)));
  a.worker_bytes = a.in_place ? 0 : round64(strip.size(a.window) * int64_t(sizeof(U)));
  a.bytes = a.runs_bytes + a.packed_bytes + a.worker_bytes * (a.serial ? 1 : threads);
  return a;
}

template <class T, class U = T> static int64_t tap_conv_scratch(const Call& c, const TapConv<T>& s) {
  return tap_plan<T, U>(s, c.threads).bytes;
}

// ---- run ---------------------------------------------------------------------------------------------------------

// The runs of a pixel in the order of the packed weights, cut into chains: chain i has runs [first[i], first[i + 1]).
template <class T, class U> static void runs_of(const TapConv<T>& s, const TapPlan& a, Run* runs, int64_t* first) {
  const int64_t columns = a.in_place ? s.w : a.strip.columns;
  const int64_t group_c = Terms<U>::count(s.c / s.groups);
  const int64_t h0 = a.in_place ? 0 : s.list.first_h, w0 = a.in_place ? 0 : s.list.first_w;
  int64_t count = 0, step = 0, room = 0;   // room: what the current chain still takes
  for (int64_t t = 0; t < s.list.count; ++t) {
    const Tap& tap = s.list.taps[t];
    int64_t offset = ((tap.row - h0) * columns + tap.column - w0) * a.strip.pitch;
    for (int64_t left = group_c; left > 0;) {
      bool fresh = false;
      if (room == 0) first[step++] = count, room = a.depth, fresh = true;
      const int64_t n = least(left, room);
      if (!fresh && runs[count - 1].offset + runs[count - 1].length == offset) runs[count - 1].length += n;
      else runs[count++] = {offset, n};
      offset += n, left -= n, room -= n;
    }
  }
  first[step] = count;
}

template <class T> static void pack_tap(bool rows, int64_t k, const T* from, int64_t ld, int64_t w, T* to) {
  constexpr int NR = kTileCols<T>;
  if (rows) pack_copy<T>(k, from, ld, w, NR, to);
  else pack_transpose<T>(k, from, ld, w, NR, 0, to);
}

template <class T, class U> static void pack_panel(const TapConv<T>& s, const TapPlan& a, int64_t column, U* to) {
  constexpr int NR = kTileCols<U>;
  const int64_t group = column / a.panels, j = column % a.panels * NR, group_c = s.c / s.groups;
  const int64_t w = least(NR, s.o / s.groups - j);
  for (int64_t t = 0; t < s.list.count; ++t, to += Terms<U>::count(group_c) * NR) {
    const T* from = s.weights + s.list.taps[t].index * s.w_matrix + group * s.w_group;
    pack_tap(s.w_rows, group_c, from + (s.w_rows ? j : j * s.w_ld), s.w_ld, w, to);
  }
}

// A tile of rows is finished; ids are the pixels of y it holds.
template <class T> static void finish_pixels(const TapConv<T>& s, const int64_t* ids, int64_t m, int64_t j, int64_t w) {
  for (int64_t i = 0, run; i < m; i += run) {
    for (run = 1; i + run < m && ids[i + run] == ids[i] + run; ++run) {}
    s.finish(s.context, ids[i], j, run, w);
  }
}

template <class T> static void no_taps(const TapConv<T>& s) {
  constexpr int NR = kTileCols<T>;
  for (int64_t k = 0; k < s.n * s.p * s.q; ++k) {
    const int64_t i = k / s.q % s.p * s.out_step_h + s.out_first_h, j = k % s.q * s.out_step_w + s.out_first_w;
    const int64_t id = (k / (s.p * s.q) * s.y_h + i) * s.y_w + j;
    memset(s.y + id * s.o, 0, size_t(s.o) * sizeof(T));
    for (int64_t o = 0; s.finish && o < s.o; o += NR) s.finish(s.context, id, o, 1, least(NR, s.o - o));
  }
}

// scratch: tap_conv_scratch() bytes.
template <class T, class U = T> static void tap_conv(const Call& c, const TapConv<T>& s, void* scratch) {
  constexpr int L = kLanes<U>, NR = kTileCols<U>;
  const TapPlan a = tap_plan<T, U>(s, c.threads);
  if (s.n * s.p * s.q == 0 || s.o == 0) return;
  if (a.k == 0) return no_taps(s);
  Call call = c;
  if (a.serial) call.threads = 1;
  char* const bytes = static_cast<char*>(scratch);
  Run* const runs = reinterpret_cast<Run*>(bytes);
  int64_t* const first = reinterpret_cast<int64_t*>(runs + s.list.count + a.steps);
  U* const packed = reinterpret_cast<U*>(bytes + a.runs_bytes);
  char* const strips = bytes + a.runs_bytes + a.packed_bytes;
  runs_of<T, U>(s, a, runs, first);
  parallel(call, a.columns, [&](int64_t column, int) { pack_panel(s, a, column, packed + column * a.k * NR); });

  const int64_t group_c = Terms<U>::count(s.c / s.groups), group_o = s.o / s.groups;
  parallel(call, a.windows * a.splits, [&](int64_t task, int worker) {
    const int64_t window = task / a.splits, split = task % a.splits;
    const int64_t column0 = a.columns * split / a.splits, column1 = a.columns * (split + 1) / a.splits;
    const int64_t q0 = window % a.windows_w * a.window.columns, n_q = least(a.window.columns, s.q - q0);
    const int64_t p0 = window / a.windows_w % a.windows_h * a.window.rows, n_p = least(a.window.rows, s.p - p0);
    const int64_t n0 = window / (a.windows_w * a.windows_h) * a.window.samples, n_n = least(a.window.samples, s.n - n0);

    const U* from = nullptr;
    if constexpr (Terms<U>::kNumbers) from = s.x;
    if (!a.in_place) {
      U* strip = reinterpret_cast<U*>(strips + worker * a.worker_bytes);
      copy_strip(a.strip, s.x, n0, n_n, p0, n_p, q0, n_q, [&](int64_t r) {
        for (int64_t t = 0; t < s.list.count; ++t) {       // a dilated filter skips rows
          const int64_t d = r - (s.list.taps[t].row - s.list.first_h);
          if (d >= 0 && d % s.step_h == 0 && d / s.step_h < n_p) return true;
        }
        return false;
      }, strip);
      from = strip;
    }
    const U* pixel[kWindow];
    int64_t id[kWindow], m = 0;
    for (int64_t k = 0; k < n_n; ++k)
      for (int64_t i = 0; i < n_p; ++i)
        for (int64_t j = 0; j < n_q; ++j, ++m) {
          pixel[m] = a.in_place
              ? from + (((n0 + k) * s.h + (p0 + i) * s.step_h) * s.w + (q0 + j) * s.step_w) * s.c
              : from + ((k * a.strip.rows + i * s.step_h) * a.strip.columns + j * s.step_w) * a.strip.pitch;
          id[m] = ((n0 + k) * s.y_h + (p0 + i) * s.out_step_h + s.out_first_h) * s.y_w +
                  (q0 + j) * s.out_step_w + s.out_first_w;
        }
    const int64_t tiles = ceil_div(m, kTileRows);
    int64_t group = 0;
    for (int64_t column = column0; column < column1; ++column) {
      for (; group < column / a.panels; ++group)
        for (int64_t i = 0; i < m; ++i) pixel[i] += group_c;
      const int64_t j = column % a.panels * NR, w = least(NR, group_o - j), last = w > L ? w - L : w;
      T* const y = s.y + group * group_o + j;
      for (int64_t step = 0; step < a.steps; ++step) {
        const U* b = packed + (column * a.k + step * a.depth) * NR;
        for (int64_t t = 0; t < tiles; ++t) {
          const int64_t i = tile_start(m, tiles, t), rows = tile_start(m, tiles, t + 1) - i;
          T* to[kTileRows];
          for (int64_t r = 0; r < rows; ++r) to[r] = y + id[i + r] * s.o;
          const MicroRuns<U> f = w > L ? micro_runs_of<U, 2>(rows) : micro_runs_of<U, 1>(rows);
          f(pixel + i, runs + first[step], first[step + 1] - first[step], 1, b, to, last, step > 0);
          if (s.finish && step == a.steps - 1) finish_pixels(s, id + i, rows, group * group_o + j, w);
        }
      }
    }
  });
}

}  // namespace
