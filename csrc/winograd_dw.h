// The gradient in the filter of a 3x3, stride-1 convolution by Winograd's algorithm: the exact adjoint of winograd.h,
//   dw = G' [ sum over tiles of (B' x B) * (A dy A') ] G,
// N x N matrix products over tiles between the transformed inputs and the transformed gradients.
//
// One idea: tiles go through in fixed groups of kTileGroup. The workers transform a group together, then share out the
// products, each of which belongs to one worker; so every sum runs over the groups in order, whoever computes it, and
// scratch does not grow with the number of tiles.
#pragma once
#include "winograd.h"

namespace {

constexpr int64_t kTileGroup = 96;         // tiles per chain of fma and between two synchronisations
constexpr int kWidePanel = 3 * kLanes<float>;      // columns of a panel of V: whole tiles of rows

// An image whose pixel (n, i, j) is at `at + n * sample + i * row + j * pixel`.
struct Image {
  const float* at;
  int64_t sample, row, pixel, h, w, channels;
};

// x and g: the input and the gradient of the output; element (i, j) of dw (R, R, c, o) at dw + i * row + j * column.
struct WinogradDw {
  int64_t n, top, left;
  Image x, g;
  float* dw;
  int64_t row, column;
};

template <class F> struct WinogradDwPlan {
  int64_t c_panels, o_panels, v_size, z_size, u_size;
  WinogradDwPlan(const WinogradDw& s)
      : c_panels(ceil_div(s.x.channels, kWidePanel)), o_panels(panels_of(s.g.channels)),
        v_size(F::kN * F::kN * c_panels * kWidePanel * kTileGroup),
        z_size(F::kN * F::kN * o_panels * kTileCols<float> * kTileGroup),
        u_size(F::kN * F::kN * padded(s.x.channels, kLanes<float>) * o_panels * kTileCols<float>) {}
  int64_t size() const { return v_size + z_size + u_size; }
};

// to[k * plane] for one vector of channels of one tile of x: B' x B.
template <class F>
static inline void input_vector(const float* const* at, int64_t channel, int64_t left, float* to, int64_t plane) {
  constexpr int N = F::kN;
  vf d[N], t[N * N], r[N];
#pragma GCC unroll 6
  for (int j = 0; j < N; ++j) {
#pragma GCC unroll 6
    for (int i = 0; i < N; ++i)
      d[i] = !at[i * N + j] ? vf{} : left >= kLanes<float> ? load(at[i * N + j] + channel) : load_first(at[i * N + j] + channel, left);
    F::input(d, 1, t + j, N);
  }
#pragma GCC unroll 6
  for (int i = 0; i < N; ++i) {
    F::input(t + i * N, 1, r, 1);
#pragma GCC unroll 6
    for (int j = 0; j < N; ++j) store(to + (i * N + j) * plane, r[j]);
  }
}

// The same of one tile of g: A g A'.
template <class F>
static inline void gradient_vector(const float* const* at, int64_t channel, int64_t left, float* to, int64_t plane) {
  constexpr int N = F::kN, M = F::kM;
  vf d[M], t[N * M], r[N];
#pragma GCC unroll 4
  for (int j = 0; j < M; ++j) {
#pragma GCC unroll 4
    for (int i = 0; i < M; ++i)
      d[i] = !at[i * M + j] ? vf{} : left >= kLanes<float> ? load(at[i * M + j] + channel) : load_first(at[i * M + j] + channel, left);
    F::output_adjoint(d, 1, t + j, M);
  }
#pragma GCC unroll 6
  for (int i = 0; i < N; ++i) {
    F::output_adjoint(t + i * M, 1, r, 1);
#pragma GCC unroll 6
    for (int j = 0; j < N; ++j) store(to + (i * N + j) * plane, r[j]);
  }
}

// Pixels of the size x size square at (row, column) of a sample; null outside.
static inline void square(const Image& image, int64_t sample, int64_t row, int64_t column, int size, const float** at) {
  for (int i = 0; i < size; ++i)
    for (int j = 0; j < size; ++j) {
      const int64_t y = row + i, x = column + j;
      const bool inside = y >= 0 && y < image.h && x >= 0 && x < image.w;
      *at++ = inside ? image.at + sample * image.sample + y * image.row + x * image.pixel : nullptr;
    }
}

template <class F>
static void winograd_dw(const Call& call, const WinogradDw& s, float* scratch) {
  constexpr int L = kLanes<float>, N = F::kN, M = F::kM, R = F::kR, NR = kTileCols<float>, WP = kWidePanel, MR = kTileRows;
  constexpr int64_t grain = 6;                              // tiles per task of the transforms
  const WinogradDwPlan<F> plan(s);
  const TileGrid grid(s.n, s.g.h, s.g.w, M);
  const int64_t c = s.x.channels, o = s.g.channels;
  float *v = scratch, *z = v + plan.v_size, *du = z + plan.z_size;
  const int64_t v_plane = plan.c_panels * WP * kTileGroup, z_plane = plan.o_panels * NR * kTileGroup;
  const int64_t ldu = plan.o_panels * NR, u_plane = padded(c, L) * ldu, strips = ceil_div(c, MR);
  const int64_t cuts = least(plan.c_panels, 4);             // tasks per position, over rows of du
  for (int64_t first = 0; first < grid.all; first += kTileGroup) {
    const int64_t tiles = least(kTileGroup, grid.all - first);
    parallel(call, ceil_div(tiles, grain), [&](int64_t task, int) {
      for (int64_t i = task * grain; i < least(tiles, (task + 1) * grain); ++i) {
        const int64_t t = first + i, sample = t / grid.per_sample, r = t % grid.per_sample;
        const int64_t p = r / grid.columns * M, q = r % grid.columns * M;
        const float* at[N * N];
        square(s.x, sample, p - s.top, q - s.left, N, at);
        for (int64_t k = 0; k < c; k += L)
          input_vector<F>(at, k, c - k, v + (k / WP * kTileGroup + i) * WP + k % WP, v_plane);
        square(s.g, sample, p, q, M, at);
        for (int64_t k = 0; k < o; k += L)
          gradient_vector<F>(at, k, o - k, z + (k / NR * kTileGroup + i) * NR + k % NR, z_plane);
      }
    });
    parallel(call, N * N * cuts, [&](int64_t task, int) {
      const int64_t k = task / cuts, cut = task % cuts;
      const int64_t begin = tile_start(strips, cuts, cut), end = tile_start(strips, cuts, cut + 1);
      for (int64_t j = 0; j < plan.o_panels; ++j)
        for (int64_t i = begin; i < end; ++i) {
          const int64_t row = i * MR;
          micro_of<float, 2, false>(least(MR, c - row))(
              tiles, v + k * v_plane + row / WP * kTileGroup * WP + row % WP, WP, z + k * z_plane + j * kTileGroup * NR, NR,
              du + k * u_plane + row * ldu + j * NR, ldu, L, first > 0);
        }
    });
  }
  const bool none = grid.all == 0;
  parallel_range(call, c, ceil_div(2048, o > 0 ? o : 1), [&](int64_t c0, int64_t c1) {
    for (int64_t i = c0; i < c1; ++i)
      for (int64_t j = 0; j < o; j += L) {
        vf d[N], t[R * N], w[R];
        for (int b = 0; b < N; ++b) {
          for (int a = 0; a < N; ++a) d[a] = none ? vf{} : load(du + (a * N + b) * u_plane + i * ldu + j);
          F::filter_adjoint(d, 1, t + b, N);
        }
        for (int a = 0; a < R; ++a) {
          F::filter_adjoint(t + a * N, 1, w, 1);
          for (int b = 0; b < R; ++b) store_first(s.dw + a * s.row + b * s.column + i * o + j, w[b], least(L, o - j));
        }
      }
  });
}

}  // namespace
