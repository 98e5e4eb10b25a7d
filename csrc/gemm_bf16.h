// gemm_bf16(): C = op(A) op(B) as gemm.h has it, with operands rounded to bfloat16 and sums in float32.
//
// Operands are rounded (to nearest, ties to even; NaN stays NaN) while they are packed into pairs: the values at k and
// k + 1, for even k, are the halves of one 32-bit lane, and an odd k at the end is paired with zero. Where the unit is
// compiled for AVX512-BF16 one instruction adds the dot product of two pairs to every lane of C. Elsewhere both halves
// are widened (a bfloat16 is the upper half of a float) and stored in a line each, and two fma do the same, odd k
// first as the instruction does it: the numbers differ from its only where it flushes subnormals to zero.
//
// What a caller with operands of its own making needs (convolution, attention): pack_pairs_across / _along make a tile
// of A (width kPairsStride, up to kTileRows used) or a panel of B (width kPairsCols); pairs_micro_of multiplies them.
//
// Every element is one chain over k per block of kPairsDepth values, block sums added in order, whoever computes it:
// as in gemm.h a row of C does not depend on the others, nor on the number of threads.
#pragma once
#include "gemm.h"
#include "transpose.h"

namespace {

template <> struct VecOf<uint32_t> {
  typedef uint32_t type __attribute__((vector_size(kVectorBytes)));
  typedef uint32_t unaligned __attribute__((vector_size(kVectorBytes), aligned(4), may_alias));
};
using pairs = vec<uint32_t>;                         // kLanes<float> pairs; low half: even k
inline pairs load_pairs(const uint32_t* p) { return load(p); }
inline void store_pairs(uint32_t* p, pairs v) { store(p, v); }

constexpr int64_t kPairsDepth = 2 * kDepth;          // k per block: as many bytes as a block of gemm.h; decides bits
constexpr int kPairsCols = kTileCols<float>, kPairsStride = kTileStride<float>;

// ---- the dot product of two pairs -----------------------------------------------------------------------------------

// acc + a.odd b.odd + a.even b.even in kDotSteps steps: the operands of a step, and the step.
#if defined(__AVX512BF16__)
constexpr int kDotSteps = 1;
template <int> inline pairs dot_operand(pairs x) { return x; }
inline vf dot_pairs(vf acc, pairs a, pairs b) { return _mm512_dpbf16_ps(acc, (__m512bh)a, (__m512bh)b); }
#else
constexpr int kDotSteps = 2;
template <int step> inline pairs dot_operand(pairs x) { return step == 0 ? x & 0xffff0000u : x << 16; }
inline vf dot_pairs(vf acc, pairs a, pairs b) { return fma((vf)a, (vf)b, acc); }
#endif

// ---- rounding and packing -------------------------------------------------------------------------------------------

// x rounded to bfloat16, in the upper half of each lane; the lower half is garbage.
inline pairs round_bf16(vf x) {
  const pairs u = (pairs)x;
  const pairs up = u + 0x7fffu + ((u >> 16) & 1u);
  return (pairs)((vmask<float>)(x != x) ? (vmask<float>)(u | 0x400000u) : (vmask<float>)up);
}
#if defined(__AVX512BF16__)
inline pairs pair_of(vf even, vf odd) {
  typedef uint16_t words __attribute__((vector_size(64)));
  constexpr words order = {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23,
                           8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  return (pairs)_mm512_permutexvar_epi16((__m512i)order, (__m512i)_mm512_cvtne2ps_pbh(odd, even));
}
#else
inline pairs pair_of(vf even, vf odd) { return (round_bf16(even) >> 16) | (round_bf16(odd) & 0xffff0000u); }
#endif

// A line is what one step of the dot product takes of every row or column; kDotSteps of them are a line of pairs.
inline void put_pairs(uint32_t* line, int64_t width, pairs v) {
  store_pairs(line, dot_operand<0>(v));
  if constexpr (kDotSteps == 2) store_pairs(line + width, dot_operand<1>(v));
}

constexpr int64_t pair_lines(int64_t k) { return (k + 1) / 2 * kDotSteps; }

// to[q][i] = the pair (from[2q * ld + i], from[(2q + 1) * ld + i]) for i < w, zeros for w <= i < width, a multiple of
// the vector: k runs across the rows of a matrix that is stored with the other index side by side.
static void pack_pairs_across(int64_t k, const float* from, int64_t ld, int64_t w, int64_t width, uint32_t* to) {
  constexpr int L = kLanes<float>;
  for (int64_t p = 0; p < k; p += 2, from += 2 * ld, to += kDotSteps * width)
    for (int64_t i = 0; i < width; i += L) {
      const int64_t left = w - i, n = left < 0 ? 0 : left < L ? left : L;
      const float* odd = p + 1 < k ? from + ld + i : from + i;
      const vf x = n == L ? load(from + i) : load_first(from + i, n), y = n == L ? load(odd) : load_first(odd, n);
      put_pairs(to + i, width, pair_of(x, p + 1 < k ? y : vf{}));
    }
}

// Even and odd elements of the 2 L floats (or n < 2 L of them and zeros) at p, as pairs.
inline pairs load_as_pairs(const float* p, int64_t n) {
  constexpr int L = kLanes<float>;
  vf x = n >= L ? load(p) : load_first(p, n < 0 ? 0 : n);
  vf y = n >= 2 * L ? load(p + L) : load_first(n > L ? p + L : p, n > L ? n - L : 0);
#if defined(__AVX512BF16__)                          // flushes subnormals to zero, as the dot product would
  return (pairs)_mm512_cvtne2ps_pbh(y, x);
#else
  pairs low, high;                                   // in 64-bit lanes: (even, odd) -> the pair in the lower half
  typedef uint64_t wide __attribute__((vector_size(kVectorBytes)));
  const wide u = (wide)round_bf16(x), v = (wide)round_bf16(y);
  low = (pairs)(((u >> 16) & 0xffffu) | ((u >> 32) & 0xffff0000u));
  high = (pairs)(((v >> 16) & 0xffffu) | ((v >> 32) & 0xffff0000u));
  typedef uint32_t half __attribute__((vector_size(kVectorBytes / 2)));
  const half a = __builtin_convertvector((wide)low, half), b = __builtin_convertvector((wide)high, half);
  pairs r;
  memcpy(&r, &a, sizeof a);
  memcpy(reinterpret_cast<char*>(&r) + sizeof a, &b, sizeof b);
  return r;
#endif
}

// to[q][i] = the pair (from[i * ld + 2q], from[i * ld + 2q + 1]) for i < w, zeros for w <= i < width, a multiple of the
// vector: k runs along the rows of a matrix.
static void pack_pairs_along(int64_t k, const float* from, int64_t ld, int64_t w, int64_t width, uint32_t* to) {
  constexpr int L = kLanes<float>;
  for (int64_t i = 0; i < width; i += L) {
    const int64_t left = w - i, n = left < 0 ? 0 : left < L ? left : L;
    for (int64_t p = 0; p < k; p += 2 * L) {
      const int64_t rest = k - p, lines = rest < 2 * L ? (rest + 1) / 2 : L;
      vf r[L];
#pragma GCC unroll 16
      for (int s = 0; s < L; ++s) r[s] = s < n ? (vf)load_as_pairs(from + (i + s) * ld + p, rest) : vf{};
      transpose<float>(r);
      uint32_t* o = to + p / 2 * kDotSteps * width + i;
#pragma GCC unroll 16
      for (int s = 0; s < L; ++s)
        if (s < lines) put_pairs(o + s * kDotSteps * width, width, (pairs)r[s]);
    }
  }
}

// ---- micro-kernel ---------------------------------------------------------------------------------------------------

// c[MR][n] (+)= tile times panel, of this many lines; n <= NV vectors, of which the last holds `last` columns.
template <int MR, int NV>
static void pairs_micro(int64_t lines, const uint32_t* __restrict a, const uint32_t* __restrict b, float* __restrict c,
                        int64_t ldc, int64_t last, bool add) {
  constexpr int L = kLanes<float>;
  vf acc[MR][NV];
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < NV; ++j) {
      acc[i][j] = vf{};
      __builtin_prefetch(c + i * ldc + j * L, 1);
    }
  }
  for (int64_t q = 0; q < lines; ++q, a += kPairsStride, b += kPairsCols) {
    pairs bv[NV];
#pragma GCC unroll 8
    for (int j = 0; j < NV; ++j) bv[j] = load_pairs(b + j * L);
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i) {
      const pairs av = a[i] - pairs{};
#pragma GCC unroll 8
      for (int j = 0; j < NV; ++j) acc[i][j] = dot_pairs(acc[i][j], av, bv[j]);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i) {
    float* row = c + i * ldc;
#pragma GCC unroll 8
    for (int j = 0; j < NV; ++j) {
      float* to = row + j * L;
      if (j < NV - 1 || last == L) store(to, add ? load(to) + acc[i][j] : acc[i][j]);
      else store_first(to, add ? load_first(to, last) + acc[i][j] : acc[i][j], last);
    }
  }
}

