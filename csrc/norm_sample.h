// Forward and backward of a normalisation of one sample after another: what group_norm and batch_norm share.
//
// Forward reads a sample twice (statistics, then the output) and backward twice (sums over positions, then dx). Samples
// are dealt out to the workers, so that the second reading finds the sample in the cache; where there are too few of
// them, all workers take part in each. Scratch is for the workers and for one sample, whatever the batch.
#pragma once
#include "group_norm.h"
#include "vmath.h"

namespace {

// 1 / (1 + exp(-x)), absolute error 2 eps: exp as in vmath.h, but in base 2, and limited where the result is 0 or 1
// rather than repaired afterwards. x in [-87, 87] or NaN (then the result is of no meaning).
inline vf sigmoid_limited(vf x) {
  const vf minus_log2e = broadcast(-0x1.715476p+0f), round = broadcast(0x1.8p23f);
  const vf z = fma(x, minus_log2e, round), f = fma(x, minus_log2e, round - z);
  vf p = fma(broadcast(1.3264983e-3f), f, broadcast(9.6733985e-3f));
  p = fma(p, f, broadcast(5.5506134e-2f));
  p = fma(p, f, broadcast(2.4022125e-1f));
  p = fma(p, f, broadcast(6.9314694e-1f));
  p = fma(p, f, broadcast(1.0f));
  const vf e = (vf)((vmask<float>)p + ((vmask<float>)z << 23));
  return broadcast(1.0f) / (e + 1.0f);
}
inline vd sigmoid_limited(vd x) { return broadcast(1.0) / (vexp(-x) + 1.0); }

template <class T> struct NormSilu {
  static vec<T> f(vec<T> u) {
    const vec<T> low = vmax(broadcast(T(-87)), u);           // NaN stays: see simd.h
    return low * sigmoid_limited(vmin(broadcast(T(87)), low));
  }
  static vec<T> d(vec<T> u) {
    const vec<T> v = vmin(broadcast(T(87)), vmax(broadcast(T(-87)), u)), s = sigmoid_limited(v);
    return fma(s * v, T(1) - s, s);
  }
};
template <class T> struct NormIdentity {
  static vec<T> f(vec<T> u) { return u; }
};

// y = act((x - centre) * a + b) over rows of one width.
template <class T, class Act>
inline void norm_apply(const T* x, T* y, int64_t rows, int64_t width, const T* centre, const T* a, const T* b) {
  for (int64_t r = 0; r < rows; ++r, x += width, y += width)
    row_map<T>(width, [&](int64_t j, int64_t n) {
      store_n(y + j, Act::f(fma(load_n(x + j, n) - load_n(centre + j, n), load_n(a + j, n), load_n(b + j, n))), n);
    });
}

// Sums over R rows of du and du * (x - centre), added to s0[] and s1[], where du = g * act'(u) is also written to `du`,
// unless that is null; or du = g if there is no activation.
template <class T, bool kSilu, int R>
inline void add_sums(const T* x, const T* g, T* du, int64_t width, const T* centre, const T* a, const T* b, T* s0,
                     T* s1) {
  row_map<T>(width, [&](int64_t j, int64_t n) {
    const vec<T> m = load_n(centre + j, n);
    vec<T> sum0 = load_n(s0 + j, n), sum1 = load_n(s1 + j, n);
    for (int r = 0; r < R; ++r) {
      const vec<T> d = load_n(x + r * width + j, n) - m;
      vec<T> v = load_n(g + r * width + j, n);
      if constexpr (kSilu) {
        v *= NormSilu<T>::d(fma(d, load_n(a + j, n), load_n(b + j, n)));
        if (du) store_n(du + r * width + j, v, n);
      }
      sum0 += v;
      sum1 = fma(v, d, sum1);
    }
    store_n(s0 + j, sum0, n);
    store_n(s1 + j, sum1, n);
  });
}

// The same over any number of rows, in float64: state is the two sums of `width`, then room for 2 * width of T.
template <class T, bool kSilu>
inline void rows_sums(const T* x, const T* g, T* du, int64_t rows, int64_t width, const T* centre, const T* a,
                      const T* b, double* state) {
  double* total = state;
  T *s0 = reinterpret_cast<T*>(state + 2 * width), *s1 = s0 + width;
  __builtin_memset(state, 0, size_t(2 * width) * sizeof(double));
  for (int64_t r0 = 0; r0 < rows; r0 += kMomentRows) {
    const int64_t end = rows - r0 < kMomentRows ? rows : r0 + kMomentRows;
    __builtin_memset(s0, 0, size_t(2 * width) * sizeof(T));
    int64_t r = r0;
    auto to = [&] { return du ? du + r * width : nullptr; };
    for (; r + 2 <= end; r += 2)
      add_sums<T, kSilu, 2>(x + r * width, g + r * width, to(), width, centre, a, b, s0, s1);
    if (r < end) add_sums<T, kSilu, 1>(x + r * width, g + r * width, to(), width, centre, a, b, s0, s1);
    for (int64_t j = 0; j < 2 * width; ++j) total[j] += double(s0[j]);
  }
}

// Whether all workers share each sample.
inline bool together(const Call& c, int64_t n, const ChannelRows& r) {
  return c.threads > 1 && r.chunks > 1 && n < 4 * c.threads && n % c.threads != 0;
}

// The memory of one worker: `total` and the first slot, parameters per lane, numbers per group.
template <class T> struct NormScratch {
  double *total, *slots, *group;               // 2 width; kSlot width each; 2 groups
  T* lane;                                     // 6 width

  static int64_t doubles(const ChannelRows& r, int64_t groups) {
    return ceil_div((8 + kSlot) * r.width + 2 * groups, 8) * 8;      // of T there are at most as many doubles
  }
  // `slots` of a shared sample lie behind the memory of the workers.
  static int64_t all(const Call& c, int64_t n, const ChannelRows& r, int64_t groups) {
    return doubles(r, groups) * c.threads + (together(c, n, r) ? kSlot * r.width * r.chunks : 0);
  }
  NormScratch(const Call& c, double* base, int worker, bool shared, const ChannelRows& r, int64_t groups) {
    const int64_t each = doubles(r, groups);
    total = base + worker * each;
    slots = shared ? base + each * c.threads : total + 2 * r.width;
    group = total + (2 + kSlot) * r.width;
    lane = reinterpret_cast<T*>(group + 2 * groups);
  }
};

struct NormShape {
  int64_t n, groups;
  double eps;
  bool silu;
};

// Forward of n samples. scale, shift (n, c) may be null, as may means and rstds (n, groups).
template <class T>
inline void norm_forward(const Call& c, const ChannelRows& r, const NormShape& s, const T* x0, const T* gain,
                         const T* bias, const T* scale, const T* shift, T* y0, T* means, T* rstds) {
  const int64_t w = r.width, size = r.positions * r.c;
  const bool shared = together(c, s.n, r);
  auto sample = [&](int64_t i, int worker) {
    const NormScratch<T> m(c, static_cast<double*>(c.scratch), worker, shared, r, s.groups);
    const T* x = x0 + i * size;
    T *y = y0 + i * size, *centre = m.lane, *a = centre + w, *b = a + w;
    double *mean = m.group, *rstd = mean + s.groups;
    sample_moments(c, x, r, m.total, m.slots, shared);
    group_moments(x, r, m.total, s.groups, s.eps, mean, rstd);
    for (int64_t g = 0; g < s.groups; ++g) {
      if (means) means[i * s.groups + g] = T(mean[g]);
      if (rstds) rstds[i * s.groups + g] = T(rstd[g]);
    }
    fold_norm(r.c, s.groups, mean, rstd, gain, bias, scale ? scale + i * r.c : nullptr, shift ? shift + i * r.c : nullptr,
              centre, a, b);
    repeat_channels(r, centre, a, b);
    auto apply = [&](int64_t at, int64_t rows, int64_t width) {
      if (s.silu) norm_apply<T, NormSilu<T>>(x + at, y + at, rows, width, centre, a, b);
      else norm_apply<T, NormIdentity<T>>(x + at, y + at, rows, width, centre, a, b);
    };
    auto chunk = [&](int64_t t, int) { apply(r.begin(t) * w, r.size(t), w); };
    if (shared) parallel(c, r.chunks, chunk);
    else apply(0, r.rows, w);
    if (r.tail) apply(r.rows * w, 1, r.tail);
  };
  if (shared)
    for (int64_t i = 0; i < s.n; ++i) sample(i, 0);
  else parallel(c, s.n, sample);
}

// Samples whose dgain and dbias are added up one after the other: at most 64 such blocks.
inline int64_t samples_per_block(int64_t n) { return n > 0 ? ceil_div(n, 64) : 1; }

template <class T> inline int64_t norm_backward_bytes(const Call& c, const ChannelRows& r, const NormShape& s) {
  const int64_t blocks = ceil_div(s.n, samples_per_block(s.n));
  return (NormScratch<T>::all(c, s.n, r, s.groups) + blocks * 2 * r.c) * int64_t(sizeof(double));
}

template <class T> struct NormGradients {
  T *x, *gain, *bias, *scale, *shift;          // null where not wanted
};

// Backward of n samples. With z = (x - mean) * rstd, A = gain * (1 + scale), du = g * act'(z * A + ...), t = du * A:
// dx = rstd * (t - mean(t) - z * mean(t * z)), means over a group.
template <class T, bool kSilu>
inline void norm_backward(const Call& c, const ChannelRows& r, const NormShape& s, const T* g0, const T* x0,
                          const T* gain, const T* bias, const T* scale0, const T* shift0, const T* means,
                          const T* rstds, const NormGradients<T>& d) {
  const int64_t w = r.width, size = r.positions * r.c, each = s.groups > 0 ? r.c / s.groups : 0;
  const bool shared = together(c, s.n, r);
  const int64_t step = samples_per_block(s.n), blocks = ceil_div(s.n, step);
  double* parameters = static_cast<double*>(c.scratch) + NormScratch<T>::all(c, s.n, r, s.groups);
  auto sample = [&](int64_t i, int worker, double* dgain, double* dbias) {
    const NormScratch<T> m(c, static_cast<double*>(c.scratch), worker, shared, r, s.groups);
    const T *x = x0 + i * size, *g = g0 + i * size;
    const T *scale = scale0 ? scale0 + i * r.c : nullptr, *shift = shift0 ? shift0 + i * r.c : nullptr;
    T *dx = d.x ? d.x + i * size : nullptr, *du = kSilu ? dx : nullptr;
    T *centre = m.lane, *a = centre + w, *b = a + w, *p = b + w, *q = p + w, *o = q + w;
    double *mean = m.group, *rstd = mean + s.groups, *s0 = m.total, *s1 = s0 + w;
    for (int64_t k = 0; k < s.groups; ++k)
      mean[k] = double(means[i * s.groups + k]), rstd[k] = double(rstds[i * s.groups + k]);
    fold_norm(r.c, s.groups, mean, rstd, gain, bias, scale, shift, centre, a, b);
    repeat_channels(r, centre, a, b);

    __builtin_memset(m.total, 0, size_t(2 * w) * sizeof(double));
    in_chunks(c, r, m.slots, kSlot * w, shared, [&](int64_t t, double* slot) {
      const int64_t at = r.begin(t) * w;
      rows_sums<T, kSilu>(x + at, g + at, du ? du + at : nullptr, r.size(t), w, centre, a, b, slot);
    }, [&](int64_t, const double* slot) {
      for (int64_t j = 0; j < 2 * w; ++j) m.total[j] += slot[j];
    });
    if (r.tail) {
      const int64_t at = r.rows * w;
      rows_sums<T, kSilu>(x + at, g + at, du ? du + at : nullptr, 1, r.tail, centre, a, b, m.slots);
      for (int64_t j = 0; j < r.tail; ++j) s0[j] += m.slots[j], s1[j] += m.slots[r.tail + j];
    }
    for (int64_t j = r.c; j < w; ++j) s0[j % r.c] += s0[j], s1[j % r.c] += s1[j];

    for (int64_t k = 0; k < s.groups; ++k) {
      double t = 0, tz = 0;                    // sums of t and t * z over the group
      for (int64_t j = k * each, end = j + each; j < end; ++j) {
        const double one_scale = scale ? 1.0 + double(scale[j]) : 1.0, sum = s0[j], sum_z = s1[j] * rstd[k];
        t += double(gain[j]) * one_scale * sum;
        tz += double(gain[j]) * one_scale * sum_z;
        if (dgain) dgain[j] += one_scale * sum_z, dbias[j] += one_scale * sum;
        if (d.scale) d.scale[i * r.c + j] = T(double(gain[j]) * sum_z + double(bias[j]) * sum);
        if (d.shift) d.shift[i * r.c + j] = T(sum);
      }
      const double n = double(r.positions) * double(each);
      for (int64_t j = k * each, end = j + each; j < end; ++j) {
        p[j] = a[j];
        q[j] = T(-rstd[k] * rstd[k] * (tz / n));
        o[j] = T(-rstd[k] * (t / n));
      }
    }
    if (!dx) return;
    repeat_channels(r, p, q, o);
    const T* from = kSilu ? dx : g;            // du
    auto apply = [&](int64_t at, int64_t rows, int64_t width) {
      for (int64_t k = 0; k < rows; ++k, at += width)
        row_map<T>(width, [&](int64_t j, int64_t l) {
          const vec<T> z = load_n(x + at + j, l) - load_n(centre + j, l);
          const vec<T> rest = fma(z, load_n(q + j, l), load_n(o + j, l));
          store_n(dx + at + j, fma(load_n(from + at + j, l), load_n(p + j, l), rest), l);
        });
    };
    if (shared) parallel(c, r.chunks, [&](int64_t t, int) { apply(r.begin(t) * w, r.size(t), w); });
    else apply(0, r.rows, w);
    if (r.tail) apply(r.rows * w, 1, r.tail);
  };
  const bool wanted = d.gain || d.bias;
  auto block = [&](int64_t k, int worker) {
    double *dgain = wanted ? parameters + k * 2 * r.c : nullptr, *dbias = wanted ? dgain + r.c : nullptr;
    if (wanted) __builtin_memset(dgain, 0, size_t(2 * r.c) * sizeof(double));
    for (int64_t i = k * step; i < (k + 1) * step && i < s.n; ++i) sample(i, worker, dgain, dbias);
  };
  if (shared)
    for (int64_t k = 0; k < blocks; ++k) block(k, 0);
  else parallel(c, blocks, block);
  for (int64_t j = 0; wanted && j < r.c; ++j) {
    double total[2] = {};
    for (int64_t k = 0; k < blocks; ++k)
      for (int v = 0; v < 2; ++v) total[v] += parameters[(2 * k + v) * r.c + j];
    if (d.gain) d.gain[j] = T(total[0]);
    if (d.bias) d.bias[j] = T(total[1]);
  }
}

}  // namespace
