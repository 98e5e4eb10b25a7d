// Statistics of groups of channels and what follows from them, for maps that do not fit into a block (slab.h): one reading
// pass for the statistics, one reading and writing pass for the output. batch_norm is one sample whose groups are single
// channels.
//
//   group_moments(c, x, n, s, groups, eps, partial, mean, rstd, means, rstds)   // float64, per (sample, group)
//   y = act((x - centre) * a + b), where NormAffine::fold works centre, a and b out for a pack of channels
//
// Nothing cancels: a run of rows is summed as differences from the mean of its first rows, runs and chunks are merged in
// float64 as deviations from the first of them. The second pass goes through the blocks from last to first, and so finds
// the end of x in the second-level cache.
#pragma once
#include "activation_math.h"
#include "columns.h"

#include "../norm_fold.h"

namespace {

// Moments of parts of known size, merged: sums of the deviations of their means from the first mean.
struct Moments {
  double near = 0, d1 = 0, d2 = 0, n = 0;
  // m2: squared deviations from the part's own mean.
  __device__ void add(double mean, double m2, double count) {
    if (n == 0) near = mean;
    const double e = mean - near;
    d1 += count * e, d2 += m2 + count * e * e, n += count;
  }
  __device__ double mean() const { return n > 0 ? near + d1 / n : 0; }
  __device__ double squares() const {
    const double m2 = n > 0 ? d2 - d1 * (d1 / n) : 0;
    return m2 < 0 ? 0 : m2;
  }
};

// Chan, Golub, LeVeque (1983): part b into part a.
__device__ inline void merge_moments(double& na, double& mean, double& m2, double nb, double mean_b, double m2_b) {
  if (nb == 0) return;
  const double n = na + nb, share = nb / n, delta = mean_b - mean;
  mean += delta * share;
  m2 += m2_b + delta * delta * (na * share);
  na = n;
}

// Mean and squared deviations of every channel over a chunk of rows: partial (sample, chunk, 2, c).
template <class T>
__global__ void __launch_bounds__(kColumnThreads, 2) column_moments(const T* x, ColumnGrid s, double* partial, bool wide) {
  constexpr int N = kPack<T>, kAhead = 8;
  __shared__ double means[N][kColumnThreads], squares[N][kColumnThreads];
  __shared__ int counts[kColumnThreads];
  const ColumnPlace<T> at(s, blockIdx.x);
  T base[N] = {};                                    // the first run's `near`: all sums are of deviations from it
  double d1[N] = {}, d2[N] = {};
  int n = 0;
  const T* from = x + (at.sample * s.rows + at.begin) * s.c + at.column;
  const int64_t step = int64_t(s.slices) * s.c;
  for (int left = at.n > 0 && at.begin < at.end ? int((at.end - at.begin + s.slices - 1) / s.slices) : 0; left > 0;) {
    T near[N], s1[N] = {}, s2[N] = {};
    int held = 0;
    for (; held < kColumnRun && left > 0; from += kAhead * step) {
      PackOf<T> a[kAhead];
      GENERANT_UNROLL
      for (int k = 0; k < kAhead; ++k) a[k] = load_pack(from + k * step, k < left ? at.n : 0, wide);
      const int count = left < kAhead ? left : kAhead;
      if (held == 0) {
        GENERANT_UNROLL
        for (int l = 0; l < N; ++l) {
          T sum = T(0);
          GENERANT_UNROLL
          for (int k = 0; k < kAhead; ++k) sum += a[k].v[l];
          near[l] = sum / T(count);
        }
      }
      GENERANT_UNROLL
      for (int k = 0; k < kAhead; ++k)
        if (k < count) {
          GENERANT_UNROLL
          for (int l = 0; l < N; ++l) {
            const T d = a[k].v[l] - near[l];
            s1[l] += d;
            s2[l] += d * d;
          }
        }
      held += count, left -= count;
    }
    GENERANT_UNROLL
    for (int l = 0; l < N; ++l) {
      if (n == 0) base[l] = near[l];
      const double e = double(near[l]) - double(base[l]), sum = double(s1[l]);
      d1[l] += sum + held * e, d2[l] += double(s2[l]) + e * (2 * sum + held * e);
    }
    n += held;
  }
  double mean[N], m2[N];
  GENERANT_UNROLL
  for (int l = 0; l < N; ++l) {
    const double shift = n > 0 ? d1[l] / n : 0;
    mean[l] = double(base[l]) + shift, m2[l] = d2[l] - d1[l] * shift;
    if (m2[l] < 0) m2[l] = 0;
    means[l][threadIdx.x] = mean[l], squares[l][threadIdx.x] = m2[l];
  }
  counts[threadIdx.x] = n;
  halve_slices(at.slice, s.slices, [&](int slice) {
    const int other = slice * s.lanes + at.lane;
    const int more = counts[other];
    GENERANT_UNROLL
    for (int l = 0; l < N; ++l) {
      double count = n;
      merge_moments(count, mean[l], m2[l], more, means[l][other], squares[l][other]);
      means[l][threadIdx.x] = mean[l], squares[l][threadIdx.x] = m2[l];
    }
    counts[threadIdx.x] = n += more;
  });
  if (at.slice != 0) return;
  double* to = partial + (at.sample * s.chunks + at.chunk) * 2 * s.c + at.column;
  each_lane<T>(at.n, [&](int l) { to[l] = mean[l], to[s.c + l] = m2[l]; });
}

constexpr int kGroupThreads = 256;

// Mean and 1 / sqrt(variance + eps) of every (sample, group), one block each, from the moments of its channels and chunks.
template <class T>
__global__ void __launch_bounds__(kGroupThreads, 4)
merge_groups(const double* partial, ColumnGrid s, int64_t groups, double eps, double* mean, double* rstd, T* means, T* rstds) {
  __shared__ double parts[3][kGroupThreads / kWarp];
  const int64_t i = blockIdx.x / groups, each = s.c / groups, first = blockIdx.x % groups * each;
  Moments own;
  for (int64_t e = threadIdx.x; e < s.chunks * each; e += kGroupThreads) {
    const int64_t chunk = e / each, left = s.rows - chunk * s.chunk;
    const double* p = partial + (i * s.chunks + chunk) * 2 * s.c + first + e % each;
    own.add(p[0], p[s.c], double(left < s.chunk ? left : s.chunk));
  }
  double n = own.n, m = own.mean(), m2 = own.squares();
  for (int mask = kWarp / 2; mask > 0; mask /= 2) {
    const double nb = warp_xor(n, mask), mb = warp_xor(m, mask), m2b = warp_xor(m2, mask);
    merge_moments(n, m, m2, nb, mb, m2b);
  }
  const int warp = threadIdx.x / kWarp;
  if (threadIdx.x % kWarp == 0) parts[0][warp] = n, parts[1][warp] = m, parts[2][warp] = m2;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int k = 1; k < kGroupThreads / kWarp; ++k) merge_moments(n, m, m2, parts[0][k], parts[1][k], parts[2][k]);
  if (n == 0) m = nan("");
  const double r = 1.0 / sqrt(m2 / n + eps);
  mean[blockIdx.x] = m, rstd[blockIdx.x] = r;
  if (means) means[blockIdx.x] = T(m);
  if (rstds) rstds[blockIdx.x] = T(r);
}

