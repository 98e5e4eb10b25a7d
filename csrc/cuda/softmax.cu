// Softmax and log-softmax along one axis, and their gradients; see csrc/cpu/softmax.cpp.
//
// Along the last axis a row stays in the registers of the lanes that share it. Along another one, 32 columns lie in the
// lanes of a warp and the rows are dealt out to the warps of a block.
#include "packs.h"

namespace {

template <class T> constexpr T kLow = -T(__builtin_inff());

// `term` is what is summed (kKeep: kept for `result`), `prepare` makes of the sum what `result` wants. x, z: the inputs.
template <class T> struct Softmax {
  static constexpr bool kTop = true, kKeep = true;
  static __device__ T term(T x, T, T top) { return exp(x - top); }
  static __device__ T prepare(T sum, T) { return sum == T(0) ? T(0) : T(1) / sum; }
  static __device__ T result(T, T, T kept, T s) { return kept * s; }
};
template <class T> struct LogSoftmax {
  static constexpr bool kTop = true, kKeep = false;
  static __device__ T term(T x, T, T top) { return exp(x - top); }
  static __device__ T prepare(T sum, T top) { return sum == T(0) ? top : top + log(sum); }
  static __device__ T result(T x, T, T, T s) { return x - s; }
};
template <class T> struct SoftmaxBwd {
  static constexpr bool kTop = false, kKeep = false;
  static __device__ T term(T g, T y, T) { return g * y; }
  static __device__ T prepare(T sum, T) { return sum; }
  static __device__ T result(T g, T y, T, T s) { return y * (g - s); }
};
template <class T> struct LogSoftmaxBwd {
  static constexpr bool kTop = false, kKeep = false;
  static __device__ T term(T g, T, T) { return g; }
  static __device__ T prepare(T sum, T) { return sum; }
  static __device__ T result(T g, T y, T, T s) { return g - exp(y) * s; }
};

template <class T> __device__ inline T finite_top(T top) { return top == kLow<T> ? T(0) : top; }   // a row of -inf

template <class T, class F, int V, bool kBlock>
__global__ void __launch_bounds__(V == 0 ? 512 : 256, 2)
softmax_rows(const T* x, const T* z, T* y, int64_t rows, int64_t d, int share, bool wide) {
  __shared__ T shared[kWarp];
  const RowPlace<V, kBlock> own(share);
  const int64_t at = own.row * d, n = own.row < rows ? d : 0;
  const int lanes = own.lanes;
  RowPacks<T, V> a(x + at, n, own.lane, lanes, wide);
  T sum = T(0), s;
  if constexpr (F::kTop) {
    T top = kLow<T>;
    a.each([&](PackOf<T>& v, auto, auto count) { each_lane<T>(count, [&](int k) { top = Max{}(v.v[k], top); }); });
    top = finite_top(row_reduce<kBlock>(top, Max{}, kLow<T>, lanes, shared));
    a.each([&](PackOf<T>& v, auto, auto count) {
      each_lane<T>(count, [&](int k) {
        const T term = F::term(v.v[k], T(0), top);
        if constexpr (F::kKeep) v.v[k] = term;
        sum += term;
      });
    });
    s = F::prepare(row_reduce<kBlock>(sum, Sum{}, T(0), lanes, shared), top);
    a.each([&](PackOf<T>& v, auto j, auto count) {
      PackOf<T> r;
      GENERANT_UNROLL
      for (int k = 0; k < kPack<T>; ++k)
        r.v[k] = F::result(v.v[k], T(0), F::kKeep && V == 0 ? F::term(v.v[k], T(0), top) : v.v[k], s);
      store_pack(y + at + j, r, count, wide);
    });
  } else {
    RowPacks<T, V> b(z + at, n, own.lane, lanes, wide);
    each_pair(a, b, [&](PackOf<T>& g, PackOf<T>& v, auto, auto count) {
      each_lane<T>(count, [&](int k) { sum += F::term(g.v[k], v.v[k], T(0)); });
    });
    s = row_reduce<kBlock>(sum, Sum{}, T(0), lanes, shared);
    each_pair(a, b, [&](PackOf<T>& g, PackOf<T>& v, auto j, auto count) {
      PackOf<T> r;
      GENERANT_UNROLL
      for (int k = 0; k < kPack<T>; ++k) r.v[k] = F::result(g.v[k], v.v[k], T(0), s);
      store_pack(y + at + j, r, count, wide);
    });
  }
}

constexpr int kSlices = 8;                           // warps of a block, each with every 8th row of its columns

template <class T, class F> __global__ void softmax_columns(const T* x, const T* z, T* y, int64_t columns, int64_t n, int64_t inner) {
  __shared__ T tops[kSlices][kWarp], sums[kSlices][kWarp];
  const int lane = threadIdx.x % kWarp, slice = threadIdx.x / kWarp;
  const int64_t column = int64_t(blockIdx.x) * kWarp + lane, rows = column < columns ? n : 0;
  const int64_t first = column / inner * n * inner + column % inner;
  auto each = [&](auto f) {
    GENERANT_UNROLL
    for (int64_t i = slice; i < rows; i += kSlices) f(first + i * inner);
  };
  T top = T(0), sum = T(0);
  if constexpr (F::kTop) {
    top = kLow<T>;
    each([&](int64_t at) { top = Max{}(x[at], top); });
    tops[slice][lane] = top;
    __syncthreads();
    for (int k = 0; k < kSlices; ++k) top = Max{}(tops[k][lane], top);
    top = finite_top(top);
  }
  each([&](int64_t at) { sum += F::term(x[at], z ? z[at] : T(0), top); });
  sums[slice][lane] = sum;
  __syncthreads();
  sum = T(0);
  for (int k = 0; k < kSlices; ++k) sum += sums[k][lane];
  const T s = F::prepare(sum, top);
  each([&](int64_t at) {
    const T v = x[at], w = z ? z[at] : T(0);
    y[at] = F::result(v, w, F::kKeep ? F::term(v, w, top) : T(0), s);
  });
}

template <class F, class T> inline void along_axis(const Call& c, const T* x, const T* z) {
  const Array& a = c.in[0];
  T* y = out<T>(c);
  const int axis = int(c.attr[0]);
  int64_t outer = 1, n = a.shape[axis], inner = 1;
  for (int i = 0; i < axis; ++i) outer *= a.shape[i];
  for (int i = axis + 1; i < a.ndim; ++i) inner *= a.shape[i];
  if (outer * n * inner == 0) return;
  if (inner > 1)
    return launch(c, softmax_columns<T, F>, grid_of(ceil_div(outer * inner, kWarp)), kSlices * kWarp, 0, x, z, y, outer * inner, n, inner);
  const bool wide = wide_rows<T>(n, x, z, y);
  for_rows<T>(outer, n, [&](auto v, auto block, int threads, int lanes, dim3 grid) {
    launch(c, softmax_rows<T, F, decltype(v)::value, decltype(block)::value != 0>, grid, threads, 0, x, z, y, outer, n, lanes, wide);
  });
}

}  // namespace

KERNEL(softmax) { along_axis<Softmax<T>>(c, in<T>(c, 0), static_cast<const T*>(nullptr)); }
KERNEL(log_softmax) { along_axis<LogSoftmax<T>>(c, in<T>(c, 0), static_cast<const T*>(nullptr)); }
KERNEL(softmax_bwd) { along_axis<SoftmaxBwd<T>>(c, in<T>(c, 0), in<T>(c, 1)); }
KERNEL(log_softmax_bwd) { along_axis<LogSoftmaxBwd<T>>(c, in<T>(c, 0), in<T>(c, 1)); }
