// Softmax and log-softmax along one axis, and their gradients.
//
// The array is (outer, n, inner). Along the last axis (inner = 1) a row is read from memory for its maximum and from
// cache after that; otherwise columns lie in the lanes, kStrip vectors of them at a time, and so do rows of few numbers,
// which are turned for it. Sums are in the array's type: 32 chains per row with 8 lanes, one per column otherwise.
#include "../exp2.h"
#include "../parallel.h"
#include "../vmath.h"

namespace {

constexpr int64_t kBlock = 16384;          // elements per task
constexpr int kStrip = 16;                 // vectors of columns taken down an axis together
template <class T> constexpr int kShort = 3 * kLanes<T>;   // numbers in a row that is not worth vectors of its own
constexpr double kLog2E = 1.4426950408889634074;

template <class T> struct Axis {
  int64_t outer = 1, n, inner = 1;
  explicit Axis(const Call& c) {
    const Array& x = c.in[0];
    const int axis = int(c.attr[0]);
    n = x.shape[axis];
    for (int i = 0; i < axis; ++i) outer *= x.shape[i];
    for (int i = axis + 1; i < x.ndim; ++i) inner *= x.shape[i];
  }
};

template <class T> inline vec<T> load_some(const T* p, int64_t n) {
  return n >= kLanes<T> ? load(p) : load_first(p, n);
}
template <class T> inline void store_some(T* p, vec<T> v, int64_t n) {
  if (n >= kLanes<T>) store(p, v);
  else store_first(p, v, n);
}
// v with `fill` in the lanes from n on.
template <class T> inline vec<T> filled(vec<T> v, int64_t n, T fill) {
  T lanes[kLanes<T>];
  store(lanes, v);
  for (int64_t i = n; i < kLanes<T>; ++i) lanes[i] = fill;
  return load(lanes);
}

// Calls f(j, count, k) for the vectors of n numbers, k = 0 ... 3 in turn.
template <class T, class F> __attribute__((always_inline)) inline void each_vector(int64_t n, F f) {
  constexpr int L = kLanes<T>;
  int64_t j = 0;
  for (; j + 4 * L <= n; j += 4 * L) {
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) f(j + k * L, int64_t(L), k);
  }
  for (int k = 0; j < n; j += L, ++k) f(j, n - j < L ? n - j : L, k);
}

// Every op is four functions of vectors: `look` (largest x, or nothing), `term` (what is summed; it may leave something in
// y), and `result`, given what was summed. A row of -inf is taken relative to 0.
template <class T> inline vec<T> finite_top(vec<T> top) {
  return top == T(-__builtin_inf()) ? vec<T>{} : top;
}
template <class T> inline vec<T> exp_of(vec<T> x, vec<T> top) { return exp2_negative((x - top) * T(kLog2E)); }

template <class T> struct Softmax {
  static constexpr bool kTop = true, kKeep = true;
  static vec<T> term(vec<T> x, vec<T>, vec<T> top) { return exp_of<T>(x, top); }
  static vec<T> prepare(vec<T> sum, vec<T>) { return sum == T(0) ? vec<T>{} : T(1) / sum; }
  static vec<T> result(vec<T>, vec<T>, vec<T> kept, vec<T> s) { return kept * s; }
};
template <class T> struct LogSoftmax {
  static constexpr bool kTop = true, kKeep = false;
  static vec<T> term(vec<T> x, vec<T>, vec<T> top) { return exp_of<T>(x, top); }
  static vec<T> prepare(vec<T> sum, vec<T> top) { return sum == T(0) ? top : top + vlog(sum); }
  static vec<T> result(vec<T> x, vec<T>, vec<T>, vec<T> s) { return x - s; }
};
template <class T> struct SoftmaxBwd {
  static constexpr bool kTop = false, kKeep = false;
  static vec<T> term(vec<T> g, vec<T> y, vec<T>) { return g * y; }
  static vec<T> prepare(vec<T> sum, vec<T>) { return sum; }
  static vec<T> result(vec<T> g, vec<T> y, vec<T>, vec<T> s) { return y * (g - s); }
};
template <class T> struct LogSoftmaxBwd {
  static constexpr bool kTop = false, kKeep = false;
  static vec<T> term(vec<T> g, vec<T>, vec<T>) { return g; }
  static vec<T> prepare(vec<T> sum, vec<T>) { return sum; }
  static vec<T> result(vec<T> g, vec<T> y, vec<T>, vec<T> s) { return g - vexp(y) * s; }
};

// One row of n numbers; x: the first input, z: the second or null.
template <class F, class T> static void one_row(const T* x, const T* z, T* y, int64_t n) {
  constexpr int L = kLanes<T>;
  const vec<T> none = broadcast(T(-__builtin_inf()));
  vec<T> top{}, sums[4] = {};
  if constexpr (F::kTop) {
    vec<T> m[4] = {none, none, none, none};
    each_vector<T>(n, [&](int64_t j, int64_t count, int k) __attribute__((always_inline)) {
      const vec<T> v = load_some(x + j, count);
      m[k] = vmax(count < L ? filled<T>(v, count, T(-__builtin_inf())) : v, m[k]);
    });
    top = finite_top<T>(broadcast(lane_max<T>(vmax(vmax(m[0], m[1]), vmax(m[2], m[3])))));
  }
  each_vector<T>(n, [&](int64_t j, int64_t count, int k) __attribute__((always_inline)) {
    vec<T> v = F::term(load_some(x + j, count), z ? load_some(z + j, count) : vec<T>{}, top);
    if constexpr (F::kKeep) store_some(y + j, v, count);
    sums[k] += count < L ? filled<T>(v, count, T(0)) : v;
  });
  const vec<T> s = F::prepare(broadcast(lane_sum<T>((sums[0] + sums[1]) + (sums[2] + sums[3]))), top);
  each_vector<T>(n, [&](int64_t j, int64_t count, int) __attribute__((always_inline)) {
    store_some(y + j, F::result(load_some(x + j, count), z ? load_some(z + j, count) : vec<T>{},
                                F::kKeep ? load_some(y + j, count) : vec<T>{}, s), count);
  });
}

