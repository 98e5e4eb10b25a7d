// Optimiser steps on flat buffers: each is one pass, bound by memory, and an effect on its arguments.
//
// Learning rates, counters and the flag that skips a step are read on the device, so that a captured step stays good for
// all of them. What depends on the counter of adam_ is worked out by one thread before the pass.
#include "block.h"
#include "elementwise.h"

namespace {

constexpr int64_t kNormBlock = 1 << 14;      // elements per partial sum of the norm: part of its definition
constexpr int kNormThreads = 512;

template <class T> inline T* changed(const Call& c, int i) { return static_cast<T*>(c.in[i].data); }
__device__ inline bool skipped(const uint8_t* ok) { return ok && !*ok; }

// body(e, n) for n = 1, or as many elements as fit in 16 bytes where all arrays allow that; nothing if ok says so.
template <class T, int N, class F> __global__ void step_kernel(int64_t packs, const uint8_t* ok, F body) {
  const int64_t i = global_thread();
  if (i < packs && !skipped(ok)) body.template step<N>(i);
}

template <class T, class F, class... P> inline void step(const Call& c, int64_t n, const uint8_t* ok, F body, const P*... arrays) {
  constexpr int N = 16 / sizeof(T);
  if (n % N == 0 && ((reinterpret_cast<uintptr_t>(arrays) % 16 == 0) && ...))
    launch(c, step_kernel<T, N, F>, grid_of(ceil_div(n / N, kMapThreads)), kMapThreads, 0, n / N, ok, body);
  else
    launch(c, step_kernel<T, 1, F>, grid_of(ceil_div(n, kMapThreads)), kMapThreads, 0, n, ok, body);
}

template <int N, class T> __device__ inline Pack<T, N>& pack(T* p, int64_t i) { return reinterpret_cast<Pack<T, N>*>(p)[i]; }
template <int N, class T> __device__ inline const Pack<T, N>& pack(const T* p, int64_t i) { return reinterpret_cast<const Pack<T, N>*>(p)[i]; }

template <class T> struct Rates { T keep, rate, scale; };

template <class T>
__global__ void adam_rates_kernel(int64_t* steps, const double* lr, const uint8_t* ok, double beta1, double beta2, double decay, Rates<T>* to) {
  if (threadIdx.x != 0 || skipped(ok)) return;
  const double step = double(++*steps);
  to->keep = T(1 - *lr * decay);
  to->rate = T(*lr / (1 - pow(beta1, step)));
  to->scale = T(1 / sqrt(1 - pow(beta2, step)));
}

template <class T> struct Adam {
  T *p, *m, *v;
  const T* g;
  const Rates<T>* rates;
  T b1, a1, b2, a2, eps;
  template <int N> __device__ void step(int64_t i) const {
    const T keep = rates->keep, rate = rates->rate, scale = rates->scale;
    const Pack<T, N> ge = pack<N>(g, i);
    Pack<T, N> pe = pack<N>(p, i), me = pack<N>(m, i), ve = pack<N>(v, i);
    GENERANT_UNROLL
    for (int k = 0; k < N; ++k) {
      me.v[k] = fma(a1, ge.v[k], b1 * me.v[k]);
      ve.v[k] = fma(a2, ge.v[k] * ge.v[k], b2 * ve.v[k]);
      pe.v[k] = keep * pe.v[k] - rate * me.v[k] / fma(sqrt(ve.v[k]), scale, eps);
    }
    pack<N>(m, i) = me, pack<N>(v, i) = ve, pack<N>(p, i) = pe;
  }
};

template <class T> struct Lion {
  T *p, *m;
  const T* g;
  const double* lr;
  double decay;
  T b1, a1, b2, a2;
  template <int N> __device__ void step(int64_t i) const {
    const T keep = T(1 - *lr * decay), rate = T(*lr);
    const Pack<T, N> ge = pack<N>(g, i);
    Pack<T, N> pe = pack<N>(p, i), me = pack<N>(m, i);
    GENERANT_UNROLL
    for (int k = 0; k < N; ++k) {
      const T mean = fma(a1, ge.v[k], b1 * me.v[k]);
      const T move = mean > 0 ? rate : mean < 0 ? -rate : mean;      // 0 and NaN stay what they are
      pe.v[k] = keep * pe.v[k] - move;
      me.v[k] = fma(a2, ge.v[k], b2 * me.v[k]);
    }
    pack<N>(m, i) = me, pack<N>(p, i) = pe;
  }
};

template <class T> struct Sgd {
  T *p, *m;                                  // m may be null
  const T* g;
  const double* lr;
  T momentum, decay;
  bool nesterov;
  template <int N> __device__ void step(int64_t i) const {
    const T rate = T(*lr);
    const Pack<T, N> ge = pack<N>(g, i);
    Pack<T, N> pe = pack<N>(p, i), me{};
    if (m) me = pack<N>(m, i);
    GENERANT_UNROLL
    for (int k = 0; k < N; ++k) {
      T move = fma(decay, pe.v[k], ge.v[k]);
      if (m) {
        me.v[k] = fma(momentum, me.v[k], move);
        move = nesterov ? fma(momentum, me.v[k], move) : me.v[k];
      }
      pe.v[k] -= rate * move;
    }
    if (m) pack<N>(m, i) = me;
    pack<N>(p, i) = pe;
  }
};

template <class T> struct Ema {
  T* average;
  const T* p;
  const double* decay;
  template <int N> __device__ void step(int64_t i) const {
    const T rate = T(1 - *decay);
    const Pack<T, N> pe = pack<N>(p, i);
    Pack<T, N> a = pack<N>(average, i);
    GENERANT_UNROLL
    for (int k = 0; k < N; ++k) a.v[k] = fma(rate, pe.v[k] - a.v[k], a.v[k]);
    pack<N>(average, i) = a;
  }
};

// ---- clip_norm_: partial sums, their sum, and the scaling ----

template <class T> int64_t adam_bytes(const Call&) { return sizeof(Rates<T>); }
template <class T> int64_t norm_bytes(const Call& c) { return 8 * ceil_div(size(c.in[0]), kNormBlock) + 8; }

template <class T> __global__ void __launch_bounds__(kNormThreads) square_sums_kernel(int64_t n, const T* g, double* partial) {
  __shared__ double shared[kWarp];
  const int64_t begin = int64_t(blockIdx.x) * kNormBlock, end = begin + kNormBlock < n ? begin + kNormBlock : n;
  double sum = 0;
#pragma unroll 8
  for (int64_t i = begin + threadIdx.x; i < end; i += blockDim.x) sum = fma(double(g[i]), double(g[i]), sum);
  sum = block_sum(sum, shared);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

// factor: 1 where nothing is to be scaled.
__global__ void __launch_bounds__(kNormThreads)
norm_kernel(int64_t blocks, const double* partial, double limit, uint8_t* ok, double* norm, double* factor) {
  __shared__ double shared[kWarp];
  double sum = 0;
  for (int64_t i = threadIdx.x; i < blocks; i += blockDim.x) sum += partial[i];
  sum = sqrt(block_sum(sum, shared));
  if (threadIdx.x != 0) return;
  const bool finite = sum - sum == 0;
  *ok = finite, *norm = sum;
  *factor = finite && sum > limit ? limit / sum : 1.0;
}

template <class T> struct Scaled {
  T* g;
  const double* factor;
  template <int N> __device__ void step(int64_t i) const {
    if (*factor == 1.0) return;
    const T k = T(*factor);
    Pack<T, N> ge = pack<N>(g, i);
    GENERANT_UNROLL
    for (auto& x : ge.v) x *= k;
    pack<N>(g, i) = ge;
  }
};

}  // namespace

KERNEL_SCRATCH(adam_, adam_bytes) {
  T *p = changed<T>(c, 0), *m = changed<T>(c, 1), *v = changed<T>(c, 2);
  const T* g = in<T>(c, 3);
  const uint8_t* ok = in<uint8_t>(c, 6);
  auto* rates = static_cast<Rates<T>*>(c.scratch);
  const double beta1 = c.attr[0], beta2 = c.attr[1];
  launch(c, adam_rates_kernel<T>, 1, kWarp, 0, changed<int64_t>(c, 4), in<double>(c, 5), ok, beta1, beta2, c.attr[3], rates);
  step<T>(c, size(c.in[0]), ok, Adam<T>{p, m, v, g, rates, T(beta1), T(1 - beta1), T(beta2), T(1 - beta2), T(c.attr[2])}, p, m, v, g);
}

KERNEL(lion_) {
  T *p = changed<T>(c, 0), *m = changed<T>(c, 1);
  const T* g = in<T>(c, 2);
  const double beta1 = c.attr[0], beta2 = c.attr[1];
  step<T>(c, size(c.in[0]), in<uint8_t>(c, 4),
          Lion<T>{p, m, g, in<double>(c, 3), c.attr[2], T(beta1), T(1 - beta1), T(beta2), T(1 - beta2)}, p, m, g);
}

KERNEL(sgd_) {
  T *p = changed<T>(c, 0), *m = changed<T>(c, 1);
  const T* g = in<T>(c, 2);
  step<T>(c, size(c.in[0]), in<uint8_t>(c, 4),
          Sgd<T>{p, m, g, in<double>(c, 3), T(c.attr[0]), T(c.attr[2]), c.attr[1] != 0}, p, m, g);
}

KERNEL(ema_) {
  T* average = changed<T>(c, 0);
  const T* p = in<T>(c, 1);
  step<T>(c, size(c.in[0]), in<uint8_t>(c, 3), Ema<T>{average, p, in<double>(c, 2)}, average, p);
}

KERNEL_SCRATCH(clip_norm_, norm_bytes) {
  T* g = changed<T>(c, 0);
  const int64_t n = size(c.in[0]), blocks = ceil_div(n, kNormBlock);
  double *partial = static_cast<double*>(c.scratch), *factor = partial + blocks;
  launch(c, square_sums_kernel<T>, grid_of(blocks), kNormThreads, 0, n, g, partial);
  launch(c, norm_kernel, 1, kNormThreads, 0, blocks, partial, c.attr[0], out<uint8_t>(c, 0), out<double>(c, 1), factor);
  step<T>(c, n, nullptr, Scaled<T>{g, factor}, g);
}
