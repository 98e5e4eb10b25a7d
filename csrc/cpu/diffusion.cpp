// Noising data, the loss of denoising it and stepping a sampler: one pass over memory each. Noise is made a block at a
// time in the first cache (noise.h) and never written to memory.
#include "../noise.h"
#include "../parallel.h"
#include "../quantile.h"
#include "../sampler_step.h"
#include "../total.h"

namespace {

constexpr int64_t kGrain = 1 << 14;                 // elements per task: a divisor of 2^34, a multiple of kNoise

template <class T> inline vec<T> read(const T* p, int64_t n) { return n == kLanes<T> ? load(p) : load_first(p, n); }
template <class T> inline void write(T* p, vec<T> v, int64_t n) {
  if (n == kLanes<T>) store(p, v);
  else store_first(p, v, n);
}

// K coefficients of consecutive elements, `row` elements per sample. Elements are asked for in order.
template <class T, int K> struct PerSample {
  const T* of[K];
  int64_t row, i, row_end;
  vec<T> v[K];

  PerSample(const T* const (&of_)[K], int64_t row_, int64_t begin) : row(row_), i(begin / row_), row_end((begin / row_ + 1) * row_) {
    for (int k = 0; k < K; ++k) of[k] = of_[k];
    spread();
  }
  void spread() {
    for (int k = 0; k < K; ++k) v[k] = broadcast(of[k][i]);
  }

  inline void at(int64_t e, int64_t n, vec<T> (&c)[K]) {
    if (__builtin_expect(e >= row_end, 0)) {
      while (e >= row_end) ++i, row_end += row;
      spread();
    }
    if (__builtin_expect(e + n <= row_end, 1)) {
      for (int k = 0; k < K; ++k) c[k] = v[k];
      return;
    }
    T lane[K][kLanes<T>] = {};
    for (int64_t l = 0; l < n; ++l) {
      while (e + l >= row_end) ++i, row_end += row;
      for (int k = 0; k < K; ++k) lane[k][l] = of[k][i];
    }
    for (int k = 0; k < K; ++k) c[k] = load(lane[k]);
    spread();
  }
};

// f(e, n, coefficients, z) for every vector of all elements; z reads their noise, or is null without a key.
template <class T, int K, class F>
inline void each_element(const Call& c, const T* const (&of)[K], const uint64_t* key, const Array& x, F&& f) {
  const int64_t n = size(x);
  if (n == 0) return;
  const int64_t row = n / x.shape[0];
  parallel_range(c, n, kGrain, [&](int64_t begin, int64_t end) {
    PerSample<T, K> coefficients(of, row, begin);
    T z[kNoise];
    for (int64_t first = begin; first < end; first += kNoise) {
      const int64_t stop = first + kNoise < end ? first + kNoise : end;
      if (key) fill_normals(key, first, stop - first, z);
      for (int64_t e = first; e < stop; e += kLanes<T>) {
        const int64_t m = stop - e < kLanes<T> ? stop - e : kLanes<T>;
        vec<T> k[K];
        coefficients.at(e, m, k);
        f(e, m, k, z + (e - first));
      }
    }
  });
}

}  // namespace

KERNEL(q_sample) {
  const T *x = in<T>(c, 0), *of[2] = {in<T>(c, 1), in<T>(c, 2)};
  T* y = out<T>(c);
  each_element<T, 2>(c, of, in<uint64_t>(c, 3), c.in[0], [=](int64_t e, int64_t m, const vec<T>(&k)[2], const T* z) {
    write(y + e, fma(k[0], read(x + e, m), k[1] * read(z, m)), m);
  });
}

namespace {

// y = a x + s noise over n elements of one sample.
template <class T> __attribute__((noinline)) void mix(const T* x, const T* noise, T a, T s, T* y, int64_t n) {
  constexpr int V = 4, L = kLanes<T>;
  int64_t e = 0;
  for (; e + V * L <= n; e += V * L) {
    vec<T> r[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) r[v] = fma(broadcast(a), load(x + e + v * L), s * load(noise + e + v * L));
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) store(y + e + v * L, r[v]);
  }
  for (; e < n; e += L) {
    const int64_t m = n - e < L ? n - e : L;
    write(y + e, fma(broadcast(a), read(x + e, m), s * read(noise + e, m)), m);
  }
}

}  // namespace

