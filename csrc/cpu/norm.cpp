// Layer normalisation and its form without a mean: a row is read from memory once, and again from L1 for its variance and for its output.
//
// Backward: rows in fixed blocks; a block adds its share of dgain and dbias into a line of scratch of its own, and the
// lines are merged in block order.
#include "../parallel.h"
#include "../row_sums.h"

namespace {

constexpr int64_t kBlock = 16384;          // elements per block of rows

// Rows of a block of the backward pass: enough elements, and at most 64 blocks, since merging them costs too.
inline int64_t rows_per_block(int64_t n_rows, int64_t d) {
  const int64_t enough = ceil_div(kBlock, d > 0 ? d : 1), few = ceil_div(n_rows, 64);
  return enough > few ? enough : few;
}

// Sum the blocks of partial (block, k, d) into out_k (d), k < n_out, in block order.
template <class T> inline void merge_blocks(const Call& c, const T* partial, int64_t blocks, int64_t d, T* out0, T* out1,
                                            int n_out) {
  constexpr int64_t kTile = 64;                      // columns merged together
  const int64_t grain = ceil_div(kBlock, n_out * kTile * (blocks > 0 ? blocks : 1));
  T* outs[2] = {out0, out1};
  parallel_range(c, ceil_div(d, kTile), grain, [&](int64_t i, int64_t end) {
    for (; i < end; ++i) {
      const int64_t column = i * kTile, n = d - column < kTile ? d - column : kTile;
      double total[2][kTile] = {};
      for (int64_t b = 0; b < blocks; ++b)
        for (int k = 0; k < n_out; ++k)
          for (int64_t j = 0; j < n; ++j) total[k][j] += double(partial[(n_out * b + k) * d + column + j]);
      for (int k = 0; k < n_out; ++k)
        for (int64_t j = 0; outs[k] && j < n; ++j) outs[k][column + j] = T(total[k][j]);
    }
  });
}

template <class T> int64_t bwd_bytes(const Call& c) {
  const int64_t d = last(c.in[1]), n = rows(c.in[1]), blocks = ceil_div(n, rows_per_block(n, d));
  return blocks * 2 * d * int64_t(sizeof(T));
}

}  // namespace

KERNEL(layer_norm) {
  const int64_t d = last(c.in[0]);
  const T *x0 = in<T>(c, 0), *gain = in<T>(c, 1), *bias = in<T>(c, 2);
  T *y0 = out<T>(c, 0), *means = out<T>(c, 1), *rstds = out<T>(c, 2);
  const T eps = T(c.attr[0]);
  parallel_range(c, rows(c.in[0]), ceil_div(kBlock, d > 0 ? d : 1), [&](int64_t i, int64_t end) {
    for (; i < end; ++i) {
      const T* x = x0 + i * d;
      T* y = y0 + i * d;
      const T mean = row_sum<T>(d, [&](int64_t j, int64_t n) { return load_n(x + j, n); }) / T(d);
      const vec<T> m = broadcast(mean);
      const T var = row_sum<T>(d, [&](int64_t j, int64_t n) {
        const vec<T> z = load_n(x + j, n) - m;
        return z * z;
      }) / T(d);
      const T rstd = T(1) / T(__builtin_sqrt(double(var + eps)));
      const vec<T> r = broadcast(rstd);
      row_map<T>(d, [&](int64_t j, int64_t n) {
        const vec<T> z = (load_n(x + j, n) - m) * r;
        store_n(y + j, fma(z, load_n(gain + j, n), load_n(bias + j, n)), n);
      });
      if (means) means[i] = mean;
      if (rstds) rstds[i] = rstd;
    }
  });
}

