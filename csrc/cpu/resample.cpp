// Pooling, resizing, filtering and padding of images: the maps of axis_map.h by resample.h, and
// pooling by maxima, which is not linear.
#include "../resample.h"

namespace {

// ---- memory ----------------------------------------------------------------------------------------------------------

template <class T> static int64_t bytes_of(const Call& c, const Maps<T>& m) {
  return axis_bytes(m.rows) + axis_bytes(m.columns) + strip_bytes<T>(c, c.in[0].shape[2], c.in[0].shape[3]);
}

template <class T> static void run_maps(const Call& c, const Maps<T>& m) {
  char* memory = static_cast<char*>(c.scratch);
  const Axis<T> rows = make_axis(m.rows, m.adjoint, memory), columns = make_axis(m.columns, m.adjoint, memory);
  resample<T>(c, rows, columns, nullptr, in<T>(c, 0), out<T>(c), c.in[0].shape[0], c.in[0].shape[3], m.fill, memory);
}

template <class T> int64_t avg_pool_bytes(const Call& c) { return bytes_of<T>(c, pool_maps<T>(c, false)); }
template <class T> int64_t avg_pool_bwd_bytes(const Call& c) { return bytes_of<T>(c, pool_maps<T>(c, true)); }
template <class T> int64_t resize_bytes(const Call& c) { return bytes_of<T>(c, resize_maps<T>(c, false)); }
template <class T> int64_t resize_bwd_bytes(const Call& c) { return bytes_of<T>(c, resize_maps<T>(c, true)); }
template <class T> int64_t pad_bytes(const Call& c) { return bytes_of<T>(c, pad_maps<T>(c, false)); }
template <class T> int64_t pad_bwd_bytes(const Call& c) { return bytes_of<T>(c, pad_maps<T>(c, true)); }

// ---- filters --------------------------------------------------------------------------------------------------------

template <class T> int64_t upfirdn2d_bytes(const Call& c) {
  const Maps<T> m = upfirdn2d_maps<T>(c);
  const int64_t kh = m.rows.window, kw = m.columns.window;
  return padded_bytes((kh + kw) * int64_t(sizeof(T))) + padded_bytes(kh * int64_t(sizeof(Axis<T>))) +
         kh * axis_bytes(m.columns) + axis_bytes(m.rows) + strip_bytes<T>(c, m.columns.n_in, c.in[0].shape[3]);
}

// Whether f is an outer product down to the last bit but one: if so, column and row of it, through its largest element.
template <class T> static bool rank_one(const T* f, int64_t kh, int64_t kw, T* column, T* row) {
  int64_t best = 0;
  const auto size = [](T v) { return v < 0 ? -v : v; };
  for (int64_t t = 0; t < kh * kw; ++t)
    if (size(f[t]) > size(f[best])) best = t;
  const int64_t bi = best / kw, bj = best % kw;
  const T eps = sizeof(T) == 4 ? T(1.1920929e-7) : T(2.220446049250313e-16);
  for (int64_t j = 0; j < kw; ++j) row[j] = f[bi * kw + j];
  for (int64_t i = 0; i < kh; ++i) column[i] = f[i * kw + bj] / f[best];
  for (int64_t i = 0; i < kh; ++i)
    for (int64_t j = 0; j < kw; ++j)
      if (!(size(f[i * kw + j] - column[i] * row[j]) <= eps * size(f[i * kw + j]))) return false;
  return true;
}

// ---- maxima ---------------------------------------------------------------------------------------------------------

// A vector of T, or one T where there are fewer channels than lanes, with the places in a window that go with it.
template <class T> struct Lanes1 {
  using V = T;
  using P = int32_t;
  static V get(const T* p) { return *p; }
  static void put(T* p, V v) { *p = v; }
  static P places(const uint8_t* p) { return *p; }
  static void put_places(uint8_t* p, P k) { *p = uint8_t(k); }
  // Arithmetic, since the outcome is random and a branch would be guessed wrong; a NaN is rare.
  static void take(V& m, P& place, V v, P k) {
    place ^= (place ^ k) & -P(v > m);
    m = v > m ? v : m;
    if (__builtin_expect(v != v, 0)) m = v, place = k;
  }
};
template <class T> struct LanesN {
  using V = vec<T>;
  using P = vmask<T>;
  typedef uint8_t Bytes __attribute__((vector_size(kLanes<T>)));
  static V get(const T* p) { return load(p); }
  static void put(T* p, V v) { store(p, v); }
  static P places(const uint8_t* p) {
    Bytes b;
    memcpy(&b, p, sizeof b);
    return __builtin_convertvector(b, P);
  }
  static void put_places(uint8_t* p, P k) {
    const Bytes b = __builtin_convertvector(k, Bytes);
    memcpy(p, &b, sizeof b);
  }
  static void take(V& m, P& place, V v, int32_t k) {
    const auto larger = (v > m) | (v != v);
    m = larger ? v : m;
    place = larger ? P{} + k : place;
  }
};

// f(j, lanes) for the channels of a pixel; the last vector may overlap the one before.
template <class T, class F> static inline void each_channel(int64_t c, F f) {
  constexpr int L = kLanes<T>;
  int64_t j = 0;
  if (c < L) {
    for (; j < c; ++j) f(j, Lanes1<T>{});
    return;
  }
  for (; j + L <= c; j += L) f(j, LanesN<T>{});
  if (j < c) f(c - L, LanesN<T>{});
}

// f(output pixel, offset in x of the first place of its window, which may lie outside, i0, i1, j0, j1) for every window.
template <class T, class F> static void each_window(const Call& c, const Pooling& g, F f) {
  if (g.c == 0 || g.q == 0) return;
  parallel_range(c, g.n * g.p, ceil_div(int64_t(16384), g.q * g.c), [&](int64_t r, int64_t end) {
    for (; r < end; ++r) {
      const int64_t sample = r / g.p, p = r % g.p;
      int64_t i0, i1, j0, j1;
      inside(p, g.stride[0], g.padding[0], g.window[0], g.h, i0, i1);
      const int64_t row = sample * g.h + p * g.stride[0] - g.padding[0];
      for (int64_t q = 0; q < g.q; ++q) {
        inside(q, g.stride[1], g.padding[2], g.window[1], g.w, j0, j1);
        f(r * g.q + q, (row * g.w + q * g.stride[1] - g.padding[2]) * g.c, i0, i1, j0, j1);
      }
    }
  });
}

// The largest of the places of one window. A NaN is taken, and nothing but another NaN replaces it.
template <class T, bool kTwo>
static inline void max_window(const T* x, const Pooling& g, int64_t i0, int64_t i1, int64_t j0, int64_t j1, T* y,
                              uint8_t* index) {
  const int64_t row = g.w * g.c, kw = g.window[1];
  each_channel<T>(g.c, [&](int64_t ch, auto lanes) {
    using A = decltype(lanes);
    using P = typename A::P;
    const T* from = x + ch;
    if constexpr (kTwo) {                              // 2 x 2, all inside
      typename A::V m = A::get(from);
      P place{};
      const T* at[3] = {from + g.c, from + row, from + row + g.c};
#pragma GCC unroll 3
      for (int k = 0; k < 3; ++k) A::take(m, place, A::get(at[k]), k + 1);
      A::put(y + ch, m);
      if (index) A::put_places(index + ch, place);
    } else {
      typename A::V m = A::get(from + i0 * row + j0 * g.c);
      P place = P{} + int32_t(i0 * kw + j0);
      for (int64_t i = i0; i < i1; ++i)
        for (int64_t j = j0; j < j1; ++j) A::take(m, place, A::get(from + i * row + j * g.c), int32_t(i * kw + j));
      A::put(y + ch, m);
      if (index) A::put_places(index + ch, place);
    }
  });
}

// ---- the gradient of a filter ---------------------------------------------------------------------------------------

constexpr int64_t kFilterBlocks = 32;                  // blocks of rows, each with sums of its own

template <class T> int64_t upfirdn2d_df_bytes(const Call& c) {
  const Maps<T> m = upfirdn2d_df_maps<T>(c);
  return kFilterBlocks * size(c.out[0]) * int64_t(sizeof(double)) + axis_bytes(m.rows) + axis_bytes(m.columns);
}

template <class T> static double dot(const T* a, const T* b, int64_t n) {
  constexpr int L = kLanes<T>;
  vec<T> s[2] = {};
  int64_t j = 0;
  for (; j + 2 * L <= n; j += 2 * L) {
    s[0] = fma(load(a + j), load(b + j), s[0]);
    s[1] = fma(load(a + j + L), load(b + j + L), s[1]);
  }
  double sum = j > 0 ? double(lane_sum<T>(s[0] + s[1])) : 0.0;
  for (; j < n; ++j) sum += double(a[j]) * double(b[j]);
  return sum;
}

}  // namespace