KERNEL(add_noise) {
  const T *x = in<T>(c, 0), *noise = in<T>(c, 1), *of[2] = {in<T>(c, 2), in<T>(c, 3)};
  T* y = out<T>(c);
  const int64_t rows = c.in[0].shape[0], row = rows ? size(c.in[0]) / rows : 0;
  if (row >= kLanes<T>) {
    each_piece(c, rows, row, kGrain, [=](int64_t e, int64_t n, int64_t i, int64_t count, int64_t) {
      for (int64_t k = 0; k < count; ++k, e += row) mix(x + e, noise + e, of[0][i + k], of[1][i + k], y + e, count > 1 ? row : n);
    });
    return;
  }
  each_element<T, 2>(c, of, nullptr, c.in[0], [=](int64_t e, int64_t m, const vec<T>(&k)[2], const T*) {
    write(y + e, fma(k[0], read(x + e, m), k[1] * read(noise + e, m)), m);
  });
}

// ---- the loss of denoising ----

KERNEL(denoising_loss_bwd) {
  const T *residual = in<T>(c, 2), *of[2] = {in<T>(c, 0), in<T>(c, 1)};
  T* y = out<T>(c);
  const T per_element = T(2.0 / double(size(c.in[2]) / (c.in[2].shape[0] ? c.in[2].shape[0] : 1)));
  each_element<T, 2>(c, of, nullptr, c.in[2], [=](int64_t e, int64_t m, const vec<T>(&k)[2], const T*) {
    write(y + e, k[0] * k[1] * per_element * read(residual + e, m), m);
  });
}

namespace {

template <class T> int64_t loss_bytes(const Call& c) { return ceil_div(size(c.in[0]), kGrain) * 2 * int64_t(sizeof(double)); }

// The sum of squares over n elements of one row, whose noise is z. kept: where their residuals go, or null.
template <class T> inline double squares(const T* prediction, const T* x, T b_x, T b_z, const T* z, int64_t n, T* kept) {
  Total<T> sum;
  for (int64_t e = 0; e < n; e += kLanes<T>) {
    const int64_t m = n - e < kLanes<T> ? n - e : kLanes<T>;
    const vec<T> target = fma(broadcast(b_x), read(x + e, m), b_z * read(z + e, m));
    vec<T> d = read(prediction + e, m) - target;
    if (kept) write(kept + e, d, m);
    if (m < kLanes<T>) {                            // lanes beyond the row may hold 0 * inf
      T lane[kLanes<T>] = {};
      store_first(lane, d, m);
      d = load(lane);
    }
    sum.add(d * d);
  }
  return sum.value();
}

}  // namespace

KERNEL_SCRATCH(denoising_loss, loss_bytes) {
  const T *prediction = in<T>(c, 0), *x = in<T>(c, 1), *b_x = in<T>(c, 2), *b_z = in<T>(c, 3), *weight = in<T>(c, 4);
  const uint64_t* key = in<uint64_t>(c, 5);
  T *y = out<T>(c, 0), *residual = out<T>(c, 1);
  const int64_t n = size(c.in[0]);
  if (n == 0) return;
  const int64_t row = n / c.in[0].shape[0];
  double* open = static_cast<double*>(c.scratch);   // per task: of the row it begins in, of the row it ends in
  const auto finish = [=](int64_t i, double sum) { y[i] = T(double(weight[i]) * (sum / double(row))); };
  parallel_range(c, n, kGrain, [&](int64_t begin, int64_t end) {
    double *rows = open + begin / kGrain * 2, sum = 0;
    T z[kNoise];
    for (int64_t first = begin; first < end; first += kNoise) {
      const int64_t stop = first + kNoise < end ? first + kNoise : end;
      fill_normals(key, first, stop - first, z);
      for (int64_t e = first; e < stop;) {
        const int64_t i = e / row, row_end = (i + 1) * row, to = row_end < stop ? row_end : stop;
        sum += squares(prediction + e, x + e, b_x[i], b_z[i], z + (e - first), to - e, residual ? residual + e : nullptr);
        const bool from_before = i * row < begin;
        if (to == row_end && !from_before) finish(i, sum), sum = 0;
        else if (to == row_end || to == end) rows[!from_before] = sum, sum = 0;
        e = to;
      }
    }
  });
  for (int64_t t = 0; (t + 1) * kGrain < n;) {      // rows that cross from one task to the next, in order
    const int64_t i = ((t + 1) * kGrain - 1) / row, row_end = (i + 1) * row, last = (row_end - 1) / kGrain;
    if (last == t) {
      ++t;
      continue;
    }
    double sum = open[2 * t + 1];
    for (++t; t <= last; ++t) sum += open[2 * t];
    t = last;
    finish(i, sum);
  }
}

