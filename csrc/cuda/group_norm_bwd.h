// Backward of a normalisation of groups of channels, for maps that do not fit into a block (slab.h).
//
// With z = (x - mean) * rstd, A = gain * (1 + scale), du = g * act'(z * A + ...), t = du * A:
// dx = rstd * (t - mean(t) - z * mean(t * z)), means over a group. One pass over x and g sums du and du * (x - centre) down
// every channel; the sums of groups and all gradients of parameters follow from these; a second pass writes dx.
#pragma once
#include "group_norm.h"

namespace {

template <class T, bool kSilu> __device__ inline T slope(T g, T z, T a, T b) {   // du
  if constexpr (kSilu) return g * Silu::d<T>(z * a + b);
  else return g;
}

template <class T, bool kSilu> struct GroupSums {
  NormAffine<T> affine;
  using Column = Folded<T>;
  __device__ Column column(const ColumnPlace<T>& at, int lanes) const {
    return affine.fold_tile(at.sample, at.column - at.lane * kPack<T>, at.lane, lanes);
  }
  __device__ void add(const Column& f, const PackOf<T>& x, const PackOf<T>& g, int64_t, T* s0, T* s1) const {
    GENERANT_UNROLL
    for (int k = 0; k < kPack<T>; ++k) {
      const T z = x.v[k] - f.centre.v[k], du = slope<T, kSilu>(g.v[k], z, f.a.v[k], f.b.v[k]);
      s0[k] += du;
      s1[k] += du * z;
    }
  }
};

template <class T> struct ChannelGradients {
  T *scale, *shift;                                  // (n, c), null where not wanted
  double* parameters;                                // (n, 2, c): what each sample adds to dgain and dbias; or null
  // Channel j of sample i, given the sums of du * z and of du. Returns what the channel adds to the sums of t and t * z.
  __device__ void write(const NormAffine<T>& f, int64_t i, int64_t j, double sum, double sum_z, double& t, double& tz) const {
    const double s = f.one_scale(i, j), gain = double(f.gain[j]);
    t += gain * s * sum, tz += gain * s * sum_z;
    if (scale) scale[i * f.c + j] = T(gain * sum_z + double(f.bias[j]) * sum);
    if (shift) shift[i * f.c + j] = T(sum);
    if (parameters) parameters[2 * i * f.c + j] = s * sum_z, parameters[(2 * i + 1) * f.c + j] = s * sum;
  }
};

// dx = du * a + (x - centre) * q + o.
template <class T> struct Rest { T q, o; };
template <class T> __device__ inline Rest<T> rest_of(double rstd, double mean_t, double mean_tz) {
  return {T(-rstd * rstd * mean_tz), T(-rstd * mean_t)};
}

// One block per (sample, group): up to 32 channels side by side, chunks dealt out to the slices. rest: (n, groups).
template <class T>
__global__ void __launch_bounds__(kGroupThreads, 4)
group_gradients(const double* partial, NormAffine<T> affine, ColumnGrid s, int lanes, ChannelGradients<T> d, Rest<T>* rest) {
  __shared__ double sums[2][kGroupThreads], shared[kWarp];
  const int64_t groups = s.c / affine.each, i = blockIdx.x / groups, first = blockIdx.x % groups * affine.each;
  const int lane = threadIdx.x % lanes, slice = threadIdx.x / lanes, slices = kGroupThreads / lanes;
  const double rstd = affine.rstd_of(blockIdx.x);
  double t = 0, tz = 0;
  for (int64_t j0 = 0; j0 < affine.each; j0 += lanes) {
    const int64_t j = first + j0 + lane;
    double a = 0, b = 0;
    if (j0 + lane < affine.each)
      for (int64_t k = slice; k < s.chunks; k += slices) {
        const double* p = partial + (i * s.chunks + k) * 2 * s.c + j;
        a += p[0], b += p[s.c];
      }
    sums[0][threadIdx.x] = a, sums[1][threadIdx.x] = b;
    halve_slices(slice, slices, [&](int from) {
      sums[0][threadIdx.x] += sums[0][from * lanes + lane], sums[1][threadIdx.x] += sums[1][from * lanes + lane];
    });
    if (slice == 0 && j0 + lane < affine.each) d.write(affine, i, j, sums[0][lane], sums[1][lane] * rstd, t, tz);
    __syncthreads();
  }
  t = block_sum(t, shared), tz = block_sum(tz, shared);
  const double count = double(s.rows) * double(affine.each);
  if (threadIdx.x == 0) rest[blockIdx.x] = rest_of<T>(rstd, t / count, tz / count);
}

template <class T, bool kSilu>
__device__ inline PackOf<T> input_gradient(const PackOf<T>& x, const PackOf<T>& g, const Folded<T>& f, const Rest<T>* rest) {
  PackOf<T> d;
  GENERANT_UNROLL
  for (int k = 0; k < kPack<T>; ++k) {
    const T z = x.v[k] - f.centre.v[k];
    d.v[k] = slope<T, kSilu>(g.v[k], z, f.a.v[k], f.b.v[k]) * f.a.v[k] + (z * rest[k].q + rest[k].o);
  }
  return d;
}

constexpr int kGradientRows = 4, kGradientBatches = 2;

template <class T, bool kSilu>
__global__ void __launch_bounds__(kColumnThreads, 2)
norm_gradient(const T* x, const T* g, NormAffine<T> affine, const Rest<T>* rests, T* dx, ColumnGrid s, bool wide) {
  const ColumnPlace<T> at(s, int64_t(gridDim.x) - 1 - blockIdx.x);
  const Folded<T> f = affine.fold_tile(at.sample, at.column - at.lane * kPack<T>, at.lane, s.lanes);
  if (at.n <= 0) return;
  Rest<T> rest[kPack<T>] = {};
  each_lane<T>(at.n, [&](int k) { rest[k] = rests[affine.group(at.sample, at.column + k)]; });
  for (int64_t r = at.begin; r < at.end; r += kGradientRows * s.slices) {
    const int64_t offset = (at.sample * s.rows + r) * s.c + at.column, step = int64_t(s.slices) * s.c;
    PackOf<T> a[kGradientRows], b[kGradientRows];
    GENERANT_UNROLL
    for (int k = 0; k < kGradientRows; ++k) {
      const int64_t n = r + k * s.slices < at.end ? at.n : 0;
      a[k] = load_pack(x + offset + k * step, n, wide), b[k] = load_pack(g + offset + k * step, n, wide);
    }
    GENERANT_UNROLL
    for (int k = 0; k < kGradientRows; ++k)
      store_pack(dx + offset + k * step, input_gradient<T, kSilu>(a[k], b[k], f, rest), r + k * s.slices < at.end ? at.n : 0, wide);
  }
}

// Scratch of two_pass_backward in bytes: partial sums, what is added to every channel's dgain and dbias, Rest of every group.
inline int64_t backward_doubles(int64_t n, const ColumnGrid& s) { return s.partials(n) + 2 * n * s.c; }
template <class T> inline int64_t two_pass_bytes(int64_t n, const ColumnGrid& s, int64_t groups) {
  return backward_doubles(n, s) * int64_t(sizeof(double)) + n * groups * int64_t(sizeof(Rest<T>));
}

template <class T> struct NormGradients {
  T *x, *gain, *bias, *scale, *shift;                // null where not wanted
};

// dgain and dbias from what the samples add.
template <class T>
inline void parameter_gradients(const Call& c, const double* parameters, int64_t n, int64_t channels, const NormGradients<T>& d) {
  launch(c, sum_lines<T>, grid_of(ceil_div(channels, kWarp)), 1024, 0, parameters, n, channels, d.gain, d.bias);
}

template <class T, bool kSilu>
inline void two_pass_backward(const Call& c, const T* g, const T* x, int64_t n, const ColumnGrid& s, const NormAffine<T>& affine,
                              const NormGradients<T>& d) {
  const int64_t groups = s.c / affine.each;
  double *partial = static_cast<double*>(c.scratch), *parameters = partial + s.partials(n);
  Rest<T>* rest = reinterpret_cast<Rest<T>*>(partial + backward_doubles(n, s));
  const bool wide = wide_rows<T>(s.c, x, g, d.x), wanted = d.gain || d.bias;
  launch(c, column_sums<T, GroupSums<T, kSilu>>, grid_of(s.blocks(n)), kColumnThreads, 0, x, g,
         GroupSums<T, kSilu>{affine}, s, partial, wide);
  int lanes = 1;
  while (lanes < kWarp && lanes < affine.each) lanes *= 2;
  launch(c, group_gradients<T>, grid_of(n * groups), kGroupThreads, 0, partial, affine, s, lanes,
         ChannelGradients<T>{d.scale, d.shift, wanted ? parameters : nullptr}, rest);
  if (wanted) parameter_gradients(c, parameters, n, s.c, d);
  if (!d.x) return;
  const ColumnGrid a = apply_grid<T>(s, kGradientRows * kGradientBatches);
  launch(c, norm_gradient<T, kSilu>, grid_of(a.blocks(n)), kColumnThreads, 0, x, g, affine, rest, d.x, a, wide);
}

}  // namespace
