// Gradients of kernel sums with respect to the rows of x, from a block of scores (row_tile.h): the product of W, what
// pair (i, j) weighs times phi', with what phi's argument changes by.
//
//   |x - y|^2, by differences   sum_j W_ij (x_i - y_j), directly: no cancellation
//   |x - y|^2, expanded         x_i sum_j W_ij - sum_j W_ij y_j on centred rows. Pairs that are near compared with
//                               their norms would cancel: they leave W and are added from their raw rows
//   |x - y|_1                   sum_j W_ij sign(x_i - y_j)
//   <x, y>                      sum_j W_ij y_j
#pragma once
#include "kernel_function.h"
#include "row_tile.h"

namespace {

// Logarithmic weights x_log_i + y_log_j inside an exponent, in base 2. A block of y has a reference, its largest finite
// y_log, so that T holds y_log_j - reference and x_log_i + reference, both rounded from float64: the weight's relative
// error is unit (|x_log_i + reference| + |y_log_j - reference|), not that of two large numbers which cancel.
template <class T> struct LogWeights {
  const double *x_log, *y_log;
  int64_t n, m;
  T* row;                                            // of y
  double* reference;                                 // of a block of y

  LogWeights(const double* x_log, const double* y_log, int64_t n, int64_t m, Carve& scratch)
      : x_log(x_log), y_log(y_log), n(n), m(m), row(scratch.take<T>(y_log ? m : 0)),
        reference(scratch.take<double>(y_log ? ceil_div(m, kRowBlock) : 0)) {}

  void prepare(const Call& c) const {
    if (!y_log) return;
    parallel_range(c, m, 64 * kRowBlock, [&](int64_t begin, int64_t end) {
      for (int64_t j0 = begin; j0 < end; j0 += kRowBlock) {
        const int64_t j1 = j0 + kRowBlock < end ? j0 + kRowBlock : end;
        double most = -__builtin_inf();
        for (int64_t j = j0; j < j1; ++j)
          if (y_log[j] > most && y_log[j] < __builtin_inf()) most = y_log[j];
        if (most == -__builtin_inf()) most = 0;
        reference[j0 / kRowBlock] = most;
        for (int64_t j = j0; j < j1; ++j) row[j] = T((y_log[j] - most) * kLog2E);
      }
    });
  }

  // b.q becomes the kernel function (its kOrder-th derivative) of b.q, weights included.
  template <int kOrder> void apply(const KernelFunction<T>& kernel, const RowBlock<T>& b) const {
    vec<T>* q = b.q[0];
    if (!x_log && !y_log) return kernel.template apply<kOrder>(q, 2 * b.rows);
    const double most = y_log ? reference[b.j0 / kRowBlock] : 0;
    T at[kTileColumns<T>] = {};
    for (int l = 0; l < b.lanes; ++l) at[l] = T(((x_log ? x_log[b.i0 + l] : 0) + most) * kLog2E);
    const vec<T> lane[2] = {load(at), load(at + kLanes<T>)};
    kernel.template apply<kOrder>(q, 2 * b.rows, y_log ? row + b.j0 : nullptr, lane);
  }
};

// q[r][..] *= sum_k a[k][r] b[k][..] for k < e: a goes with y, b with x.
template <class T>
__attribute__((noinline)) void multiply_weights(vec<T> (*q)[2], const T* a, const T* b, int64_t e, int rows) {
  for (int r0 = 0; r0 < rows; r0 += kTileRows, a += kTileRows * e) {
    Tile<T> tile = {};
    accumulate<kInner>(tile, a, b, e);
#pragma GCC unroll 16
    for (int r = 0; r < kTileRows; ++r) q[r0 + r][0] *= tile.at[r][0], q[r0 + r][1] *= tile.at[r][1];
  }
}

// sums[k][..] += sum_r q[r][..] (x[k] - y[r][k]), or times its sign, for kCount coordinates.
template <bool kSign, int kCount, class T>
inline void multiply_some(const RowBlock<T>& b, int64_t d, int64_t k0, double* sums) {
  constexpr int chains = kCount <= 2 ? 2 : 1, lanes = kLanes<T>, w = kTileColumns<T>;
  static_assert(kTileRows % chains == 0, "whole chains");
  vec<T> s[chains][kCount][2] = {}, x[kCount][2];
  for (int c = 0; c < kCount; ++c) x[c][0] = load(b.x + (k0 + c) * w), x[c][1] = load(b.x + (k0 + c) * w + lanes);
  auto add = [&](vec<T>& sum, vec<T> q, vec<T> u) __attribute__((always_inline)) {
    if constexpr (kSign) {
      typedef vmask<T> bits;
      const bits sign = (bits)u & (bits)broadcast(T(-0.0));
      sum += u == 0 ? vec<T>{} : (vec<T>)((bits)q ^ sign);
    } else {
      sum = fma(q, u, sum);
    }
  };
  const T* y = b.y + k0 * kTileRows;
  for (int r0 = 0; r0 < b.rows; r0 += kTileRows, y += d * kTileRows) {
    const int count = b.rows - r0 < kTileRows ? b.rows - r0 : kTileRows;
    int r = 0;
    for (; r + chains <= count; r += chains)
#pragma GCC unroll 2
      for (int u = 0; u < chains; ++u) {
        const vec<T> q0 = b.q[r0 + r + u][0], q1 = b.q[r0 + r + u][1];
#pragma GCC unroll 4
        for (int c = 0; c < kCount; ++c) {
          const vec<T> at = broadcast(y[c * kTileRows + r + u]);
          add(s[u][c][0], q0, x[c][0] - at);
          add(s[u][c][1], q1, x[c][1] - at);
        }
      }
    for (; r < count; ++r)
      for (int c = 0; c < kCount; ++c) {
        const vec<T> at = broadcast(y[c * kTileRows + r]);
        add(s[0][c][0], b.q[r0 + r][0], x[c][0] - at);
        add(s[0][c][1], b.q[r0 + r][1], x[c][1] - at);
      }
  }
  for (int c = 0; c < kCount; ++c) {
    if (chains == 2) s[0][c][0] += s[chains - 1][c][0], s[0][c][1] += s[chains - 1][c][1];
    add_panel<T>(sums + (k0 + c) * w, s[0][c][0], s[0][c][1]);
  }
}
template <bool kSign, class T>
__attribute__((noinline)) void multiply_differences(const RowBlock<T>& b, int64_t d, double* sums) {
  int64_t k = 0;
  for (; k + 4 <= d; k += 4) multiply_some<kSign, 4>(b, d, k, sums);
  if (d - k == 3) multiply_some<kSign, 3>(b, d, k, sums);
  if (d - k == 2) multiply_some<kSign, 2>(b, d, k, sums);
  if (d - k == 1) multiply_some<kSign, 1>(b, d, k, sums);
}

// Takes near pairs out of W = b.q: raw[lane][k] += W (x_k - y_k) in float64, W = 0.
template <class T>
__attribute__((noinline)) void move_near_pairs(const RowBlock<T>& b, const T* x, const T* y, int64_t d, double* raw) {
  const T zero = 0;
  for (int r = 0; r < b.rows; ++r)
    for (uint32_t near = b.near[r]; near; near &= near - 1) {
      const int l = __builtin_ctz(near);
      T* at = reinterpret_cast<T*>(b.q[r]) + l;
      T weight;
      memcpy(&weight, at, sizeof(T));
      memcpy(at, &zero, sizeof(T));
      if (weight == 0) continue;
      const double w = double(weight);
      const T *from_x = x + (b.i0 + l) * d, *from_y = y + (b.j0 + r) * d;
      double* to = raw + l * d;
      for (int64_t k = 0; k < d; ++k) to[k] += w * (double(from_x[k]) - double(from_y[k]));
    }
}

// The functor of kernel_matvec_dx: W_ij = <g_i, v_j> e^(logs) phi'. g is rows.add_x 0, v rows.add_y 0.
template <class T> struct GradientRows {
  const RowTile<T>& rows;
  const KernelFunction<T>& kernel;
  const LogWeights<T>& logs;
  int64_t e;
  bool exclude_diagonal;
  T* out;

  static constexpr int kWidth = kTileColumns<T>;
  // State: sums [columns][kWidth]; expanded distances have a column more, of W itself, and `raw` [kWidth][d].
  static int64_t state(const RowTile<T>& rows) {
    return packed_columns(rows.d + rows.expanded) * kWidth + (rows.expanded ? kWidth * rows.d : 0);
  }
  double* raw_of(double* state) const { return state + packed_columns(rows.d + 1) * kWidth; }

  void start(double* at) const {
    for (int64_t t = 0, end = state(rows); t < end; ++t) at[t] = 0;
  }
  void block(const RowBlock<T>& b, double* at) const {
    logs.template apply<1>(kernel, b);
    if (exclude_diagonal && b.meets_diagonal()) b.set_diagonal(0);
    multiply_weights(b.q, b.of_y[0], b.of_x[0], e, b.rows);
    if (rows.form == kManhattan) return multiply_differences<true>(b, rows.d, at);
    if (rows.form == kSquare && !rows.expanded) return multiply_differences<false>(b, rows.d, at);
    if (b.any_near) move_near_pairs(b, rows.x, rows.y, rows.d, raw_of(at));
    multiply_columns<T>(b.q, b.side[0], rows.d + rows.expanded, b.rows, at);
  }
  void merge(double* into, const double* from) const {
    for (int64_t t = 0, end = state(rows); t < end; ++t) into[t] += from[t];
  }
  void finish(int64_t i0, int lanes, const double* at) const {
    const int64_t d = rows.d;
    const double factor = rows.form == kSquare ? 2 : 1;
    const T* mean = rows.common_mean();
    for (int64_t k0 = 0; k0 < d; k0 += 16)             // so many rows of sums stay in L1 while lanes are read
      for (int l = 0; l < lanes; ++l) {
        const int64_t k1 = k0 + 16 < d ? k0 + 16 : d;
        T* to = out + (i0 + l) * d;
        if (!rows.expanded) {
          for (int64_t k = k0; k < k1; ++k) to[k] = T(factor * at[k * kWidth + l]);
          continue;
        }
        const T* x = rows.x + (i0 + l) * d;
        const double weight = at[d * kWidth + l];
        const double* raw = at + packed_columns(d + 1) * kWidth + l * d;
        for (int64_t k = k0; k < k1; ++k)
          to[k] = T(2 * (double(x[k] - mean[k]) * weight - at[k * kWidth + l] + raw[k]));
      }
  }
};

}  // namespace
