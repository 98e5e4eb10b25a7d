// out[i] = f(in0[i], in1[i], ...) over dense arrays: 16 bytes per thread and access where the addresses allow it.
//
// f is an object whose operator() is __device__ and takes and returns values of T.
#pragma once
#include "device.h"

namespace {

constexpr int kMapThreads = 256;

template <class T, int N> struct alignas(N * sizeof(T)) Pack { T v[N]; };

template <class T, int N, class F, class... In> __global__ void map_kernel(int64_t packs, F f, Pack<T, N>* out, const In*... in) {
  const int64_t i = global_thread();
  if (i >= packs) return;
  auto apply = [&](const auto&... p) {
    Pack<T, N> y;
    GENERANT_UNROLL
    for (int k = 0; k < N; ++k) y.v[k] = f(p.v[k]...);
    out[i] = y;
  };
  apply(in[i]...);
}

template <class T, class F, class... In> inline void map(const Call& c, int64_t n, F f, T* out, const In*... in) {
  constexpr int N = 16 / sizeof(T);
  const bool wide = n % N == 0 && reinterpret_cast<uintptr_t>(out) % 16 == 0 &&
                    ((reinterpret_cast<uintptr_t>(in) % alignof(Pack<In, N>) == 0) && ...);
  if (wide)
    launch(c, map_kernel<T, N, F, Pack<In, N>...>, grid_of(ceil_div(n / N, kMapThreads)), kMapThreads, 0, n / N, f,
           reinterpret_cast<Pack<T, N>*>(out), reinterpret_cast<const Pack<In, N>*>(in)...);
  else
    launch(c, map_kernel<T, 1, F, Pack<In, 1>...>, grid_of(ceil_div(n, kMapThreads)), kMapThreads, 0, n, f,
           reinterpret_cast<Pack<T, 1>*>(out), reinterpret_cast<const Pack<In, 1>*>(in)...);
}

// body(i) for every i < n.
template <class F> __global__ void each_kernel(int64_t n, F body) {
  const int64_t i = global_thread();
  if (i < n) body(i);
}
template <class F> inline void each(const Call& c, int64_t n, F body) {
  launch(c, each_kernel<F>, grid_of(ceil_div(n, kMapThreads)), kMapThreads, 0, n, body);
}

}  // namespace
