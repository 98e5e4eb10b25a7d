// The engine of matrix products and convolutions: c(m, n) = sum over k of a(m, k) b(k, n), a tile of c per block.
//
// One idea: what the numbers are is a Task's business (conv_gemm.h), how they are multiplied is in here. A task copies
// 16 k of both operands into panels in shared memory, in whichever direction global memory runs, two steps ahead of the
// step that is being multiplied, and takes finished rows of the tile.
//
// float32 is multiplied by tensor cores as three products of TF32 where that is the fastest way (sm_80, 90, 100), elsewhere by
// fused multiply-adds. Tensor cores cut off digits when they add, always towards zero, so only 8 (bfloat16: 16) products
// are added there; the sum over those is rounded. An element's additions are the same in every shape of tile and in
// every place of it, so that shapes can be chosen by how much there is to do.
#pragma once
#include "elementwise.h"
#include "mma.h"

namespace {

enum Precision { kFloatProduct, kBf16Product, kDoubleProduct };
template <Precision P> struct NumberOf { using type = float; };
template <> struct NumberOf<kDoubleProduct> { using type = double; };

// GENERANT_SIMULATE_PLAIN: the simulator takes the ways of GPUs without these tensor cores.
#if (!defined(__CUDACC__) && !defined(GENERANT_SIMULATE_PLAIN)) || \
    (defined(__CUDA_ARCH__) && (__CUDA_ARCH__ == 800 || __CUDA_ARCH__ == 900 || (__CUDA_ARCH__ >= 1000 && __CUDA_ARCH__ < 1200)))
#define GENERANT_TENSOR_FLOAT 1
#endif
#if (!defined(__CUDACC__) && !defined(GENERANT_SIMULATE_PLAIN)) || (defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800)
#define GENERANT_TENSOR_BF16 1
#endif

constexpr int kDepth = 16;                           // k per step
constexpr int kFold = 16;                            // steps whose products are one chain of fused multiply-adds

// ---- copies to shared memory ----

// to[0, bytes) = real ? from[0, bytes) : 0. Finished after wait_copies and a barrier. `from` is an address in any case.
template <int bytes> __device__ inline void copy_async(void* to, const void* from, bool real) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  const unsigned address = unsigned(__cvta_generic_to_shared(to));
  if constexpr (bytes == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(real ? 16 : 0) : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(address), "l"(from), "n"(bytes), "r"(real ? bytes : 0) : "memory");
#elif defined(__CUDACC__)
  using Words = Pack<uint32_t, bytes / 4>;
  *static_cast<Words*>(to) = real ? *static_cast<const Words*>(from) : Words{};
#else
  generant::simulator::check_aligned(to, bytes), generant::simulator::check_aligned(from, bytes);   // be it real or not
  if (real) memcpy(to, from, bytes);
  else memset(to, 0, bytes);
#endif
}
__device__ inline void commit_copies() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
// Until at most `ahead` commits are unfinished.
template <int ahead> __device__ inline void wait_copies() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(ahead) : "memory");
#endif
}

// ---- shapes ----

template <int M, int N, int WarpsM, int WarpsN> struct Shape {
  static constexpr int kM = M, kN = N, kWarpsM = WarpsM, kWarpsN = WarpsN, kThreads = WarpsM * WarpsN * kWarp;
};
using Large = Shape<128, 128, 2, 4>;
using Small = Shape<64, 64, 2, 2>;
using Narrow = Shape<128, 16, 4, 1>;                 // few columns: images of one or three channels

// kDepth k of R rows (of a) or columns (of b); along: k is the inner dimension. Padded so that the lanes of a fragment read
// different banks.
template <Precision P, int R, bool along> struct Panel {
  static constexpr bool kAlong = along;
  static constexpr int kPad = P == kDoubleProduct ? 2 : (P == kFloatProduct) == along ? 4 : 8;
  static constexpr int kLd = (along ? kDepth : R) + kPad, kSize = (along ? R : kDepth) * kLd;
  __device__ static constexpr int at(int r, int k) { return along ? r * kLd + k : k * kLd + r; }
};

// ---- products of a step ----