using PairsMicro = void (*)(int64_t, const uint32_t*, const uint32_t*, float*, int64_t, int64_t, bool);

template <int NV> static PairsMicro pairs_micro_of(int64_t rows) {
#define GENERANT_ROWS_(r) case r: return pairs_micro<r, NV>;
  switch (rows) {
    GENERANT_ROWS_(1) GENERANT_ROWS_(2) GENERANT_ROWS_(3) GENERANT_ROWS_(4) GENERANT_ROWS_(5)
#if defined(__AVX512F__)
    GENERANT_ROWS_(6) GENERANT_ROWS_(7) GENERANT_ROWS_(8) GENERANT_ROWS_(9) GENERANT_ROWS_(10) GENERANT_ROWS_(11)
#endif
    default: return pairs_micro<kTileRows, NV>;
  }
#undef GENERANT_ROWS_
}

// ---- the product ----------------------------------------------------------------------------------------------------

struct PairsPlan {
  bool serial;
  int64_t rows, cols;      // of C in one task
  int64_t b_pairs, bytes;  // of scratch: the panels of B come first
};

inline PairsPlan pairs_plan(int64_t m, int64_t n, int64_t k, int threads) {
  PairsPlan s{};
  s.serial = threads <= 1 || double(m) * double(n) * double(k) < 1e6;
  const int64_t workers = s.serial ? 1 : threads, lines = pair_lines(least(k, kPairsDepth));
  s.rows = 16 * kTileRows;
  s.cols = 32 * kPairsCols;
  const int64_t sm = even(m, kTileRows), sn = even(n, kPairsCols);
  while (s.rows > 2 * kTileRows && ceil_div(sm, s.rows) * ceil_div(sn, s.cols) < 10 * workers) {
    if (s.cols > 4 * kPairsCols) s.cols /= 2;
    else s.rows /= 2;
  }
  s.b_pairs = sn * lines;
  s.bytes = (s.b_pairs + ceil_div(sm, kTileRows) * kPairsStride * lines) * int64_t(sizeof(uint32_t));
  return s;
}

