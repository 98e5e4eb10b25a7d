// Attention, forward, on tensor cores (Dao et al. 2022): a block has 64 (bfloat16: 128) queries of one head and takes the keys
// 64 or 32 at a time, with a running maximum; weights stay in registers.
//
// Keys are fetched while values are averaged, values while scores are made. Where a sample has few blocks its keys are split
// among several, and a second kernel merges their parts in order. How many depends on the shape of one sample, so that
// results depend neither on the batch nor on the GPU.
#pragma once
#include "attention_tiles.h"

namespace {

constexpr int64_t kSampleBlocks = 64, kPartKeys = 256;   // blocks a sample should have; keys that a part should have

template <int W, bool kBf16> struct ForwardShape {
  static constexpr bool kShared = W > 64 && !kBf16;  // queries, for which there are no registers
  static constexpr int kKeys = kShared ? 32 : 64, kStep = kBf16 ? 32 : 16, kSteps = W / kStep;
  static constexpr int kWarps = kBf16 ? 8 : 4, kThreads = kWarps * kWarp, kRows = 16 * kWarps;
  using Query = Rows<kSteps, kShared ? 0 : kSteps, kThreads>;
  static constexpr size_t kBytes = size_t(kKeys * W * (kBf16 ? 1 : 2) + Query::kWords) * 4;
};

struct ForwardParts {
  float *out, *lse;                                  // lse may be null
  float *sums, *tops, *totals;                       // of every part, if parts > 1: as out; (n, heads, t)
  const uint32_t *keys, *values;                     // bfloat16: (n, heads, s, kChunks), (n, heads, ceil(s / 2), 2 kChunks) of 16 bytes
  int64_t parts, tiles;                              // and key tiles of a part
  bool wide_d, wide_e;
};

// Scores, in base 2, of rows g and g + 8 with the keys from j0: the bias, and -inf where there is no key or it is hidden.
template <int kTiles>
__device__ inline void see(const Heads<float>& h, float (&score)[kTiles][4], const int (&row)[2], int j0, const float* bias, Lane lane) {
  const int t = int(h.t), s = int(h.s);
  if (bias) {
    GENERANT_UNROLL
    for (int j = 0; j < kTiles; ++j)
      GENERANT_UNROLL
      for (int i = 0; i < 4; ++i) {
        const int r = row[i / 2], c = j0 + 8 * j + 2 * lane.t + i % 2;
        if (r < t && c < s) score[j][i] += bias[int64_t(r) * s + c] * float(kLog2E);
      }
  }
  if (j0 + 8 * kTiles > s || (h.causal && j0 + 8 * kTiles - 1 > row[0] - lane.g)) {
    GENERANT_UNROLL
    for (int j = 0; j < kTiles; ++j)
      GENERANT_UNROLL
      for (int i = 0; i < 4; ++i) {
        const int c = j0 + 8 * j + 2 * lane.t + i % 2;
        if (c >= s || (h.causal && c > row[i / 2])) score[j][i] = kHidden;
      }
  }
}

// Scores become weights, counted from the largest score so far; what has been summed is scaled down. total: of this lane.
template <int kTiles, int kSums>
__device__ inline void weigh(float (&score)[kTiles][4], float (&sum)[kSums][4], float (&top)[2], float (&total)[2]) {
  GENERANT_UNROLL
  for (int i = 0; i < 2; ++i) {
    float high = top[i];
    GENERANT_UNROLL
    for (int j = 0; j < kTiles; ++j) high = fmaxf(high, fmaxf(score[j][2 * i], score[j][2 * i + 1]));
    high = fmaxf(high, warp_xor(high, 1));
    high = fmaxf(high, warp_xor(high, 2));
    const float from = base_of(high), factor = power_of_2(top[i] - from);
    float more = 0;
    GENERANT_UNROLL
    for (int j = 0; j < kTiles; ++j) {
      score[j][2 * i] = power_of_2(score[j][2 * i] - from), score[j][2 * i + 1] = power_of_2(score[j][2 * i + 1] - from);
      more += score[j][2 * i] + score[j][2 * i + 1];
    }
    top[i] = high, total[i] = total[i] * factor + more;
    GENERANT_UNROLL
    for (int m = 0; m < kSums; ++m) sum[m][2 * i] *= factor, sum[m][2 * i + 1] *= factor;
  }
}

// Of the four lanes of a row.
__device__ inline float whole_row(float total) {
  total += warp_xor(total, 1);
  return total + warp_xor(total, 2);
}

template <int W, bool kBf16>
__global__ void __launch_bounds__(ForwardShape<W, kBf16>::kThreads, kBf16 ? 1 : 2) attention_tiles(Heads<float> h, ForwardParts p) {
#ifdef GENERANT_ATTENTION_TILES
  using Shape = ForwardShape<W, kBf16>;
  using Query = typename Shape::Query;
  constexpr int kStep = Shape::kStep, kSteps = Shape::kSteps, kKeys = Shape::kKeys, kRows = Shape::kRows, kTiles = kKeys / 8;
  constexpr int kKeyChunks = kBf16 ? W / 8 : W / 4, kValueRows = kBf16 ? kKeys / 2 : kKeys;
  DYNAMIC_SHARED(uint32_t, keys);
  uint32_t* const values = keys + kKeys * kKeyChunks * 4;
  const Lane lane;
  const int d = int(h.d), e = int(h.e), t = int(h.t);
  const int blocks = (t + kRows - 1) / kRows, head_part = blockIdx.x / blocks;
  const int part = head_part % int(p.parts), flat = head_part / int(p.parts);
  const int64_t head = flat % int(h.heads), sample = flat / int(h.heads);
  const int q0 = (blocks - 1 - int(blockIdx.x) % blocks) * kRows;   // the most keys first
  const int row0 = q0 + int(threadIdx.x) / kWarp * 16, row[2] = {row0 + lane.g, row0 + lane.g + 8};
  const int seen = int(h.visible(min(q0 + kRows, t))), tiles = (seen + kKeys - 1) / kKeys;
  const int begin = part * int(p.tiles), end = min(begin + int(p.tiles), tiles);

  const float* const key0 = h.k + h.at(sample, h.s, head, h.d);
  const float* const value0 = h.v + h.at(sample, h.s, head, h.e);
  const int64_t pairs = (h.s + 1) / 2;
  auto fetch_keys = [&](int tile) {
    const int64_t j = tile * kKeys;
    if constexpr (kBf16) copy_packed<kKeyChunks>(keys, p.keys + (int64_t(flat) * h.s + j) * kKeyChunks * 4, kKeys, h.s - j);
    else copy_rows<kKeyChunks>(keys, key0 + j * h.heads * h.d, h.heads * h.d, kKeys, h.s - j, d, p.wide_d);
    commit_copies();
  };
  auto fetch_values = [&](int tile) {
    const int64_t j = tile * kKeys;
    if constexpr (kBf16) copy_packed<W / 4>(values, p.values + (int64_t(flat) * pairs + j / 2) * W, kValueRows, pairs - j / 2);
    else copy_rows<W / 4>(values, value0 + j * h.heads * h.e, h.heads * h.e, kKeys, h.s - j, e, p.wide_e);
    commit_copies();
  };
  if (begin < end) fetch_keys(begin);

  Query query(values + kValueRows * W);
  const float* const query0 = h.q + h.at(sample, h.t, head, h.d);
  query.template load<kBf16>({query0 + row[0] * h.heads * h.d, query0 + row[1] * h.heads * h.d}, {row[0] < t, row[1] < t}, d,
                             float(h.scale * kLog2E), p.wide_d, lane);

  const float* const bias = h.bias_of(sample, head);
  float sum[W / 8][4] = {}, top[2] = {kHidden, kHidden}, total[2] = {};
  for (int tile = begin; tile < end; ++tile) {
    const int j0 = tile * kKeys;
    const bool active = row0 < t && !(h.causal && j0 > row0 + 15);   // of the whole warp
    float score[kTiles][4] = {};
    wait_copies<0>();
    __syncthreads();                                 // keys are here, nobody reads values
    fetch_values(tile);
    if (active) {
      GENERANT_UNROLL
      for (int k = 0; k < kSteps; ++k)
        if (k * kStep < d) {
          uint32_t words[2][4];
          query.get(k, words);
          add_scores<kBf16, kKeyChunks>(score, words, keys, k, lane);
        }
      see(h, score, row, j0, bias, lane);
      weigh(score, sum, top, total);
    }
    wait_copies<0>();
    __syncthreads();                                 // values are here, nobody reads keys
    if (tile + 1 < end) fetch_keys(tile + 1);
    if (active) add_average<kBf16, W / 4>(sum, score, values, e, lane);
  }

  GENERANT_UNROLL
  for (int i = 0; i < 2; ++i) {
    const float all = whole_row(total[i]);
    if (row[i] >= t) continue;                     // no warp operation follows
    const int64_t place = int64_t(flat) * h.t + row[i], at = h.at(sample, h.t, head, h.e) + row[i] * h.heads * h.e;
    if (p.parts == 1) {
      store_row(sum, i, share_of(all), p.out + at, e, p.wide_e, lane);
      if (p.lse && lane.t == 0) p.lse[place] = base_of(top[i]) * float(kLn2) + logf(all);
    } else {
      const int64_t count = h.n * h.heads * h.t;
      store_row(sum, i, 1.0f, p.sums + part * count * h.e + at, e, p.wide_e, lane);
      if (lane.t == 0) p.tops[part * count + place] = top[i], p.totals[part * count + place] = all;
    }
  }
#endif
}

// The parts of a row become one: a warp per row of the output.
__global__ void __launch_bounds__(256) merge_parts(Heads<float> h, ForwardParts p) {
  const int64_t row = global_thread() / kWarp, count = h.n * h.heads * h.t;
  const int lane = threadIdx.x % kWarp;
  if (row >= count) return;
  const int64_t head = row % h.heads, i = row / h.heads % h.t, sample = row / h.heads / h.t, place = (sample * h.heads + head) * h.t + i;
  float top = kHidden, total = 0;
  for (int64_t part = 0; part < p.parts; ++part) top = larger(top, p.tops[part * count + place]);
  const float from = base_of(top);
  for (int64_t part = 0; part < p.parts; ++part)
    total += p.totals[part * count + place] * power_of_2(p.tops[part * count + place] - from);
  const float share = share_of(total);
  for (int64_t c = lane; c < h.e; c += kWarp) {
    float sum = 0;
    for (int64_t part = 0; part < p.parts; ++part)
      sum += p.sums[(part * count + row) * h.e + c] * power_of_2(p.tops[part * count + place] - from);
    p.out[row * h.e + c] = sum * share;
  }
  if (p.lse && lane == 0) p.lse[place] = from * float(kLn2) + logf(total);
}

// Keys as rows of W bfloat16 and values as pairs of keys, zeros where there are none: (n, heads, ...). A thread makes 16 bytes.
template <int W>
__global__ void __launch_bounds__(256) pack_keys(Heads<float> h, uint32_t* keys, uint32_t* values, bool wide_d, bool wide_e) {
  const int64_t pairs = (h.s + 1) / 2, n_keys = h.n * h.heads * h.s * (W / 8), i = global_thread();
  if (i >= n_keys + h.n * h.heads * pairs * (W / 4)) return;
  uint32_t words[4];
  if (i < n_keys) {
    const int64_t flat = i / (W / 8), row = flat % h.s, head = flat / h.s % h.heads, sample = flat / h.s / h.heads;
    load_words<true>(h.k + h.at(sample, h.s, head, h.d) + row * h.heads * h.d, true, int(i % (W / 8)), int(h.d), 1.0f, wide_d, words);
    keys += i * 4;
  } else {
    const int64_t r = i - n_keys, flat = r / (W / 4), row = flat % pairs * 2, head = flat / pairs % h.heads;
    const int64_t sample = flat / pairs / h.heads;
    const int first = int(r % (W / 4)) * 4, left = int(h.e) - first;
    const float* const from = h.v + h.at(sample, h.s, head, h.e) + row * h.heads * h.e + first;
    const bool second = row + 1 < h.s;
    const PackOf<float> a = load_pack(from, left, wide_e);
    const PackOf<float> b = load_pack(second ? from + h.heads * h.e : from, second ? left : 0, wide_e);
    GENERANT_UNROLL
    for (int k = 0; k < 4; ++k) words[k] = bf16_pair(a.v[k], b.v[k]);
    keys = values + r * 4;
  }
  *reinterpret_cast<uint4*>(keys) = make_uint4(words[0], words[1], words[2], words[3]);
}

// ---- launching ----

template <int W, bool kBf16> struct ForwardTiles {
  using Shape = ForwardShape<W, kBf16>;
  Heads<float> h;
  ForwardParts p{};
  int64_t blocks;

  ForwardTiles(const Call& c, Carve& scratch) : h(c, 0) {
    blocks = ceil_div(h.t, Shape::kRows);
    const int64_t tiles = ceil_div(h.s, Shape::kKeys), mine = h.heads * blocks;
    int64_t parts = mine > 0 ? ceil_div(kSampleBlocks, mine) : 1;
    parts = min(parts, max(h.s / kPartKeys, int64_t(1)));
    p.tiles = max(ceil_div(tiles, parts), int64_t(1)), p.parts = max(ceil_div(tiles, p.tiles), int64_t(1));
    p.out = ::out<float>(c, 0), p.lse = ::out<float>(c, 1);
    const int64_t rows = h.n * h.heads * h.t, all = p.parts > 1 ? p.parts : 0;
    p.sums = scratch.take<float>(all * rows * h.e);
    p.tops = scratch.take<float>(all * rows);
    p.totals = scratch.take<float>(all * rows);
    p.keys = scratch.take<uint32_t>(kBf16 ? h.n * h.heads * h.s * (W / 2) : 0);
    p.values = scratch.take<uint32_t>(kBf16 ? h.n * h.heads * ceil_div(h.s, 2) * W : 0);
    p.wide_d = wide_rows<float>(h.d, h.q, h.k);
    p.wide_e = wide_rows<float>(h.e, h.v, p.out);
  }

  void run(const Call& c) const {
    if constexpr (kBf16)
      launch(c, pack_keys<W>, grid_of(ceil_div(h.n * h.heads * (h.s * (W / 8) + ceil_div(h.s, 2) * (W / 4)), 256)), 256, 0, h,
             const_cast<uint32_t*>(p.keys), const_cast<uint32_t*>(p.values), p.wide_d, p.wide_e);
    launch(c, attention_tiles<W, kBf16>, grid_of(h.n * h.heads * p.parts * blocks), Shape::kThreads, Shape::kBytes, h, p);
    if (p.parts > 1) launch(c, merge_parts, grid_of(ceil_div(h.n * h.heads * h.t, 256 / kWarp)), 256, 0, h, p);
  }
};

}  // namespace