// partial: s.partials(n) doubles; mean, rstd: n * groups; means, rstds (T) may be null.
template <class T>
inline void group_moments(const Call& c, const T* x, int64_t n, const ColumnGrid& s, int64_t groups, double eps, double* partial,
                          double* mean, double* rstd, T* means, T* rstds) {
  launch(c, column_moments<T>, grid_of(s.blocks(n)), kColumnThreads, 0, x, s, partial, wide_rows<T>(s.c, x));
  launch(c, merge_groups<T>, grid_of(n * groups), kGroupThreads, 0, partial, s, groups, eps, mean, rstd, means, rstds);
}

// ---- the output -----------------------------------------------------------------------------------------------------

template <class T> struct Folded { PackOf<T> centre, a, b; };   // of a pack of channels

// Where the statistics of (sample, group) come from, and the parameters. scale and shift (n, c) may be null.
template <class T> struct NormAffine {
  const T *gain, *bias, *scale, *shift;
  int64_t c;
  int each;                                          // channels per group
  double eps;
  const T *means, *rstds;                            // of (sample, group), in T; if rstds is null there is
  const T* vars;                                     // the variance, to which eps is added;
  const double *mean, *rstd;                         // or all of it in double

  __device__ int64_t group(int64_t sample, int64_t channel) const { return sample * (c / each) + uint32_t(channel) / uint32_t(each); }
  __device__ double mean_of(int64_t g) const { return mean ? mean[g] : double(means[g]); }
  __device__ double rstd_of(int64_t g) const { return rstd ? rstd[g] : rstds ? double(rstds[g]) : 1.0 / sqrt(double(vars[g]) + eps); }
  __device__ double one_scale(int64_t sample, int64_t channel) const { return scale ? 1.0 + double(scale[sample * c + channel]) : 1.0; }

  // Channel j: centre, a and b.
  __device__ void fold(int64_t sample, int64_t j, double m, double r, T& centre, T& a, T& b) const {
    centre = T(m);
    fold_channel(m, r, double(gain[j]), double(bias[j]), one_scale(sample, j), shift ? double(shift[sample * c + j]) : 0.0, centre, a, b);
  }
  // The same of all channels of a block, by one thread each, handed to those that want them: channels first ... first +
  // lanes packs, of which this thread has pack `lane`. Every thread of the block has to call it.
  __device__ Folded<T> fold_tile(int64_t sample, int64_t first, int lane, int lanes) const {
    constexpr int N = kPack<T>;
    __shared__ PackOf<T> tile[3][kWarp];
    for (int e = threadIdx.x; e < lanes * N; e += blockDim.x) {
      T f[3] = {};
      const int64_t g = group(sample, first + e);
      if (first + e < c) fold(sample, first + e, mean_of(g), rstd_of(g), f[0], f[1], f[2]);
      for (int k = 0; k < 3; ++k) tile[k][e / N].v[e % N] = f[k];
    }
    __syncthreads();
    return {tile[0][lane], tile[1][lane], tile[2][lane]};
  }
};

