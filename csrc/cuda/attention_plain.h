// Attention and its gradients by multiply-adds: any number of channels, float64, and GPUs whose tensor cores know neither TF32
// nor bfloat16.
//
// One kernel makes every result. A block has 32 rows (queries, or keys for the gradients of keys and values) and 128 channels
// of the result; it takes the columns (keys or queries) 32 at a time, a lane each, while a warp has four rows. Weights go
// through shared memory to be multiplied with the columns' own rows. Every further 128 channels make the weights again.
#pragma once
#include "attention_tiles.h"

#ifdef __CUDACC__
#define GENERANT_UNROLL_BY(n) _Pragma(GENERANT_STRING(unroll n))
#else
#define GENERANT_UNROLL_BY(n)
#endif

namespace {

constexpr int kPlain = 32, kPlainChannels = 128, kPlainRows = 4;   // rows and columns of a block; rows of a warp
constexpr int kPlainThreads = kPlain / kPlainRows * kWarp;

enum Result { kOutput, kQueries, kQueryKeys, kValues, kBias };   // the output, and the gradients of q, k, v and the bias

template <class T> struct PlainCall {
  Heads<T> h;
  const T *g, *low, *centre;                         // of the backward pass: log-sum-exp in base 2, +inf for none, and <g, out>
  T *out, *lse;                                      // the result
  bool round;                                        // operands to bfloat16
  int64_t t_padded;                                  // rows of a head of low and centre
};

template <class T> __device__ inline T rounded(T x, bool round) { return round ? T(from_bf16(to_bf16(float(x)))) : x; }

// acc[r] += sum over c of x[row r of this warp][c] factor y[column of this lane][c]. x, y: rows ld apart, of which so many are real.
template <class T>
__device__ inline void plain_products(T (&acc)[kPlainRows], const T* x, int64_t x_rows, int64_t x_ld, const T* y, int64_t y_rows,
                                      int64_t y_ld, int64_t channels, T factor, bool round, T* xs, T* ys) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  for (int64_t c0 = 0; c0 < channels; c0 += kPlain) {
    __syncthreads();
    for (int r = warp; r < kPlain; r += kPlainThreads / kWarp) {
      const bool real = c0 + lane < channels;
      xs[r * (kPlain + 1) + lane] = real && r < x_rows ? rounded(x[r * x_ld + c0 + lane] * factor, round) : T(0);
      ys[r * (kPlain + 1) + lane] = real && r < y_rows ? rounded(y[r * y_ld + c0 + lane], round) : T(0);
    }
    __syncthreads();
    GENERANT_UNROLL_BY(4)
    for (int c = 0; c < kPlain; ++c) {
      const T v = ys[lane * (kPlain + 1) + c];
      GENERANT_UNROLL
      for (int r = 0; r < kPlainRows; ++r) acc[r] += xs[(warp * kPlainRows + r) * (kPlain + 1) + c] * v;
    }
  }
}

template <class T> struct PlainShared { T *x, *y, *weights, *rows; };

// Scores of the rows of this warp, from row0, with the column of this lane, which is column0 + lane; -inf where there is none.
template <class T, bool kKeyRows>
__device__ inline void plain_scores(const PlainCall<T>& p, int64_t sample, int64_t head, int64_t row0, int64_t column0,
                                    T (&score)[kPlainRows], const PlainShared<T>& shared) {
  const Heads<T>& h = p.h;
  const int64_t ld = h.heads * h.d, rows = kKeyRows ? h.s : h.t, columns = kKeyRows ? h.t : h.s;
  const T* const q = h.q + h.at(sample, h.t, head, h.d) + (kKeyRows ? column0 : row0) * ld;
  const T* const k = h.k + h.at(sample, h.s, head, h.d) + (kKeyRows ? row0 : column0) * ld;
  GENERANT_UNROLL
  for (int r = 0; r < kPlainRows; ++r) score[r] = T(0);
  plain_products(score, kKeyRows ? k : q, rows - row0, ld, kKeyRows ? q : k, columns - column0, ld, h.d, T(h.scale * kLog2E), p.round,
                 shared.x, shared.y);
  const T* const bias = h.bias_of(sample, head);
  const int64_t column = column0 + threadIdx.x % kWarp;
  GENERANT_UNROLL
  for (int r = 0; r < kPlainRows; ++r) {
    const int64_t row = row0 + threadIdx.x / kWarp * kPlainRows + r, i = kKeyRows ? column : row, j = kKeyRows ? row : column;
    if (i >= h.t || j >= h.s || (h.causal && j > i)) score[r] = -T(__builtin_inff());
    else if (bias) score[r] += bias[i * h.s + j] * T(kLog2E);
  }
}