KERNEL_SCRATCH(avg_pool, avg_pool_bytes) { run_maps(c, pool_maps<T>(c, false)); }
KERNEL_SCRATCH(avg_pool_bwd, avg_pool_bwd_bytes) { run_maps(c, pool_maps<T>(c, true)); }
KERNEL_SCRATCH(resize, resize_bytes) { run_maps(c, resize_maps<T>(c, false)); }
KERNEL_SCRATCH(resize_bwd, resize_bwd_bytes) { run_maps(c, resize_maps<T>(c, true)); }
KERNEL_SCRATCH(pad, pad_bytes) { run_maps(c, pad_maps<T>(c, false)); }
KERNEL_SCRATCH(pad_bwd, pad_bwd_bytes) { run_maps(c, pad_maps<T>(c, true)); }

KERNEL_SCRATCH(upfirdn2d, upfirdn2d_bytes) {
  Maps<T> m = upfirdn2d_maps<T>(c);
  const int64_t kh = m.rows.window, kw = m.columns.window;
  const T* f = in<T>(c, 1);
  char* memory = static_cast<char*>(c.scratch);
  T *column = reinterpret_cast<T*>(memory), *row = column + kh;
  memory += padded_bytes((kh + kw) * int64_t(sizeof(T)));
  Axis<T>* sheets = reinterpret_cast<Axis<T>*>(memory);
  memory += padded_bytes(kh * int64_t(sizeof(Axis<T>)));
  const bool separable = rank_one(f, kh, kw, column, row);
  if (separable) m.rows.taps = column, m.columns.taps = row;
  const Axis<T> rows = make_axis(m.rows, false, memory);
  for (int64_t i = 0; i < (separable ? 1 : kh); ++i) {
    if (!separable) m.columns.taps = f + i * kw;
    sheets[i] = make_axis(m.columns, false, memory);
  }
  resample<T>(c, rows, sheets[0], separable ? nullptr : sheets, in<T>(c, 0), out<T>(c), c.in[0].shape[0],
              c.in[0].shape[3], T(0), memory);
}

