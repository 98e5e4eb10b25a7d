// Statistics of groups of channels, and what follows from them: the engine of group_norm and batch_norm (which is one
// sample whose groups are single channels), to be called from fused kernels too.
//
// How to use it:
//   const ChannelRows r = channel_rows<T>(positions, c);
//   sample_moments(call, x, r, total, slots, together);          // per lane: mean and sum of squared deviations
//   group_moments(x, r, total, groups, eps, mean, rstd);         // float64, per group
//   fold_norm(c, groups, mean, rstd, gain, bias, scale, shift, centre, a, b);
//   y = act((x - centre) * a + b), or act(x * a + b) if centre is null
// A sample is (positions, c), row-major. Few channels are too short for vectors, so `fold` positions are one row of
// `width` lanes; lane j belongs to channel j % c, and positions that fill no row are the tail.
//
// Nothing cancels: 32 rows at a time are summed as differences from the mean of the first 8 of them, so that the squares
// exceed the block's share of the variance a few times at most, however far from zero the data lie. Such blocks are
// merged in float64 (Chan, Golub, LeVeque 1983). Blocks and chunks depend on the shape of one sample only.
#pragma once
#include "norm_fold.h"
#include "parallel.h"
#include "row_sums.h"

namespace {

constexpr int64_t kMomentRows = 32;        // rows summed in T before they are merged in float64
constexpr int64_t kHeadRows = 8;           // of which the first are averaged to subtract something close to the mean
constexpr int64_t kChunk = 16384;          // elements of a chunk, the unit of parallel work inside a sample, ...
constexpr int64_t kChunks = 64;            // ... of which there are at most this many

struct ChannelRows {
  int64_t positions, c, fold, width;
  int64_t rows, tail;                      // whole rows, and elements after them (less than width)
  int64_t chunk, chunks;                   // rows per chunk

