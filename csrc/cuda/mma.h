// Matrix products of a warp on tensor cores: TF32 (16x8x8) and bfloat16 (16x8x16), float32 sums.
//
// With g = lane / 4 and t = lane % 4, a lane holds
//   a (TF32)   (row g, k t)  (g + 8, t)  (g, t + 4)  (g + 8, t + 4)
//   b (TF32)   (k t, column g)  (t + 4, g)
//   a (bf16)   pairs (g; 2t, 2t + 1)  (g + 8; 2t, 2t + 1)  (g; 2t + 8, 2t + 9)  (g + 8; 2t + 8, 2t + 9), the first k in the low half
//   b (bf16)   pairs (2t, 2t + 1; g)  (2t + 8, 2t + 9; g)
//   c          (g, 2t)  (g, 2t + 1)  (g + 8, 2t)  (g + 8, 2t + 1)
// (PTX ISA, mma.m16n8k8 and m16n8k16). GPUs without these instructions (sm_75) and the simulator do the same products
// with the lanes' values exchanged.
#pragma once
#include "block.h"
#include "float_bits.h"

namespace {

// ---- formats ----

// x rounded to 10 bits of mantissa, ties away from zero; what an mma reads of a float.
HOST_DEVICE float to_tf32(float x) {
  const uint32_t u = same_bits<uint32_t>(x);
  return (u & 0x7f800000u) == 0x7f800000u ? x : same_bits<float>((u + 0x1000u) & 0xffffe000u);
}

// Nearest, ties to even; NaN stays NaN.
HOST_DEVICE uint32_t to_bf16(float x) {
  const uint32_t u = same_bits<uint32_t>(x);
  if ((u & 0x7fffffffu) > 0x7f800000u) return (u >> 16) | 0x40u;
  return (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
}
HOST_DEVICE float from_bf16(uint32_t half) { return same_bits<float>(half << 16); }
HOST_DEVICE uint32_t pack_bf16(float low, float high) { return to_bf16(low) | (to_bf16(high) << 16); }

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800

// Volatile: all 32 lanes have to run it, so it must not be moved to where only some of them want the result.
__device__ inline void mma_tf32(float (&c)[4], const float (&a)[4], const float (&b)[2]) {
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])), "r"(__float_as_uint(a[3])),
        "r"(__float_as_uint(b[0])), "r"(__float_as_uint(b[1])));
}

__device__ inline void mma_bf16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

#else

// A call, where the instruction is missing: written out in every product it would take minutes to compile.
#ifdef __CUDACC__
#define MMA_CALL [[maybe_unused]] static __device__ __noinline__
#else
#define MMA_CALL inline
#endif

struct Fragments { uint32_t a[4], b[2]; };

#ifdef __CUDACC__
template <class F> __device__ inline void with_fragments(const Fragments& mine, F&& f) {
  for (int source = 0; source < kWarp; ++source) {   // everybody listens to everybody
    Fragments other;
    for (int i = 0; i < 4; ++i) other.a[i] = warp_from(mine.a[i], source);
    for (int i = 0; i < 2; ++i) other.b[i] = warp_from(mine.b[i], source);
    f(source, other);
  }
}
#else
template <class F> inline void with_fragments(const Fragments& mine, F&& f) {
  const char* all = generant::simulator::exchange(&mine, sizeof mine);
  for (int source = 0; source < kWarp; ++source) {
    Fragments other;
    memcpy(&other, all + 64 * source, sizeof other);
    f(source, other);
  }
}
#endif

// c += a b, where value(word, half) is a number of a fragment word and K the numbers per word.
template <int K, class Value> __device__ inline void mma_exchanged(float (&c)[4], const Fragments& mine, Value value) {
  const int lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
  float a[2][8 * K], b[2][8 * K];                    // rows g and g + 8, columns 2t and 2t + 1
  with_fragments(mine, [&](int source, const Fragments& other) {
    const int row = source / 4, k = source % 4;
    for (int half = 0; half < K; ++half) {
      if (row == g)
        for (int i = 0; i < 4; ++i) a[i % 2][(k + 4 * (i / 2)) * K + half] = value(other.a[i], half);
      for (int column = 0; column < 2; ++column)
        if (row == 2 * t + column)
          for (int i = 0; i < 2; ++i) b[column][(k + 4 * i) * K + half] = value(other.b[i], half);
    }
  });
  for (int i = 0; i < 4; ++i)
    for (int k = 0; k < 8 * K; ++k) c[i] += a[i / 2][k] * b[i % 2][k];
}

MMA_CALL void mma_tf32(float (&c)[4], const float (&a)[4], const float (&b)[2]) {
  const auto bits = [](float x) { return same_bits<uint32_t>(x); };
  const Fragments mine = {{bits(a[0]), bits(a[1]), bits(a[2]), bits(a[3])}, {bits(b[0]), bits(b[1])}};
  mma_exchanged<1>(c, mine, [](uint32_t word, int) { return same_bits<float>(word & 0xffffe000u); });  // the hardware drops the rest
}

MMA_CALL void mma_bf16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  const Fragments mine = {{a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
  mma_exchanged<2>(c, mine, [](uint32_t word, int half) { return from_bf16(half ? word >> 16 : word & 0xffffu); });
}

#endif

// Float32-grade products from three of TF32: x = big + small, and small x small is below the last bit.
__device__ inline void mma_3xtf32(float (&c)[4], const float (&a)[4], const float (&b)[2]) {
  float a_big[4], a_small[4], b_big[2], b_small[2];
  GENERANT_UNROLL
  for (int i = 0; i < 4; ++i) a_big[i] = to_tf32(a[i]), a_small[i] = to_tf32(a[i] - a_big[i]);
  GENERANT_UNROLL
  for (int i = 0; i < 2; ++i) b_big[i] = to_tf32(b[i]), b_small[i] = to_tf32(b[i] - b_big[i]);
  mma_tf32(c, a_small, b_big);
  mma_tf32(c, a_big, b_small);
  mma_tf32(c, a_big, b_big);
}

}  // namespace
