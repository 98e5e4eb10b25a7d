// Losses in one pass, and their gradients; see csrc/cpu/loss.cpp.
//
// A loss over elements is a functor of two numbers (value and derivatives); the sums are those of sums.h. A row of logits
// stays in the registers of the lanes that share it.
#include "sums.h"

namespace {

constexpr int kThreads = 256;

// ---- means over elements --------------------------------------------------------------------------------------------

struct SquaredError {
  template <class T> static __device__ T value(T x, T t) { return (x - t) * (x - t); }
  template <class T> static __device__ T dx(T x, T t) { return (x - t) + (x - t); }
  template <class T> static __device__ T dt(T x, T t) { return (t - x) + (t - x); }
};

struct LogisticError {
  template <class T> static __device__ T value(T x, T t) {
    return ((x <= T(0) ? T(0) : x) - x * t) + log1p(exp(x < T(0) ? x : -x));
  }
  template <class T> static __device__ T dx(T x, T t) {
    const T e = exp(x < T(0) ? x : -x), large = T(1) / (e + T(1)), rest = e * large;
    return (T(1) - t) * (x >= T(0) ? large : rest) - t * (x >= T(0) ? rest : large);
  }
  template <class T> static __device__ T dt(T x, T) { return -x; }
};

// Which sample an element is of: 64-bit division only where it is needed.
struct Samples {
  int64_t each;
  bool small;
  Samples(int64_t each_, int64_t count) : each(each_ > 0 ? each_ : 1), small(count < (int64_t(1) << 32)) {}
  __device__ int64_t of(int64_t j) const { return small ? int64_t(uint32_t(j) / uint32_t(each)) : j / each; }
  // f(k, sample) for the numbers of a pack.
  template <class T, class F> __device__ void pack(int64_t j, F f) const {
    int64_t i = of(j), left = (i + 1) * each - j;
    GENERANT_UNROLL
    for (int k = 0; k < kPack<T>; ++k) {
      f(k, i);
      if (--left == 0) ++i, left = each;
    }
  }
};

template <class T, class F> struct Terms {           // of the loss, weighted if weight is there
  const T *x, *t, *weight;
  Samples samples;
  bool wide;
  __device__ PackOf<T> operator()(int64_t j, int64_t n) const {
    PackOf<T> a = load_pack(x + j, n, wide);
    const PackOf<T> b = load_pack(t + j, n, wide);
    GENERANT_UNROLL
    for (int k = 0; k < kPack<T>; ++k) a.v[k] = F::value(a.v[k], b.v[k]);
    if (weight && n > 0)
      samples.pack<T>(j, [&](int k, int64_t i) {
        if (k < n) a.v[k] *= weight[i];
      });
    return a;
  }
};

template <class T> struct Scaled {                   // out_i = factor * sum, times g if that is there
  T* out;
  const T* g;
  double factor;
  __device__ void operator()(int64_t i, double sum) const { out[i] = T((g ? double(*g) * factor : factor) * sum); }
};

template <class T> int64_t mean_bytes(const Call& c) { return sums_bytes(1, size(c.in[0])); }
template <class T> int64_t gradient_bytes(const Call& c) {
  return c.out[2].data ? sums_bytes(c.in[1].shape[0], size(c.in[1]) / c.in[1].shape[0]) : 0;
}

// Inputs x, target (n, ...), weight (n) or absent; output a scalar.
template <class T, class F> inline void mean_of(const Call& c) {
  const T *x = in<T>(c, 0), *t = in<T>(c, 1), *weight = in<T>(c, 2);
  const int64_t count = size(c.in[0]);
  const Terms<T, F> terms{x, t, weight, Samples(count / c.in[0].shape[0], count), wide_rows<T>(count, x, t)};
  sums<T>(c, 1, count, terms, Scaled<T>{out<T>(c), nullptr, 1.0 / double(count)}, static_cast<double*>(c.scratch));
}

template <class T, class F>
__global__ void gradients_kernel(const T* g, const T* x, const T* t, const T* weight, T* dx, T* dt, int64_t count, double inverse,
                                 Samples samples, bool wide) {
  const int64_t j = global_thread() * kPack<T>, n = count - j;
  if (n <= 0) return;
  const double scale = double(*g) * inverse;
  const PackOf<T> a = load_pack(x + j, n, wide), b = load_pack(t + j, n, wide);
  PackOf<T> factor, d;
  GENERANT_UNROLL
  for (int k = 0; k < kPack<T>; ++k) factor.v[k] = T(scale);
  if (weight)
    samples.pack<T>(j, [&](int k, int64_t i) {
      if (k < n) factor.v[k] = T(scale * double(weight[i]));
    });
  if (dx) {
    GENERANT_UNROLL
    for (int k = 0; k < kPack<T>; ++k) d.v[k] = factor.v[k] * F::dx(a.v[k], b.v[k]);
    store_pack(dx + j, d, n, wide);
  }
  if (dt) {
    GENERANT_UNROLL
    for (int k = 0; k < kPack<T>; ++k) d.v[k] = factor.v[k] * F::dt(a.v[k], b.v[k]);
    store_pack(dt + j, d, n, wide);
  }
}

// Inputs g (scalar), x, target, weight or absent; outputs dx, dtarget, dweight, each of which may be absent.
template <class T, class F> inline void mean_gradients(const Call& c) {
  const T *g = in<T>(c, 0), *x = in<T>(c, 1), *t = in<T>(c, 2), *weight = in<T>(c, 3);
  T *dx = out<T>(c, 0), *dt = out<T>(c, 1), *dweight = out<T>(c, 2);
  const int64_t count = size(c.in[1]), n = c.in[1].shape[0], each = count / n;
  const double inverse = 1.0 / double(count);
  const Samples samples(each, count);
  if (dx || dt)
    launch(c, gradients_kernel<T, F>, grid_of(ceil_div(count, kThreads * kPack<T>)), kThreads, 0, g, x, t, weight, dx, dt, count, inverse,
           samples, wide_rows<T>(count, x, t, dx, dt));
  if (dweight)
    sums<T>(c, n, each, Terms<T, F>{x, t, nullptr, samples, wide_rows<T>(each, x, t)}, Scaled<T>{dweight, g, inverse},
            static_cast<double*>(c.scratch));
}

// ---- cross-entropy of classes ---------------------------------------------------------------------------------------

// The target's mean of z = row - top, given the sum of z. The loss is the log of the sum of exp(z) minus this.
template <class T> __device__ inline double mean_of_target(T chosen, T top, double sum, int64_t k, double smooth) {
  return (1.0 - smooth) * double(chosen - top) + (smooth != 0.0 ? smooth / double(k) * sum : 0.0);
}

template <class T, int V, bool kBlock>
__global__ void __launch_bounds__(V == 0 ? 512 : 256, 2)
cross_entropy_rows(const T* logits, const int64_t* labels, const T* weight, T* shift, T* totals, double* partial, int64_t rows, int64_t k,
                   double smooth, int share, bool wide) {
  __shared__ double shared[kWarp];
  __shared__ T extrema[kWarp];
  const RowPlace<V, kBlock> own(share);
  const int64_t i = own.row, n = i < rows ? k : 0;
  const T low = -T(__builtin_inff());
  RowPacks<T, V> a(logits + i * k, n, own.lane, own.lanes, wide);
  T top = low;
  a.each([&](PackOf<T>& v, auto, auto count) { each_lane<T>(count, [&](int l) { top = Max{}(v.v[l], top); }); });
  top = row_reduce<kBlock>(top, Max{}, low, own.lanes, extrema);
  double total = 0, sum = 0;
  a.each([&](PackOf<T>& v, auto, auto count) {
    each_lane<T>(count, [&](int l) {
      const T z = v.v[l] - top;
      total += double(exp(z));
      if (smooth != 0.0) sum += double(z);
    });
  });
  total = row_reduce<kBlock>(total, Sum{}, 0.0, own.lanes, shared);
  if (smooth != 0.0) sum = row_reduce<kBlock>(sum, Sum{}, 0.0, own.lanes, shared);
  double loss = 0;
  if (n > 0 && own.lane == 0) {
    loss = log(total) - mean_of_target(logits[i * k + labels[i]], top, sum, k, smooth);
    if (weight) loss *= double(weight[i]);
    if (shift) shift[i] = top;
    if (totals) totals[i] = T(total);
  }
  loss = block_sum(loss, shared);
  if (threadIdx.x == 0) partial[blockIdx.x] = loss;
}

template <class T, int V, bool kBlock>
__global__ void __launch_bounds__(V == 0 ? 512 : 256, 2)
cross_entropy_gradients(const T* g, const T* logits, const int64_t* labels, const T* weight, const T* shift, const T* totals, T* dlogits,
                        T* dweight, int64_t rows, int64_t k, double smooth, double inverse, int share, bool wide) {
  __shared__ double shared[kWarp];
  const RowPlace<V, kBlock> own(share);
  const bool inside = own.row < rows;
  const int64_t i = inside ? own.row : 0, n = inside ? k : 0, label = inside ? labels[i] : 0;
  const double scale = double(*g) * inverse, factor = inside && weight ? scale * double(weight[i]) : scale;
  const double total = inside ? double(totals[i]) : 1.0;
  const T top = inside ? shift[i] : T(0), f = T(factor), r = T(1.0 / total), rest = T(smooth / double(k));
  RowPacks<T, V> a(logits + i * k, n, own.lane, own.lanes, wide);
  double sum = 0;
  a.each([&](PackOf<T>& v, auto j, auto count) {
    PackOf<T> d;
    GENERANT_UNROLL
    for (int l = 0; l < kPack<T>; ++l) {
      const T z = v.v[l] - top;
      if (smooth != 0.0 && l < count) sum += double(z);
      d.v[l] = f * (exp(z) * r - rest);
      if (j + l == label) d.v[l] = T(double(d.v[l]) - factor * (1.0 - smooth));
    }
    if (dlogits) store_pack(dlogits + i * k + j, d, count, wide);
  });
  if (!dweight) return;
  if (smooth != 0.0) sum = row_reduce<kBlock>(sum, Sum{}, 0.0, own.lanes, shared);
  if (n > 0 && own.lane == 0) dweight[i] = T(scale * (log(total) - mean_of_target(logits[i * k + label], top, sum, k, smooth)));
}

template <class T> inline int64_t class_blocks(int64_t rows, int64_t k) {
  int64_t blocks = 0;
  for_rows<T>(rows, k, [&](auto, auto, int, int, dim3 grid) { blocks = grid.x; });
  return blocks;
}
template <class T> int64_t class_bytes(const Call& c) {
  return class_blocks<T>(c.in[0].shape[0], c.in[0].shape[1]) * int64_t(sizeof(double));
}

}  // namespace