template <class T, bool kSilu> __device__ inline PackOf<T> normalised(const PackOf<T>& x, const Folded<T>& f) {
  PackOf<T> y;
  GENERANT_UNROLL
  for (int k = 0; k < kPack<T>; ++k) {
    const T u = (x.v[k] - f.centre.v[k]) * f.a.v[k] + f.b.v[k];
    if constexpr (kSilu) y.v[k] = Silu::f<T>(u);
    else y.v[k] = u;
  }
  return y;
}

// A grid of passes that write each element once, with `ahead` rows to a thread.
template <class T> inline ColumnGrid apply_grid(const ColumnGrid& s, int ahead) {
  ColumnGrid a = s;
  a.chunk = int64_t(a.slices) * ahead, a.chunks = ceil_div(a.rows, a.chunk);
  return a;
}

constexpr int kApplyRows = 8;

template <class T, bool kSilu>
__global__ void __launch_bounds__(kColumnThreads, 2) norm_apply(const T* x, T* y, NormAffine<T> affine, ColumnGrid s, bool wide) {
  const ColumnPlace<T> at(s, int64_t(gridDim.x) - 1 - blockIdx.x);
  const int64_t first = (at.sample * s.rows + at.begin) * s.c + at.column, step = int64_t(s.slices) * s.c;
  PackOf<T> a[kApplyRows];
  GENERANT_UNROLL
  for (int k = 0; k < kApplyRows; ++k) a[k] = load_pack(x + first + k * step, at.begin + k * s.slices < at.end ? at.n : 0, wide);
  const Folded<T> f = affine.fold_tile(at.sample, at.column - at.lane * kPack<T>, at.lane, s.lanes);
  GENERANT_UNROLL
  for (int k = 0; k < kApplyRows; ++k)
    store_pack(y + first + k * step, normalised<T, kSilu>(a[k], f), at.begin + k * s.slices < at.end ? at.n : 0, wide);
}

template <class T, bool kSilu>
inline void apply_norm(const Call& c, const T* x, T* y, int64_t n, const ColumnGrid& s, const NormAffine<T>& affine) {
  const ColumnGrid a = apply_grid<T>(s, kApplyRows);
  launch(c, norm_apply<T, kSilu>, grid_of(a.blocks(n)), kColumnThreads, 0, x, y, affine, a,
         wide_rows<T>(s.c, x, y));
}

}  // namespace
