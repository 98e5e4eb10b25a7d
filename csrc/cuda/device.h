// What every kernel in csrc/cuda includes: CUDA where nvcc compiles it, its simulation (simulator.h) where a C++ compiler
// does, which is how the same sources are tested on machines without a GPU.
//
// A kernel is a __global__ function and a KERNEL(op) (csrc/kernel.h), which works out the grid and calls launch(). What
// holds everywhere: blocks are multiples of 32 threads, at most kMaxShared bytes of shared memory, no atomic sums of
// floats, nothing that depends on how many multiprocessors there are: the same bits on every run.
#pragma once
#include "kernel.h"

#ifdef __CUDACC__
#include <cuda_runtime.h>
#define GENERANT_UNROLL _Pragma("unroll")
// The shared memory whose size the launch gives, as an array of T.
#define DYNAMIC_SHARED(T, name)                                       \
  extern __shared__ __align__(16) unsigned char dynamic_shared[];     \
  T* const name = reinterpret_cast<T*>(dynamic_shared)
#else
#include "cuda/simulator.h"
#define GENERANT_UNROLL
#define DYNAMIC_SHARED(T, name) T* const name = reinterpret_cast<T*>(generant::simulator::dynamic_shared())
#endif
#include "../host_device.h"

namespace {

constexpr int kWarp = 32;
constexpr size_t kMaxShared = 64 << 10;              // bytes a block may have on the smallest GPU served (sm_75)
constexpr int64_t kMaxBlocks = 0x7fffffff;           // of a grid's x; y and z have 65535

inline dim3 grid_of(int64_t x, int64_t y = 1, int64_t z = 1) { return dim3(unsigned(x), unsigned(y), unsigned(z)); }

// kernel<<<grid, block, shared, stream of c>>>(args...); nothing where the grid is empty.
template <class... P, class... A>
inline void launch(const Call& c, void (*kernel)(P...), dim3 grid, dim3 block, size_t shared, A... args) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
#ifdef __CUDACC__
  if (shared > (48u << 10)) cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared));
  kernel<<<grid, block, shared, static_cast<cudaStream_t>(c.stream)>>>(static_cast<P>(args)...);
#else
  (void)c;
  generant::simulator::run(grid, block, shared, [&] { kernel(static_cast<P>(args)...); });
#endif
}

// out[0, bytes) = 0, in order with the kernels of the call.
inline void clear(const Call& c, void* out, size_t bytes) {
#ifdef __CUDACC__
  if (bytes) cudaMemsetAsync(out, 0, bytes, static_cast<cudaStream_t>(c.stream));
#else
  (void)c;
  memset(out, 0, bytes);
#endif
}

// Index of this thread among all of the grid's x, and how many there are.
__device__ inline int64_t global_thread() { return int64_t(blockIdx.x) * blockDim.x + threadIdx.x; }
__device__ inline int64_t global_threads() { return int64_t(gridDim.x) * blockDim.x; }

}  // namespace
