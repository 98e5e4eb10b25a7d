// Attention, forward, on tensor cores, of any number of channels: scores are summed over 32 channels at a time, queries and keys
// coming through shared memory, and a block makes 128 channels of the output. See attention_forward.h for the rest.
//
// With precision="bf16" a pass makes rounded copies of all operands; bfloat16 is exact in TF32, so that the products are.
#pragma once
#include "attention_forward.h"
#include "attention_plain.h"

namespace {

constexpr int kWideRows = 64, kWideKeys = 64, kWideStep = 32, kWideThreads = 128;   // channels of a step
constexpr int kWideTile = kWideRows * kWideStep, kWideValues = kWideKeys * kPlainChannels;   // words
constexpr size_t kWideBytes = (4 * kWideTile + kWideValues) * 4;

struct WideCall {
  Heads<float> h;
  float *out, *lse;
  float factor;                                      // of queries
  bool round, wide_d, wide_e;                        // weights to bfloat16; rows of aligned packs
};

__global__ void __launch_bounds__(kWideThreads, 2) attention_wide(WideCall p) {
#ifdef GENERANT_ATTENTION_TILES
  constexpr int kTiles = kWideKeys / 8, kChunks = kWideStep / 4;
  DYNAMIC_SHARED(uint32_t, memory);                  // queries and keys of this turn and of the other, then values
  uint32_t* const values = memory + 4 * kWideTile;
  const Heads<float>& h = p.h;
  const Lane lane;
  const int warp = threadIdx.x / kWarp, d = int(h.d), t = int(h.t), s = int(h.s);
  const int pieces = max((int(h.e) + kPlainChannels - 1) / kPlainChannels, 1), blocks = (t + kWideRows - 1) / kWideRows;
  const int piece = int(blockIdx.x) % pieces, q0 = (blocks - 1 - int(blockIdx.x) / pieces % blocks) * kWideRows;
  const int flat = int(blockIdx.x) / pieces / blocks, row0 = q0 + warp * 16, row[2] = {row0 + lane.g, row0 + lane.g + 8};
  const int64_t head = flat % int(h.heads), sample = flat / int(h.heads), ld_d = h.heads * h.d, ld_e = h.heads * h.e;
  const int first = piece * kPlainChannels, width = min(int(h.e) - first, kPlainChannels);
  const int tiles = (int(h.visible(min(q0 + kWideRows, t))) + kWideKeys - 1) / kWideKeys, steps = max((d + kWideStep - 1) / kWideStep, 1);

  const float* const q = h.q + h.at(sample, h.t, head, h.d) + q0 * ld_d;
  const float* const k = h.k + h.at(sample, h.s, head, h.d);
  const float* const v = h.v + h.at(sample, h.s, head, h.e) + first;
  auto fetch = [&](int tile, int step, int turn) {
    uint32_t* const to = memory + turn * 2 * kWideTile;
    const int c = step * kWideStep, columns = min(d - c, kWideStep), j = tile * kWideKeys;
    copy_rows<kChunks>(to, q + c, ld_d, kWideRows, t - q0, columns, p.wide_d);
    copy_rows<kChunks>(to + kWideTile, k + j * ld_d + c, ld_d, kWideKeys, s - j, columns, p.wide_d);
  };
  if (tiles > 0) fetch(0, 0, 0), commit_copies();

  const float* const bias = h.bias_of(sample, head);
  float sum[kPlainChannels / 8][4] = {}, top[2] = {kHidden, kHidden}, total[2] = {};
  int turn = 0;
  for (int tile = 0; tile < tiles; ++tile) {
    const int j0 = tile * kWideKeys;
    const bool active = row0 < t && !(h.causal && j0 > row0 + 15);   // of the whole warp
    float score[kTiles][4] = {};
    for (int step = 0; step < steps; ++step, turn ^= 1) {
      wait_copies<0>();
      __syncthreads();                               // this step is here, nobody reads the one before
      if (step == 0) copy_rows<kPlainChannels / 4>(values, v + j0 * ld_e, ld_e, kWideKeys, s - j0, width, p.wide_e);
      if (step + 1 < steps) fetch(tile, step + 1, turn ^ 1);
      else if (tile + 1 < tiles) fetch(tile + 1, 0, turn ^ 1);
      commit_copies();
      if (!active) continue;
      const uint32_t* const queries = memory + turn * 2 * kWideTile;
      GENERANT_UNROLL
      for (int half = 0; half < 2; ++half) {
        if (step * kWideStep + half * 16 >= d) continue;
        uint32_t words[2][4];
        GENERANT_UNROLL
        for (int i = 0; i < 2; ++i) {
          float x[4];
          read_chunk(queries + chunk_at<kChunks>(lane.g, half * 4 + lane.t, 2 * warp + i, 0), x);
          GENERANT_UNROLL
          for (int c = 0; c < 4; ++c) words[i][c] = __float_as_uint(x[c] * p.factor);
        }
        add_scores<false, kChunks>(score, words, queries + kWideTile, half, lane);
      }
    }
    if (active) {
      see(h, score, row, j0, bias, lane);
      weigh(score, sum, top, total);
      GENERANT_UNROLL
      for (int j = 0; j < kTiles; ++j)
        GENERANT_UNROLL
        for (int i = 0; i < 4; ++i) score[j][i] = rounded(score[j][i], p.round);
    }
    wait_copies<0>();
    __syncthreads();                                 // values are here
    if (active) add_average<false, kPlainChannels / 4>(sum, score, values, width, lane);
  }

  GENERANT_UNROLL
  for (int i = 0; i < 2; ++i) {
    const float all = whole_row(total[i]);
    if (row[i] >= t) continue;                       // no warp operation follows
    store_row(sum, i, share_of(all), p.out + h.at(sample, h.t, head, h.e) + row[i] * ld_e + first, width, p.wide_e, lane);
    if (p.lse && piece == 0 && lane.t == 0) p.lse[int64_t(flat) * t + row[i]] = base_of(top[i]) * float(kLn2) + logf(all);
  }
#endif
}

// ---- launching ----

struct RoundedProduct {
  float factor;
  __device__ float operator()(float x) const { return rounded(x * factor, true); }
};

struct ForwardWide {
  WideCall p;
  const float *q, *k, *v;                            // as given
  float *round_q, *round_k, *round_v;