// `columns` <= kStrip vectors of columns down n rows of `ld` numbers.
template <class F, class T> static void strip(const T* x, const T* z, T* y, int64_t n, int64_t ld, int64_t columns) {
  constexpr int L = kLanes<T>;
  vec<T> top[kStrip], sum[kStrip];
  auto rows = [&](auto f) __attribute__((always_inline)) {
    for (int64_t i = 0; i < n; ++i)
      for (int k = 0; k * L < columns; ++k) f(i * ld + k * L, columns - k * L, k);
  };
  for (int k = 0; k < kStrip; ++k) top[k] = F::kTop ? broadcast(T(-__builtin_inf())) : vec<T>{}, sum[k] = vec<T>{};
  if constexpr (F::kTop) {
    rows([&](int64_t at, int64_t count, int k) { top[k] = vmax(load_some(x + at, count), top[k]); });
    for (int k = 0; k < kStrip; ++k) top[k] = finite_top<T>(top[k]);
  }
  rows([&](int64_t at, int64_t count, int k) {
    const vec<T> v = F::term(load_some(x + at, count), z ? load_some(z + at, count) : vec<T>{}, top[k]);
    if constexpr (F::kKeep) store_some(y + at, v, count);
    sum[k] += v;
  });
  for (int k = 0; k < kStrip; ++k) sum[k] = F::prepare(sum[k], top[k]);
  rows([&](int64_t at, int64_t count, int k) {
    store_some(y + at, F::result(load_some(x + at, count), z ? load_some(z + at, count) : vec<T>{},
                                 F::kKeep ? load_some(y + at, count) : vec<T>{}, sum[k]), count);
  });
}

// `rows` <= kLanes short rows, turned so that they lie in the lanes: 10 numbers in 8 lanes would be mostly masks.
template <class F, class T> static void short_rows(const T* x, const T* z, T* y, int64_t n, int64_t rows) {
  constexpr int L = kLanes<T>;
  T a[kShort<T> * L] = {}, b[kShort<T> * L] = {}, r[kShort<T> * L];
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < n; ++j) {
      a[j * L + i] = x[i * n + j];
      if (z) b[j * L + i] = z[i * n + j];
    }
  strip<F>(a, z ? b : z, r, n, L, L);
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < n; ++j) y[i * n + j] = r[j * L + i];
}

template <class F, class T> static void along_axis(const Call& c, const T* x, const T* z, T* y) {
  const Axis<T> a(c);
  if (a.n == 0 || a.inner == 0) return;
  if (a.inner == 1 && a.n <= kShort<T>) {
    constexpr int64_t L = kLanes<T>;
    parallel_range(c, ceil_div(a.outer, L), ceil_div(kBlock, a.n * L), [&](int64_t i, int64_t end) {
      for (; i < end; ++i) {
        const int64_t at = i * L * a.n, left = a.outer - i * L;
        short_rows<F>(x + at, z ? z + at : z, y + at, a.n, left < L ? left : L);
      }
    });
    return;
  }
  if (a.inner == 1) {
    parallel_range(c, a.outer, ceil_div(kBlock, a.n), [&](int64_t i, int64_t end) {
      for (; i < end; ++i) one_row<F>(x + i * a.n, z ? z + i * a.n : z, y + i * a.n, a.n);
    });
    return;
  }
  constexpr int64_t width = kStrip * kLanes<T>;
  const int64_t strips = ceil_div(a.inner, width);
  parallel_range(c, a.outer * strips, ceil_div(kBlock, width * a.n), [&](int64_t i, int64_t end) {
    for (; i < end; ++i) {
      const int64_t column = i % strips * width, at = i / strips * a.n * a.inner + column, left = a.inner - column;
      strip<F>(x + at, z ? z + at : z, y + at, a.n, a.inner, left < width ? left : width);
    }
  });
}

}  // namespace

KERNEL(softmax) { along_axis<Softmax<T>>(c, in<T>(c, 0), static_cast<const T*>(nullptr), out<T>(c)); }
KERNEL(log_softmax) { along_axis<LogSoftmax<T>>(c, in<T>(c, 0), static_cast<const T*>(nullptr), out<T>(c)); }
KERNEL(softmax_bwd) { along_axis<SoftmaxBwd<T>>(c, in<T>(c, 0), in<T>(c, 1), out<T>(c)); }
KERNEL(log_softmax_bwd) { along_axis<LogSoftmaxBwd<T>>(c, in<T>(c, 0), in<T>(c, 1), out<T>(c)); }
