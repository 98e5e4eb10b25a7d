// CUDA's execution model on the host, for testing kernels where there is no GPU: never part of a wheel.
//
// The blocks of a grid run one after another, the threads of a block as fibres that run until they reach a barrier or a
// warp operation. Shared memory holds NaN when a block starts; threads can be run in reverse order (GENERANT_SIMULATOR=
// reverse), so that a missing barrier gives other numbers in one order or the other. What CUDA leaves undefined stops
// the program with a message: a barrier that part of the block does not reach, a warp operation without all 32 lanes.
// Not simulated: memory consistency, divergence within a warp, speed.
#pragma once
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static
#define __restrict__ __restrict
#define __align__(n) alignas(n)

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct uint3 { unsigned x, y, z; };
template <class T, int N> struct alignas(sizeof(T) * N) SimulatedVector;
template <class T> struct alignas(2 * sizeof(T)) SimulatedVector<T, 2> { T x, y; };
template <class T> struct alignas(4 * sizeof(T) < 16 ? 4 * sizeof(T) : 16) SimulatedVector<T, 4> { T x, y, z, w; };
using float2 = SimulatedVector<float, 2>;
using float4 = SimulatedVector<float, 4>;
using double2 = SimulatedVector<double, 2>;
using int2 = SimulatedVector<int, 2>;
using int4 = SimulatedVector<int, 4>;
using uint2 = SimulatedVector<unsigned, 2>;
using uint4 = SimulatedVector<unsigned, 4>;
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline double2 make_double2(double x, double y) { return {x, y}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

namespace generant::simulator {

// Of the thread that is running.
extern uint3 thread_index, block_index;
extern dim3 block_size, grid_size;

void* dynamic_shared();
void barrier();
// Every lane of the warp hands in `bytes` (at most 64) and gets all 32, one every 64 bytes.
const char* exchange(const void* mine, size_t bytes);
int lane();
// Stops the program where a GPU would: at an access of so many bytes at an address that is not a multiple of them.
void check_aligned(const void* p, size_t bytes);
void run_grid(dim3 grid, dim3 block, size_t shared, void (*body)(void*), void* argument);
void set_reverse(bool reverse);

template <class F> void run(dim3 grid, dim3 block, size_t shared, F&& f) {
  run_grid(grid, block, shared, [](void* p) { (*static_cast<std::remove_reference_t<F>*>(p))(); }, &f);
}

template <class T> inline T from_lane(T v, int source) {
  T out;
  memcpy(&out, exchange(&v, sizeof v) + 64 * (source & 31), sizeof v);
  return out;
}

}  // namespace generant::simulator

#define threadIdx (generant::simulator::thread_index)
#define blockIdx (generant::simulator::block_index)
#define blockDim (generant::simulator::block_size)
#define gridDim (generant::simulator::grid_size)
#define warpSize 32

inline void __syncthreads() { generant::simulator::barrier(); }
inline void __syncwarp(unsigned = 0xffffffffu) { generant::simulator::exchange("", 1); }
inline void __threadfence() {}
inline void __threadfence_block() {}

template <class T> inline T __shfl_sync(unsigned, T v, int source, int width = 32) {
  const int own = generant::simulator::lane();
  return generant::simulator::from_lane(v, (own & ~(width - 1)) | (source & (width - 1)));
}
template <class T> inline T __shfl_xor_sync(unsigned, T v, int mask, int width = 32) {
  const int own = generant::simulator::lane(), source = own ^ mask;
  return generant::simulator::from_lane(v, source / width == own / width ? source : own);
}
template <class T> inline T __shfl_up_sync(unsigned, T v, unsigned delta, int width = 32) {
  const int own = generant::simulator::lane(), source = own - int(delta);
  return generant::simulator::from_lane(v, source >= (own & ~(width - 1)) ? source : own);
}
template <class T> inline T __shfl_down_sync(unsigned, T v, unsigned delta, int width = 32) {
  const int own = generant::simulator::lane(), source = own + int(delta);
  return generant::simulator::from_lane(v, source < (own & ~(width - 1)) + width ? source : own);
}
inline unsigned __ballot_sync(unsigned, int predicate) {
  const char mine = predicate != 0;
  const char* all = generant::simulator::exchange(&mine, 1);
  unsigned bits = 0;
  for (int i = 0; i < 32; ++i) bits |= unsigned(all[64 * i]) << i;
  return bits;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) == 0xffffffffu; }
inline int __syncthreads_or(int predicate) {
  static int any[2];                                 // two, so that the next call cannot overwrite what is still read
  static int turn;
  const int now = turn;
  if (predicate) any[now] = 1;
  __syncthreads();
  any[1 - now] = 0, turn = 1 - now;
  const int found = any[now];
  __syncthreads();
  return found;
}

inline float __fmaf_rn(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline double __fma_rn(double a, double b, double c) { return __builtin_fma(a, b, c); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __dadd_rn(double a, double b) { return a + b; }
inline float __fsqrt_rn(float a) { return __builtin_sqrtf(a); }
inline double __dsqrt_rn(double a) { return __builtin_sqrt(a); }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __uint2float_rn(unsigned a) { return float(a); }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned(uint64_t(a) * b >> 32); }
inline unsigned __float_as_uint(float a) { unsigned u; memcpy(&u, &a, 4); return u; }
inline int __float_as_int(float a) { int u; memcpy(&u, &a, 4); return u; }
inline float __uint_as_float(unsigned u) { float a; memcpy(&a, &u, 4); return a; }
inline float __int_as_float(int u) { float a; memcpy(&a, &u, 4); return a; }
inline long long __double_as_longlong(double a) { long long u; memcpy(&u, &a, 8); return u; }
inline double __longlong_as_double(long long u) { double a; memcpy(&a, &u, 8); return a; }
inline float rsqrtf(float a) { return 1.0f / __builtin_sqrtf(a); }
inline double rsqrt(double a) { return 1.0 / __builtin_sqrt(a); }
inline float __expf(float a) { return expf(a); }
inline float __logf(float a) { return logf(a); }
inline float __frcp_rn(float a) { return 1.0f / a; }
inline int __popc(unsigned a) { return __builtin_popcount(a); }
inline int __ffs(int a) { return __builtin_ffs(a); }
inline int __clz(int a) { return a ? __builtin_clz(unsigned(a)) : 32; }
template <class T> inline T __ldg(const T* p) { return *p; }
template <class T> inline T min(T a, T b) { return b < a ? b : a; }
template <class T> inline T max(T a, T b) { return a < b ? b : a; }
template <class T> inline T atomicAdd(T* p, T v) { const T old = *p; *p = old + v; return old; }
template <class T> inline T atomicMax(T* p, T v) { const T old = *p; if (v > old) *p = v; return old; }
template <class T> inline T atomicMin(T* p, T v) { const T old = *p; if (v < old) *p = v; return old; }
template <class T> inline T atomicOr(T* p, T v) { const T old = *p; *p = old | v; return old; }
template <class T> inline T atomicExch(T* p, T v) { const T old = *p; *p = v; return old; }
template <class T> inline T atomicCAS(T* p, T expected, T v) { const T old = *p; if (old == expected) *p = v; return old; }
