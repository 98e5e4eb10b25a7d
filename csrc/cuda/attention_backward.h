// Attention, backward, on tensor cores (Dao et al. 2022): weights are made again from the log-sum-exp.
//
// One kernel in two directions. A block has 64 rows, which are queries (for dq) or keys (for dk and dv), and takes the columns,
// keys or queries, a tile at a time, the next one being fetched meanwhile:
//   score = x1 y1^T, p = 2^(score - low), slope = p (x2 y2^T - centre), first += slope y1, second += p y2
// with (x1, x2) = (q, g), (y1, y2) = (k, v), first = dq, or the other way round and first = dk, second = dv. Nothing is summed
// across blocks but the parts that a sample of few blocks is split into, in order, by a kernel of its own.
#pragma once
#include "attention_forward.h"

namespace {

struct BackwardParts {
  const float *g, *low, *centre;                     // attention_rows
  float *first, *second;                             // where results (or their first part) go; null: not wanted
  int64_t first_size, second_size;                   // from a part to the next
  int64_t t_padded, parts, tiles;                    // parts and tiles of columns of each
  bool wide_d, wide_e, wide_to;                      // rows to be read; rows of results
};

template <int W, bool kFirst> struct BackwardShape {
  static constexpr int kWarps = 4, kThreads = kWarps * kWarp, kRows = 16 * kWarps, kSteps = W / 16;
  static constexpr int kColumns = W > 64 ? 16 : 32, kTile = kColumns * W;   // of a tile, and its words
  static constexpr bool kTight = W > 64 && kFirst;   // registers and memory are short: y2 has one tile, for which all wait
  using First = Rows<kSteps, (kTight ? 6 : W > 64 ? 0 : kSteps), kThreads>;
  using Second = Rows<kFirst ? kSteps : 0, 0, kThreads>;
  static constexpr int kTileWords = (kTight ? 3 : 4) * kTile;
  static constexpr size_t kBytes = size_t(kTileWords + First::kWords + Second::kWords) * 4;
};

// x, of which the compiler does not know that it is x: what follows from it is not kept in registers through a loop.
__device__ inline int again(int x) {
#ifdef __CUDA_ARCH__
  asm volatile("" : "+r"(x));
#endif
  return x;
}

__device__ inline float2 pair_at(const float* p, int i) { return *reinterpret_cast<const float2*>(p + i); }   // i is even

template <int W, bool kKeyRows, bool kFirst, bool kSecond>
__global__ void __launch_bounds__(BackwardShape<W, kFirst>::kThreads, 2) attention_slopes(Heads<float> h, BackwardParts p) {
#ifdef GENERANT_ATTENTION_TILES
  using Shape = BackwardShape<W, kFirst>;
  constexpr int kColumns = Shape::kColumns, kTiles = kColumns / 8, kChunks = W / 4;
  DYNAMIC_SHARED(uint32_t, memory);                  // tiles y1, y2 of this turn and of the other, then x2
  const Lane lane;
  const int d = int(h.d), e = int(h.e), t = int(h.t), s = int(h.s), rows = kKeyRows ? s : t, columns = kKeyRows ? t : s;
  const int blocks = (rows + Shape::kRows - 1) / Shape::kRows, flat = int(blockIdx.x) / blocks / int(p.parts);
  const int block = kKeyRows ? int(blockIdx.x) % blocks : blocks - 1 - int(blockIdx.x) % blocks;   // the most columns first
  const int part = int(blockIdx.x) / blocks % int(p.parts);
  const int64_t head = flat % int(h.heads), sample = flat / int(h.heads);
  const int block0 = block * Shape::kRows, row0 = block0 + int(threadIdx.x) / kWarp * 16, row[2] = {row0 + lane.g, row0 + lane.g + 8};
  const int seen = kKeyRows ? columns : int(h.visible(min(block0 + Shape::kRows, t)));
  const int begin = max(part * int(p.tiles), kKeyRows && h.causal ? block0 / kColumns : 0);
  const int end = min((part + 1) * int(p.tiles), (seen + kColumns - 1) / kColumns);

  const int64_t ld_d = h.heads * h.d, ld_e = h.heads * h.e;
  const float *const q = h.q + h.at(sample, h.t, head, h.d), *const k = h.k + h.at(sample, h.s, head, h.d);
  const float *const g = p.g + h.at(sample, h.t, head, h.e), *const v = h.v + h.at(sample, h.s, head, h.e);
  const float *const x1 = kKeyRows ? k : q, *const x2 = kKeyRows ? v : g;
  auto place = [&](int which, int tile) {
    const int turn = (tile - begin) % 2;
    return memory + (!Shape::kTight ? which + 2 * turn : which ? 2 : turn) * Shape::kTile;
  };
  auto fetch_1 = [&](int tile) {
    const int64_t head = again(flat) % int(h.heads), sample = again(flat) / int(h.heads);
    const float* const y = kKeyRows ? h.q + h.at(sample, h.t, head, h.d) : h.k + h.at(sample, h.s, head, h.d);
    copy_rows<kChunks>(place(0, tile), y + tile * kColumns * ld_d, ld_d, kColumns, columns - tile * kColumns, d, p.wide_d);
  };
  auto fetch_2 = [&](int tile) {
    const int64_t head = again(flat) % int(h.heads), sample = again(flat) / int(h.heads);
    const float* const y = kKeyRows ? p.g + h.at(sample, h.t, head, h.e) : h.v + h.at(sample, h.s, head, h.e);
    copy_rows<kChunks>(place(1, tile), y + tile * kColumns * ld_e, ld_e, kColumns, columns - tile * kColumns, e, p.wide_e);
  };
  if (begin < end) fetch_1(begin), fetch_2(begin), commit_copies();

  typename Shape::First own(memory + Shape::kTileWords);
  typename Shape::Second other(memory + Shape::kTileWords + Shape::First::kWords);
  const bool real[2] = {row[0] < rows, row[1] < rows};
  own.template load<false>({x1 + row[0] * ld_d, x1 + row[1] * ld_d}, real, d, float(h.scale * kLog2E), p.wide_d, lane);
  if constexpr (kFirst) other.template load<false>({x2 + row[0] * ld_e, x2 + row[1] * ld_e}, real, e, 1.0f, p.wide_e, lane);

  const float *const low = p.low + flat * p.t_padded, *const centre = p.centre + flat * p.t_padded;
  float row_low[2], row_centre[2];
  for (int i = 0; !kKeyRows && i < 2; ++i) row_low[i] = low[row[i]], row_centre[i] = centre[row[i]];
  float first[kFirst ? W / 8 : 4][4] = {}, second[kSecond ? W / 8 : 4][4] = {};
  for (int tile = begin; tile < end; ++tile) {
    const int j0 = tile * kColumns;
    // of the whole warp
    const bool active = row0 < rows && !(h.causal && (kKeyRows ? j0 + kColumns - 1 < row0 : j0 > row0 + 15)), more = tile + 1 < end;
    float score[kTiles][4] = {}, slope[kTiles][4] = {};
    wait_copies<0>();
    __syncthreads();                                 // this tile is here, nobody reads the one before
    if (more) fetch_1(tile + 1);
    if (more && !Shape::kTight) fetch_2(tile + 1);
    if (kFirst && active) {
      GENERANT_UNROLL
      for (int step = 0; step < Shape::kSteps; ++step)
        if (step * 16 < e) {
          uint32_t words[2][4];
          other.get(step, words);
          add_scores<false, kChunks>(slope, words, place(1, tile), step, lane);
        }
    }
    if (Shape::kTight) {
      __syncthreads();                               // nobody reads y2
      if (more) fetch_2(tile + 1);
    }
    commit_copies();
    if (!active) continue;
    GENERANT_UNROLL
    for (int step = 0; step < Shape::kSteps; ++step)
      if (step * 16 < d) {
        uint32_t words[2][4];
        own.get(step, words);
        add_scores<false, kChunks>(score, words, place(0, tile), step, lane);
      }
    if (h.bias) {
      const float* const bias = h.bias_of(again(flat) / int(h.heads), again(flat) % int(h.heads));
      GENERANT_UNROLL
      for (int j = 0; j < kTiles; ++j)
        GENERANT_UNROLL
        for (int i = 0; i < 4; ++i) {
          const int r = row[i / 2], c = j0 + 8 * j + 2 * lane.t + i % 2, query = kKeyRows ? c : r, key = kKeyRows ? r : c;
          if (r < rows && c < columns) score[j][i] += bias[int64_t(query) * s + key] * float(kLog2E);
        }
    }
    GENERANT_UNROLL
    for (int j = 0; j < kTiles; ++j) {
      const float2 column_low = kKeyRows ? pair_at(low, j0 + 8 * j + 2 * lane.t) : float2{};
      GENERANT_UNROLL
      for (int i = 0; i < 4; ++i) {
        const int r = row[i / 2], c = j0 + 8 * j + 2 * lane.t + i % 2, query = kKeyRows ? c : r, key = kKeyRows ? r : c;
        if (c >= columns || (h.causal && key > query)) score[j][i] = kHidden;
        score[j][i] = power_of_2(score[j][i] - (!kKeyRows ? row_low[i / 2] : i % 2 ? column_low.y : column_low.x));
      }
    }
    if (kFirst && p.first) {
      GENERANT_UNROLL
      for (int j = 0; j < kTiles; ++j) {
        const float2 column_centre = kKeyRows ? pair_at(centre, j0 + 8 * j + 2 * lane.t) : float2{};
        GENERANT_UNROLL
        for (int i = 0; i < 4; ++i)
          slope[j][i] = score[j][i] * (slope[j][i] - (!kKeyRows ? row_centre[i / 2] : i % 2 ? column_centre.y : column_centre.x));
      }
      add_average<false, kChunks>(first, slope, place(0, tile), d, lane);
    }
    if (kSecond && p.second) add_average<false, kChunks>(second, score, place(1, tile), e, lane);
  }
  GENERANT_UNROLL
  for (int i = 0; i < 2; ++i) {
    if (!real[i]) continue;
    if (kFirst && p.first)
      store_row(first, i, float(h.scale), p.first + part * p.first_size + h.at(sample, rows, head, h.d) + row[i] * ld_d, d,
                p.wide_to, lane);
    if (kSecond && p.second)
      store_row(second, i, 1.0f, p.second + part * p.second_size + h.at(sample, rows, head, h.e) + row[i] * ld_e, e, p.wide_to, lane);
  }
#endif
}

__global__ void __launch_bounds__(256) sum_parts(const float* from, int64_t size, int64_t parts, float* to) {
  const int64_t i = global_thread();
  if (i >= size) return;
  float sum = from[i];
  for (int64_t part = 1; part < parts; ++part) sum += from[part * size + i];
  to[i] = sum;
}

// ---- launching ----

template <int W> struct BackwardTiles {
  Heads<float> h;
  float *dq, *dk, *dv, *parts_q, *parts_k, *parts_v;
  BackwardParts queries, keys;

  BackwardTiles(const Call& c, Carve& scratch, const float* low, const float* centre, int64_t t_padded)
      : h(c, 1), dq(out<float>(c, 0)), dk(out<float>(c, 1)), dv(out<float>(c, 2)), queries{} {
    queries.g = in<float>(c, 0), queries.low = low, queries.centre = centre, queries.t_padded = t_padded;
    queries.wide_d = wide_rows<float>(h.d, h.q, h.k), queries.wide_e = wide_rows<float>(h.e, h.v, queries.g);
    keys = queries;
    split(queries, h.t, h.s, BackwardShape<W, true>::kColumns);
    split(keys, h.s, h.t, BackwardShape<W, true>::kColumns);
    const int64_t of_q = queries.parts > 1 ? queries.parts : 0, of_k = keys.parts > 1 ? keys.parts : 0;
    queries.first_size = h.n * h.t * h.heads * h.d;
    keys.first_size = h.n * h.s * h.heads * h.d, keys.second_size = h.n * h.s * h.heads * h.e;
    parts_q = scratch.take<float>(dq ? of_q * queries.first_size : 0);
    parts_k = scratch.take<float>(dk ? of_k * keys.first_size : 0);
    parts_v = scratch.take<float>(dv ? of_k * keys.second_size : 0);
    queries.first = of_q ? (dq ? parts_q : nullptr) : dq;
    keys.first = of_k ? (dk ? parts_k : nullptr) : dk, keys.second = of_k ? (dv ? parts_v : nullptr) : dv;
    queries.wide_to = wide_rows<float>(h.d, queries.first);
    keys.wide_to = wide_rows<float>(h.d, keys.first) && wide_rows<float>(h.e, keys.second);
  }

  // How many parts the columns are in: enough blocks for one sample.
  void split(BackwardParts& p, int64_t rows, int64_t columns, int64_t tile) const {
    const int64_t tiles = ceil_div(columns, tile), mine = h.heads * ceil_div(rows, int64_t(64));
    int64_t parts = mine > 0 ? ceil_div(kSampleBlocks, mine) : 1;
    parts = min(parts, max(columns / kPartKeys, int64_t(1)));
    p.tiles = max(ceil_div(tiles, parts), int64_t(1)), p.parts = max(ceil_div(tiles, p.tiles), int64_t(1));
  }

  template <bool kKeyRows, bool kFirst, bool kSecond> void slopes(const Call& c, const BackwardParts& p) const {
    using Shape = BackwardShape<W, kFirst>;
    launch(c, attention_slopes<W, kKeyRows, kFirst, kSecond>,
           grid_of(h.n * h.heads * p.parts * ceil_div(kKeyRows ? h.s : h.t, int64_t(Shape::kRows))), Shape::kThreads, Shape::kBytes, h, p);
  }
  void sum(const Call& c, const BackwardParts& p, const float* from, int64_t size, float* to) const {
    if (to && p.parts > 1) launch(c, sum_parts, grid_of(ceil_div(size, 256)), 256, 0, from, size, p.parts, to);
  }

  void run(const Call& c) const {
    if (dq) slopes<false, true, false>(c, queries);
    if constexpr (W <= 64) {
      if (dk || dv) slopes<true, true, true>(c, keys);
    } else {                                         // no registers for both sums
      if (dk) slopes<true, true, false>(c, keys);
      if (dv) slopes<true, false, true>(c, keys);
    }
    sum(c, queries, parts_q, queries.first_size, dq);
    sum(c, keys, parts_k, keys.first_size, dk);
    sum(c, keys, parts_v, keys.second_size, dv);
  }
};

}  // namespace
