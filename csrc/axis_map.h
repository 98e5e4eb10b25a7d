// Maps along an axis of an image, and the two of them (rows, columns) that a call of ops/resample.py asks for.
//
// A map is a list of taps (output, input, weight). It is given by a few integers, from which the taps of any output
// follow, and so do the outputs that have a tap at an input. Averages over windows, interpolation, padding and filters
// are such maps; ops/_taps.py makes the same lists for the other backends.
#pragma once
#include "conv.h"
#include "host_device.h"

namespace {

enum MapKind { kPool, kResize, kPad, kFir };

template <class T> struct AxisMap {
  MapKind kind;
  int64_t n_in, n_out;
  int64_t window = 1, before = 0, up = 1, down = 1;  // down: the stride of a pool too
  int mode = 0;                                      // kResize: MODES, kPad: PAD_MODES of ops/resample.py
  bool flag = false;                                 // kPool: padding counts; kResize: align_corners; kFir: flip
  const T* taps = nullptr;                           // kFir: the filter, or null: the weight is the place in it
  int64_t tap_stride = 1;
};

// ---- taps -----------------------------------------------------------------------------------------------------------

// The inputs [lo, hi) of output o of a pool, and their weight.
template <class T> HOST_DEVICE T pool_window(const AxisMap<T>& m, int64_t o, int64_t& lo, int64_t& hi) {
  const int64_t start = o * m.down - m.before, end = start + m.window;
  lo = start > 0 ? start : 0, hi = end < m.n_in ? end : m.n_in;
  return T(1) / T(m.flag ? m.window : hi - lo);
}

// Where output o of a linear interpolation lies: `rest` / `unit` beyond an input. Integers, so exact.
template <class T> HOST_DEVICE int64_t resize_position(const AxisMap<T>& m, int64_t o, int64_t& rest, int64_t& unit) {
  int64_t at = m.flag ? o * (m.n_in - 1) : (2 * o + 1) * m.n_in - m.n_out;
  unit = m.flag ? m.n_out - 1 : 2 * m.n_out;
  if (at < 0) at = 0;
  if (unit < 1) unit = 1;
  const int64_t i = at / unit;
  rest = i + 1 < m.n_in ? at - i * unit : 0;
  return i;
}

template <class T> HOST_DEVICE int64_t nearest_input(const AxisMap<T>& m, int64_t o) {
  return m.mode == 0 ? o * m.n_in / m.n_out : (2 * o + 1) * m.n_in / (2 * m.n_out);
}

// The input that output o of a padded axis shows; outside of the axis where the constant goes.
template <class T> HOST_DEVICE int64_t pad_input(const AxisMap<T>& m, int64_t o) {
  const int64_t n = m.n_in;
  int64_t i = o - m.before;
  if (m.mode == 1) {
    i = i < 0 ? -i : i;
    i = i >= n ? 2 * (n - 1) - i : i;
  } else if (m.mode == 2) {
    i = i < 0 ? 0 : i >= n ? n - 1 : i;
  }
  return i;
}

// emit(input, weight) for every tap of output o, by inputs.
template <MapKind kind, class T, class F> HOST_DEVICE void taps_of(const AxisMap<T>& m, int64_t o, F&& emit) {
  const int64_t n = m.n_in;
  if constexpr (kind == kPool) {
    int64_t lo, hi;
    const T w = pool_window(m, o, lo, hi);
    for (int64_t i = lo; i < hi; ++i) emit(i, w);
  } else if constexpr (kind == kResize) {
    if (m.mode != 1) {
      emit(nearest_input(m, o), T(1));
    } else {
      int64_t rest, unit;
      const int64_t i = resize_position(m, o, rest, unit);
      emit(i, T(unit - rest) / T(unit));
      if (rest > 0) emit(i + 1, T(rest) / T(unit));
    }
  } else if constexpr (kind == kPad) {
    const int64_t i = pad_input(m, o);
    if (i >= 0 && i < n) emit(i, T(1));
  } else {
    const int64_t start = o * m.down - m.before;
    const int64_t over = ((-start) % m.up + m.up) % m.up;          // the first place that meets no inserted zero
    int64_t i = (start + over) / m.up;
    for (int64_t j = over; j < m.window; j += m.up, ++i) {
      const int64_t place = m.flag ? j : m.window - 1 - j;
      if (i >= 0 && i < n) emit(i, m.taps ? m.taps[place * m.tap_stride] : T(place));
    }
  }
}

// emit(output, weight) for every tap at input i, by outputs; not for kFir, whose adjoint is a filter too.
template <MapKind kind, class T, class F> HOST_DEVICE void readers_of(const AxisMap<T>& m, int64_t i, F&& emit) {
  static_assert(kind != kFir);
  const int64_t n = m.n_in, n_out = m.n_out;
  if constexpr (kind == kPool) {
    const int64_t at = i + m.before, last = at / m.down;
    for (int64_t o = at < m.window ? 0 : (at - m.window) / m.down + 1; o <= last && o < n_out; ++o) {
      int64_t lo, hi;
      emit(o, pool_window(m, o, lo, hi));
    }
  } else if constexpr (kind == kResize) {
    if (m.mode != 1) {
      const int64_t half = m.mode == 0 ? 0 : n;                    // (unit o + half) / n_out is where output o looks
      const int64_t unit = m.mode == 0 ? n : 2 * n, whole = m.mode == 0 ? n_out : 2 * n_out;
      const auto first = [=](int64_t j) { return j * whole <= half ? int64_t(0) : (j * whole - half + unit - 1) / unit; };
      const int64_t end = first(i + 1);
      for (int64_t o = first(i); o < end && o < n_out; ++o) emit(o, T(1));
    } else {                                                       // those that look less than `unit` away from i
      const int64_t step = m.flag ? n - 1 : 2 * n, shift = m.flag ? 0 : n - n_out, unit = m.flag ? n_out > 1 ? n_out - 1 : 1 : 2 * n_out;
      const int64_t below = (i - 1) * unit - shift;
      for (int64_t o = i > 0 && below > 0 ? below / step : 0; o < n_out; ++o) {
        const int64_t at = o * step + shift;
        int64_t away = (at > 0 ? at : 0) - i * unit;
        if (away > 0 && i == n - 1) away = 0;                      // the outermost inputs go on
        if (away >= unit) break;
        if (away < 0) away = -away;
        if (away < unit) emit(o, T(unit - away) / T(unit));
      }
    }
  } else {
    const int64_t o = i + m.before;
    if (m.mode == 2 && (i == 0 || i == n - 1)) {
      const int64_t first = i == 0 ? 0 : o, end = i == n - 1 ? n_out : o + 1;
      for (int64_t p = first < 0 ? 0 : first; p < end && p < n_out; ++p) emit(p, T(1));
      return;
    }
    const int64_t left = m.before - i, right = 2 * (n - 1) - i + m.before;
    if (m.mode == 1 && i > 0 && left >= 0 && left < n_out) emit(left, T(1));
    if (o >= 0 && o < n_out) emit(o, T(1));
    if (m.mode == 1 && i < n - 1 && right >= 0 && right < n_out) emit(right, T(1));
  }
}

// ---- from a call to two maps ----------------------------------------------------------------------------------------

template <class T> struct Maps {
  AxisMap<T> rows, columns;
  bool adjoint;
  T fill;
};

// Adjoints: the input of the map is the output of the call.
template <class T> static Maps<T> blank_maps(const Call& c, MapKind kind, bool adjoint) {
  const Array &x = adjoint ? c.out[0] : c.in[0], &y = adjoint ? c.in[0] : c.out[0];
  Maps<T> m{};
  m.rows.kind = m.columns.kind = kind;
  m.rows.n_in = x.shape[1], m.rows.n_out = y.shape[1];
  m.columns.n_in = x.shape[2], m.columns.n_out = y.shape[2];
  m.adjoint = adjoint;
  return m;
}

inline const double* skip_tuple(const double* attr) { return attr + 1 + int(attr[0]); }

struct Window {
  int64_t window[2], stride[2], padding[4];
};

// window, stride (none: the window), padding.
inline const double* read_window(const double* attr, Window& s) {
  attr = read_tuple(attr, s.window, 2);
  if (attr[0] > 0) {
    attr = read_tuple(attr, s.stride, 2);
  } else {
    s.stride[0] = s.window[0], s.stride[1] = s.window[1];
    ++attr;                                            // an empty tuple, or the NaN that stands for None
  }
  return read_tuple(attr, s.padding, 4);
}

template <class T> static Maps<T> pool_maps(const Call& c, bool adjoint) {
  Maps<T> m = blank_maps<T>(c, kPool, adjoint);
  Window s;
  const double* attr = read_window(adjoint ? skip_tuple(c.attr) : c.attr, s);
  m.rows.window = s.window[0], m.rows.down = s.stride[0], m.rows.before = s.padding[0];
  m.columns.window = s.window[1], m.columns.down = s.stride[1], m.columns.before = s.padding[2];
  m.rows.flag = m.columns.flag = attr[0] != 0;
  return m;
}

template <class T> static Maps<T> resize_maps(const Call& c, bool adjoint) {
  Maps<T> m = blank_maps<T>(c, kResize, adjoint);
  const double* attr = skip_tuple(c.attr);
  m.rows.mode = m.columns.mode = int(attr[0]);
  m.rows.flag = m.columns.flag = attr[1] != 0;
  return m;
}

template <class T> static Maps<T> pad_maps(const Call& c, bool adjoint) {
  Maps<T> m = blank_maps<T>(c, kPad, adjoint);
  int64_t padding[4];
  const double* attr = read_tuple(adjoint ? skip_tuple(c.attr) : c.attr, padding, 4);
  m.rows.before = padding[0], m.columns.before = padding[2];
  m.rows.mode = m.columns.mode = int(attr[0]);
  m.fill = adjoint ? T(0) : T(attr[1]);
  return m;
}

template <class T> static Maps<T> filter_maps(const Call& c, const double* attr, int64_t kh, int64_t kw) {
  Maps<T> m{};
  int64_t up[2], down[2], padding[4];
  attr = read_tuple(attr, up, 2);
  attr = read_tuple(attr, down, 2);
  attr = read_tuple(attr, padding, 4);
  m.rows.kind = m.columns.kind = kFir;
  m.rows.n_in = c.in[0].shape[1], m.columns.n_in = c.in[0].shape[2];
  m.rows.window = kh, m.columns.window = kw;
  m.rows.up = up[0], m.rows.down = down[0], m.rows.before = padding[0];
  m.columns.up = up[1], m.columns.down = down[1], m.columns.before = padding[2];
  m.rows.flag = m.columns.flag = attr[0] != 0;
  return m;
}

template <class T> static Maps<T> upfirdn2d_maps(const Call& c) {
  Maps<T> m = filter_maps<T>(c, c.attr, c.in[1].shape[0], c.in[1].shape[1]);
  m.rows.n_out = c.out[0].shape[1], m.columns.n_out = c.out[0].shape[2];
  return m;
}

template <class T> static Maps<T> upfirdn2d_df_maps(const Call& c) {
  Maps<T> m = filter_maps<T>(c, skip_tuple(c.attr), c.out[0].shape[0], c.out[0].shape[1]);
  m.rows.n_out = c.in[1].shape[1], m.columns.n_out = c.in[1].shape[2];
  return m;
}

// ---- maxima ---------------------------------------------------------------------------------------------------------

struct Pooling {
  int64_t n, h, w, c, p, q;                            // x (n, h, w, c), pooled (n, p, q, c)
  Window s;
};

inline Pooling read_pooling(const double* attr, const Array& x, const Array& pooled) {
  Pooling g{x.shape[0], x.shape[1], x.shape[2], x.shape[3], pooled.shape[1], pooled.shape[2], {}};
  read_window(attr, g.s);
  return g;
}

// Places [lo, hi) of window o along an axis lie inside.
HOST_DEVICE void inside(int64_t o, int64_t stride, int64_t before, int64_t window, int64_t n, int64_t& lo, int64_t& hi) {
  const int64_t start = o * stride - before;
  lo = start < 0 ? -start : 0;
  hi = start + window > n ? n - start : window;
}

// Windows [lo, hi) of `count` hold place i, padding included.
HOST_DEVICE void holding(int64_t i, int64_t stride, int64_t window, int64_t count, int64_t& lo, int64_t& hi) {
  const uint32_t step = uint32_t(stride);            // axes are shorter than 2^31
  lo = i < window ? 0 : uint32_t(i - window) / step + 1;
  hi = uint32_t(i) / step + 1 < count ? uint32_t(i) / step + 1 : count;
}

}  // namespace