KERNEL_SCRATCH(mse, mean_bytes) { mean_of<T, SquaredError>(c); }
KERNEL_SCRATCH(mse_bwd, gradient_bytes) { mean_gradients<T, SquaredError>(c); }
KERNEL_SCRATCH(bce_with_logits, mean_bytes) { mean_of<T, LogisticError>(c); }
KERNEL_SCRATCH(bce_with_logits_bwd, gradient_bytes) { mean_gradients<T, LogisticError>(c); }

KERNEL_SCRATCH(cross_entropy, class_bytes) {
  const T *logits = in<T>(c, 0), *weight = in<T>(c, 2);
  const int64_t rows = c.in[0].shape[0], k = c.in[0].shape[1];
  const bool wide = wide_rows<T>(k, logits);
  double* partial = static_cast<double*>(c.scratch);
  for_rows<T>(rows, k, [&](auto v, auto block, int threads, int lanes, dim3 grid) {
    launch(c, cross_entropy_rows<T, decltype(v)::value, decltype(block)::value != 0>, grid, threads, 0, logits, in<int64_t>(c, 1), weight,
           out<T>(c, 1), out<T>(c, 2), partial, rows, k, c.attr[0], lanes, wide);
  });
  launch(c, line_sums<Scaled<T>>, 1, kSumThreads, 0, partial, class_blocks<T>(rows, k), Scaled<T>{out<T>(c), nullptr, 1.0 / double(rows)});
}