// score becomes p; if kSlopes, slope becomes p (<g, v> - <g, out>).
template <class T, bool kKeyRows, bool kSlopes>
__device__ inline void plain_weights(const PlainCall<T>& p, int64_t sample, int64_t head, int64_t row0, int64_t column0,
                                     T (&score)[kPlainRows], T (&slope)[kPlainRows], const PlainShared<T>& shared) {
  const Heads<T>& h = p.h;
  const int64_t ld = h.heads * h.e;
  plain_scores<T, kKeyRows>(p, sample, head, row0, column0, score, shared);
  if constexpr (kSlopes) {
    const T* const g = p.g + h.at(sample, h.t, head, h.e) + (kKeyRows ? column0 : row0) * ld;
    const T* const v = h.v + h.at(sample, h.s, head, h.e) + (kKeyRows ? row0 : column0) * ld;
    GENERANT_UNROLL
    for (int r = 0; r < kPlainRows; ++r) slope[r] = T(0);
    plain_products(slope, kKeyRows ? v : g, (kKeyRows ? h.s : h.t) - row0, ld, kKeyRows ? g : v, (kKeyRows ? h.t : h.s) - column0, ld,
                   h.e, T(1), false, shared.x, shared.y);
  }
  const int64_t column = column0 + threadIdx.x % kWarp, first = (sample * h.heads + head) * p.t_padded;
  GENERANT_UNROLL
  for (int r = 0; r < kPlainRows; ++r) {
    const int64_t row = row0 + threadIdx.x / kWarp * kPlainRows + r, i = kKeyRows ? column : row;
    score[r] = i < h.t ? power_of_2(score[r] - p.low[first + i]) : T(0);
    if constexpr (kSlopes) slope[r] = i < h.t ? score[r] * (slope[r] - p.centre[first + i]) : T(0);
  }
}

template <class T> constexpr size_t kPlainShared = (2 * kPlain * (kPlain + 1) + kPlain * kPlain + kPlain * kPlainChannels) * sizeof(T);

