// Weights times vectors, out_i = sum_j w_ij v_j, where a tile of weights is what some W makes of a tile of scores:
//   W::points                                     // the points of a call
//   uint32_t W::tile(i0, j0, shared)              // leaves weights where score_tile left scores (0 beyond the edges)
//
// Few columns: every thread multiplies the weights it made, and nothing leaves the block. Many columns: the weights of
// some rows and columns at a time (kChunk of them, which stay in the L2 cache) are written out, and a second kernel
// multiplies them, so that scores are made once whatever the number of columns. Sums are float64 from tile to tile.
#pragma once
#include "pairwise_tile.h"

namespace {

constexpr int kFewColumns = 8, kFewAtOnce = 4;
constexpr int64_t kChunk = int64_t(8) << 20, kChunkRows = 8192;

// ---- few columns ----

// Totals wait in shared memory while scores are made.
template <int E, class T> constexpr int kFewTotals = 2 * E * Total<T>::kNumbers * kTileThreads<T>;
template <int E, class T> constexpr size_t kFewBytes = kTileBytes<T> + (kFewTotals<E, T> + kTileColumns * E) * sizeof(T);

// states[part][i][..], of `share` tiles of columns each; a block has E columns of v, so all of them make scores again.
template <int E, class W, class T>
__global__ void __launch_bounds__(kTileThreads<T>, kTileBlocks)
few_products(W weights, const T* v, int64_t e, int64_t share, int64_t width, double* states) {
  DYNAMIC_SHARED(T, shared);
  T *const totals = shared + kTileBytes<T> / sizeof(T), *const vectors = totals + kFewTotals<E, T>;
  const Points<T>& p = weights.points;
  const int64_t i0 = int64_t(blockIdx.x) * kTileRows<T>;
  const int first = int(blockIdx.y * share), last = int(min(p.column_tiles(), first + share)), k0 = blockIdx.z * E;
  const T* own = own_scores(shared);
  constexpr int threads = kTileThreads<T>, stride = 2 * E * threads;
  for (int at = threadIdx.x; at < kFewTotals<E, T>; at += threads) totals[at] = 0;   // each thread its own
  for (int tile = first; tile < last; ++tile) {
    const int64_t j0 = int64_t(tile) * kTileColumns;
    __syncthreads();                                 // the vectors before may still be read
    for (int at = threadIdx.x; at < kTileColumns * E; at += kTileThreads<T>) {
      const int64_t j = j0 + at / E, c = k0 + at % E;
      vectors[at] = j < p.m && c < e ? v[j * e + c] : T(0);
    }
    weights.tile(i0, j0, shared);
    GENERANT_UNROLL
    for (int h = 0; h < 2; ++h) {
      T s[E] = {};
#pragma unroll 2
      for (int strip = 0; strip < kStrips; ++strip) {
        const Pack<T, 2> w = *reinterpret_cast<const Pack<T, 2>*>(own + own_offset(h, strip));
        GENERANT_UNROLL
        for (int c = 0; c < 2; ++c) {
          const T* row = vectors + (own_column(strip) + c) * E;
          const bool real = j0 + own_column(strip) + c < p.m;
          GENERANT_UNROLL
          for (int k = 0; k < E; ++k)
            if (real) s[k] = fused(w.v[c], row[k], s[k]);
        }
      }
      GENERANT_UNROLL
      for (int k = 0; k < E; ++k) {
        T* at = totals + (h * E + k) * threads + threadIdx.x;
        Total<T> total;
        total.load(at, stride);
        total.add(s[k]);
        total.store(at, stride);
      }
    }
  }
  GENERANT_UNROLL
  for (int h = 0; h < 2; ++h)
    GENERANT_UNROLL
    for (int k = 0; k < E; ++k) {
      Total<T> total;
      total.load(totals + (h * E + k) * threads + threadIdx.x, stride);
      const double s = warp_sum(total.value(), 4);
      const int64_t i = i0 + own_row(h);
      if (threadIdx.x % 4 == 0 && i < p.n) states[(blockIdx.y * p.n + i) * width + k0 + k] = s;
    }
}

// What a sum of products becomes: out[i][k] = finish(i, k, sum over parts of column k, of column d).
struct AsItIs {
  static constexpr bool kOwnColumn = false;
  template <class T> __device__ T finish(int64_t, int64_t, double sum, double, T) const { return T(sum); }
};

// Rows [begin, begin + count) of out, `columns` each, from parts [parts][stride][width].
template <class T, class F>
__global__ void finish_products(const double* states, int64_t parts, int64_t stride, int64_t width, int64_t begin, int64_t count,
                                int64_t columns, F f, T* out) {
  const int64_t at = global_thread();
  if (at >= count * columns) return;
  const int64_t i = at / columns, k = at % columns;
  double s = 0, last = 0;
  for (int64_t part = 0; part < parts; ++part) {
    const double* row = states + (part * stride + i) * width;
    s += row[k];
    if constexpr (F::kOwnColumn) last += row[columns];
  }
  out[(begin + i) * columns + k] = f.finish(begin + i, k, s, last, T(0));
}

// ---- many columns ----

template <class W, class T>
__global__ void __launch_bounds__(kTileThreads<T>, kTileBlocks)
write_weights(W weights, int64_t begin_i, int64_t begin_j, T* chunk, int64_t ld, uint32_t* near) {
  DYNAMIC_SHARED(T, shared);
  const int64_t i = int64_t(blockIdx.y) * kTileRows<T>, j = int64_t(blockIdx.x) * kTileColumns;
  const uint32_t mask = weights.tile(begin_i + i, begin_j + j, shared);
  if (near) near[(int64_t(blockIdx.y) * gridDim.x + blockIdx.x) * kTileThreads<T> + threadIdx.x] = mask;
  const T* own = own_scores(shared);
  GENERANT_UNROLL
  for (int h = 0; h < 2; ++h)
    GENERANT_UNROLL
    for (int strip = 0; strip < kStrips; ++strip)
      *reinterpret_cast<Pack<T, 2>*>(chunk + (i + own_row(h)) * ld + j + own_column(strip)) =
          *reinterpret_cast<const Pack<T, 2>*>(own + own_offset(h, strip));
}

// sums[part][row][column] += chunk times vectors, `share` columns of the chunk per part.
template <class T>
__global__ void __launch_bounds__(kTileThreads<T>, kTileBlocks)
multiply_chunk(const T* chunk, int64_t ld, int64_t count, int64_t columns, const T* vectors, int64_t stride, int64_t share,
               double* sums, int64_t rows, int64_t width) {
  DYNAMIC_SHARED(T, shared);
  const int64_t i0 = int64_t(blockIdx.x) * kTileRows<T>, k0 = int64_t(blockIdx.y) * kTileColumns, begin = blockIdx.z * share;
  const int64_t length = columns - begin < share ? columns - begin : share;
  const Scores<T> s = sum_scores(kInner, chunk + i0 * ld + begin, ld, vectors + k0 * stride + begin, stride, length,
                                 i0 + int(threadIdx.x / kWarp * 16) >= count, shared);
  GENERANT_UNROLL
  for (int h = 0; h < 2; ++h) {
    double* row = sums + (blockIdx.z * rows + i0 + own_row(h)) * width + k0;
    if (i0 + own_row(h) < count) {
      GENERANT_UNROLL
      for (int strip = 0; strip < kStrips; ++strip)
        GENERANT_UNROLL
        for (int c = 0; c < 2; ++c) row[own_column(strip) + c] += double(s.at[strip][2 * h + c]);
    }
  }
}

// Pairs that were measured again leave the weights, and sums[0][i] -= w (x_i - y_j) in float64 from their raw rows.
template <class T>
__global__ void take_near_pairs(Points<T> p, int64_t begin_i, int64_t begin_j, int64_t tiles, T* chunk, int64_t ld, const uint32_t* near,
                                double* sums, int64_t width) {
  const int64_t i0 = int64_t(blockIdx.x) * kTileRows<T>;
  for (int64_t tile = 0; tile < tiles; ++tile)
    each_marked(near[(blockIdx.x * tiles + tile) * kTileThreads<T> + threadIdx.x], [&](int row, int column, int, int) {
      const int64_t i = i0 + row, j = tile * kTileColumns + column;
      const T weight = chunk[i * ld + j];
      __syncwarp();
      if (threadIdx.x % kWarp == 0) chunk[i * ld + j] = 0;
      if (weight == 0) return;
      const T *x = p.x + (begin_i + i) * p.d, *y = p.y + (begin_j + j) * p.d;
      for (int64_t k = threadIdx.x % kWarp; k < p.d; k += kWarp)
        sums[i * width + k] -= double(weight) * (double(x[k]) - double(y[k]));
    });
}

// to[k][j] = v[j][k] - centre[k]; column `e` of ones if wanted; zeros beyond.
template <class T>
__global__ void turn_vectors(const T* v, int64_t m, int64_t e, const T* centre, bool ones, T* to, int64_t stride, int64_t width) {
  __shared__ T tile[32][33];
  const int64_t j0 = int64_t(blockIdx.x) * 32, k0 = int64_t(blockIdx.y) * 32;
  const int lane = threadIdx.x % 32, first = threadIdx.x / 32;
  for (int r = first; r < 32; r += 8) {
    const int64_t j = j0 + r, k = k0 + lane;
    T value = 0;
    if (j < m && k < e) value = v[j * e + k] - (centre ? centre[k] : T(0));
    if (j < m && k == e && ones) value = 1;
    tile[r][lane] = value;
  }
  __syncthreads();
  for (int r = first; r < 32; r += 8)
    if (j0 + lane < stride && k0 + r < width) to[(k0 + r) * stride + j0 + lane] = tile[lane][r];
}

// The scratch of a product with vectors of e columns, and the product.
template <class T> struct ProductPlan {
  int64_t n, m, e, width, stride, rows, ld, parts, share;
  bool few, ones, near;
  T *vectors, *chunk;
  uint32_t* marks;
  double* sums;

  // take_near: near pairs are left out and added from their raw rows; the vectors are then those rows, centred, with a
  // column of ones.
  ProductPlan(const Points<T>& p, int64_t e_, bool take_near, bool always_many, Carve& scratch)
      : n(p.n), m(p.m), e(e_), few(e_ <= kFewColumns && !always_many), ones(take_near), near(take_near) {
    if (few) {
      width = e == 1 ? 1 : padded(e, kFewAtOnce);
      parts = parts_of(p.row_tiles(), p.column_tiles());
      share = ceil_div(p.column_tiles(), parts);
      sums = scratch.take<double>(parts * n * width);
      vectors = chunk = nullptr, marks = nullptr;
      return;
    }
    width = padded(e + ones, kTileColumns), stride = padded(m, kTileColumns);
    rows = min(padded(n, kRowPadding), kChunkRows);
    ld = rows > 0 ? min(stride, kChunk / rows / 256 * 256) : 0;
    const int64_t tiles = ceil_div(rows, kTileRows<T>) * (width / kTileColumns);
    parts = parts_of(tiles, ceil_div(ld, 256));
    share = padded(ceil_div(ld, parts), kTileColumns);
    vectors = scratch.take<T>(width * stride);
    chunk = scratch.take<T>(rows * ld);
    marks = scratch.take<uint32_t>(near ? rows * ld / 32 : 0);
    if (!near) marks = nullptr;
    sums = scratch.take<double>(parts * rows * width);
  }

  template <class W, class F> void run(const Call& c, const W& weights, const T* v, const F& finish, T* out) const {
    if (few) {
      const Points<T>& p = weights.points;
      if (width == 1)
        launch(c, few_products<1, W, T>, grid_of(p.row_tiles(), parts), kTileThreads<T>, kFewBytes<1, T>, weights, v, e,
               share, width, sums);
      else
        launch(c, few_products<kFewAtOnce, W, T>, grid_of(p.row_tiles(), parts, width / kFewAtOnce), kTileThreads<T>,
               kFewBytes<kFewAtOnce, T>, weights, v, e, share, width, sums);
      launch(c, finish_products<T, F>, grid_of(ceil_div(n * e, 256)), 256, 0, sums, parts, n, width, 0, n, e, finish, out);
      return;
    }
    run_many(c, weights, v, finish, out);
  }

  template <class W, class F> void run_many(const Call& c, const W& weights, const T* v, const F& finish, T* out) const {
    const Points<T>& p = weights.points;
    launch(c, turn_vectors<T>, grid_of(ceil_div(stride, 32), ceil_div(width, 32)), 256, 0, v, m, e, near ? p.centre : nullptr, ones,
           vectors, stride, width);
    for (int64_t i = 0; i < n; i += rows) {
      const int64_t count = min(rows, n - i), row_tiles = ceil_div(count, kTileRows<T>);
      clear(c, sums, sizeof(double) * parts * rows * width);
      for (int64_t j = 0; j < stride; j += ld) {
        const int64_t columns = min(ld, stride - j), tiles = columns / kTileColumns;
        launch(c, write_weights<W, T>, grid_of(tiles, row_tiles), kTileThreads<T>, kTileBytes<T>, weights, i, j, chunk, ld, marks);
        if (near)
          launch(c, take_near_pairs<T>, grid_of(row_tiles), kTileThreads<T>, 0, p, i, j, tiles, chunk, ld, marks, sums, width);
        launch(c, multiply_chunk<T>, grid_of(row_tiles, width / kTileColumns, ceil_div(columns, share)), kTileThreads<T>, kTileBytes<T>,
               chunk, ld, count, columns, vectors + j, stride, share, sums, rows, width);
      }
      launch(c, finish_products<T, F>, grid_of(ceil_div(count * e, 256)), 256, 0, sums, parts, rows, width, i, count, e, finish, out);
    }
  }
};

}  // namespace