  int64_t begin(int64_t t) const { return t * chunk; }
  int64_t size(int64_t t) const { return rows - t * chunk < chunk ? rows - t * chunk : chunk; }
};

template <class T> inline ChannelRows channel_rows(int64_t positions, int64_t c) {
  constexpr int64_t L = kLanes<T>;
  ChannelRows r{positions, c, 1, c, positions, 0, kMomentRows, 0};
  if (c > 0 && c < 4 * L) {
    int64_t step = 1;
    while (step * c % L) ++step;           // whole vectors
    for (r.fold = step; r.fold * c < 4 * L;) r.fold += step;
    r.width = c * r.fold, r.rows = positions / r.fold, r.tail = positions % r.fold * c;
  }
  const int64_t enough = ceil_div(kChunk, r.width > 0 ? r.width : 1), few = ceil_div(r.rows, kChunks);
  r.chunk = ceil_div(enough > few ? enough : few, kMomentRows) * kMomentRows;
  r.chunks = ceil_div(r.rows, r.chunk);
  return r;
}

// Merge moments of nb rows into those of na rows.
template <class M> inline void merge_moments(double* mean, double* m2, int64_t n, int64_t na, int64_t nb, M of_b) {
  const double share = double(nb) / double(na + nb), cross = double(na) * share;
  for (int64_t j = 0; j < n; ++j) {
    double mean_b, m2_b;
    of_b(j, mean_b, m2_b);
    const double delta = mean_b - mean[j];
    mean[j] += delta * share;
    m2[j] += m2_b + delta * delta * cross;
  }
}

// R rows of x: their differences from near[], summed into s1[] and their squares into s2[].
template <class T, int R>
inline void add_rows(const T* x, int64_t width, const T* near, T* s1, T* s2) {
  row_map<T>(width, [&](int64_t j, int64_t n) {
    const vec<T> m = load_n(near + j, n);
    vec<T> a = load_n(s1 + j, n), b = load_n(s2 + j, n);
    for (int r = 0; r < R; ++r) {
      const vec<T> d = load_n(x + r * width + j, n) - m;
      a += d;
      b = fma(d, d, b);
    }
    store_n(s1 + j, a, n);
    store_n(s2 + j, b, n);
  });
}

// Moments of `rows` rows, read in order (columns of rows a power of two apart would fall into few sets of L1). state is
// mean[width], then m2[width], then room for 3 * width of T.
template <class T> inline void rows_moments(const T* x, int64_t rows, int64_t width, double* state) {
  double *mean = state, *m2 = state + width;
  T *near = reinterpret_cast<T*>(m2 + width), *s1 = near + width, *s2 = s1 + width;
  __builtin_memset(state, 0, size_t(2 * width) * sizeof(double));
  for (int64_t r0 = 0; r0 < rows; r0 += kMomentRows) {
    const int64_t n = rows - r0 < kMomentRows ? rows - r0 : kMomentRows, head = n < kHeadRows ? n : kHeadRows;
    const T* p = x + r0 * width;
    const T share = T(1) / T(head);
    row_map<T>(width, [&](int64_t j, int64_t l) {
      vec<T> sum{};
      for (int64_t r = 0; r < head; ++r) sum += load_n(p + r * width + j, l);
      store_n(near + j, sum * share, l);
    });
    __builtin_memset(s1, 0, size_t(2 * width) * sizeof(T));
    int64_t r = 0;
    for (; r + 4 <= n; r += 4) add_rows<T, 4>(p + r * width, width, near, s1, s2);
    for (; r < n; ++r) add_rows<T, 1>(p + r * width, width, near, s1, s2);
    const double inverse = 1.0 / double(n);
    merge_moments(mean, m2, width, r0, n, [&](int64_t j, double& mean_b, double& m2_b) {
      const double s = double(s1[j]), m = s * inverse;
      mean_b = double(near[j]) + m;
      m2_b = double(s2[j]) - s * m;
    });
  }
}

// Chunks of a sample, each into a slot of `each` doubles, merged in order: one after the other, or by all workers
// (`together`; then there are r.chunks slots). Both give the same bits.
template <class F, class M>
inline void in_chunks(const Call& c, const ChannelRows& r, double* slots, int64_t each, bool together, F f, M merge) {
  if (together && r.chunks > 1) {
    parallel(c, r.chunks, [&](int64_t t, int) { f(t, slots + t * each); });
    for (int64_t t = 0; t < r.chunks; ++t) merge(t, slots + t * each);
  } else {
    for (int64_t t = 0; t < r.chunks; ++t) {
      f(t, slots);
      merge(t, slots);
    }
  }
}

constexpr int64_t kSlot = 5;                // doubles per lane in a slot of sample_moments

// Moments of all whole rows of a sample: total is mean[width], m2[width]. slots: kSlot * width doubles, as many times
// as in_chunks says.
template <class T>
inline void sample_moments(const Call& c, const T* x, const ChannelRows& r, double* total, double* slots, bool together) {
  const int64_t w = r.width;
  __builtin_memset(total, 0, size_t(2 * w) * sizeof(double));
  in_chunks(c, r, slots, kSlot * w, together, [&](int64_t t, double* slot) {
    rows_moments(x + r.begin(t) * w, r.size(t), w, slot);
  }, [&](int64_t t, const double* slot) {
    merge_moments(total, total + w, w, r.begin(t), r.size(t), [&](int64_t j, double& mean_b, double& m2_b) {
      mean_b = slot[j], m2_b = slot[w + j];
    });
  });
}

// Mean and 1 / sqrt(variance + eps) of every group of c / groups channels, the tail of the sample included.
template <class T>
inline void group_moments(const T* x, const ChannelRows& r, const double* total, int64_t groups, double eps,
                          double* mean, double* rstd) {
  const int64_t w = r.width, each = r.c / groups, lanes = r.fold * each;
  const int64_t tail = r.tail / (r.c > 0 ? r.c : 1);         // positions
  const T* rest = x + r.rows * w;
  for (int64_t g = 0; g < groups; ++g) {
    double m = 0, m2 = 0, n = double(r.rows) * double(lanes);
    if (r.rows > 0) {
      for (int64_t k = 0; k < r.fold; ++k)
        for (int64_t j = k * r.c + g * each, end = j + each; j < end; ++j) m += total[j];
      m /= double(lanes);
      double between = 0;
      for (int64_t k = 0; k < r.fold; ++k)
        for (int64_t j = k * r.c + g * each, end = j + each; j < end; ++j) {
          m2 += total[w + j];
          between += (total[j] - m) * (total[j] - m);
        }
      m2 += double(r.rows) * between;
    }
    if (tail > 0) {
      double mt = 0, m2t = 0;
      const double nt = double(tail * each);
      for (int64_t k = 0; k < tail; ++k)
        for (int64_t j = k * r.c + g * each, end = j + each; j < end; ++j) mt += double(rest[j]);
      mt /= nt;
      for (int64_t k = 0; k < tail; ++k)
        for (int64_t j = k * r.c + g * each, end = j + each; j < end; ++j)
          m2t += (double(rest[j]) - mt) * (double(rest[j]) - mt);
      const double delta = mt - m, share = nt / (n + nt);
      m2 += m2t + delta * delta * (n * share);
      m += delta * share;
      n += nt;
    }
    mean[g] = n > 0 ? m : __builtin_nan("");
    rstd[g] = 1.0 / __builtin_sqrt(m2 / n + eps);
  }
}

// ((x - mean) * rstd * gain + bias) * (1 + scale) + shift as (x - centre) * a + b (norm_fold.h), or as x * a + b without
// centre (null). scale and shift may be null. All arrays of T have c elements.
template <class T>
inline void fold_norm(int64_t c, int64_t groups, const double* mean, const double* rstd, const T* gain, const T* bias,
                      const T* scale, const T* shift, T* centre, T* a, T* b) {
  const int64_t each = c / groups;
  for (int64_t g = 0; g < groups; ++g) {
    const T m = centre ? T(mean[g]) : T(0);
    for (int64_t j = g * each, end = j + each; j < end; ++j) {
      fold_channel(mean[g], rstd[g], double(gain[j]), double(bias[j]), scale ? 1.0 + double(scale[j]) : 1.0,
                   shift ? double(shift[j]) : 0.0, m, a[j], b[j]);
      if (centre) centre[j] = m;
    }
  }
}

// The first c elements of each array repeated over the lanes of a row.
template <class T> inline void repeat_channels(const ChannelRows& r, T* p, T* q, T* o) {
  for (int64_t j = r.c; j < r.width; ++j) p[j] = p[j - r.c], q[j] = q[j - r.c], o[j] = o[j - r.c];
}

}  // namespace