template <class T, Result kResult> __global__ void __launch_bounds__(kPlainThreads, 1) attention_plain(PlainCall<T> p) {
  constexpr bool kKeyRows = kResult == kQueryKeys || kResult == kValues;
  constexpr int kSpan = kPlainChannels / kWarp;
  DYNAMIC_SHARED(T, memory);
  const PlainShared<T> shared = {memory, memory + kPlain * (kPlain + 1), memory + 2 * kPlain * (kPlain + 1),
                                 memory + 2 * kPlain * (kPlain + 1) + kPlain * kPlain};
  const Heads<T>& h = p.h;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t rows = kKeyRows ? h.s : h.t, columns = kKeyRows ? h.t : h.s;
  const int64_t channels = kResult == kOutput || kResult == kValues ? h.e : h.d;
  const int64_t blocks = (rows + kPlain - 1) / kPlain, pieces = channels > 0 ? (channels + kPlainChannels - 1) / kPlainChannels : 1;
  const int64_t row0 = blockIdx.x % blocks * kPlain, piece = blockIdx.x / blocks % pieces, flat = blockIdx.x / blocks / pieces;
  const int64_t head = flat % h.heads, sample = flat / h.heads, channel0 = piece * kPlainChannels;
  const int64_t begin = kKeyRows && h.causal ? row0 : 0, end = kKeyRows ? columns : h.visible(row0 + kPlain < h.t ? row0 + kPlain : h.t);
  const int width = int(channels - channel0 < kPlainChannels ? channels - channel0 : kPlainChannels);
  // what is averaged: a row of every column
  const T* const from = kResult == kOutput    ? h.v + h.at(sample, h.s, head, h.e)
                        : kResult == kQueries ? h.k + h.at(sample, h.s, head, h.d)
                        : kResult == kValues  ? p.g + h.at(sample, h.t, head, h.e)
                                              : h.q + h.at(sample, h.t, head, h.d);
  T sum[kPlainRows][kSpan] = {}, top[kPlainRows], total[kPlainRows] = {};
  for (int r = 0; r < kPlainRows; ++r) top[r] = -T(__builtin_inff());

  for (int64_t column0 = begin; column0 < end; column0 += kPlain) {
    T score[kPlainRows], slope[kPlainRows];
    if constexpr (kResult == kOutput) {
      plain_scores<T, false>(p, sample, head, row0, column0, score, shared);
      GENERANT_UNROLL
      for (int r = 0; r < kPlainRows; ++r) {
        T high = score[r];
        for (int mask = kWarp / 2; mask > 0; mask /= 2) high = larger(high, warp_xor(high, mask));
        high = larger(top[r], high);
        const T base = base_of(high), factor = power_of_2(top[r] - base), weight = power_of_2(score[r] - base);
        top[r] = high, total[r] = total[r] * factor + warp_sum(weight);
        for (int c = 0; c < kSpan; ++c) sum[r][c] *= factor;
        slope[r] = rounded(weight, p.round);
      }
    } else {
      plain_weights<T, kKeyRows, kResult != kValues>(p, sample, head, row0, column0, score, slope, shared);
      if (kResult == kValues) for (int r = 0; r < kPlainRows; ++r) slope[r] = score[r];
    }
    __syncthreads();
    for (int r = 0; r < kPlainRows; ++r) shared.weights[(warp * kPlainRows + r) * kPlain + lane] = slope[r];
    for (int i = threadIdx.x; i < kPlain * kPlainChannels; i += kPlainThreads) {
      const int row = i / kPlainChannels, c = i % kPlainChannels;
      const bool real = column0 + row < columns && c < width;
      const T v = real ? from[(column0 + row) * h.heads * channels + channel0 + c] : T(0);
      shared.rows[i] = rounded(v, kResult == kOutput && p.round);
    }
    __syncthreads();
    GENERANT_UNROLL_BY(4)
    for (int j = 0; j < kPlain; ++j) {
      T v[kSpan];
      GENERANT_UNROLL
      for (int c = 0; c < kSpan; ++c) v[c] = shared.rows[j * kPlainChannels + c * kWarp + lane];
      GENERANT_UNROLL
      for (int r = 0; r < kPlainRows; ++r)
        GENERANT_UNROLL
        for (int c = 0; c < kSpan; ++c) sum[r][c] += shared.weights[(warp * kPlainRows + r) * kPlain + j] * v[c];
    }
  }

  GENERANT_UNROLL
  for (int r = 0; r < kPlainRows; ++r) {
    const int64_t row = row0 + warp * kPlainRows + r;
    const T factor = kResult == kOutput ? share_of(total[r]) : kResult == kValues ? T(1) : T(h.scale);
    if (row >= rows) continue;
    T* const to = p.out + h.at(sample, rows, head, channels) + row * h.heads * channels + channel0;
    GENERANT_UNROLL
    for (int c = 0; c < kSpan; ++c)
      if (c * kWarp + lane < width) to[c * kWarp + lane] = sum[r][c] * factor;
    if (kResult == kOutput && p.lse && piece == 0 && lane == 0)
      p.lse[(sample * h.heads + head) * h.t + row] = base_of(top[r]) * T(kLn2) + T(log(total[r]));
  }
}

