// Convolutions with 3x3 filters and stride 1 by Winograd's F(M x M, 3 x 3): tiles of the input are transformed, N x N
// matrix products over the channels follow, and their results are transformed back.
//
// One idea: a task takes a block of tiles through all three stages while its data is in the second-level cache; only
// the transformed filters stream past. Channels are the lanes of a vector, so the transforms are plain arithmetic on
// vectors. The sum over channels runs in blocks of kWinogradDepth whose sums are added: a chain of fma over all of
// them would lose three times the digits. Every tile is computed alone, so results do not depend on blocks or threads.
//
// Rounding error relative to the root mean square of the output (measured, benchmarks/lab/conv.md): F(4x4) at most
// 1.2e-6 rms and 2e-5 at worst, the others two thirds of that.
#pragma once
#include "gemm.h"
#include "simd.h"
#include "winograd_conv.h"
#include "winograd_transform.h"

namespace {

constexpr int64_t kWinogradDepth = 128;    // channels per chain of fma
// Tiles per task, multiples of 6 and 12: few, so that they stay in the second-level cache through all stages; more where
// the filter is so large that reading it for every task costs more than that.
constexpr int64_t kTileBlock = 24, kLargeTileBlock = 96, kLargeFilter = 12 << 20;

struct TileGrid {
  int64_t rows, columns, per_sample, all;
  TileGrid(int64_t n, int64_t p, int64_t q, int m)
      : rows(ceil_div(p, m)), columns(ceil_div(q, m)), per_sample(rows * columns), all(n * per_sample) {}
};

// Rows of V and M are whole vectors, and one more where they would be a multiple of 512 bytes apart; their planes an odd
// number of cache lines. Else many of them would share a few cache sets.
inline int64_t row_of(int64_t n) { return padded(n, kLanes<float>) + (padded(n, kLanes<float>) % 128 == 0 ? kLanes<float> : 0); }
inline int64_t plane_of(int64_t tiles, int64_t ld) { return padded(tiles * ld, 16) | 16; }
inline int64_t panels_of(int64_t o) { return ceil_div(o, kTileCols<float>); }

// ---- the filter: u[k][o / 32][c][32], k = position among N x N, zero beyond o. The same on every instruction set, so
// that a filter may be transformed ahead (ops/winograd.py). ------------------------------------------------------------

constexpr int64_t kFilterColumns = 32;

template <class F> static int64_t filter_size(int64_t c, int64_t o) {
  return F::kN * F::kN * padded(o, kFilterColumns) * c;
}

// w (R, R, c, o), element (i, j, c, o) at w[i * row + j * column + c * ld + o].
template <class F>
static void transform_filter(const Call& call, const float* w, int64_t row, int64_t column, int64_t ld, int64_t c, int64_t o, float* u) {
  constexpr int L = kLanes<float>, N = F::kN, R = F::kR;
  constexpr int64_t W = kFilterColumns;
  const int64_t width = padded(o, W), plane = width * c, grain = ceil_div(4096, width > 0 ? width : 1);
  parallel(call, ceil_div(c, grain), [&](int64_t block, int) {
    for (int64_t i = block * grain; i < least(c, (block + 1) * grain); ++i)
      for (int64_t j = 0; j < width; j += L) {
        const int64_t left = o - j;
        vf f[R * R], g[R * N], r[N];
        for (int a = 0; a < R; ++a)
          for (int b = 0; b < R; ++b) {
            const float* q = w + a * row + b * column + i * ld + j;
            f[a * R + b] = left >= L ? load(q) : left > 0 ? load_first(q, left) : vf{};
          }
        for (int a = 0; a < R; ++a) F::filter(f + a * R, 1, g + a * N, 1);
        float* to = u + (j / W * c + i) * W + j % W;
        for (int b = 0; b < N; ++b) {
          F::filter(g + b, N, r, 1);
          for (int a = 0; a < N; ++a) store(to + (a * N + b) * plane, r[a]);
        }
      }
  });
}

// ---- input ----------------------------------------------------------------------------------------------------------

// The size x size pixels of one tile: pixel (i, j) at row[i] + j * step[i] for j in [begin, end), zero elsewhere. A row
// outside the image is one pixel of zeros, repeated.
template <int size> struct Tile {
  const float* row[size];
  int64_t step[size], begin, end;
  // That with its corner at (y, x) of an image of h x w.
  Tile(const float* image, int64_t ld, int64_t pixel, int64_t h, int64_t w, int64_t y, int64_t x, const float* zeros)
      : begin(x < 0 ? -x : 0), end(least(w - x, size)) {
#pragma GCC unroll 6
    for (int i = 0; i < size; ++i) {
      const bool inside = uint64_t(y + i) < uint64_t(h);
      row[i] = inside ? image + (y + i) * ld + x * pixel : zeros;
      step[i] = inside ? pixel : 0;
    }
  }
};

// to[k * plane] for kLanes channels of one tile; the tile beside it, which shares `shared` columns, is fetched meanwhile.
template <int size, int N, int shared, bool kTail, class G>
static inline void transform_vector(const Tile<size>& tile, int64_t channel, int64_t left, float* to, int64_t plane,
                                    G transform) {
  if (channel * sizeof(float) % 64 == 0) {
#pragma GCC unroll 6
    for (int i = 0; i < size; ++i)
#pragma GCC unroll 6
      for (int j = shared; j < size; ++j) __builtin_prefetch(tile.row[i] + (j + size - shared) * tile.step[i] + channel);
  }
  vf d[size], t[N * size];
#pragma GCC unroll 6
  for (int j = 0; j < size; ++j) {
    const bool inside = j >= tile.begin && j < tile.end;
    if (inside) {
#pragma GCC unroll 6
      for (int i = 0; i < size; ++i) {
        const float* q = tile.row[i] + j * tile.step[i] + channel;
        d[i] = kTail ? load_first(q, left) : load(q);
      }
      transform(d, 1, t + j, size);
    } else {
#pragma GCC unroll 6
      for (int i = 0; i < N; ++i) t[i * size + j] = vf{};
    }
  }
#pragma GCC unroll 6
  for (int i = 0; i < N; ++i) {
    vf r[N];
    transform(t + i * size, 1, r, 1);
#pragma GCC unroll 6
    for (int j = 0; j < N; ++j) store(to + (i * N + j) * plane, r[j]);
  }
}

// All channels of a tile under a pair of one-dimensional transforms; to(k): where those from k on go.
template <int N, int shared, int size, class G, class To>
static inline void transform_tile(const Tile<size>& tile, int64_t channels, int64_t plane, G transform, To to) {
  constexpr int L = kLanes<float>;
  int64_t k = 0;
  for (; k + L <= channels; k += L) transform_vector<size, N, shared, false>(tile, k, L, to(k), plane, transform);
  if (k < channels) transform_vector<size, N, shared, true>(tile, k, channels - k, to(k), plane, transform);
}
template <class F, class To>
static inline void transform_input_tile(const Tile<F::kN>& tile, int64_t channels, int64_t plane, To to) {
  transform_tile<F::kN, F::kR - 1>(tile, channels, plane, [](const vf* d, int sd, vf* v, int s) { F::input(d, sd, v, s); }, to);
}

// The rows of a convolution's input, activated: N rows under a row of tiles at a time, padding included.
template <class F> struct ActivatedRows {
  float *affine, *at;                          // centre, a, b, padded; [N][columns][channels]
  int64_t columns, sample = -1, tile_row = -1;
  static int64_t width(const TileGrid& grid) { return grid.columns * F::kM + F::kR - 1; }

  // The rows under row `r` of tiles of sample n; those shared with the row of tiles before are kept.
  void fill(const WinogradConv& s, const WinogradSource& from, int64_t n, int64_t r) {
    constexpr int N = F::kN, M = F::kM;
    if (n == sample && r == tile_row) return;
    const int64_t row_size = columns * s.c;
    const bool follows = n == sample && r == tile_row + 1;
    if (follows) memmove(at, at + M * row_size, size_t((N - M) * row_size) * sizeof(float));
    const int64_t ld = padded(s.c, kLanes<float>);
    if (n != sample) s.affine(s.norm, n, affine, affine + ld, affine + 2 * ld);
    sample = n, tile_row = r;
    for (int i = follows ? N - M : 0; i < N; ++i) {
      const int64_t row = r * M - from.top + i;
      float* to = at + i * row_size;
      if (row < 0 || row >= from.h) {
        memset(to, 0, size_t(row_size) * sizeof(float));
        continue;
      }
      const int64_t first = least(columns, from.left), inside = least(columns - first, from.w), after = columns - first - inside;
      memset(to, 0, size_t(first * s.c) * sizeof(float));
      s.activate(from.x + n * from.sample + row * from.row, to + first * s.c, inside, s.c, affine, affine + ld, affine + 2 * ld);
      memset(to + (first + inside) * s.c, 0, size_t(after * s.c) * sizeof(float));
    }
  }
};

// v[k][tile - first][channel], rows of ld elements, from one source.
template <class F>
static void transform_input(const WinogradConv& s, const WinogradSource& from, const TileGrid& grid, int64_t first,
                            int64_t end, const float* zeros, ActivatedRows<F>* activated, float* v, int64_t ld) {
  constexpr int N = F::kN, M = F::kM;
  const int64_t plane = plane_of(end - first, ld);
  for (int64_t t = first; t < end; ++t) {
    const int64_t sample = t / grid.per_sample, r = t % grid.per_sample / grid.columns, q = t % grid.columns;
    if (activated) activated->fill(s, from, sample, r);
    const Tile<N> tile = activated
        ? Tile<N>(activated->at, activated->columns * s.c, s.c, N, activated->columns, 0, q * M, zeros)
        : Tile<N>(from.x + sample * from.sample, from.row, from.pixel, from.h, from.w, r * M - from.top,
                  q * M - from.left, zeros);
    float* to = v + (t - first) * ld;
    transform_input_tile<F>(tile, s.c, plane, [&](int64_t k) { return to + k; });
  }
}

// ---- what products fetch meanwhile ------------------------------------------------------------------------------------

// A run of memory that is soon needed, fetched line by line by micro-kernels (tile.h).
struct Fetch {
  const float *at, *end;
  Fetch share(int64_t i, int64_t shares) const {
    const int64_t lines = ceil_div(end - at, 16), each = ceil_div(lines, shares);
    return {at + least(lines, i * each) * 16, at + least(lines, (i + 1) * each) * 16};
  }
  // The next n lines; a line at `other`, over and over, once there are no more.
  const float* take(int64_t n, const float* other, int64_t* step) {
    if (at >= end) return *step = 0, other;
    const float* from = at;
    return at += 16 * n, *step = 16, from;
  }
};

// The rows of a dense image that the tiles [first, end) reach and those before do not; `more` rows below each tile.
template <class F>
static Fetch fetch_rows(const TileGrid& grid, const float* image, int64_t h, int64_t row, int64_t more, int64_t first,
                        int64_t end) {
  const auto from = [&](int64_t t) {
    const int64_t r = ceil_div(t % grid.per_sample, grid.columns);
    return image + (t / grid.per_sample * h + (r ? least(h, r * F::kM + more) : 0)) * row;
  };
  return {from(least(first, grid.all)), from(least(end, grid.all))};
}

// ---- products and output --------------------------------------------------------------------------------------------

// m[k][tile][column] = sum over sources and channels of v[k][tile][source, channel] u[k][...][channel][column], for the
// columns of panels [j0, j1) of kTileCols.
template <class F>
static void products(const WinogradConv& s, const float* v, int64_t ld, int64_t tiles, int64_t j0, int64_t j1, float* m,
                     int64_t ldm, Fetch input, Fetch output) {
  constexpr int64_t NR = kTileCols<float>, W = kFilterColumns;
  static_assert(W % NR == 0, "a panel lies within one block of columns of the filter");
  const int64_t strips = ceil_div(tiles, kTileRows), v_plane = plane_of(tiles, ld), m_plane = plane_of(tiles, ldm);
  for (int k = 0; k < F::kN * F::kN; ++k)
    for (int64_t j = j0; j < j1; ++j)
      for (int64_t source = 0; source < s.sources; ++source)
        for (int64_t c0 = 0; c0 < s.c; c0 += kWinogradDepth) {
          const float* a = v + k * v_plane + source * s.c + c0;
          const float* u = s.source[source].u + k * padded(s.o, W) * s.c + (j * NR / W * s.c + c0) * W + j * NR % W;
          for (int64_t t = 0; t < strips; ++t) {
            const int64_t i = tile_start(tiles, strips, t), rows = tile_start(tiles, strips, t + 1) - i;
            const int64_t depth = least(kWinogradDepth, s.c - c0);
            int64_t step;
            Fetch& fetch = input.at < input.end ? input : output;
            const float* next = fetch.take(depth, a, &step);
            micro_of<float, 2, true>(rows)(depth, a + i * ld, ld, u, W,
                                       m + k * m_plane + i * ldm + (j - j0) * NR, ldm, kLanes<float>, source > 0 || c0 > 0,
                                       next, step);
          }
        }
}

// Columns [j0, j0 + width) of the outputs of tiles [first, end).
template <class F>
static void transform_output(const WinogradConv& s, const TileGrid& grid, int64_t first, int64_t end, const float* m,
                             int64_t ldm, int64_t j0, int64_t width) {
  constexpr int L = kLanes<float>, N = F::kN, M = F::kM;
  const int64_t plane = plane_of(end - first, ldm);
  for (int64_t tile = first; tile < end; ++tile) {
    const int64_t sample = tile / grid.per_sample, r = tile % grid.per_sample;
    const int64_t p0 = r / grid.columns * M, q0 = r % grid.columns * M;
    const int64_t rows = least(M, s.p - p0), columns = least(M, s.q - q0);
    float* to = s.y + sample * s.sample + p0 * s.row + q0 * s.pixel + j0;
    const float* from = m + (tile - first) * ldm;
    const float* ahead = to + M * s.pixel;                  // where the next tile most often lies
    for (int64_t j = 0; j < width; j += L) {
      const int64_t left = width - j;
      if (j * sizeof(float) % 64 == 0)
        for (int a = 0; a < M; ++a)
#pragma GCC unroll 4
          for (int b = 0; b < M; ++b) __builtin_prefetch(ahead + a * s.row + b * s.pixel + j, 1);
      vf t[M * N], d[N], y[M];
#pragma GCC unroll 6
      for (int b = 0; b < N; ++b) {
#pragma GCC unroll 6
        for (int a = 0; a < N; ++a) d[a] = load(from + (a * N + b) * plane + j);
        F::output(d, 1, t + b, N);
      }
#pragma GCC unroll 4
      for (int a = 0; a < M; ++a) {
        F::output(t + a * N, 1, y, 1);
        float* row = to + a * s.row + j;
        if (a < rows && columns == M && left >= L) {
#pragma GCC unroll 4
          for (int b = 0; b < M; ++b) store(row + b * s.pixel, y[b]);
        } else if (a < rows) {
          for (int b = 0; b < columns; ++b) store_first(row + b * s.pixel, y[b], least(left, L));
        }
      }
    }
    if (s.finish)
      for (int64_t a = 0; a < rows; ++a) s.finish(s.context, (sample * s.p + p0 + a) * s.q + q0, j0, columns, width);
  }
}

// ---- all of it ------------------------------------------------------------------------------------------------------

// How the work is cut; none of it touches a bit of the result.
template <class F> struct WinogradPlan {
  int64_t block, splits, panels, chunk;    // tiles per task; tasks that share a block; panels per task and per pass
  int64_t ldv, ldm, v_size, m_size, affine_size, strip_size;
  WinogradPlan(const WinogradConv& s, const TileGrid& grid, int threads) {
    const bool large = filter_size<F>(s.c, s.o) * s.sources * int64_t(sizeof(float)) > kLargeFilter;
    const int64_t most = large ? kLargeTileBlock : kTileBlock, workers = threads > 0 ? threads : 1;
    const int64_t all = panels_of(s.o), blocks = ceil_div(grid.all, most);
    const int64_t rounds = padded(blocks, workers);       // so that every worker gets as many
    block = least(padded(ceil_div(grid.all, rounds), kTileRows), most);
    splits = blocks >= workers ? 1 : least(ceil_div(workers, blocks), all);
    panels = ceil_div(all, splits);
    chunk = least(panels, 8);
    ldv = row_of((s.sources - 1) * s.c + padded(s.c, kLanes<float>));   // the last source ends with a whole vector
    ldm = row_of(chunk * kTileCols<float>);
    v_size = F::kN * F::kN * plane_of(block, ldv);
    m_size = F::kN * F::kN * plane_of(block, ldm);
    affine_size = s.affine ? padded(3 * padded(s.c, kLanes<float>), 16) : 0;
    strip_size = s.affine ? padded(F::kN * ActivatedRows<F>::width(grid) * s.c, 16) : 0;
  }
  int64_t worker_size() const { return v_size + m_size + affine_size + strip_size; }
  int64_t size(int threads) const { return ldv + worker_size() * (threads > 0 ? threads : 1); }
};

template <class F> static int64_t winograd_size(const WinogradConv& s, int threads) {
  return WinogradPlan<F>(s, TileGrid(s.n, s.p, s.q, F::kM), threads).size(threads);
}

// scratch: winograd_size elements.
template <class F> static void winograd_conv(const Call& call, const WinogradConv& s, float* scratch) {
  const TileGrid grid(s.n, s.p, s.q, F::kM);
  const WinogradPlan<F> plan(s, grid, call.threads);
  const int64_t all = panels_of(s.o);
  float* zeros = scratch;
  memset(zeros, 0, size_t(plan.ldv) * sizeof(float));
  parallel(call, ceil_div(grid.all, plan.block) * plan.splits, [&](int64_t task, int worker) {
    float* v = zeros + plan.ldv + worker * plan.worker_size();
    float *m = v + plan.v_size, *affine = m + plan.m_size, *strip = affine + plan.affine_size;
    const int64_t first = task / plan.splits * plan.block, end = least(grid.all, first + plan.block);
    const int64_t begin = task % plan.splits * plan.panels, stop = least(all, begin + plan.panels);
    ActivatedRows<F> rows{affine, strip, ActivatedRows<F>::width(grid)};
    for (int64_t k = 0; k < s.sources; ++k)
      transform_input<F>(s, s.source[k], grid, first, end, zeros, s.affine ? &rows : nullptr, v + k * s.c, plan.ldv);
    for (int64_t j = begin; j < stop; j += plan.chunk) {
      const int64_t j1 = least(stop, j + plan.chunk), column = j * kTileCols<float>;
      const int64_t width = least(s.o, j1 * kTileCols<float>) - column, ahead = first + call.threads * plan.block;
      const WinogradSource& x = s.source[0];
      const bool dense = x.pixel == s.c && x.row == x.w * s.c && j == begin, whole = s.pixel == width && s.row == s.q * width;
      const Fetch input = fetch_rows<F>(grid, x.x, x.h, x.row, F::kR - 1 - x.top, ahead, dense ? ahead + plan.block : ahead);
      const Fetch output = fetch_rows<F>(grid, s.y, s.p, s.row, 0, first, whole ? end : first);
      products<F>(s, v, plan.ldv, end - first, j, j1, m, plan.ldm, input, output);
      transform_output<F>(s, grid, first, end, m, plan.ldm, column, width);
    }
  });
}

}  // namespace