KERNEL_SCRATCH(upfirdn2d_df, upfirdn2d_df_bytes) {
  const Maps<T> m = upfirdn2d_df_maps<T>(c);
  const int64_t n = c.in[0].shape[0], channels = c.in[0].shape[3], kw = m.columns.window, k = size(c.out[0]);
  char* memory = static_cast<char*>(c.scratch);
  double* partial = reinterpret_cast<double*>(memory);
  memory += kFilterBlocks * k * int64_t(sizeof(double));
  const Axis<T> rows = make_axis(m.rows, false, memory), columns = make_axis(m.columns, false, memory);
  const T *x = in<T>(c, 0), *g = in<T>(c, 1);
  const int64_t all = n * rows.n_out, block = ceil_div(all, kFilterBlocks);
  parallel(c, kFilterBlocks, [&](int64_t b, int) {
    double* sums = partial + b * k;
    for (int64_t i = 0; i < k; ++i) sums[i] = 0;
    const int64_t end = (b + 1) * block < all ? (b + 1) * block : all;
    for (int64_t r = b * block; r < end; ++r) {
      const int64_t sample = r / rows.n_out, o = r % rows.n_out;
      for (int32_t t = rows.first[o]; t < rows.first[o + 1]; ++t) {
        const T* line = x + (sample * rows.n_in + rows.index[t]) * columns.n_in * channels;
        double* to = sums + int64_t(rows.weight[t]) * kw;
        for (int64_t q = 0; q < columns.n_out; ++q)
          for (int32_t s = columns.first[q]; s < columns.first[q + 1]; ++s)
            to[int64_t(columns.weight[s])] +=
                dot(line + columns.index[s] * channels, g + (r * columns.n_out + q) * channels, channels);
      }
    }
  });
  T* df = out<T>(c);
  for (int64_t i = 0; i < k; ++i) {
    double sum = 0;
    for (int64_t b = 0; b < kFilterBlocks; ++b) sum += partial[b * k + i];
    df[i] = T(sum);
  }
}

