// Kernel values, or derivatives, as weights of a tile: with logarithms of weights in the exponent, and times <g_i, v_j>.
#pragma once
#include "kernel_function.h"
#include "pairwise_tile.h"

namespace {

// The logarithms of y, in base 2, less the largest finite one of their tile, which goes to x_log: the weight's relative
// error is that of what is left, not that of two large numbers which cancel. A warp per tile.
template <class T> __global__ void reduce_logs(const double* y_log, int64_t m, T* reduced, double* reference) {
  const int64_t tile = global_thread() / kWarp, j0 = tile * kTileColumns + threadIdx.x % kWarp;
  double most = -INFINITY;
  for (int64_t j = j0; j < j0 + kTileColumns; j += kWarp)
    if (j < m && y_log[j] > most && y_log[j] < double(INFINITY)) most = y_log[j];
  most = warp_reduce(most, Max{});
  if (most == -double(INFINITY)) most = 0;
  for (int64_t j = j0; j < j0 + kTileColumns; j += kWarp)
    if (j < m) reduced[j] = T((y_log[j] - most) * kLog2E);
  if (threadIdx.x % kWarp == 0 && tile * kTileColumns < m) reference[tile] = most;
}

template <int kOrder, class T> struct KernelWeights {
  Points<T> points;
  DeviceKernel<T> kernel;
  bool exclude_diagonal;
  const double *x_log, *y_log;
  T* reduced;                                        // of y_log
  double* reference;                                 // of a tile of y
  const T *g, *v;                                    // order 1: rows whose inner product is a factor
  int64_t e, e_width;
  T *packed_g, *packed_v;

  // The attributes and x, y of a call of kernel_matvec or its derivative; g and v are absent in the former.
  KernelWeights(const Call& c, int gv, int logs, Carve& scratch)
      : points(in<T>(c, 0), c.in[0].shape[0], in<T>(c, 1), c.in[1].shape[0], c.in[0].shape[1], form_of(c), false, scratch),
        kernel(c.attr, c.attr + kBandwidthAttr, c.in[0].shape[1]), exclude_diagonal(c.attr[kExcludeDiagonal] != 0),
        x_log(in<double>(c, logs)), y_log(in<double>(c, logs + 1)), g(nullptr), v(nullptr), e(0), e_width(0) {
    reduced = scratch.take<T>(y_log ? points.m : 0);
    reference = scratch.take<double>(y_log ? points.column_tiles() : 0);
    packed_g = packed_v = nullptr;
    if (gv < 0) return;
    g = in<T>(c, gv), v = in<T>(c, gv + 1), e = c.in[gv].shape[1];
    if (e == 1) return;
    e_width = padded(e, 8);
    packed_g = scratch.take<T>(padded(points.n, kRowPadding) * e_width);
    packed_v = scratch.take<T>(padded(points.m, kRowPadding) * e_width);
  }
  static int form_of(const Call& c) { return DeviceKernel<T>(c.attr, c.attr + kBandwidthAttr, c.in[0].shape[1]).form; }

  void prepare(const Call& c) const {
    find_centre(c, points);
    pack(c, points);
    if (y_log) launch(c, reduce_logs<T>, grid_of(ceil_div(points.column_tiles(), 4)), 4 * kWarp, 0, y_log, points.m, reduced, reference);
    if (!packed_g) return;
    T* const none = nullptr;
    pack_rows(c, g, points.n, e, e_width, none, SideOfNorm{}, packed_g, none, none);
    pack_rows(c, v, points.m, e, e_width, none, SideOfNorm{}, packed_v, none, none);
  }

  __device__ uint32_t tile(int64_t i0, int64_t j0, T* shared) const {
    const Points<T>& p = points;
    const uint32_t near = score_tile(p, i0, j0, shared);
    T* own = own_scores(shared);
    T log0 = 0, log1 = 0;
    if (x_log || y_log) {
      const double most = y_log ? reference[j0 / kTileColumns] : 0;
      const int64_t a = i0 + own_row(0), b = i0 + own_row(1);
      log0 = T(((x_log && a < p.n ? x_log[a] : 0) + most) * kLog2E), log1 = T(((x_log && b < p.n ? x_log[b] : 0) + most) * kLog2E);
    }
    each_score(own, [&](T q, int h, int column) {
      const int64_t i = i0 + own_row(h), j = j0 + column;
      if (i >= p.n || j >= p.m || (exclude_diagonal && i == j)) return T(0);
      const T weight = kernel.template operator()<kOrder>(q, (h ? log1 : log0) + (y_log ? reduced[j] : T(0)));
      return kOrder == 1 && e == 1 ? weight * (g[i] * v[j]) : weight;
    });
    if constexpr (kOrder == 1)
      if (e != 1) {
        Scores<T> kept;
        GENERANT_UNROLL
        for (int h = 0; h < 2; ++h)
          GENERANT_UNROLL
          for (int strip = 0; strip < kStrips; ++strip) {
            const Pack<T, 2> w = *reinterpret_cast<const Pack<T, 2>*>(own + own_offset(h, strip));
            kept.at[strip][2 * h] = w.v[0], kept.at[strip][2 * h + 1] = w.v[1];
          }
        const bool idle = i0 + int(threadIdx.x / kWarp * 16) >= p.n;
        const Scores<T> s = sum_scores(kInner, packed_g + i0 * e_width, e_width, packed_v + j0 * e_width, e_width, e_width, idle, shared);
        GENERANT_UNROLL
        for (int h = 0; h < 2; ++h)
          GENERANT_UNROLL
          for (int strip = 0; strip < kStrips; ++strip) {
            const Pack<T, 2> w = {{kept.at[strip][2 * h] * s.at[strip][2 * h], kept.at[strip][2 * h + 1] * s.at[strip][2 * h + 1]}};
            *reinterpret_cast<Pack<T, 2>*>(own + own_offset(h, strip)) = w;
          }
      }
    return near;
  }
};

}  // namespace