// x = big + small; what an mma reads of the two are the first 22 bits. A NaN stays one in one of them.
__device__ inline void split_tf32(float x, float& big, float& small) {
  big = __uint_as_float((__float_as_uint(x) + 0x1000u) & 0xffffe000u);
  small = x - big;
}

__device__ inline uint32_t bf16_pair(float low, float high) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
#else
  return pack_bf16(low, high);
#endif
}

// k and k + 1, k even.
template <class P> __device__ inline uint32_t bf16_pair_at(const float* panel, int r, int k) {
  if constexpr (P::kAlong) {
    const Pack<float, 2> pair = *reinterpret_cast<const Pack<float, 2>*>(panel + P::at(r, k));
    return bf16_pair(pair.v[0], pair.v[1]);
  } else {
    return bf16_pair(panel[P::at(r, k)], panel[P::at(r, k + 1)]);
  }
}

// The warps of a block on a kM x kN tile, and the rows of it that they hand out in one of kChunks passes.
template <class S> struct WarpTile {
  static constexpr int kRows = S::kM / S::kWarpsM, kColumns = S::kN / S::kWarpsN, kI = kRows / 16, kJ = kColumns / 8;
  static constexpr int kChunks = kI, kStageRows = 16 * S::kWarpsM;
  float sum[kI][kJ][4] = {};

  __device__ static int lane() { return threadIdx.x % kWarp; }
  __device__ static int row0() { return threadIdx.x / kWarp / S::kWarpsN * kRows; }
  __device__ static int column0() { return threadIdx.x / kWarp % S::kWarpsN * kColumns; }
  // Row of the tile that is row r of a chunk.
  __device__ static int row(int chunk, int r) { return r / 16 * kRows + chunk * 16 + r % 16; }

  __device__ void stage(int chunk, int ld, float* to) const {
    to += (row0() / kRows * 16 + lane() / 4) * ld + column0() + lane() % 4 * 2;
    GENERANT_UNROLL
    for (int i = 0; i < kI; ++i)
      if (i == chunk) {
        GENERANT_UNROLL
        for (int j = 0; j < kJ; ++j)
          GENERANT_UNROLL
          for (int e = 0; e < 4; ++e) to[e / 2 * 8 * ld + j * 8 + e % 2] = sum[i][j][e];
      }
  }
  __device__ void fold() {}
};

template <class S, class PanelA, class PanelB> struct TensorFloat : WarpTile<S> {
  using Tile = WarpTile<S>;
  __device__ void step(const float* a, const float* b) {
    const int g = Tile::lane() / 4, t = Tile::lane() % 4, row = Tile::row0() + g, column = Tile::column0() + g;
    GENERANT_UNROLL
    for (int k = 0; k < kDepth; k += 8) {
      float b_big[Tile::kJ][2], b_small[Tile::kJ][2];
      GENERANT_UNROLL
      for (int j = 0; j < Tile::kJ; ++j)
        GENERANT_UNROLL
        for (int e = 0; e < 2; ++e) split_tf32(b[PanelB::at(column + j * 8, k + t + 4 * e)], b_big[j][e], b_small[j][e]);
      GENERANT_UNROLL
      for (int i = 0; i < Tile::kI; ++i) {
        float a_big[4], a_small[4], part[Tile::kJ][4] = {};
        GENERANT_UNROLL
        for (int e = 0; e < 4; ++e) split_tf32(a[PanelA::at(row + i * 16 + e % 2 * 8, k + t + e / 2 * 4)], a_big[e], a_small[e]);
        GENERANT_UNROLL
        for (int j = 0; j < Tile::kJ; ++j) mma_tf32(part[j], a_small, b_big[j]);
        GENERANT_UNROLL
        for (int j = 0; j < Tile::kJ; ++j) mma_tf32(part[j], a_big, b_small[j]);
        GENERANT_UNROLL
        for (int j = 0; j < Tile::kJ; ++j) mma_tf32(part[j], a_big, b_big[j]);
        GENERANT_UNROLL
        for (int j = 0; j < Tile::kJ; ++j)
          GENERANT_UNROLL
          for (int e = 0; e < 4; ++e) this->sum[i][j][e] += part[j][e];
      }
    }
  }
};