// ---- one step of a sampler ----

namespace {

template <class T> struct Step {
  const T *x, *prediction, *uncond, *h[4];
  T *y, *kept;                                      // kept: g_x x + g_d D, or null
  T a_x, a_p, a_u, c_x, c_d, c_h[4], c_noise, g_x, g_d;
  T clip, limit;                                    // inf: none; limit, if not 0: what D is divided by
  int used;                                         // history arrays

  template <int V> inline __attribute__((always_inline)) void denoised(int64_t e, int64_t n, const vec<T> (&xe)[V], vec<T> (&d)[V]) const {
    constexpr int L = kLanes<T>;
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) d[v] = fma(broadcast(a_p), read(prediction + e + v * L, n), a_x * xe[v]);
    if (uncond) {
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) d[v] = fma(broadcast(a_u), read(uncond + e + v * L, n), d[v]);
    }
  }

  // V vectors from element e on (the last of one with n lanes); z: their noise, or null.
  template <int V> inline __attribute__((always_inline)) void at(int64_t e, int64_t n, const T* z) const {
    constexpr int L = kLanes<T>;
    vec<T> xe[V], d[V], r[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) xe[v] = read(x + e + v * L, n);
    denoised<V>(e, n, xe, d);
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) d[v] = vmin(broadcast(clip), vmax(broadcast(-clip), d[v]));
    if (limit != 0) {
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) d[v] = d[v] / limit;
    }
    if (kept) {
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) write(kept + e + v * L, fma(broadcast(g_d), d[v], g_x * xe[v]), n);
    }
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) r[v] = fma(broadcast(c_d), d[v], c_x * xe[v]);
#pragma GCC unroll 1
    for (int k = 0; k < used; ++k) {
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) r[v] = fma(broadcast(c_h[k]), read(h[k] + e + v * L, n), r[v]);
    }
    if (z) {
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) r[v] = fma(broadcast(c_noise), read(z + v * L, n), r[v]);
    }
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) write(y + e + v * L, r[v], n);
  }

  __attribute__((noinline)) void run(int64_t begin, int64_t n, const T* z) const {
    constexpr int V = 4, L = kLanes<T>;
    const Step s = *this;                           // a copy that no store can change: the compiler keeps it in registers
    int64_t e = 0;
    for (; e + V * L <= n; e += V * L) s.template at<V>(begin + e, L, z ? z + e : nullptr);
    for (; e < n; e += L) s.template at<1>(begin + e, n - e < L ? n - e : L, z ? z + e : nullptr);
  }
};

inline vd widen(const float* p) {
  typedef float half __attribute__((vector_size(kVectorBytes / 2)));
  half h;
  memcpy(&h, p, sizeof h);
  return __builtin_convertvector(h, vd);
}
inline vd widen(const double* p) { return load(p); }

// The variance of a p + b u over a row, times its length; of p alone where u is null. Shifted by the first value.
template <class T> __attribute__((noinline)) double spread(const T* p, double a, const T* u, double b, int64_t n) {
  constexpr int W = kLanes<double>;
  const double shift = a * double(p[0]) + (u ? b * double(u[0]) : 0);
  vd sum{}, square{};
  const auto add = [&](const T* pe, const T* ue) {
    vd v = a * widen(pe) - shift;
    if (ue) v += b * widen(ue);
    sum += v, square += v * v;
  };
  int64_t e = 0;
  for (; e + W <= n; e += W) add(p + e, u ? u + e : nullptr);
  double s = lane_sum<double>(sum), q = lane_sum<double>(square);
  for (; e < n; ++e) {
    const double v = a * double(p[e]) + (u ? b * double(u[e]) : 0) - shift;
    s += v, q += v * v;
  }
  return Spread{s, q}.value(n);
}