KERNEL(cross_entropy_bwd) {
  const T *g = in<T>(c, 0), *logits = in<T>(c, 1), *weight = in<T>(c, 3), *shift = in<T>(c, 4), *totals = in<T>(c, 5);
  T *dlogits = out<T>(c, 0), *dweight = out<T>(c, 2);
  const int64_t rows = c.in[1].shape[0], k = c.in[1].shape[1];
  const bool wide = wide_rows<T>(k, logits, dlogits);
  for_rows<T>(rows, k, [&](auto v, auto block, int threads, int lanes, dim3 grid) {
    launch(c, cross_entropy_gradients<T, decltype(v)::value, decltype(block)::value != 0>, grid, threads, 0, g, logits, in<int64_t>(c, 2),
           weight, shift, totals, dlogits, dweight, rows, k, c.attr[0], 1.0 / double(rows), lanes, wide);
  });
}

// ---- divergence of Gaussians: inputs mu, logvar, mu2 or absent, logvar2 or absent -----------------------------------

namespace {

template <class T> struct Gaussians {
  const T *mu, *logvar, *mu2, *logvar2;
  bool wide;
  // Per element: the difference of the means and of logvar, exp of the latter minus 1, and exp(-logvar2).
  struct Four { T d, u, less, precision; };
  template <class F> __device__ void pack(int64_t j, int64_t n, F f) const {
    PackOf<T> d = load_pack(mu + j, n, wide), u = load_pack(logvar + j, n, wide), p{};
    if (mu2) {
      const PackOf<T> m = load_pack(mu2 + j, n, wide);
      GENERANT_UNROLL
      for (int k = 0; k < kPack<T>; ++k) d.v[k] -= m.v[k];
    }
    if (logvar2) p = load_pack(logvar2 + j, n, wide);
    GENERANT_UNROLL
    for (int k = 0; k < kPack<T>; ++k) {
      const T ratio = u.v[k] - p.v[k];
      f(k, Four{d.v[k], ratio, expm1(ratio), logvar2 ? exp(-p.v[k]) : T(1)});
    }
  }
  __device__ PackOf<T> operator()(int64_t j, int64_t n) const {
    PackOf<T> terms;
    pack(j, n, [&](int k, const Four& p) { terms.v[k] = (p.less - p.u) + p.d * p.d * p.precision; });
    return terms;
  }
};

template <class T>
__global__ void gaussian_gradients(const T* g, Gaussians<T> of, T* dmu, T* dlogvar, T* dmu2, T* dlogvar2, int64_t count, Samples samples) {
  const int64_t j = global_thread() * kPack<T>, n = count - j;
  if (n <= 0) return;
  PackOf<T> factor, a, b, rest;
  samples.pack<T>(j, [&](int k, int64_t i) { factor.v[k] = k < n ? g[i] : T(0); });
  of.pack(j, n, [&](int k, const auto& p) {
    const T slope = p.d * p.precision, half = factor.v[k] * T(0.5);
    a.v[k] = factor.v[k] * slope, b.v[k] = half * p.less, rest.v[k] = -(half * (p.less + p.d * slope));
  });
  if (dmu) store_pack(dmu + j, a, n, of.wide);
  if (dlogvar) store_pack(dlogvar + j, b, n, of.wide);
  if (dlogvar2) store_pack(dlogvar2 + j, rest, n, of.wide);
  GENERANT_UNROLL
  for (int k = 0; k < kPack<T>; ++k) a.v[k] = -a.v[k];
  if (dmu2) store_pack(dmu2 + j, a, n, of.wide);
}

inline int64_t each_of(const Array& a) { return a.shape[0] > 0 ? size(a) / a.shape[0] : 0; }
template <class T> int64_t gaussian_bytes(const Call& c) { return sums_bytes(c.in[0].shape[0], each_of(c.in[0])); }

}  // namespace

