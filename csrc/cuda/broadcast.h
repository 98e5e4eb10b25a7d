// y = f(a, b) with broadcasting, in the fewest dimensions (../merged_dims.h): one pass, 16 bytes of y per thread.
#pragma once
#include "elementwise.h"
#include "merged_dims.h"

namespace {

// N neighbouring outputs of an operand: N numbers where its inner step is 1, one number where it is 0.
template <int N, class T> __device__ inline Pack<T, N> read_pack(const T* from, int64_t step) {
  if (step) return *reinterpret_cast<const Pack<T, N>*>(from);
  Pack<T, N> p;
  const T v = *from;
  GENERANT_UNROLL
  for (int k = 0; k < N; ++k) p.v[k] = v;
  return p;
}

template <class T, int N, class F> __global__ void broadcast_kernel(int64_t packs, MergedDims w, F f, const T* a, const T* b, T* y) {
  const int64_t pack = global_thread();
  if (pack >= packs) return;
  int64_t i = pack * N, at_a = 0, at_b = 0;
  for (int j = w.ndim - 1; j > 0; --j) {
    const int64_t rest = i / w.shape[j], index = i - rest * w.shape[j];
    at_a += index * w.step[0][j], at_b += index * w.step[1][j];
    i = rest;
  }
  at_a += i * w.step[0][0], at_b += i * w.step[1][0];
  const Pack<T, N> u = read_pack<N>(a + at_a, w.step[0][w.ndim - 1]), v = read_pack<N>(b + at_b, w.step[1][w.ndim - 1]);
  Pack<T, N> out;
  GENERANT_UNROLL
  for (int k = 0; k < N; ++k) out.v[k] = f(u.v[k], v.v[k]);
  reinterpret_cast<Pack<T, N>*>(y)[pack] = out;      // y may be a or b
}

// y = out 0 of the call, of the broadcast shape of a and b.
template <class T, class F> inline void broadcast_map(const Call& c, const Array& a, const Array& b, F f) {
  constexpr int N = 16 / sizeof(T);
  const int64_t n = size(c.out[0]);
  if (n == 0) return;
  const MergedDims w(a, b, c.out[0]);
  const auto addresses = reinterpret_cast<uintptr_t>(a.data) | reinterpret_cast<uintptr_t>(b.data) | reinterpret_cast<uintptr_t>(out<T>(c));
  const T *u = static_cast<const T*>(a.data), *v = static_cast<const T*>(b.data);
  if (w.inner() % N == 0 && addresses % 16 == 0)     // then every row of an operand begins at a multiple of N too
    launch(c, broadcast_kernel<T, N, F>, grid_of(ceil_div(n / N, kMapThreads)), kMapThreads, 0, n / N, w, f, u, v, out<T>(c));
  else
    launch(c, broadcast_kernel<T, 1, F>, grid_of(ceil_div(n, kMapThreads)), kMapThreads, 0, n, w, f, u, v, out<T>(c));
}

}  // namespace
