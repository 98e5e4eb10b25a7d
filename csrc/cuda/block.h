// Sums and extrema over a warp and over a block, in an order that depends on the block's size only.
#pragma once
#include "device.h"

namespace {

struct Sum {
  template <class T> __device__ T operator()(T a, T b) const { return a + b; }
};
struct Max {                                         // NaN wins
  template <class T> __device__ T operator()(T a, T b) const { return a > b || a != a ? a : b; }
};
struct Min {
  template <class T> __device__ T operator()(T a, T b) const { return a < b || a != a ? a : b; }
};

template <class T> __device__ inline T warp_xor(T v, int mask) { return __shfl_xor_sync(0xffffffffu, v, mask); }
template <class T> __device__ inline T warp_from(T v, int lane) { return __shfl_sync(0xffffffffu, v, lane); }

// Over groups of `width` neighbouring lanes (a power of two); every lane gets the result.
template <class Op, class T> __device__ inline T warp_reduce(T v, Op op, int width = kWarp) {
  for (int mask = width / 2; mask > 0; mask /= 2) v = op(v, warp_xor(v, mask));
  return v;
}

// Over the block (one-dimensional, a multiple of 32 threads); every thread gets the result. shared: 32 of T.
template <class Op, class T> __device__ inline T block_reduce(T v, Op op, T identity, T* shared) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
  v = warp_reduce(v, op);
  __syncthreads();                                   // an earlier result may still be read
  if (lane == 0) shared[warp] = v;
  __syncthreads();
  return warp_reduce(lane < warps ? shared[lane] : identity, op);
}

template <class T> __device__ inline T warp_sum(T v, int width = kWarp) { return warp_reduce(v, Sum{}, width); }
template <class T> __device__ inline T block_sum(T v, T* shared) { return block_reduce(v, Sum{}, T(0), shared); }

}  // namespace