KERNEL(max_pool) {
  const Pooling g = read_pooling(c.attr, c.in[0], c.out[0]);
  const T* x = in<T>(c, 0);
  T* y = out<T>(c);
  uint8_t* index = out<uint8_t>(c, 1);
  const bool two = g.window[0] == 2 && g.window[1] == 2;
  each_window<T>(c, g, [&](int64_t o, int64_t at, int64_t i0, int64_t i1, int64_t j0, int64_t j1) {
    uint8_t* places = index ? index + o * g.c : nullptr;
    if (two && i1 - i0 == 2 && j1 - j0 == 2) max_window<T, true>(x + at, g, i0, i1, j0, j1, y + o * g.c, places);
    else max_window<T, false>(x + at, g, i0, i1, j0, j1, y + o * g.c, places);
  });
}

KERNEL(max_pool_at) {
  const Pooling g = read_pooling(c.attr, c.in[0], c.out[0]);
  const T* x = in<T>(c, 0);
  const uint8_t* index = in<uint8_t>(c, 1);
  T* y = out<T>(c);
  each_window<T>(c, g, [&](int64_t o, int64_t at, int64_t i0, int64_t i1, int64_t j0, int64_t j1) {
    each_channel<T>(g.c, [&](int64_t ch, auto lanes) {
      using A = decltype(lanes);
      const typename A::P place = A::places(index + o * g.c + ch);
      typename A::V v{};
      for (int64_t i = i0; i < i1; ++i)
        for (int64_t j = j0; j < j1; ++j)
          v = place == int32_t(i * g.window[1] + j) ? A::get(x + at + (i * g.w + j) * g.c + ch) : v;
      A::put(y + o * g.c + ch, v);
    });
  });
}

