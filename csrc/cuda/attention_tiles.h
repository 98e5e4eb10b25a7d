// What attention on tensor cores is made of: tiles of keys or queries in shared memory, fragments of rows in registers, and
// the two products between them.
//
// A warp has 16 rows. Lane (g, t) = (lane / 4, lane % 4) holds rows g and g + 8, of each the words chunk 4 k + t of 16 bytes
// for every k: which numbers meet in an mma is free, as long as both operands agree, so that both are read 16 bytes at a time
// and the result of one product is the left operand of the next as it lies in registers.
//
// float32 is three products of TF32. Tensor cores cut off digits when they add, towards zero, so only 16 products are added
// there. bfloat16 lies in tiles that a pass over keys and values has made: keys as rows, values as pairs of keys.
#pragma once
#include "attention_shape.h"
#include "gemm.h"
#include "packs.h"
#include "softmax_merge.h"

#if !defined(__CUDACC__) || (defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800)
#define GENERANT_ATTENTION_TILES 1
#endif

namespace {

constexpr float kHidden = -__builtin_inff();

__device__ inline float power_of_2(float x) {
#ifdef __CUDA_ARCH__
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return exp2f(x);
#endif
}
__device__ inline double power_of_2(double x) { return exp2(x); }

struct Lane {
  int g, t;
  __device__ Lane() : g(threadIdx.x % kWarp / 4), t(threadIdx.x % 4) {}
};

// ---- tiles: rows of kChunks times 16 bytes ----

// Word of the first byte of a chunk. Rows are turned against each other so that eight lanes read all banks, be it four
// chunks of two rows that follow each other or two chunks of every second row or of four rows.
template <int kChunks> __device__ inline int chunk_at(int row, int chunk) {
  if (kChunks >= 8) chunk ^= (row & 6) ^ ((row & 1) << 2);
  return (row * kChunks + chunk) * 4;
}
// The same of 8 rows and 8 chunks further, which is where the turn repeats: what is known at compile time stays a constant.
template <int kChunks> __device__ inline int chunk_at(int row, int chunk, int rows8, int chunks8) {
  return chunk_at<kChunks>(row, chunk) + (rows8 * kChunks + chunks8) * 32;
}

// tile = `rows` rows of `columns` numbers that lie ld apart, of which `real` exist; zeros elsewhere, and up to a multiple of 32 columns.
template <int kChunks>
__device__ inline void copy_rows(uint32_t* tile, const float* from, int64_t ld, int rows, int64_t real, int columns, bool wide) {
  const int used = (columns + 31) / 32 * 8;
  for (int i = threadIdx.x; i < rows * kChunks; i += blockDim.x) {
    const int row = i / kChunks, chunk = i % kChunks, left = row < real ? columns - chunk * 4 : 0;
    if (chunk >= used) continue;
    uint32_t* const to = tile + chunk_at<kChunks>(row, chunk);
    const float* const p = left > 0 ? from + row * ld + chunk * 4 : from;
    if (wide) {
      copy_async<16>(to, p, left > 0);
    } else {
      GENERANT_UNROLL
      for (int k = 0; k < 4; ++k) copy_async<4>(to + k, k < left ? p + k : p, k < left);
    }
  }
}

// The same of rows that are packed words.
template <int kChunks> __device__ inline void copy_packed(uint32_t* tile, const uint32_t* from, int rows, int64_t real) {
  for (int i = threadIdx.x; i < rows * kChunks; i += blockDim.x) {
    const int row = i / kChunks;
    copy_async<16>(tile + chunk_at<kChunks>(row, i % kChunks), row < real ? from + i * 4 : from, row < real);
  }
}

__device__ inline void read_chunk(const uint32_t* p, uint32_t (&words)[4]) {
  const uint4 v = *reinterpret_cast<const uint4*>(p);
  words[0] = v.x, words[1] = v.y, words[2] = v.z, words[3] = v.w;
}
__device__ inline void read_chunk(const uint32_t* p, float (&words)[4]) {
  const float4 v = *reinterpret_cast<const float4*>(p);
  words[0] = v.x, words[1] = v.y, words[2] = v.z, words[3] = v.w;
}

// ---- rows of a warp ----

// Chunk `chunk` of a row of `columns` floats, times factor.
template <bool kBf16>
__device__ inline void load_words(const float* row, bool real, int chunk, int columns, float factor, bool wide, uint32_t (&words)[4]) {
  constexpr int N = kBf16 ? 8 : 4;
  GENERANT_UNROLL
  for (int half = 0; half < N / 4; ++half) {
    const int first = chunk * N + half * 4;
    const PackOf<float> p = load_pack(real ? row + first : row, real ? columns - first : 0, wide);
    if (kBf16) {
      words[2 * half] = bf16_pair(p.v[0] * factor, p.v[1] * factor), words[2 * half + 1] = bf16_pair(p.v[2] * factor, p.v[3] * factor);
    } else {
      GENERANT_UNROLL
      for (int k = 0; k < 4; ++k) words[k] = __float_as_uint(p.v[k] * factor);
    }
  }
}

// The rows of a warp, kSteps times four chunks each: kHeld of them in registers, the others, each lane its own, in shared memory.
template <int kSteps, int kHeld, int kThreads> struct Rows {
  static constexpr int kWords = (kSteps - kHeld) * 2 * 4 * kThreads;   // of shared memory
  uint32_t held[kHeld > 0 ? kHeld : 1][2][4];
  uint4* memory;

  __device__ explicit Rows(uint32_t* shared) : memory(reinterpret_cast<uint4*>(shared) + threadIdx.x) {}
  // Rows g and g + 8 at `row`, of which real[] exist, times factor.
  template <bool kBf16>
  __device__ void load(const float* const (&row)[2], const bool (&real)[2], int columns, float factor, bool wide, Lane lane) {
    GENERANT_UNROLL
    for (int k = 0; k < kSteps; ++k)
      GENERANT_UNROLL
      for (int i = 0; i < 2; ++i) {
        uint32_t w[4];
        load_words<kBf16>(row[i], real[i], 4 * k + lane.t, columns, factor, wide, w);
        if (k >= kHeld) memory[(2 * (k - kHeld) + i) * kThreads] = make_uint4(w[0], w[1], w[2], w[3]);
        GENERANT_UNROLL
        for (int j = 0; j < 4; ++j)
          if (k < kHeld) held[k < kHeld ? k : 0][i][j] = w[j];
      }
  }
  __device__ void get(int k, uint32_t (&words)[2][4]) const {
    GENERANT_UNROLL
    for (int i = 0; i < 2; ++i) {
      if (k >= kHeld) read_chunk(reinterpret_cast<const uint32_t*>(memory + (2 * (k - kHeld) + i) * kThreads), words[i]);
      GENERANT_UNROLL
      for (int j = 0; j < 4; ++j)
        if (k < kHeld) words[i][j] = held[k < kHeld ? k : 0][i][j];
    }
  }
};

// ---- products ----

// sum[j] += rows times tile^T over 16 (bfloat16: 32) columns: `words` of rows g and g + 8, step `step` of them,
// whose row 8 j + i is column i of sum[j].
template <bool kBf16, int kChunks, int kTiles>
__device__ inline void add_scores(float (&sum)[kTiles][4], const uint32_t (&words)[2][4], const uint32_t* tile, int step, Lane lane) {
  if constexpr (kBf16) {
    const uint32_t a[2][4] = {{words[0][0], words[1][0], words[0][1], words[1][1]}, {words[0][2], words[1][2], words[0][3], words[1][3]}};
    GENERANT_UNROLL
    for (int j = 0; j < kTiles; ++j) {
      uint32_t y[4];
      read_chunk(tile + chunk_at<kChunks>(lane.g, step % 2 * 4 + lane.t, j, step / 2), y);
      mma_bf16(sum[j], a[0], {y[0], y[1]});
      mma_bf16(sum[j], a[1], {y[2], y[3]});
    }
  } else {
    float big[2][4], small[2][4];
    GENERANT_UNROLL
    for (int i = 0; i < 8; ++i) split_tf32(__uint_as_float(words[i % 2][i / 2]), big[i / 4][i % 4], small[i / 4][i % 4]);
    GENERANT_UNROLL
    for (int j = 0; j < kTiles; ++j) {
      float y[4], y_big[2][2], y_small[2][2], part[4] = {};
      read_chunk(tile + chunk_at<kChunks>(lane.g, step % 2 * 4 + lane.t, j, step / 2), y);
      GENERANT_UNROLL
      for (int i = 0; i < 4; ++i) split_tf32(y[i], y_big[i / 2][i % 2], y_small[i / 2][i % 2]);
      GENERANT_UNROLL
      for (int i = 0; i < 2; ++i) mma_tf32(part, small[i], y_big[i]), mma_tf32(part, big[i], y_small[i]);
      GENERANT_UNROLL
      for (int i = 0; i < 2; ++i) mma_tf32(part, big[i], y_big[i]);
      GENERANT_UNROLL
      for (int i = 0; i < 4; ++i) sum[j][i] += part[i];
    }
  }
}

// sum += weights times tile, which has a row per column of the weights (bfloat16: per pair of columns). Column 8 m + n of
// the sum is number 32 (m / 4) + 4 n + m % 4 of the tile's rows. `columns` of the rows count.
template <bool kBf16, int kChunks, int kTiles, int kSums>
__device__ inline void add_average(float (&sum)[kSums][4], const float (&weights)[kTiles][4], const uint32_t* tile, int columns,
                                   Lane lane) {
  GENERANT_UNROLL
  for (int j = 0; j < kTiles; j += 2) {
    if constexpr (kBf16) {
      const uint32_t a[4] = {bf16_pair(weights[j][0], weights[j][1]), bf16_pair(weights[j][2], weights[j][3]),
                             bf16_pair(weights[j + 1][0], weights[j + 1][1]), bf16_pair(weights[j + 1][2], weights[j + 1][3])};
      GENERANT_UNROLL
      for (int m = 0; m < kSums / 4; ++m)
        if (m * 32 < columns) {
          uint32_t y[2][4];
          GENERANT_UNROLL
          for (int i = 0; i < 2; ++i) read_chunk(tile + chunk_at<kChunks>(4 * i + lane.t, lane.g, j / 2, m), y[i]);
          GENERANT_UNROLL
          for (int q = 0; q < 4; ++q) mma_bf16(sum[4 * m + q], a, {y[0][q], y[1][q]});
        }
    } else {
      float big[2][4], small[2][4];
      GENERANT_UNROLL
      for (int i = 0; i < 8; ++i)                    // a: (g, 2t), (g + 8, 2t), (g, 2t + 1), (g + 8, 2t + 1)
        split_tf32(weights[j + i / 4][i % 4 / 2 + i % 2 * 2], big[i / 4][i % 4], small[i / 4][i % 4]);
      GENERANT_UNROLL
      for (int m = 0; m < kSums / 4; ++m)
        if (m * 32 < columns) {
          float y[4][4];
          GENERANT_UNROLL
          for (int i = 0; i < 4; ++i) read_chunk(tile + chunk_at<kChunks>(2 * lane.t + i % 2, lane.g, j + i / 2, m), y[i]);
          GENERANT_UNROLL
          for (int q = 0; q < 4; ++q) {
            float y_big[2][2], y_small[2][2], part[4] = {};
            GENERANT_UNROLL
            for (int i = 0; i < 4; ++i) split_tf32(y[i][q], y_big[i / 2][i % 2], y_small[i / 2][i % 2]);
            GENERANT_UNROLL
            for (int i = 0; i < 2; ++i) mma_tf32(part, small[i], y_big[i]), mma_tf32(part, big[i], y_small[i]);
            GENERANT_UNROLL
            for (int i = 0; i < 2; ++i) mma_tf32(part, big[i], y_big[i]);
            GENERANT_UNROLL
            for (int i = 0; i < 4; ++i) sum[4 * m + q][i] += part[i];
          }
        }
    }
  }
}

// Row g (half 0) or g + 8 (half 1) of a sum of add_average, times factor, to `to`.
template <int kSums>
__device__ inline void store_row(const float (&sum)[kSums][4], int half, float factor, float* to, int columns, bool wide, Lane lane) {
  GENERANT_UNROLL
  for (int m = 0; m < kSums / 4; ++m)
    GENERANT_UNROLL
    for (int i = 0; i < 2; ++i) {
      const int first = 32 * m + 8 * lane.t + 4 * i;
      PackOf<float> p;
      GENERANT_UNROLL
      for (int q = 0; q < 4; ++q) p.v[q] = sum[4 * m + q][2 * half + i] * factor;
      store_pack(to + first, p, columns - first, wide);
    }
}

}  // namespace
