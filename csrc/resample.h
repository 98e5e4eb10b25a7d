// Separable linear maps of images: y = A x B^T for every sample and channel, A for the rows, B for the columns.
//
// Averages over windows, interpolation, padding, filters of rank one and all their adjoints are such maps (axis_map.h).
// `Axis` holds the taps of one along an axis by outputs, or by inputs for the adjoint. A row of the result is made in two
// steps: the rows of x that it needs are combined over the whole width (all channels of all pixels are one run of memory,
// whatever their number), into a strip that stays in L1; then the pixels of the strip are combined. Where every output
// looks one pixel further than the one before, the second step is a combination of runs too.
#pragma once
#include "axis_map.h"
#include "parallel.h"
#include "simd.h"

namespace {

// ---- maps along an axis ---------------------------------------------------------------------------------------------

template <MapKind kind, class T, class F> static void each_tap_of_kind(const AxisMap<T>& m, F& emit) {
  for (int64_t o = 0; o < m.n_out; ++o) taps_of<kind>(m, o, [&](int64_t i, T w) { emit(o, i, w); });
}

// emit(output, input, weight) for every tap, by outputs.
template <class T, class F> static void each_tap(const AxisMap<T>& m, F emit) {
  if (m.kind == kPool) each_tap_of_kind<kPool>(m, emit);
  else if (m.kind == kNearest) each_tap_of_kind<kNearest>(m, emit);
  else if (m.kind == kLinear) each_tap_of_kind<kLinear>(m, emit);
  else if (m.kind == kPad) each_tap_of_kind<kPad>(m, emit);
  else each_tap_of_kind<kFir>(m, emit);
}

template <class T> struct Axis {
  int64_t n_out, n_in;
  int32_t *first, *index;      // taps of output o: first[o] ... first[o + 1]
  T* weight;
  int64_t run0, run1;          // outputs that have the same weights, each one input further than the one before
  int64_t taps(int64_t o) const { return first[o + 1] - first[o]; }
};

inline int64_t padded_bytes(int64_t bytes) { return (bytes + 63) / 64 * 64; }

template <class T> static int64_t axis_bytes(const AxisMap<T>& m) {
  int64_t taps = 0;
  each_tap(m, [&](int64_t, int64_t, T) { ++taps; });
  const int64_t n = m.n_in > m.n_out ? m.n_in : m.n_out;           // for the map or its adjoint
  return padded_bytes((n + 2 + taps) * 4) + padded_bytes(taps * int64_t(sizeof(T)));
}

// The longest run; compared with its neighbour, an output keeps or ends the current one.
template <class T> static void find_run(Axis<T>& a) {
  a.run0 = a.run1 = 0;
  int64_t start = 0;
  for (int64_t o = 0; o < a.n_out; ++o) {
    const int64_t n = a.taps(o), f = a.first[o], e = o > start ? a.first[o - 1] : f;
    bool inside = n > 0, goes_on = o > start && n > 0 && n == a.taps(o - 1);
    for (int64_t k = 1; k < n; ++k) inside = inside && a.index[f + k] == a.index[f] + k;
    for (int64_t k = 0; goes_on && k < n; ++k)
      goes_on = a.index[f + k] == a.index[e + k] + 1 && a.weight[f + k] == a.weight[e + k];
    if (!goes_on || !inside) start = inside ? o : o + 1;
    if (inside && o + 1 - start > a.run1 - a.run0) a.run0 = start, a.run1 = o + 1;
  }
  if (a.run1 - a.run0 < 4) a.run0 = a.run1 = 0;
}

// The axis of a map, or of its adjoint, in `memory`, which moves on by axis_bytes.
template <class T> static Axis<T> make_axis(const AxisMap<T>& m, bool adjoint, char*& memory) {
  Axis<T> a{};
  a.n_out = adjoint ? m.n_in : m.n_out;
  a.n_in = adjoint ? m.n_out : m.n_in;
  a.first = reinterpret_cast<int32_t*>(memory);
  a.index = a.first + a.n_out + 2;
  memset(a.first, 0, size_t(a.n_out + 2) * 4);
  int64_t total = 0;
  each_tap(m, [&](int64_t o, int64_t i, T) { ++a.first[(adjoint ? i : o) + 2], ++total; });
  for (int64_t o = 1; o < a.n_out; ++o) a.first[o + 1] += a.first[o];
  const int64_t n = m.n_in > m.n_out ? m.n_in : m.n_out;
  a.weight = reinterpret_cast<T*>(memory + padded_bytes((n + 2 + total) * 4));
  each_tap(m, [&](int64_t o, int64_t i, T w) {       // first[o + 1] is where o begins, and in the end where it ends
    const int32_t at = a.first[(adjoint ? i : o) + 1]++;
    a.index[at] = int32_t(adjoint ? o : i);
    a.weight[at] = w;
  });
  memory += padded_bytes((n + 2 + total) * 4) + padded_bytes(total * int64_t(sizeof(T)));
  find_run(a);
  return a;
}

// ---- combinations of runs of memory ---------------------------------------------------------------------------------

// to[j] (+)= sum_k w[k] from[k][j], N runs of `len` numbers. Without kAdd the last vector may overlap the one before.
template <class T, int N, bool kAdd>
static inline void combine(T* __restrict to, const T* const* from, const T* w, int64_t len) {
  constexpr int L = kLanes<T>;
  const T* p[N];
  vec<T> v[N];
#pragma GCC unroll 4
  for (int k = 0; k < N; ++k) p[k] = from[k], v[k] = broadcast(w[k]);
  const auto at = [&](int64_t j) {
    vec<T> s = kAdd ? fma(v[0], load(p[0] + j), load(to + j)) : v[0] * load(p[0] + j);
#pragma GCC unroll 4
    for (int k = 1; k < N; ++k) s = fma(v[k], load(p[k] + j), s);
    store(to + j, s);
  };
  int64_t j = 0;
  for (; j + L <= len; j += L) at(j);
  if (!kAdd && j < len && len >= L) return at(len - L);
  for (; j < len; ++j) {
    T s = kAdd ? to[j] + w[0] * p[0][j] : w[0] * p[0][j];
    for (int k = 1; k < N; ++k) s += w[k] * p[k][j];
    to[j] = s;
  }
}

template <class T, bool kAdd>
static inline void combine_upto4(T* to, const T* const* from, const T* w, int64_t n, int64_t len) {
  switch (n) {
    case 1: return combine<T, 1, kAdd>(to, from, w, len);
    case 2: return combine<T, 2, kAdd>(to, from, w, len);
    case 3: return combine<T, 3, kAdd>(to, from, w, len);
    default: return combine<T, 4, kAdd>(to, from, w, len);
  }
}

// Any number of runs: from + index[k] * step.
template <class T>
static void combine_all(T* to, const T* from, const int32_t* index, int64_t step, const T* w, int64_t n, int64_t len,
                        bool add) {
  for (int64_t k = 0; k < n; k += 4) {
    const int64_t m = n - k < 4 ? n - k : 4;
    const T* p[4];
    for (int64_t i = 0; i < m; ++i) p[i] = from + index[k + i] * step;
    if (add || k > 0) combine_upto4<T, true>(to, p, w + k, m, len);
    else combine_upto4<T, false>(to, p, w + k, m, len);
  }
}

// ---- pixels of a row ------------------------------------------------------------------------------------------------

template <class T> struct Pixels {
  const Axis<T>& a;
  const T* x;            // so that input pixel i is at x + i * c
  T* y;                  // so that output pixel q is at y + q * c
  int64_t c;
};

// Outputs [q, end) that have N taps each; at least a vector of channels.
template <class T, int N, bool kAdd> static void wide_pixels(const Pixels<T>& s, int64_t q, int64_t end) {
  const int32_t* index = s.a.index + s.a.first[q];
  const T* w = s.a.weight + s.a.first[q];
  for (; q < end; ++q, index += N, w += N) {
    const T* p[N];
    for (int k = 0; k < N; ++k) p[k] = s.x + index[k] * s.c;
    combine<T, N, kAdd>(s.y + q * s.c, p, w, s.c);
  }
}

// C channels, fewer than a vector; N taps each, or any number if N is 0.
template <class T, int C, int N> static void narrow_pixels(const Pixels<T>& s, int64_t q, int64_t end, bool add) {
  const int64_t taps = N ? N : s.a.taps(q);
  const int32_t* index = s.a.index + s.a.first[q];
  const T* w = s.a.weight + s.a.first[q];
  T* y = s.y + q * C;
  for (; q < end; ++q, index += taps, w += taps, y += C) {
    T sum[C];
#pragma GCC unroll 4
    for (int j = 0; j < C; ++j) sum[j] = add ? y[j] : T(0);
#pragma GCC unroll 4
    for (int64_t t = 0; t < taps; ++t) {
      const T* x = s.x + index[t] * C;
#pragma GCC unroll 4
      for (int j = 0; j < C; ++j) sum[j] += w[t] * x[j];
    }
#pragma GCC unroll 4
    for (int j = 0; j < C; ++j) y[j] = sum[j];
  }
}

template <class T, int C> static void narrow_run(const Pixels<T>& s, int64_t q, int64_t end, bool add) {
  switch (s.a.taps(q)) {
    case 1: return narrow_pixels<T, C, 1>(s, q, end, add);
    case 2: return narrow_pixels<T, C, 2>(s, q, end, add);
    case 4: return narrow_pixels<T, C, 4>(s, q, end, add);
    default: return narrow_pixels<T, C, 0>(s, q, end, add);
  }
}

template <class T> static void set_all(T* y, int64_t n, T value) {
  for (int64_t j = 0; j < n; ++j) y[j] = value;
}

// Outputs [q, end) one by one.
template <class T> static void single_pixels(const Pixels<T>& s, int64_t q, int64_t end, bool add, T fill) {
  while (q < end) {
    const int64_t n = s.a.taps(q);
    int64_t stop = q + 1;
    while (stop < end && s.a.taps(stop) == n) ++stop;
    if (n == 0) {
      if (!add) set_all(s.y + q * s.c, (stop - q) * s.c, fill);
    } else if (s.c < kLanes<T> && s.c <= 4) {
      if (s.c == 1) narrow_run<T, 1>(s, q, stop, add);
      else if (s.c == 2) narrow_run<T, 2>(s, q, stop, add);
      else if (s.c == 3) narrow_run<T, 3>(s, q, stop, add);
      else narrow_run<T, 4>(s, q, stop, add);
    }
    else if (n == 1 && !add) wide_pixels<T, 1, false>(s, q, stop);
    else if (n == 2 && !add) wide_pixels<T, 2, false>(s, q, stop);
    else if (n == 3 && !add) wide_pixels<T, 3, false>(s, q, stop);
    else if (n == 4 && !add) wide_pixels<T, 4, false>(s, q, stop);
    else
      for (int64_t i = q; i < stop; ++i)
        combine_all(s.y + i * s.c, s.x, s.a.index + s.a.first[i], s.c, s.a.weight + s.a.first[i], n, s.c, add);
    q = stop;
  }
}

// Outputs [q0, q1), the run at once.
template <class T> static void row_of_pixels(const Pixels<T>& s, int64_t q0, int64_t q1, bool add, T fill) {
  int64_t r0 = s.a.run0 > q0 ? s.a.run0 : q0, r1 = s.a.run1 < q1 ? s.a.run1 : q1;
  if (r0 >= r1) return single_pixels(s, q0, q1, add, fill);
  single_pixels(s, q0, r0, add, fill);
  const int32_t f = s.a.first[r0];
  combine_all(s.y + r0 * s.c, s.x, s.a.index + f, s.c, s.a.weight + f, s.a.taps(r0), (r1 - r0) * s.c, add);
  single_pixels(s, r1, q1, add, fill);
}

// ---- images ---------------------------------------------------------------------------------------------------------

constexpr int64_t kStrip = 8192;           // bytes of a combined row: with what it is made of and what it makes, L1
constexpr int64_t kRowGrain = 32768;       // numbers per task

template <class T> static int64_t strip_bytes(const Call& c, int64_t n_in, int64_t channels) {
  return c.threads * padded_bytes(n_in * channels * int64_t(sizeof(T)));
}

// y (n, rows, columns, c) from x. Where there are `sheets`, the filter has a higher rank: the weight of a tap of `rows`
// is the number of the column map that goes with it. `strips`: memory of strip_bytes.
template <class T>
static void resample(const Call& call, const Axis<T>& rows, const Axis<T>& columns, const Axis<T>* sheets,
                     const T* x, T* y, int64_t n, int64_t c, T fill, char* strips) {
  const int64_t in_row = columns.n_in * c, out_row = columns.n_out * c;
  if (n == 0 || rows.n_out == 0 || out_row == 0) return;
  const int64_t strip_size = padded_bytes(in_row * int64_t(sizeof(T)));
  int64_t width = columns.n_out;
  const int64_t strip_numbers = kStrip / int64_t(sizeof(T));
  if (in_row > strip_numbers) width = columns.n_out * strip_numbers / in_row;
  if (width < 1) width = 1;
  const int64_t grain = ceil_div(kRowGrain, in_row > out_row ? in_row : out_row);
  parallel(call, ceil_div(n * rows.n_out, grain), [&](int64_t task, int worker) {
    T* strip = reinterpret_cast<T*>(strips + worker * strip_size);
    const int64_t r0 = task * grain, r1 = r0 + grain < n * rows.n_out ? r0 + grain : n * rows.n_out;
    for (int64_t q0 = 0; q0 < columns.n_out; q0 += width) {
      const int64_t q1 = q0 + width < columns.n_out ? q0 + width : columns.n_out;
      int64_t lo = columns.n_in, hi = 0;                           // the inputs that the strip needs
      for (int32_t t = columns.first[q0]; t < columns.first[q1]; ++t) {
        lo = columns.index[t] < lo ? columns.index[t] : lo;
        hi = columns.index[t] >= hi ? columns.index[t] + 1 : hi;
      }
      int64_t before = -1;                                         // the one row that the row before was a copy of
      for (int64_t r = r0; r < r1; ++r) {
        const int64_t sample = r / rows.n_out, o = r % rows.n_out, f = rows.first[o], taps = rows.taps(o);
        const T* image = x + sample * rows.n_in * in_row;
        T* to = y + r * out_row;
        if (taps == 0 || lo >= hi) {
          set_all(to + q0 * c, (q1 - q0) * c, fill);
          before = -1;
        } else if (sheets) {
          for (int64_t t = 0; t < taps; ++t)
            row_of_pixels(Pixels<T>{sheets[int64_t(rows.weight[f + t])], image + rows.index[f + t] * in_row, to, c},
                          q0, q1, t > 0, fill);
        } else if (taps == 1 && rows.weight[f] == T(1)) {
          const int64_t from = sample * rows.n_in + rows.index[f];
          if (from == before) memcpy(to + q0 * c, to - out_row + q0 * c, size_t((q1 - q0) * c) * sizeof(T));
          else row_of_pixels(Pixels<T>{columns, x + from * in_row, to, c}, q0, q1, false, fill);
          before = from;
        } else {
          combine_all(strip, image + lo * c, rows.index + f, in_row, rows.weight + f, taps, (hi - lo) * c, false);
          row_of_pixels(Pixels<T>{columns, strip - lo * c, to, c}, q0, q1, false, fill);
          before = -1;
        }
      }
    }
  });
}

}  // namespace