KERNEL_SCRATCH(gaussian_kl, gaussian_bytes) {
  const T *mu = in<T>(c, 0), *logvar = in<T>(c, 1), *mu2 = in<T>(c, 2), *logvar2 = in<T>(c, 3);
  const int64_t each = each_of(c.in[0]);
  sums<T>(c, c.in[0].shape[0], each, Gaussians<T>{mu, logvar, mu2, logvar2, wide_rows<T>(each, mu, logvar, mu2, logvar2)},
          Scaled<T>{out<T>(c), nullptr, 0.5}, static_cast<double*>(c.scratch));
}

KERNEL(gaussian_kl_bwd) {
  const T *g = in<T>(c, 0), *mu = in<T>(c, 1), *logvar = in<T>(c, 2), *mu2 = in<T>(c, 3), *logvar2 = in<T>(c, 4);
  T *dmu = out<T>(c, 0), *dlogvar = out<T>(c, 1), *dmu2 = out<T>(c, 2), *dlogvar2 = out<T>(c, 3);
  const int64_t count = size(c.in[1]);
  const Gaussians<T> of{mu, logvar, mu2, logvar2, wide_rows<T>(count, mu, logvar, mu2, logvar2, dmu, dlogvar, dmu2, dlogvar2)};
  launch(c, gaussian_gradients<T>, grid_of(ceil_div(count, kThreads * kPack<T>)), kThreads, 0, g, of, dmu, dlogvar, dmu2, dlogvar2, count,
         Samples(each_of(c.in[1]), count));
}