// Bytes of scratch for a product of these sizes.
inline int64_t gemm_bf16_scratch(const Call& c, int64_t m, int64_t n, int64_t k) {
  return m == 0 || n == 0 || k == 0 ? 0 : pairs_plan(m, n, k, c.threads).bytes;
}

inline void gemm_bf16(const Call& c, const Product<float>& g) {
  constexpr int L = kLanes<float>, NR = kPairsCols, S = kPairsStride;
  if (g.m == 0 || g.n == 0 || g.k == 0) return gemm(c, g);
  const PairsPlan s = pairs_plan(g.m, g.n, g.k, c.threads);
  Call call = c;
  if (s.serial) call.threads = 1;
  uint32_t *const packed_b = static_cast<uint32_t*>(c.scratch), *const packed_a = packed_b + s.b_pairs;
  const int64_t super_rows = even(g.m, kTileRows), super_cols = even(g.n, NR);
  for (int64_t i0 = 0; i0 < g.m; i0 += super_rows)
    for (int64_t j0 = 0; j0 < g.n; j0 += super_cols)
      for (int64_t p = 0; p < g.k; p += kPairsDepth) {
        const int64_t k = least(kPairsDepth, g.k - p), lines = pair_lines(k);
        const int64_t i1 = least(i0 + super_rows, g.m), j1 = least(j0 + super_cols, g.n);
        const int64_t tiles = ceil_div(i1 - i0, kTileRows), panels = ceil_div(j1 - j0, NR);
        const int64_t row_blocks = ceil_div(i1 - i0, s.rows), col_blocks = ceil_div(j1 - j0, s.cols);
        const auto row_of = [&](int64_t tile) { return i0 + tile_start(i1 - i0, tiles, tile); };
        const auto pack_a = [&](int64_t tile) {
          const int64_t i = row_of(tile), rows = row_of(tile + 1) - i;
          uint32_t* to = packed_a + tile * S * lines;
          if (g.a_rows) pack_pairs_along(k, g.a + i * g.lda + p, g.lda, rows, S, to);
          else pack_pairs_across(k, g.a + p * g.lda + i, g.lda, rows, S, to);
        };
        const auto pack_b = [&](int64_t panel) {
          const int64_t j = j0 + panel * NR, w = least(NR, j1 - j);
          uint32_t* to = packed_b + panel * NR * lines;
          if (g.b_rows) pack_pairs_across(k, g.b + p * g.ldb + j, g.ldb, w, NR, to);
          else pack_pairs_along(k, g.b + j * g.ldb + p, g.ldb, w, NR, to);
        };
        constexpr int64_t group = 8;                       // tiles or panels per packing task
        const int64_t a_tasks = ceil_div(tiles, group);
        parallel(call, a_tasks + ceil_div(panels, group), [&](int64_t task, int) {
          const bool of_a = task < a_tasks;
          const int64_t first = (of_a ? task : task - a_tasks) * group;
          const int64_t end = least(first + group, of_a ? tiles : panels);
          for (int64_t t = first; t < end; ++t) of_a ? pack_a(t) : pack_b(t);
        });
        const bool finish = g.finish && p + k == g.k;
        parallel(call, row_blocks * col_blocks, [&](int64_t task, int) {
          const int64_t r = task / col_blocks, first = task % col_blocks * (s.cols / NR);
          const int64_t end = least(first + s.cols / NR, panels);
          for (int64_t panel = first; panel < end; ++panel) {
            const int64_t j = j0 + panel * NR, w = least(NR, j1 - j), last = w > L ? w - L : w;
            for (int64_t t = tile_start(tiles, row_blocks, r); t < tile_start(tiles, row_blocks, r + 1); ++t) {
              const int64_t i = row_of(t), rows = row_of(t + 1) - i;
              const PairsMicro f = w > L ? pairs_micro_of<2>(rows) : pairs_micro_of<1>(rows);
              f(lines, packed_a + t * S * lines, packed_b + panel * NR * lines, g.c + i * g.ldc + j, g.ldc, last,
                p > 0);
              if (finish) g.finish(g.context, i, j, rows, w);
            }
          }
        });
      }
}

}  // namespace