KERNEL_SCRATCH(layer_norm_bwd, bwd_bytes) {
  const int64_t d = last(c.in[1]), n_rows = rows(c.in[1]);
  const int64_t block = rows_per_block(n_rows, d), blocks = ceil_div(n_rows, block);
  const T *g0 = in<T>(c, 0), *x0 = in<T>(c, 1), *gain = in<T>(c, 2), *means = in<T>(c, 4), *rstds = in<T>(c, 5);
  T *dx0 = out<T>(c, 0), *dgain = out<T>(c, 1), *dbias = out<T>(c, 2);
  T* partial = static_cast<T*>(c.scratch);         // blocks x (dgain, dbias) x d
  const bool parameters = dgain || dbias;
  if (d == 0) return;
  parallel(c, blocks, [&](int64_t b, int) {
    T *pg = partial + b * 2 * d, *pb = pg + d;
    if (parameters) __builtin_memset(pg, 0, size_t(2 * d) * sizeof(T));
    const int64_t end = (b + 1) * block < n_rows ? (b + 1) * block : n_rows;
    for (int64_t i = b * block; i < end; ++i) {
      const T *g = g0 + i * d, *x = x0 + i * d;
      const vec<T> m = broadcast(means[i]), r = broadcast(rstds[i]);
      vec<T> su[2] = {}, suz[2] = {};                // of u = g gain and u z
      int k = 0;
      auto first = [&](int64_t j, int64_t n) {
        const vec<T> gv = load_n(g + j, n), u = gv * load_n(gain + j, n);
        vec<T> z = (load_n(x + j, n) - m) * r;       // in lanes from n on u and g are 0
        if (parameters) {
          store_n(pg + j, fma(gv, z, load_n(pg + j, n)), n);
          store_n(pb + j, gv + load_n(pb + j, n), n);
        }
        su[k] += u;
        suz[k] = fma(u, z, suz[k]);
        k ^= 1;
      };
      row_map<T>(d, first);
      if (!dx0) continue;
      T* dx = dx0 + i * d;
      const T mean_u = sum_lanes<T>(su[0] + su[1]) / T(d), mean_uz = sum_lanes<T>(suz[0] + suz[1]) / T(d);
      const vec<T> mu = broadcast(mean_u), muz = broadcast(mean_uz);
      row_map<T>(d, [&](int64_t j, int64_t n) {
        const vec<T> z = (load_n(x + j, n) - m) * r, u = load_n(g + j, n) * load_n(gain + j, n);
        store_n(dx + j, r * ((u - mu) - z * muz), n);
      });
    }
  });
  if (!parameters) return;
  merge_blocks(c, partial, blocks, d, dgain, dbias, 2);
}

KERNEL(rms_norm) {
  const int64_t d = last(c.in[0]);
  const T *x0 = in<T>(c, 0), *gain = in<T>(c, 1);
  T *y0 = out<T>(c, 0), *rstds = out<T>(c, 1);
  const T eps = T(c.attr[0]);
  parallel_range(c, rows(c.in[0]), ceil_div(kBlock, d > 0 ? d : 1), [&](int64_t i, int64_t end) {
    for (; i < end; ++i) {
      const T* x = x0 + i * d;
      T* y = y0 + i * d;
      const T square = row_sum<T>(d, [&](int64_t j, int64_t n) {
        const vec<T> v = load_n(x + j, n);
        return v * v;
      }) / T(d);
      const T rstd = T(1) / T(__builtin_sqrt(double(square + eps)));
      const vec<T> r = broadcast(rstd);
      row_map<T>(d, [&](int64_t j, int64_t n) { store_n(y + j, load_n(x + j, n) * r * load_n(gain + j, n), n); });
      if (rstds) rstds[i] = rstd;
    }
  });
}

KERNEL_SCRATCH(rms_norm_bwd, bwd_bytes) {
  const int64_t d = last(c.in[1]), n_rows = rows(c.in[1]);
  const int64_t block = rows_per_block(n_rows, d), blocks = ceil_div(n_rows, block);
  const T *g0 = in<T>(c, 0), *x0 = in<T>(c, 1), *gain = in<T>(c, 2), *rstds = in<T>(c, 3);
  T *dx0 = out<T>(c, 0), *dgain = out<T>(c, 1);
  T* partial = static_cast<T*>(c.scratch);         // blocks x d
  if (d == 0) return;
  parallel(c, blocks, [&](int64_t b, int) {
    T* pg = partial + b * d;
    if (dgain) __builtin_memset(pg, 0, size_t(d) * sizeof(T));
    const int64_t end = (b + 1) * block < n_rows ? (b + 1) * block : n_rows;
    for (int64_t i = b * block; i < end; ++i) {
      const T *g = g0 + i * d, *x = x0 + i * d;
      const vec<T> r = broadcast(rstds[i]);
      vec<T> sum[2] = {};                            // of g gain z
      int k = 0;
      row_map<T>(d, [&](int64_t j, int64_t n) {
        const vec<T> gz = load_n(g + j, n) * (load_n(x + j, n) * r);
        if (dgain) store_n(pg + j, load_n(pg + j, n) + gz, n);
        sum[k] = fma(gz, load_n(gain + j, n), sum[k]);
        k ^= 1;
      });
      if (!dx0) continue;
      T* dx = dx0 + i * d;
      const vec<T> mean = broadcast(sum_lanes<T>(sum[0] + sum[1]) / T(d));
      row_map<T>(d, [&](int64_t j, int64_t n) {
        const vec<T> z = load_n(x + j, n) * r;
        store_n(dx + j, r * (load_n(g + j, n) * load_n(gain + j, n) - z * mean), n);
      });
    }
  });
  if (dgain) merge_blocks<T>(c, partial, blocks, d, dgain, nullptr, 1);
}