// The gradient of the bias: a block has 32 x 32 of a matrix and sums the samples and heads that share it, in order.
template <class T> __global__ void __launch_bounds__(kPlainThreads, 1) attention_bias(PlainCall<T> p, int64_t samples, int64_t matrices) {
  DYNAMIC_SHARED(T, memory);
  const PlainShared<T> shared = {memory, memory + kPlain * (kPlain + 1), nullptr, nullptr};
  const Heads<T>& h = p.h;
  const int64_t blocks_j = (h.s + kPlain - 1) / kPlain, blocks_i = (h.t + kPlain - 1) / kPlain;
  const int64_t column0 = blockIdx.x % blocks_j * kPlain, row0 = blockIdx.x / blocks_j % blocks_i * kPlain;
  const int64_t matrix = blockIdx.x / blocks_j / blocks_i, first_sample = samples > 1 ? matrix / matrices : 0;
  const int64_t first_head = matrices > 1 ? matrix % matrices : 0;
  T sum[kPlainRows] = {};
  if (!h.causal || column0 < row0 + kPlain)
    for (int64_t sample = first_sample; sample < (samples > 1 ? first_sample + 1 : h.n); ++sample)
      for (int64_t head = first_head; head < (matrices > 1 ? first_head + 1 : h.heads); ++head) {
        T score[kPlainRows], slope[kPlainRows];
        plain_weights<T, false, true>(p, sample, head, row0, column0, score, slope, shared);
        for (int r = 0; r < kPlainRows; ++r) sum[r] += slope[r];
      }
  const int64_t column = column0 + threadIdx.x % kWarp;
  for (int r = 0; r < kPlainRows; ++r) {
    const int64_t row = row0 + threadIdx.x / kWarp * kPlainRows + r;
    if (row < h.t && column < h.s) p.out[(matrix * h.t + row) * h.s + column] = sum[r];
  }
}

// low and centre of the backward pass: a warp per query. Queries that do not exist up to t_padded have +inf and 0.
template <class T>
__global__ void __launch_bounds__(256) attention_rows(Heads<T> h, const T* g, const T* out, const T* lse, int64_t t_padded, T* low,
                                                      T* centre) {
  const int64_t place = global_thread() / kWarp;
  if (place >= h.n * h.heads * t_padded) return;
  const int64_t flat = place / t_padded, i = place % t_padded, row = h.at(flat / h.heads, h.t, flat % h.heads, h.e) + i * h.heads * h.e;
  const int lane = threadIdx.x % kWarp;
  T sum = 0, l = T(__builtin_inff());
  if (i < h.t) {
    for (int64_t c = lane; c < h.e; c += kWarp) sum += g[row + c] * out[row + c];
    l = lse[flat * h.t + i];
    l = l == -T(__builtin_inff()) ? -l : l * T(kLog2E);
  }
  sum = warp_sum(sum);
  if (lane == 0) low[place] = l, centre[place] = sum;
}

// ---- launching ----

template <class T, Result kResult> inline void run_plain(const Call& c, const PlainCall<T>& p) {
  const Heads<T>& h = p.h;
  const int64_t rows = kResult == kQueryKeys || kResult == kValues ? h.s : h.t;
  const int64_t channels = kResult == kOutput || kResult == kValues ? h.e : h.d;
  const int64_t pieces = max(ceil_div(channels, kPlainChannels), int64_t(1));
  launch(c, attention_plain<T, kResult>, grid_of(h.n * h.heads * ceil_div(rows, kPlain) * pieces), kPlainThreads, kPlainShared<T>, p);
}

template <class T> inline void run_plain_bias(const Call& c, const PlainCall<T>& p) {
  const Heads<T>& h = p.h;
  const int64_t samples = h.bias_n ? h.n : 1, matrices = h.bias_h ? h.heads : 1;
  launch(c, attention_bias<T>, grid_of(samples * matrices * ceil_div(h.t, kPlain) * ceil_div(h.s, kPlain)), kPlainThreads,
         2 * kPlain * (kPlain + 1) * sizeof(T), p, samples, matrices);
}

}  // namespace