template <class S, class PanelA, class PanelB> struct TensorBf16 : WarpTile<S> {
  using Tile = WarpTile<S>;
  __device__ void step(const float* a, const float* b) {
    const int g = Tile::lane() / 4, k = Tile::lane() % 4 * 2, row = Tile::row0() + g, column = Tile::column0() + g;
    uint32_t of_b[Tile::kJ][2];
    GENERANT_UNROLL
    for (int j = 0; j < Tile::kJ; ++j)
      GENERANT_UNROLL
      for (int e = 0; e < 2; ++e) of_b[j][e] = bf16_pair_at<PanelB>(b, column + j * 8, k + 8 * e);
    GENERANT_UNROLL
    for (int i = 0; i < Tile::kI; ++i) {
      uint32_t of_a[4];
      float part[Tile::kJ][4] = {};
      GENERANT_UNROLL
      for (int e = 0; e < 4; ++e) of_a[e] = bf16_pair_at<PanelA>(a, row + i * 16 + e % 2 * 8, k + e / 2 * 8);
      GENERANT_UNROLL
      for (int j = 0; j < Tile::kJ; ++j) mma_bf16(part[j], of_a, of_b[j]);
      GENERANT_UNROLL
      for (int j = 0; j < Tile::kJ; ++j)
        GENERANT_UNROLL
        for (int e = 0; e < 4; ++e) this->sum[i][j][e] += part[j][e];
    }
  }
};

HOST_DEVICE float round_to_bf16(float x) { return from_bf16(to_bf16(x)); }
HOST_DEVICE double round_to_bf16(double x) { return x; }

// Threads as kY x kX with kI x kJ elements each; columns in pairs.
template <class T, class S, class PanelA, class PanelB, bool rounded> struct FmaTile {
  static constexpr int kX = S::kN < 64 ? 8 : 16, kY = S::kThreads / kX, kI = S::kM / kY, kJ = S::kN / kX;
  static constexpr int kChunks = kI, kStageRows = kY;
  static constexpr bool kFolds = sizeof(T) == 4;     // two chains of float32 instead of a long one
  T sum[kI][kJ] = {}, total[kFolds ? kI : 1][kJ] = {};

  __device__ static int x() { return threadIdx.x % kX; }
  __device__ static int y() { return threadIdx.x / kX; }
  __device__ static int row(int chunk, int r) { return r + chunk * kY; }
  __device__ static int column(int j) { return (j / 2 * kX + x()) * 2 + j % 2; }

  __device__ void step(const T* a, const T* b) {
    GENERANT_UNROLL
    for (int k = 0; k < kDepth; ++k) {
      T of_a[kI], of_b[kJ];
      GENERANT_UNROLL
      for (int i = 0; i < kI; ++i) of_a[i] = a[PanelA::at(y() + i * kY, k)];
      GENERANT_UNROLL
      for (int j = 0; j < kJ; ++j) of_b[j] = b[PanelB::at(column(j), k)];
      if constexpr (rounded) {
        GENERANT_UNROLL
        for (int i = 0; i < kI; ++i) of_a[i] = round_to_bf16(of_a[i]);
        GENERANT_UNROLL
        for (int j = 0; j < kJ; ++j) of_b[j] = round_to_bf16(of_b[j]);
      }
      GENERANT_UNROLL
      for (int i = 0; i < kI; ++i)
        GENERANT_UNROLL
        for (int j = 0; j < kJ; ++j) sum[i][j] += of_a[i] * of_b[j];
    }
  }
  // Called every kFold steps and at the end.
  __device__ void fold() {
    if constexpr (kFolds) {
      GENERANT_UNROLL
      for (int i = 0; i < kI; ++i)
        GENERANT_UNROLL
        for (int j = 0; j < kJ; ++j) total[i][j] += sum[i][j], sum[i][j] = 0;
    }
  }
  __device__ void stage(int chunk, int ld, T* to) const {
    GENERANT_UNROLL
    for (int i = 0; i < kI; ++i)
      if (i == chunk) {
        GENERANT_UNROLL
        for (int j = 0; j < kJ; ++j) {
          if constexpr (kFolds) to[y() * ld + column(j)] = total[i][j];
          else to[y() * ld + column(j)] = sum[i][j];
        }
      }
  }
};

