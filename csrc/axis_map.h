// Maps along an axis of an image, and the two of them (rows, columns) that a call of ops/resample.py asks for.
//
// A map is a list of taps (output, input, weight). It is given by a few integers, from which the taps of any output
// follow, and so do the outputs that have a tap at an input. Averages over windows, interpolation, padding and filters
// are such maps; ops/_taps.py makes the same lists for the other backends.
#pragma once
#include "conv.h"
#include "host_device.h"

namespace {

enum MapKind { kPool, kNearest, kLinear, kPad, kFir };

// Index is int on GPUs, where registers are short.
template <class T, class Index = int64_t> struct AxisMap {
  MapKind kind;
  Index n_in, n_out;
  Index window = 1, before = 0, up = 1, down = 1;    // down: the stride of a pool too
  int mode = 0;                                      // kPad: PAD_MODES of ops/resample.py; kNearest: 1 adds a half
  bool flag = false;                                 // kPool: padding counts; kLinear: align_corners; kFir: flip
  const T* taps = nullptr;                           // kFir: the filter, or null: the weight is the place in it
  Index tap_stride = 1;
};

// ---- taps -----------------------------------------------------------------------------------------------------------

// a / b for a >= 0, b > 0. On a GPU 64-bit division is a call, for which registers are spilled.
HOST_DEVICE int64_t quotient(int64_t a, int64_t b) {
#ifdef __CUDA_ARCH__
  if (((a | b) >> 32) == 0) return int64_t(uint32_t(a) / uint32_t(b));
  uint64_t q = 0, rest = 0;                          // bit by bit: axes this long are rare
#pragma unroll 1
  for (int bit = 63; bit >= 0; --bit) {
    rest = rest << 1 | (uint64_t(a) >> bit & 1), q <<= 1;
    if (rest >= uint64_t(b)) rest -= uint64_t(b), q |= 1;
  }
  return int64_t(q);
#else
  return a / b;
#endif
}

// The inputs [lo, hi) of output o of a pool, and their weight.
template <class T, class I> HOST_DEVICE T pool_window(const AxisMap<T, I>& m, I o, I& lo, I& hi) {
  const I start = o * m.down - m.before, end = start + m.window;
  lo = start > 0 ? start : 0, hi = end < m.n_in ? end : m.n_in;
  return T(1) / T(m.flag ? m.window : hi - lo);
}

// Where output o of a linear interpolation lies: `rest` / `unit` beyond an input. Integers, so exact.
template <class T, class I> HOST_DEVICE I linear_position(const AxisMap<T, I>& m, I o, I& rest, I& unit) {
  int64_t at = m.flag ? int64_t(o) * (m.n_in - 1) : (2 * int64_t(o) + 1) * m.n_in - m.n_out;
  unit = m.flag ? m.n_out - 1 : 2 * m.n_out;
  if (at < 0) at = 0;
  if (unit < 1) unit = 1;
  const I i = I(quotient(at, unit));
  rest = i + 1 < m.n_in ? I(at - int64_t(i) * unit) : 0;
  return i;
}

// The input that output o of a padded axis shows; outside of the axis where the constant goes.
template <class T, class I> HOST_DEVICE I pad_input(const AxisMap<T, I>& m, I o) {
  const I n = m.n_in;
  I i = o - m.before;
  if (m.mode == 1) {
    i = i < 0 ? -i : i;
    i = i >= n ? 2 * (n - 1) - i : i;
  } else if (m.mode == 2) {
    i = i < 0 ? 0 : i >= n ? n - 1 : i;
  }
  return i;
}

// emit(input, weight) for every tap of output o, by inputs.
template <MapKind kind, class T, class I, class F> HOST_DEVICE void taps_of(const AxisMap<T, I>& m, I o, F&& emit) {
  const I n = m.n_in;
  if constexpr (kind == kPool) {
    I lo, hi;
    const T w = pool_window(m, o, lo, hi);
    for (I i = lo; i < hi; ++i) emit(i, w);
  } else if constexpr (kind == kNearest) {
    emit(I(quotient((2 * int64_t(o) + m.mode) * m.n_in, 2 * int64_t(m.n_out))), T(1));
  } else if constexpr (kind == kLinear) {
    I rest, unit;
    const I i = linear_position(m, o, rest, unit);
    emit(i, T(unit - rest) / T(unit));
    if (rest > 0) emit(I(i + 1), T(rest) / T(unit));
  } else if constexpr (kind == kPad) {
    const I i = pad_input(m, o);
    if (i >= 0 && i < n) emit(i, T(1));
  } else {
    const I start = o * m.down - m.before;
    I i = start > 0 ? I(quotient(start + m.up - 1, m.up)) : -I(quotient(-start, m.up));
    for (I j = i * m.up - start; j < m.window; j += m.up, ++i) {
      const I place = m.flag ? j : m.window - 1 - j;
      if (i >= 0 && i < n) emit(i, m.taps ? m.taps[place * m.tap_stride] : T(place));
    }                                                // places between meet inserted zeros
  }
}

// emit(output, weight) for every tap at input i, by outputs; not for kFir, whose adjoint is a filter too.
template <MapKind kind, class T, class I, class F> HOST_DEVICE void readers_of(const AxisMap<T, I>& m, I i, F&& emit) {
  static_assert(kind != kFir);
  const I n = m.n_in, n_out = m.n_out;
  if constexpr (kind == kPool) {
    const I at = i + m.before, last = I(quotient(at, m.down));
    for (I o = at < m.window ? 0 : I(quotient(at - m.window, m.down)) + 1; o <= last && o < n_out; ++o) {
      I lo, hi;
      emit(o, pool_window(m, o, lo, hi));
    }
  } else if constexpr (kind == kNearest) {                         // 2 n_out i <= (2 o + mode) n < 2 n_out (i + 1)
    const int64_t at = 2 * int64_t(n_out) * i - m.mode * int64_t(n), end = at + 2 * int64_t(n_out);
    I o = at > 0 ? I(quotient(at + 2 * int64_t(n) - 1, 2 * int64_t(n))) : 0;
    for (; o < n_out && 2 * int64_t(n) * o < end; ++o) emit(o, T(1));
  } else if constexpr (kind == kLinear) {                          // those that look less than `unit` away from i
    const int64_t step = m.flag ? n - 1 : 2 * n, shift = m.flag ? 0 : n - n_out, unit = m.flag ? n_out > 1 ? n_out - 1 : 1 : 2 * n_out;
    const int64_t below = (int64_t(i) - 1) * unit - shift;
    for (I o = i > 0 && below > 0 ? I(quotient(below, step)) : 0; o < n_out; ++o) {
      const int64_t at = o * step + shift;
      int64_t away = (at > 0 ? at : 0) - i * unit;
      if (away > 0 && i == n - 1) away = 0;                        // the outermost inputs go on
      if (away >= unit) break;
      if (away < 0) away = -away;
      if (away < unit) emit(o, T(I(unit - away)) / T(I(unit)));
    }
  } else {
    const I o = i + m.before;
    if (m.mode == 2 && (i == 0 || i == n - 1)) {
      const I first = i == 0 ? 0 : o, end = i == n - 1 ? n_out : o + 1;
      for (I p = first < 0 ? 0 : first; p < end && p < n_out; ++p) emit(p, T(1));
      return;
    }
    const I left = m.before - i, right = 2 * (n - 1) - i + m.before;
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

template <class Index, class T> inline AxisMap<T, Index> with_index(const AxisMap<T>& m) {
  return {m.kind, Index(m.n_in), Index(m.n_out), Index(m.window), Index(m.before), Index(m.up), Index(m.down), m.mode, m.flag, m.taps,
          Index(m.tap_stride)};
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
  const double* attr = skip_tuple(c.attr);
  Maps<T> m = blank_maps<T>(c, attr[0] == 1 ? kLinear : kNearest, adjoint);
  m.rows.mode = m.columns.mode = attr[0] == 2;       // of MODES in ops/resample.py
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

template <class I> struct PoolingOf {
  int64_t n;
  I h, w, c, p, q;                                     // x (n, h, w, c), pooled (n, p, q, c)
  I window[2], stride[2], padding[4];
};
using Pooling = PoolingOf<int64_t>;

template <class I = int64_t> inline PoolingOf<I> read_pooling(const double* attr, const Array& x, const Array& pooled) {
  PoolingOf<I> g{x.shape[0], I(x.shape[1]), I(x.shape[2]), I(x.shape[3]), I(pooled.shape[1]), I(pooled.shape[2]), {}, {}, {}};
  Window s;
  read_window(attr, s);
  for (int k = 0; k < 2; ++k) g.window[k] = I(s.window[k]), g.stride[k] = I(s.stride[k]);
  for (int k = 0; k < 4; ++k) g.padding[k] = I(s.padding[k]);
  return g;
}

// Places [lo, hi) of window o along an axis lie inside.
template <class I> HOST_DEVICE void inside(I o, I stride, I before, I window, I n, I& lo, I& hi) {
  const I start = o * stride - before;
  lo = start < 0 ? -start : 0;
  hi = start + window > n ? n - start : window;
}

// Windows [lo, hi) of `count` hold place i, padding included.
template <class I> HOST_DEVICE void holding(I i, I stride, I window, I count, I& lo, I& hi) {
  lo = i < window ? 0 : I(quotient(i - window, stride)) + 1;
  hi = I(quotient(i, stride)) + 1;
  if (hi > count) hi = count;
}

}  // namespace
