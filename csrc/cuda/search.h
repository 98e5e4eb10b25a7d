// What searches over all pairs share: lows of tiles, and distances in float64 of the pairs that lows leave open.
//
// A `low` (see csrc/score_block.h) rules a pair out by a rigorous error bound, so what a search finds is exact whatever
// tile or part a pair is in. Sums of three TF32 products for one: a number is split to 2^-22 of itself, twice, and small
// times small is left out, which costs at most 6 u N; tensor cores add the 8 products of a step and the sum so far
// aligned to the largest of them, 9 truncations of 2 u for each of a slab's 6 steps: 54 u N; slabs are added in float32:
// d / 32 u N; centring: 3 u N. Twice the sum of that is e.
#pragma once
#include "pairwise_tile.h"
#include "score_bound.h"

namespace {

// side and low of a packed row: what it adds to `low` (NaN if its norm is of no use), and its slack.
template <class T> struct SideOfBound {
  Bound<T> bound;
  __device__ double term(double x, T) const { return x * x; }
  __device__ void split(double norm, T& side, T& slack) const {
    side = norm < double(Limits<T>::huge) ? T(norm * (0.5 - bound.e)) : T(NAN), slack = bound.slack(norm);
  }
};

template <class T> struct Search {
  Points<T> points;
  Bound<T> bound;
  int64_t tiles, parts, part_tiles;                  // of columns

  Search(const Call& c, const Array& other, Carve& scratch)
      : points(in<T>(c, 0), c.in[0].shape[0], static_cast<const T*>(other.data), other.shape[0], c.in[0].shape[1], kSquare, true, scratch) {
    const double d = double(points.d), u = double(Limits<T>::unit);
    const bool split = points.expanded && sizeof(T) == 4;
    bound = Bound<T>((split ? 160 + d / 4 : 2 * d + 32) * u, points.expanded, (d + 2) * double(Limits<T>::tiny));
    tiles = points.column_tiles();
    parts = parts_of(points.row_tiles(), tiles);
    part_tiles = ceil_div(tiles > 0 ? tiles : 1, parts);
    parts = ceil_div(tiles, part_tiles);
    if (parts < 1) parts = 1;
  }
  void prepare(const Call& c) const {
    find_centre(c, points);
    pack(c, points, SideOfBound<T>{bound});
  }
  dim3 grid() const { return grid_of(points.row_tiles(), parts); }
};

// ---- lows ----

template <class T> constexpr int kWarps = kTileThreads<T> / kWarp;
template <class T> constexpr int kHalfRows = 8 * kScoreStride;     // one h of a warp's rows
template <class T>
constexpr int kSearchNumbers = 2 * kSlabSize<T> > kWarps<T> * kHalfRows<T> ? 2 * kSlabSize<T> : kWarps<T> * kHalfRows<T>;

// scan(lows of this thread as in Scores, first column) for the tiles of a block's part, in an order that hops: points that
// are sorted would otherwise come nearer with every tile. Warps without rows only help to load.
template <class T, class F> __device__ inline void each_tile(const Search<T>& s, T* shared, F&& scan) {
  const Points<T>& p = s.points;
  const int64_t i0 = int64_t(blockIdx.x) * kTileRows<T>, first = blockIdx.y * s.part_tiles;
  const int count = int(min(s.part_tiles, s.tiles - first));
  const bool idle = i0 + int(threadIdx.x / kWarp * 16) >= p.n;
  T side[2] = {};
  if (p.expanded && !idle)
    GENERANT_UNROLL
    for (int h = 0; h < 2; ++h) side[h] = p.side_x[i0 + own_row(h)];
  int hop = int(0.618 * count) | 1;
  for (;; hop += 2) {                                // to the next that has no divisor in common with count
    int a = count, b = hop;
    while (b > 0) {
      const int rest = a % b;
      a = b, b = rest;
    }
    if (a <= 1) break;
  }
  for (int turn = 0, tile = 0; turn < count; ++turn) {
    const int64_t j0 = (first + tile) * kTileColumns;
    Scores<T> v = sum_scores(p.form, p.packed_x + i0 * p.width, p.width, p.packed_y + j0 * p.width, p.width, p.width, idle, shared);
    if (!idle) {
      if (p.expanded)
        GENERANT_UNROLL
        for (int strip = 0; strip < kStrips; ++strip) {
          const Pack<T, 2> of_y = *reinterpret_cast<const Pack<T, 2>*>(p.side_y + j0 + own_column(strip));
          GENERANT_UNROLL
          for (int c = 0; c < 4; ++c) v.at[strip][c] = (side[c / 2] + of_y.v[c % 2]) - v.at[strip][c];
        }
      scan(v, j0);
    }
    tile = int((int64_t(tile) + hop) % count);
  }
}

// f(low, h, bit, column of the tile) for every low of this thread; bits as in each_marked.
template <class T, class F> __device__ inline void each_low(const Scores<T>& v, F&& f) {
  GENERANT_UNROLL
  for (int strip = 0; strip < kStrips; ++strip)
    GENERANT_UNROLL
    for (int c = 0; c < 4; ++c) f(v.at[strip][c], c / 2, 16 * (c / 2) + 2 * strip + c % 2, own_column(strip) + c % 2);
}
__device__ inline int column_of_bit(int bit, int lane) { return 8 * ((bit >> 1) & 7) + 2 * (lane % 4) + (bit & 1); }
__device__ inline int row_of_bit(int bit, int lane) { return threadIdx.x / kWarp * 16 + lane / 4 + 8 * (bit >> 4); }

// ---- distances ----

constexpr int kGroup = 8;                            // lanes that measure a pair

// |x - y|^2 in float64 by every group of lanes, in an order that depends on d only; all lanes of a group get it.
template <class T> __device__ inline double square_distance(const T* x, const T* y, int64_t d) {
  double s = 0;
  for (int64_t k = threadIdx.x % kGroup; k < d; k += kGroup) {
    const double u = double(x[k]) - double(y[k]);
    s = __fma_rn(u, u, s);
  }
  return warp_sum(s, kGroup);
}

// decide(bit, |x - y|^2) by its owner for every bit of every lane's mask, four pairs at a time; the whole warp calls this.
template <class T, class F>
__device__ inline void measure_marked(const Points<T>& p, int64_t i0, int64_t j0, uint32_t mask, F&& decide) {
  const int lane = threadIdx.x % kWarp;
  for (;;) {
    unsigned lanes = __ballot_sync(0xffffffffu, mask != 0);
    if (lanes == 0) return;
    const int rank = __popc(lanes & ((1u << lane) - 1)), own = __ffs(int(mask)) - 1;
    int owner = __ffs(int(lanes)) - 1;
    for (int g = 0; g < lane / kGroup; ++g)
      if (lanes & (lanes - 1)) lanes &= lanes - 1, owner = __ffs(int(lanes)) - 1;
    const int bit = warp_from(own, owner);
    const double t = square_distance(p.x + (i0 + row_of_bit(bit, owner)) * p.d, p.y + (j0 + column_of_bit(bit, owner)) * p.d, p.d);
    const double mine = warp_from(t, rank % (kWarp / kGroup) * kGroup);
    if (mask != 0 && rank < kWarp / kGroup) decide(own, mine), mask &= mask - 1;
  }
}

}  // namespace
