// Optimiser steps on flat buffers: each is one pass, bound by memory, and an effect on its arguments.
#include <math.h>
#include "parallel.h"
#include "simd.h"

namespace {

constexpr int64_t kGrain = 1 << 14;                 // also the block of the norm's partial sums: part of its definition

inline bool skipped(const Call& c, int i) {
  const uint8_t* ok = in<uint8_t>(c, i);
  return ok && !*ok;
}

// body(e, n) for vectors of n elements covering [begin, end); n is kLanes<T> except in the last.
template <class T, class F> inline void vectors(int64_t begin, int64_t end, F&& body) {
  int64_t e = begin;
  for (; e + kLanes<T> <= end; e += kLanes<T>) body(e, kLanes<T>);
  if (e < end) body(e, int(end - e));
}
template <class T> inline vec<T> read(const T* p, int n) { return n == kLanes<T> ? load(p) : load_first(p, n); }
template <class T> inline void write(T* p, vec<T> v, int n) {
  if (n == kLanes<T>) store(p, v);
  else store_first(p, v, n);
}
template <class T> inline T* changed(const Call& c, int i) { return static_cast<T*>(c.in[i].data); }

}  // namespace

KERNEL(adam_) {
  if (skipped(c, 6)) return;
  T *p = changed<T>(c, 0), *m = changed<T>(c, 1), *v = changed<T>(c, 2);
  const T* g = in<T>(c, 3);
  const double step = double(++*changed<int64_t>(c, 4)), lr = *in<double>(c, 5);
  const double beta1 = c.attr[0], beta2 = c.attr[1];
  const T b1 = T(beta1), a1 = T(1 - beta1), b2 = T(beta2), a2 = T(1 - beta2), eps = T(c.attr[2]);
  const T keep = T(1 - lr * c.attr[3]), rate = T(lr / (1 - pow(beta1, step)));
  const T scale = T(1 / ::sqrt(1 - pow(beta2, step)));
  parallel_range(c, size(c.in[0]), kGrain, [&](int64_t begin, int64_t end) {
    vectors<T>(begin, end, [=](int64_t e, int n) {
      const vec<T> ge = read(g + e, n);
      const vec<T> me = fma(broadcast(a1), ge, b1 * read(m + e, n));
      const vec<T> ve = fma(broadcast(a2), ge * ge, b2 * read(v + e, n));
      const vec<T> pe = keep * read(p + e, n) - rate * me / fma(sqrt(ve), broadcast(scale), broadcast(eps));
      write(m + e, me, n), write(v + e, ve, n), write(p + e, pe, n);
    });
  });
}

KERNEL(lion_) {
  if (skipped(c, 4)) return;
  T *p = changed<T>(c, 0), *m = changed<T>(c, 1);
  const T* g = in<T>(c, 2);
  const double lr = *in<double>(c, 3), beta1 = c.attr[0], beta2 = c.attr[1];
  const T b1 = T(beta1), a1 = T(1 - beta1), b2 = T(beta2), a2 = T(1 - beta2), keep = T(1 - lr * c.attr[2]), rate = T(lr);
  parallel_range(c, size(c.in[0]), kGrain, [&](int64_t begin, int64_t end) {
    vectors<T>(begin, end, [=](int64_t e, int n) {
      const vec<T> ge = read(g + e, n), me = read(m + e, n), up = broadcast(rate);
      const vec<T> mean = fma(broadcast(a1), ge, b1 * me);
      const vec<T> move = mean > 0 ? up : mean < 0 ? -up : mean;     // 0 and NaN stay what they are
      write(p + e, keep * read(p + e, n) - move, n), write(m + e, fma(broadcast(a2), ge, b2 * me), n);
    });
  });
}

KERNEL(sgd_) {
  if (skipped(c, 4)) return;
  T *p = changed<T>(c, 0), *m = changed<T>(c, 1);
  const T *g = in<T>(c, 2), rate = T(*in<double>(c, 3)), momentum = T(c.attr[0]), decay = T(c.attr[2]);
  const bool nesterov = c.attr[1] != 0;
  parallel_range(c, size(c.in[0]), kGrain, [&](int64_t begin, int64_t end) {
    vectors<T>(begin, end, [=](int64_t e, int n) {
      const vec<T> pe = read(p + e, n), b = broadcast(momentum);
      vec<T> move = fma(broadcast(decay), pe, read(g + e, n));
      if (m) {
        const vec<T> me = fma(b, read(m + e, n), move);
        write(m + e, me, n);
        move = nesterov ? fma(b, me, move) : me;
      }
      write(p + e, pe - rate * move, n);
    });
  });
}

KERNEL(ema_) {
  if (skipped(c, 3)) return;
  T* average = changed<T>(c, 0);
  const T* p = in<T>(c, 1);
  const T rate = T(1 - *in<double>(c, 2));
  parallel_range(c, size(c.in[0]), kGrain, [&](int64_t begin, int64_t end) {
    vectors<T>(begin, end, [=](int64_t e, int n) {
      const vec<T> a = read(average + e, n);
      write(average + e, fma(broadcast(rate), read(p + e, n) - a, a), n);
    });
  });
}

namespace {

inline double square_sum(const float* x, int64_t n) {
  vd s[4] = {};
  int64_t e = 0;
  for (; e + 4 * kLanes<double> <= n; e += 4 * kLanes<double>)
    for (int i = 0; i < 4; ++i) {
      typedef float half __attribute__((vector_size(kVectorBytes / 2), aligned(4), may_alias));
      const vd a = __builtin_convertvector(*reinterpret_cast<const half*>(x + e + i * kLanes<double>), vd);
      s[i] = fma(a, a, s[i]);
    }
  double sum = lane_sum<double>((s[0] + s[1]) + (s[2] + s[3]));
  for (; e < n; ++e) sum += double(x[e]) * x[e];
  return sum;
}
inline double square_sum(const double* x, int64_t n) {
  vd s[4] = {};
  int64_t e = 0;
  for (; e + 4 * kLanes<double> <= n; e += 4 * kLanes<double>)
    for (int i = 0; i < 4; ++i) {
      const vd a = load(x + e + i * kLanes<double>);
      s[i] = fma(a, a, s[i]);
    }
  double sum = lane_sum<double>((s[0] + s[1]) + (s[2] + s[3]));
  for (; e < n; ++e) sum += x[e] * x[e];
  return sum;
}

template <class T> int64_t partial_sums(const Call& c) { return 8 * ceil_div(size(c.in[0]), kGrain); }

}  // namespace

KERNEL_SCRATCH(clip_norm_, partial_sums) {
  T* g = changed<T>(c, 0);
  const int64_t n = size(c.in[0]);
  double* partial = static_cast<double*>(c.scratch);
  parallel_range(c, n, kGrain, [&](int64_t begin, int64_t end) {
    partial[begin / kGrain] = square_sum(g + begin, end - begin);
  });
  double sum = 0;
  for (int64_t i = 0; i < ceil_div(n, kGrain); ++i) sum += partial[i];
  const double norm = ::sqrt(sum), limit = c.attr[0];
  const bool finite = norm - norm == 0;
  *out<uint8_t>(c, 0) = finite;
  *out<double>(c, 1) = norm;
  if (!finite || !(norm > limit)) return;
  const T factor = T(limit / norm);
  parallel_range(c, n, kGrain, [&](int64_t begin, int64_t end) {
    vectors<T>(begin, end, [=](int64_t e, int m) { write(g + e, factor * read(g + e, m), m); });
  });
}