namespace {

// Every pixel asks the windows that hold it whether they chose it, so no two tasks write to the same place.
template <class T> static void unpool_by_pixel(const Call& c, const Pooling& g, const T* gy, const uint8_t* index, T* gx) {
  parallel_range(c, g.n * g.h, ceil_div(int64_t(16384), g.w * g.c), [&](int64_t r, int64_t end) {
    for (; r < end; ++r) {
      const int64_t sample = r / g.h, i = r % g.h + g.padding[0];
      int64_t p0, p1, q0, q1;
      holding(i, g.stride[0], g.window[0], g.p, p0, p1);
      for (int64_t col = 0; col < g.w; ++col) {
        const int64_t j = col + g.padding[2];
        holding(j, g.stride[1], g.window[1], g.q, q0, q1);
        each_channel<T>(g.c, [&](int64_t ch, auto lanes) {
          using A = decltype(lanes);
          typename A::V sum{};
          for (int64_t p = p0; p < p1; ++p)
            for (int64_t q = q0; q < q1; ++q) {
              const int64_t at = ((sample * g.p + p) * g.q + q) * g.c + ch;
              const int32_t place = int32_t((i - p * g.stride[0]) * g.window[1] + j - q * g.stride[1]);
              const typename A::V v = A::get(gy + at);
              sum += A::places(index + at) == place ? v : typename A::V{};
            }
          A::put(gx + (r * g.w + col) * g.c + ch, sum);
        });
      }
    }
  });
}

// Windows of 2 x 2 side by side: each is read once and fills its four pixels. A last odd row or column is zero.
template <class T> static void unpool_two(const Call& c, const Pooling& g, const T* gy, const uint8_t* index, T* gx) {
  const int64_t row = g.w * g.c, rows = ceil_div(g.h, 2);
  parallel_range(c, g.n * rows, ceil_div(int64_t(16384), 2 * row), [&](int64_t r, int64_t end) {
    for (; r < end; ++r) {
      const int64_t sample = r / rows, p = r % rows;
      T* to = gx + (sample * g.h + 2 * p) * row;
      if (p == g.p) {
        set_all(to, row, T(0));
        continue;
      }
      const T* from = gy + (sample * g.p + p) * g.q * g.c;
      const uint8_t* places = index + (sample * g.p + p) * g.q * g.c;
      for (int64_t q = 0; q < g.q; ++q, from += g.c, places += g.c)
        each_channel<T>(g.c, [&](int64_t ch, auto lanes) {
          using A = decltype(lanes);
          const typename A::V v = A::get(from + ch);
          const typename A::P place = A::places(places + ch);
          T* at = to + 2 * q * g.c + ch;
          A::put(at, place == 0 ? v : typename A::V{});
          A::put(at + g.c, place == 1 ? v : typename A::V{});
          A::put(at + row, place == 2 ? v : typename A::V{});
          A::put(at + row + g.c, place == 3 ? v : typename A::V{});
        });
      if (g.w % 2) {
        set_all(to + 2 * g.q * g.c, g.c, T(0));
        set_all(to + row + 2 * g.q * g.c, g.c, T(0));
      }
    }
  });
}

// Few channels: zeros, and every number is added where its place says, a sample per task.
template <class T> static void unpool_narrow(const Call& c, const Pooling& g, const T* gy, const uint8_t* index, T* gx) {
  const int64_t places = g.window[0] * g.window[1];
  int64_t offset[256];
  for (int64_t k = 0; k < 256; ++k) offset[k] = (k / g.window[1] * g.w + k % g.window[1]) * g.c;
  const bool bordered = g.padding[0] + g.padding[1] + g.padding[2] + g.padding[3] > 0;
  parallel(c, g.n, [&](int64_t sample, int) {
    T* image = gx + sample * g.h * g.w * g.c;
    set_all(image, g.h * g.w * g.c, T(0));
    int64_t at = sample * g.p * g.q * g.c;
    for (int64_t p = 0; p < g.p; ++p)
      for (int64_t q = 0; q < g.q; ++q) {
        const int64_t i = p * g.stride[0] - g.padding[0], j = q * g.stride[1] - g.padding[2];
        T* to = image + (i * g.w + j) * g.c;
        for (int64_t ch = 0; ch < g.c; ++ch, ++at) {
          const int64_t k = index[at];
          if (k >= places) continue;
          if (bordered) {
            const int64_t r = i + k / g.window[1], column = j + k % g.window[1];
            if (r < 0 || r >= g.h || column < 0 || column >= g.w) continue;
          }
          to[offset[k] + ch] += gy[at];
        }
      }
  });
}

}  // namespace

KERNEL(max_pool_bwd) {
  const Pooling g = read_pooling(skip_tuple(c.attr), c.out[0], c.in[0]);
  const T* gy = in<T>(c, 0);
  const uint8_t* index = in<uint8_t>(c, 1);
  T* gx = out<T>(c);
  if (g.c == 0 || g.w == 0) return;
  const bool two = g.window[0] == 2 && g.window[1] == 2 && g.stride[0] == 2 && g.stride[1] == 2;
  if (g.c < kLanes<T>) unpool_narrow(c, g, gy, index, gx);
  else if (two && g.padding[0] + g.padding[1] + g.padding[2] + g.padding[3] == 0) unpool_two(c, g, gy, index, gx);
  else unpool_by_pixel(c, g, gy, index, gx);
}