  ForwardWide(const Call& c, Carve& scratch, bool round)
      : p{Heads<float>(c, 0), out<float>(c, 0), out<float>(c, 1), 0, round, false, false}, q(p.h.q), k(p.h.k), v(p.h.v) {
    p.factor = float(p.h.scale * kLog2E);
    round_q = scratch.take<float>(round ? size(c.in[0]) : 0);
    round_k = scratch.take<float>(round ? size(c.in[1]) : 0);
    round_v = scratch.take<float>(round ? size(c.in[2]) : 0);
    if (round) p.h.q = round_q, p.h.k = round_k, p.h.v = round_v;
    p.wide_d = wide_rows<float>(p.h.d, p.h.q, p.h.k), p.wide_e = wide_rows<float>(p.h.e, p.h.v, p.out);
  }

  void run(const Call& c) const {
    WideCall call = p;
    if (p.round) {
      map(c, size(c.in[0]), RoundedProduct{p.factor}, round_q, q);
      map(c, size(c.in[1]), RoundedProduct{1}, round_k, k);
      map(c, size(c.in[2]), RoundedProduct{1}, round_v, v);
      call.factor = 1;
    }
    const Heads<float>& h = p.h;
    const int64_t pieces = max(ceil_div(h.e, kPlainChannels), int64_t(1));
    launch(c, attention_wide, grid_of(h.n * h.heads * ceil_div(h.t, kWideRows) * pieces), kWideThreads, kWideBytes, call);
  }
};

}  // namespace
