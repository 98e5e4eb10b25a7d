// Noising data and stepping a sampler: one pass over memory each, the noise made in registers where it is added.
#include "philox.h"
#include "parallel.h"

namespace {

constexpr int64_t kGrain = 1 << 14;                 // elements per task: a divisor of 2^34, a multiple of every block

template <class T> inline vec<T> read(const T* p, int n) { return n == kLanes<T> ? load(p) : load_first(p, n); }
template <class T> inline void write(T* p, vec<T> v, int n) {
  if (n == kLanes<T>) store(p, v);
  else store_first(p, v, n);
}

// The coefficients of consecutive elements, `row` of them per sample. Elements are asked for in order.
template <class T> struct PerSample {
  const T *alpha, *sigma;
  int64_t row, i, row_end;
  vec<T> a, s;

  PerSample(const T* alpha_, const T* sigma_, int64_t row_, int64_t begin)
      : alpha(alpha_), sigma(sigma_), row(row_), i(begin / row_), row_end((begin / row_ + 1) * row_) { spread(); }
  void spread() { a = broadcast(alpha[i]), s = broadcast(sigma[i]); }

  inline void at(int64_t e, int n, vec<T>& ae, vec<T>& se) {
    if (__builtin_expect(e >= row_end, 0)) {
      while (e >= row_end) ++i, row_end += row;
      spread();
    }
    if (__builtin_expect(e + n <= row_end, 1)) {
      ae = a, se = s;
      return;
    }
    T av[kLanes<T>] = {}, sv[kLanes<T>] = {};
    for (int l = 0; l < n; ++l) {
      while (e + l >= row_end) ++i, row_end += row;
      av[l] = alpha[i], sv[l] = sigma[i];
    }
    ae = load(av), se = load(sv);
    spread();
  }
};

}  // namespace

KERNEL(q_sample) {
  const T *x = in<T>(c, 0), *alpha = in<T>(c, 1), *sigma = in<T>(c, 2);
  const uint64_t* key = in<uint64_t>(c, 3);
  T* y = out<T>(c);
  const int64_t n = size(c.in[0]);
  if (n == 0) return;
  const int64_t row = n / c.in[0].shape[0];
  parallel_range(c, n, kGrain, [&](int64_t begin, int64_t end) {
    PerSample<T> coefficients(alpha, sigma, row, begin);
    generate<T, Normal>(key, begin, end, [=, &coefficients](int64_t e, vec<T> z, int m) {
      vec<T> a, s;
      coefficients.at(e, m, a, s);
      write(y + e, fma(a, read(x + e, m), s * z), m);
    });
  });
}

namespace {

template <class T> struct Step {
  const T *x, *prediction, *h[3];
  T *y, *denoised;
  T a_x, a_p, c_x, c_d, c_h[3], c_noise, clip;      // clip = inf: none

  template <int H> inline vec<T> at(int64_t e, int n) const {
    const vec<T> xe = read(x + e, n);
    vec<T> d = fma(broadcast(a_p), read(prediction + e, n), a_x * xe);
    d = vmin(broadcast(clip), vmax(broadcast(-clip), d));
    if (denoised) write(denoised + e, d, n);
    vec<T> r = fma(broadcast(c_d), d, c_x * xe);
#pragma GCC unroll 3
    for (int k = 0; k < H; ++k) r = fma(broadcast(c_h[k]), read(h[k] + e, n), r);
    return r;
  }
};

template <class T, int H> void sampler_step(const Call& c, const Step<T>& step, const uint64_t* key) {
  const int64_t n = size(c.in[0]);
  parallel_range(c, n, kGrain, [&](int64_t begin, int64_t end) {
    const Step<T> s = step;                         // a copy the compiler can keep in registers
    if (key) {
      generate<T, Normal>(key, begin, end, [=](int64_t e, vec<T> z, int m) {
        write(s.y + e, fma(broadcast(s.c_noise), z, s.template at<H>(e, m)), m);
      });
      return;
    }
    int64_t e = begin;
    for (; e + 2 * kLanes<T> <= end; e += 2 * kLanes<T>) {
      const vec<T> a = s.template at<H>(e, kLanes<T>), b = s.template at<H>(e + kLanes<T>, kLanes<T>);
      store(s.y + e, a), store(s.y + e + kLanes<T>, b);
    }
    for (; e < end; e += kLanes<T>) {
      const int m = end - e < kLanes<T> ? int(end - e) : kLanes<T>;
      write(s.y + e, s.template at<H>(e, m), m);
    }
  });
}

}  // namespace

KERNEL(sampler_step) {
  const double* coef = in<double>(c, 6);
  Step<T> s{};
  s.x = in<T>(c, 0), s.prediction = in<T>(c, 1), s.y = out<T>(c, 0), s.denoised = out<T>(c, 1);
  s.a_x = T(coef[0]), s.a_p = T(coef[1]), s.c_x = T(coef[2]), s.c_d = T(coef[3]), s.c_noise = T(coef[7]);
  s.clip = c.attr[0] == c.attr[0] ? T(c.attr[0]) : T(__builtin_inf());
  int used = 0;
  for (int k = 0; k < 3; ++k)
    if (const T* h = in<T>(c, 2 + k)) s.h[used] = h, s.c_h[used++] = T(coef[4 + k]);
  const uint64_t* key = s.c_noise != 0 ? in<uint64_t>(c, 5) : nullptr;
  if (used == 0) sampler_step<T, 0>(c, s, key);
  else if (used == 1) sampler_step<T, 1>(c, s, key);
  else if (used == 2) sampler_step<T, 2>(c, s, key);
  else sampler_step<T, 3>(c, s, key);
}