// rescale std(prediction) / std(guided) + 1 - rescale of one row.
template <class T> inline T guidance_scale(const T* p, const T* u, double a_p, double a_u, double rescale, int64_t n) {
  const double guided = spread<T>(p, a_p, u, a_u, n), alone = spread<T>(p, a_p + a_u, nullptr, 0, n);
  return T(step_rescale(alone, guided, rescale));
}

template <class T> int64_t step_bytes(const Call& c) {  // |D| of one sample per worker, where its quantile is wanted
  const Array& x = c.in[kX];
  if (!(c.attr[kThreshold] == c.attr[kThreshold]) || x.shape[0] == 0) return 0;
  return padded(size(x) / x.shape[0], 64) * int64_t(sizeof(T)) * c.threads;
}

}  // namespace

KERNEL_SCRATCH(sampler_step, step_bytes) {
  const double* coef = in<double>(c, kCoef);
  Step<T> s{};
  s.x = in<T>(c, kX), s.prediction = in<T>(c, kPrediction), s.uncond = in<T>(c, kUncond), s.y = out<T>(c, 0), s.kept = out<T>(c, 1);
  s.a_x = T(coef[kAX]), s.a_p = T(coef[kAP]), s.a_u = T(coef[kAU]), s.c_x = T(coef[kCX]), s.c_d = T(coef[kCD]);
  s.c_noise = T(coef[kCNoise]), s.g_x = T(coef[kGX]), s.g_d = T(coef[kGD]);
  for (int k = 0; k < 4; ++k)
    if (const T* h = in<T>(c, kH + k)) s.h[s.used] = h, s.c_h[s.used++] = T(coef[kCH + k]);
  const uint64_t *keys = s.c_noise != 0 ? in<uint64_t>(c, kKeys) : nullptr, number = step_stream(coef);
  const double clip = c.attr[kClip], threshold = c.attr[kThreshold], most = c.attr[kThresholdMax], rescale = c.attr[kRescale];
  s.clip = clip == clip ? T(clip) : T(__builtin_inf());
  const int64_t n = size(c.in[kX]);
  if (n == 0) return;
  const int64_t rows = c.in[kX].shape[0], row = n / rows;
  const auto piece = [&](const Step<T>& step, int64_t e, int64_t m, int64_t i, int64_t count, int64_t first) {
    T z[kNoise];
    if (keys) fill_keyed<T>(keys, number, row, i, count, first, count > 1 ? row : m, z);
    step.run(e, m, keys ? z : nullptr);
  };
  const bool rescaled = rescale != 0 && s.uncond, bounded = threshold == threshold;
  if (!rescaled && !bounded) {
    each_piece(c, rows, row, kGrain, [&](int64_t e, int64_t m, int64_t i, int64_t count, int64_t first) {
      if (keys) piece(s, e, m, i, count, first);
      else s.run(e, m, nullptr);
    });
    return;
  }
  parallel(c, rows, [&](int64_t i, int worker) {    // what depends on the whole sample comes first
    Step<T> own = s;
    const int64_t begin = i * row;
    if (rescaled) {
      const T scale = guidance_scale<T>(s.prediction + begin, s.uncond + begin, coef[kAP], coef[kAU], rescale, row);
      own.a_p *= scale, own.a_u *= scale;
    }
    if (bounded) {
      T* magnitude = static_cast<T*>(c.scratch) + worker * padded(row, 64);
      for (int64_t e = 0; e < row; e += kLanes<T>) {
        const int64_t m = row - e < kLanes<T> ? row - e : kLanes<T>;
        const vec<T> xe[1] = {read(s.x + begin + e, m)};
        vec<T> d[1];
        own.template denoised<1>(begin + e, m, xe, d);
        write(magnitude + e, vabs(d[0]), m);
      }
      own.limit = own.clip = step_limit(quantile(magnitude, row, threshold), T(most));
    }
    for (int64_t first = 0; first < row; first += kNoise)
      piece(own, begin + first, row - first < kNoise ? row - first : kNoise, i, 1, first);
  });
}
