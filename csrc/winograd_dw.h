// The gradient in the filter of a 3x3, stride-1 convolution by Winograd's algorithm: the exact adjoint of winograd.h,
//   dw = G' [ sum over tiles of (B' x B) * (A dy A') ] G,
// N x N matrix products over tiles between the transformed inputs and the transformed gradients.
//
// One idea: tiles go through in fixed groups. The workers transform a group together, then share out the
// products, each of which belongs to one worker; so every sum runs over the groups in order, whoever computes it, and
// scratch does not grow with the number of tiles.
#pragma once
#include "winograd.h"

namespace {

// Tiles per chain of fma and between two synchronisations: fewer where the transformed tiles then stay in the second-level
// cache together with the sums.
constexpr int64_t kTileGroup = 96, kSmallTileGroup = 48, kSmallFilter = 2048;
constexpr int64_t kWidePanel = 48;         // columns of a panel of V: whole tiles of rows

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

template <int size>
static inline Tile<size> tile_of(const Image& image, int64_t sample, int64_t y, int64_t x, const float* zeros) {
  return Tile<size>(image.at + sample * image.sample, image.row, image.pixel, image.h, image.w, y, x, zeros);
}

template <class F> struct WinogradDwPlan {
  int64_t group, width, c_panels, o_panels, v_plane, z_plane, ldu, u_plane, zeros;
  WinogradDwPlan(const WinogradDw& s) {
    const int64_t c = s.x.channels, o = s.g.channels;
    group = c * o <= kSmallFilter ? kSmallTileGroup : kTileGroup;
    width = c <= 2 * kWidePanel ? padded(c, kLanes<float>) : kWidePanel;
    c_panels = ceil_div(c, width), o_panels = panels_of(o), ldu = o_panels * kTileCols<float>;
    v_plane = plane_of(group, c_panels * width), z_plane = plane_of(group, ldu), u_plane = padded(c, kLanes<float>) * ldu;
    zeros = padded(c > o ? c : o, 16);
  }
  int64_t size() const { return F::kN * F::kN * (v_plane + z_plane + u_plane) + zeros; }
};

template <class F>
static void winograd_dw(const Call& call, const WinogradDw& s, float* scratch) {
  constexpr int L = kLanes<float>, N = F::kN, M = F::kM, R = F::kR, NR = kTileCols<float>, MR = kTileRows;
  constexpr int64_t grain = 6;                              // tiles per task of the transforms
  const WinogradDwPlan<F> plan(s);
  const TileGrid grid(s.n, s.g.h, s.g.w, M);
  const int64_t c = s.x.channels, o = s.g.channels;
  const int64_t width = plan.width, group = plan.group, ldu = plan.ldu, u_plane = plan.u_plane, strips = ceil_div(c, MR);
  float *zeros = scratch, *v = zeros + plan.zeros, *z = v + N * N * plan.v_plane, *du = z + N * N * plan.z_plane;
  memset(zeros, 0, size_t(plan.zeros) * sizeof(float));
  const int64_t cuts = least(ceil_div(c, kWidePanel), 4);   // tasks per position, over rows of du
  for (int64_t first = 0; first < grid.all; first += group) {
    const int64_t tiles = least(group, grid.all - first);
    parallel(call, ceil_div(tiles, grain), [&](int64_t task, int) {
      for (int64_t i = task * grain; i < least(tiles, (task + 1) * grain); ++i) {
        const int64_t t = first + i, sample = t / grid.per_sample, r = t % grid.per_sample;
        const int64_t p = r / grid.columns * M, q = r % grid.columns * M;
        transform_input_tile<F>(tile_of<N>(s.x, sample, p - s.top, q - s.left, zeros), c, plan.v_plane,
                                [&](int64_t k) { return v + (k / width * group + i) * width + k % width; });
        transform_tile<N, 0>(tile_of<M>(s.g, sample, p, q, zeros), o, plan.z_plane,
                             [](const vf* y, int sy, vf* m, int to) { F::output_adjoint(y, sy, m, to); },
                             [&](int64_t k) { return z + (k / NR * group + i) * NR + k % NR; });
      }
    });
    const auto coming = [&](const Image& image, int64_t more) {
      const bool dense = image.pixel == image.channels && image.row == image.w * image.pixel;
      return fetch_rows<F>(grid, image.at, image.h, image.row, more, first + group, dense ? first + 2 * group : first + group);
    };
    const Fetch next_x = coming(s.x, R - 1 - s.top), next_g = coming(s.g, 0);
    parallel(call, N * N * cuts, [&](int64_t task, int) {
      Fetch of_x = next_x.share(task, N * N * cuts), of_g = next_g.share(task, N * N * cuts);
      const int64_t k = task / cuts, cut = task % cuts;
      const int64_t begin = tile_start(strips, cuts, cut), end = tile_start(strips, cuts, cut + 1);
      for (int64_t j = 0; j < plan.o_panels; ++j)
        for (int64_t i = begin; i < end; ++i) {
          const int64_t row = i * MR;
          int64_t step;
          Fetch& fetch = of_x.at < of_x.end ? of_x : of_g;
          const float* next = fetch.take(tiles, z, &step);
          micro_of<float, 2, false>(least(MR, c - row))(
              tiles, v + k * plan.v_plane + row / width * group * width + row % width, width,
              z + k * plan.z_plane + j * group * NR, NR,
              du + k * u_plane + row * ldu + j * NR, ldu, L, first > 0, next, step);
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
