// Layer normalisation and its form without a mean; see csrc/cpu/norm.cpp. A row stays in the registers of the lanes that
// share it; the parameters' gradients are column sums (columns.h).
#include "columns.h"

namespace {

// kMean: layer_norm, else rms_norm. means, rstds and, for rms_norm, bias may be null.
template <class T, int V, bool kBlock, bool kMean>
__global__ void __launch_bounds__(V == 0 ? 512 : 256, 2)
norm_rows(const T* x, const T* gain, const T* bias, T* y, T* means, T* rstds, int64_t rows, int64_t d, T eps, int share, bool wide) {
  __shared__ T shared[kWarp];
  const RowPlace<V, kBlock> own(share);
  const int64_t i = own.row, n = i < rows ? d : 0;
  RowPacks<T, V> a(x + i * d, n, own.lane, own.lanes, wide);
  T mean = T(0), square = T(0);
  if constexpr (kMean) {
    a.each([&](PackOf<T>& v, auto, auto count) { each_lane<T>(count, [&](int k) { mean += v.v[k]; }); });
    mean = row_reduce<kBlock>(mean, Sum{}, T(0), own.lanes, shared) / T(d);
  }
  a.each([&](PackOf<T>& v, auto, auto count) {
    each_lane<T>(count, [&](int k) {
      const T z = v.v[k] - mean;
      square += z * z;
    });
  });
  square = row_reduce<kBlock>(square, Sum{}, T(0), own.lanes, shared) / T(d);
  const T rstd = T(1) / sqrt(square + eps);
  a.each([&](PackOf<T>& v, auto j, auto count) {
    const PackOf<T> w = load_pack(gain + j, count, wide);
    PackOf<T> b{}, r;
    if constexpr (kMean) b = load_pack(bias + j, count, wide);
    GENERANT_UNROLL
    for (int k = 0; k < kPack<T>; ++k) r.v[k] = (v.v[k] - mean) * rstd * w.v[k] + b.v[k];
    store_pack(y + i * d + j, r, count, wide);
  });
  if (i < rows && own.lane == 0) {
    if (means) means[i] = mean;
    if (rstds) rstds[i] = rstd;
  }
}

template <class T, int V, bool kBlock, bool kMean>
__global__ void __launch_bounds__(V == 0 ? 512 : 256, 2)
norm_rows_bwd(const T* g, const T* x, const T* gain, const T* means, const T* rstds, T* dx, int64_t rows, int64_t d, int share, bool wide) {
  __shared__ T shared[kWarp];
  const RowPlace<V, kBlock> own(share);
  const int64_t i = own.row, n = i < rows ? d : 0;
  const T mean = kMean && n > 0 ? means[i] : T(0), rstd = n > 0 ? rstds[i] : T(0);
  RowPacks<T, V> a(x + i * d, n, own.lane, own.lanes, wide), b(g + i * d, n, own.lane, own.lanes, wide);
  T mean_u = T(0), mean_uz = T(0);                   // u = g gain
  each_pair(a, b, [&](PackOf<T>& v, PackOf<T>& u, auto j, auto count) {
    const PackOf<T> w = load_pack(gain + j, count, wide);
    GENERANT_UNROLL
    for (int k = 0; k < kPack<T>; ++k) {
      v.v[k] = (v.v[k] - mean) * rstd;
      u.v[k] *= w.v[k];                              // 0 where there is no row
      mean_u += u.v[k];
      mean_uz += u.v[k] * v.v[k];
    }
  });
  mean_u = kMean ? row_reduce<kBlock>(mean_u, Sum{}, T(0), own.lanes, shared) / T(d) : T(0);
  mean_uz = row_reduce<kBlock>(mean_uz, Sum{}, T(0), own.lanes, shared) / T(d);
  each_pair(a, b, [&](PackOf<T>& v, PackOf<T>& u, auto j, auto count) {
    PackOf<T> r;
    if constexpr (V == 0) {
      const PackOf<T> w = load_pack(gain + j, count, wide);
      GENERANT_UNROLL
      for (int k = 0; k < kPack<T>; ++k) v.v[k] = (v.v[k] - mean) * rstd, u.v[k] *= w.v[k];
    }
    GENERANT_UNROLL
    for (int k = 0; k < kPack<T>; ++k) r.v[k] = rstd * ((u.v[k] - mean_u) - v.v[k] * mean_uz);
    store_pack(dx + i * d + j, r, count, wide);
  });
}

// Column sums of g z and of g.
template <class T> struct ParameterSums {
  const T *means, *rstds;                            // means may be null
  struct Column {};
  __device__ Column column(const ColumnPlace<T>&, int) const { return {}; }
  __device__ void add(Column, const PackOf<T>& x, const PackOf<T>& g, int64_t row, T* s0, T* s1) const {
    const T mean = means ? means[row] : T(0), rstd = rstds[row];
    GENERANT_UNROLL
    for (int k = 0; k < kPack<T>; ++k) {
      s0[k] += g.v[k] * ((x.v[k] - mean) * rstd);
      s1[k] += g.v[k];
    }
  }
};

template <class T> int64_t parameter_bytes(const Call& c) {
  return column_grid<T>(rows(c.in[1]), last(c.in[1])).partials(1) * int64_t(sizeof(double));
}

template <bool kMean, class T> inline void forward(const Call& c, const T* bias, T* means, T* rstds) {
  const int64_t d = last(c.in[0]), n = rows(c.in[0]);
  const T *x = in<T>(c, 0), *gain = in<T>(c, 1);
  const bool wide = wide_rows<T>(d, x, gain, bias, out<T>(c));
  for_rows<T>(n, d, [&](auto v, auto block, int threads, int lanes, dim3 grid) {
    launch(c, norm_rows<T, decltype(v)::value, decltype(block)::value != 0, kMean>, grid, threads, 0, x, gain, bias, out<T>(c), means,
           rstds, n, d, T(c.attr[0]), lanes, wide);
  });
}

template <bool kMean, class T> inline void backward(const Call& c, const T* means, const T* rstds, T* dgain, T* dbias) {
  const int64_t d = last(c.in[1]), n = rows(c.in[1]);
  const T *g = in<T>(c, 0), *x = in<T>(c, 1), *gain = in<T>(c, 2);
  T* dx = out<T>(c, 0);
  const bool wide = wide_rows<T>(d, x, g, gain, dx);
  if (dx && d > 0)
    for_rows<T>(n, d, [&](auto v, auto block, int threads, int lanes, dim3 grid) {
      launch(c, norm_rows_bwd<T, decltype(v)::value, decltype(block)::value != 0, kMean>, grid, threads, 0, g, x, gain, means, rstds, dx, n,
             d, lanes, wide);
    });
  if (!dgain && !dbias) return;
  const ColumnGrid s = column_grid<T>(n, d);
  double* partial = static_cast<double*>(c.scratch);
  launch(c, column_sums<T, ParameterSums<T>>, grid_of(s.blocks(1)), kColumnThreads, 0, x, g,
         ParameterSums<T>{means, rstds}, s, partial, wide);
  launch(c, sum_lines<T>, grid_of(ceil_div(d, kWarp)), 1024, 0, partial, s.chunks, d, dgain, dbias);
}

}  // namespace

KERNEL(layer_norm) { forward<true>(c, in<T>(c, 2), out<T>(c, 1), out<T>(c, 2)); }
KERNEL_SCRATCH(layer_norm_bwd, parameter_bytes) { backward<true>(c, in<T>(c, 4), in<T>(c, 5), out<T>(c, 1), out<T>(c, 2)); }
KERNEL(rms_norm) { forward<false, T>(c, nullptr, nullptr, out<T>(c, 1)); }
KERNEL_SCRATCH(rms_norm_bwd, parameter_bytes) { backward<false, T>(c, nullptr, in<T>(c, 3), out<T>(c, 1), nullptr); }
