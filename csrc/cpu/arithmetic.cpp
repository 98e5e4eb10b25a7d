// a op b with broadcasting. Same shapes, rows, columns and scalars run at the speed of memory; anything else is first
// merged into the fewest dimensions (broadcast.h) and then walked row by row.
#include "../broadcast.h"
#include "../parallel.h"

namespace {

constexpr int64_t kGrain = 16384;

// y[0, n) = f(a, b) where an operand of step 0 is one value. Not inlined: seven functions are called from three places.
template <class T, class F>
__attribute__((noinline)) void row(const T* a, int64_t step_a, const T* b, int64_t step_b, T* y, int64_t n, F f) {
  constexpr int L = kLanes<T>;
  int64_t i = 0;
  if (step_a && step_b) {
    for (; i + L <= n; i += L) store(y + i, f(load(a + i), load(b + i)));
    if (i < n) store_first(y + i, f(load_first(a + i, n - i), load_first(b + i, n - i)), n - i);
  } else if (step_a) {
    const vec<T> v = broadcast(*b);
    for (; i + L <= n; i += L) store(y + i, f(load(a + i), v));
    if (i < n) store_first(y + i, f(load_first(a + i, n - i), v), n - i);
  } else if (step_b) {
    const vec<T> v = broadcast(*a);
    for (; i + L <= n; i += L) store(y + i, f(v, load(b + i)));
    if (i < n) store_first(y + i, f(v, load_first(b + i, n - i)), n - i);
  } else {
    const vec<T> v = f(broadcast(*a), broadcast(*b));
    for (; i + L <= n; i += L) store(y + i, v);
    if (i < n) store_first(y + i, v, n - i);
  }
}

template <class T, class F> inline void binary(const Call& c, F f) {
  const T *a = in<T>(c, 0), *b = in<T>(c, 1);
  T* y = out<T>(c);
  const int64_t n = size(c.out[0]);
  if (n == 0) return;
  const Broadcast w(c.in[0], c.in[1], c.out[0]);
  if (w.ndim == 1) {
    const int64_t sa = w.inner_step(0), sb = w.inner_step(1);
    parallel_range(c, n, kGrain, [&](int64_t begin, int64_t end) {
      row(a + begin * sa, sa, b + begin * sb, sb, y + begin, end - begin, f);
    });
    return;
  }
  const int64_t inner = w.inner();
  if (inner >= kShortRow) {
    parallel_range(c, n, kGrain, [&](int64_t begin, int64_t end) {
      while (begin < end) {
        int64_t run = inner - begin % inner;
        if (run > end - begin) run = end - begin;
        row(a + w.offset(0, begin), w.inner_step(0), b + w.offset(1, begin), w.inner_step(1), y + begin, run, f);
        begin += run;
      }
    });
    return;
  }
  // Short rows: operands that are not dense are spread into buffers first. Buffers hold whole rows, so one that repeats
  // with every row (a bias) is filled once.
  const int64_t chunk = kSpread / inner * inner;
  const bool repeats_a = w.ndim == 2 && w.step[0][0] == 0, repeats_b = w.ndim == 2 && w.step[1][0] == 0;
  const bool dense_a = size(c.in[0]) == n, dense_b = size(c.in[1]) == n;
  parallel_range(c, n, kGrain, [&](int64_t begin, int64_t end) {
    T buffer_a[kSpread], buffer_b[kSpread];
    const int64_t first = begin;
    while (begin < end) {
      const int64_t run = end - begin < chunk ? end - begin : chunk;
      if (!dense_a && (begin == first || !repeats_a)) w.spread(0, a, begin, run, buffer_a);
      if (!dense_b && (begin == first || !repeats_b)) w.spread(1, b, begin, run, buffer_b);
      row(dense_a ? a + begin : buffer_a, 1, dense_b ? b + begin : buffer_b, 1, y + begin, run, f);
      begin += run;
    }
  });
}

}  // namespace

#define BINARY(op, expression) \
  KERNEL(op) { binary<T>(c, [](vec<T> a, vec<T> b) -> vec<T> { return expression; }); }

BINARY(add, a + b)
BINARY(sub, a - b)
BINARY(mul, a * b)
BINARY(div, a / b)
BINARY(maximum, (a > b) | (a != a) ? a : b)
BINARY(minimum, (a < b) | (a != a) ? a : b)
BINARY(heaviside, a > b ? broadcast(T(1)) : (a == b ? broadcast(T(0.5)) : vec<T>{}))