template <Precision P, class S, class A, class B> struct ProductOf {
  using type = FmaTile<typename NumberOf<P>::type, S, A, B, P == kBf16Product>;
};
#ifdef GENERANT_TENSOR_FLOAT
template <class S, class A, class B> struct ProductOf<kFloatProduct, S, A, B> { using type = TensorFloat<S, A, B>; };
#endif
#ifdef GENERANT_TENSOR_BF16
template <class S, class A, class B> struct ProductOf<kBf16Product, S, A, B> { using type = TensorBf16<S, A, B>; };
#endif

// ---- the kernel ----

// What a kernel of a task on tiles of shape S needs of shared memory. kAlongA, kAlongB: whether k is the inner dimension of
// the task's operands.
template <Precision P, class S, bool alongA, bool alongB> struct GemmLayout {
  using T = typename NumberOf<P>::type;
  using PanelA = Panel<P, S::kM, alongA>;
  using PanelB = Panel<P, S::kN, alongB>;
  static constexpr int kStage = PanelA::kSize + PanelB::kSize;
  static constexpr int kStages = 3 * kStage * sizeof(T) <= kMaxShared ? 3 : 2;
  static constexpr size_t kBytes = kStages * kStage * sizeof(T);
  static constexpr int kStageLd = S::kN + 16 / sizeof(T);
};

// Task: a class template over the precision and the shape with
//   kAlongA, kAlongB, Args, Task(args)   this block's tile
//   steps                                how many times kDepth k it sums
//   load(i, a, b)                        starts the copies of step i
//   store(row, column, v)                takes four elements of the tile, or two of double
template <Precision P, class S, template <Precision, class> class Task>
__global__ void __launch_bounds__(S::kThreads, S::kThreads < 256 ? 3 : 1) gemm_kernel(typename Task<P, S>::Args args) {
  using TheTask = Task<P, S>;
  using L = GemmLayout<P, S, TheTask::kAlongA, TheTask::kAlongB>;
  using T = typename L::T;
  using Product = typename ProductOf<P, S, typename L::PanelA, typename L::PanelB>::type;
  DYNAMIC_SHARED(T, shared);
  TheTask task(args);
  Product product;
  const int steps = task.steps;
  constexpr int kAhead = L::kStages - 1;
  for (int i = 0; i < kAhead; ++i) {
    if (i < steps) task.load(i, shared + i * L::kStage, shared + i * L::kStage + L::PanelA::kSize);
    commit_copies();
  }
  int now = 0, then = kAhead;                        // the stage that is read, the one that is filled
#pragma unroll 1
  for (int i = 0; i < steps; ++i) {
    wait_copies<kAhead - 1>();
    __syncthreads();
    if (i + kAhead < steps) task.load(i + kAhead, shared + then * L::kStage, shared + then * L::kStage + L::PanelA::kSize);
    commit_copies();
    product.step(shared + now * L::kStage, shared + now * L::kStage + L::PanelA::kSize);
    if (i % kFold == kFold - 1) product.fold();
    now = now + 1 < L::kStages ? now + 1 : 0, then = then + 1 < L::kStages ? then + 1 : 0;
  }
  product.fold();
  wait_copies<0>();
  constexpr int kVector = 16 / sizeof(T), kRow = S::kN / kVector;
#pragma unroll 1
  for (int chunk = 0; chunk < Product::kChunks; ++chunk) {
    __syncthreads();
    product.stage(chunk, L::kStageLd, shared);
    __syncthreads();
#pragma unroll 1
    for (int i = threadIdx.x; i < Product::kStageRows * kRow; i += S::kThreads) {
      const int r = i / kRow, column = i % kRow * kVector;
      task.store(Product::row(chunk, r), column, *reinterpret_cast<const Pack<T, kVector>*>(shared + r * L::kStageLd + column));
    }
  }
}

template <Precision P, class S, template <Precision, class> class Task>
inline void launch_gemm(const Call& c, dim3 grid, const typename Task<P, S>::Args& args) {
  launch(c, gemm_kernel<P, S, Task>, grid, S::kThreads, GemmLayout<P, S, Task<P, S>::kAlongA, Task<P, S>::kAlongB>::kBytes, args);
}

}  // namespace
