// Moving without computing: pieces of rows put together, permutations of axes, other float types.
//
// Pieces move by 16 bytes where all of them allow it, else by four. A permutation whose last axis stays is a copy of rows;
// otherwise the axis that is last in the input and the one that is last in the output span matrices, which are transposed
// by tiles in shared memory, or element by element where one of the two is short.
#include "elementwise.h"
#include "permutation.h"
#include "row_pieces.h"

namespace {

constexpr int kTile = 32, kTileThreads = 256;
constexpr int64_t kNarrow = 8;               // rows or columns from where tiles pay

struct Same {
  template <class T> __device__ T operator()(T x) const { return x; }
};

template <class To> struct Rounded {
  template <class T> __device__ To operator()(T x) const { return To(x); }
};
template <class T> struct Other { using type = double; };
template <> struct Other<double> { using type = float; };

template <class W> __global__ void join_kernel(int64_t n, RowPieces<W> p, W* y) {
  const int64_t i = global_thread();
  if (i >= n) return;
  const int64_t row = i / p.width;
  int64_t at = i - row * p.width;
  W v{};
  bool searching = true;
  GENERANT_UNROLL
  for (const auto& q : p.piece) {                    // those that are not used have no width
    if (searching && at < q.width) {
      searching = false;
      if (q.from) v = q.from[row * q.step + at];
    }
    at -= q.width;
  }
  y[i] = v;
}

template <class T> void join(const Call& c, const RowPieces<uint32_t>& p) {
  const int64_t n = size(c.out[0]) * kWords<T>;
  uint32_t* y = out<uint32_t>(c);
  RowPieces<uint4> wide{{}, p.count, p.width / 4};
  bool fits = p.width % 4 == 0 && reinterpret_cast<uintptr_t>(y) % 16 == 0;
  for (int k = 0; k < p.count; ++k) {
    const auto& q = p.piece[k];
    fits = fits && q.step % 4 == 0 && q.width % 4 == 0 && reinterpret_cast<uintptr_t>(q.from) % 16 == 0;
    wide.piece[k] = {reinterpret_cast<const uint4*>(q.from), q.step / 4, q.width / 4};
  }
  if (fits) launch(c, join_kernel<uint4>, grid_of(ceil_div(n / 4, kMapThreads)), kMapThreads, 0, n / 4, wide, reinterpret_cast<uint4*>(y));
  else launch(c, join_kernel<uint32_t>, grid_of(ceil_div(n, kMapThreads)), kMapThreads, 0, n, p, y);
}

// N neighbours of the output per thread; they are neighbours in the input too if N > 1.
template <class T, int N> __global__ void permute_kernel(int64_t packs, Permutation p, const T* x, Pack<T, N>* y) {
  const int64_t pack = global_thread();
  if (pack >= packs) return;
  const int64_t m = p.shape[p.ndim - 1], i = pack * N, rest = i / m;
  int64_t a = (i - rest * m) * p.from[p.ndim - 1], b = 0;
  p.locate(rest, -1, a, b);
  y[pack] = *reinterpret_cast<const Pack<T, N>*>(x + a);
}

// m rows, `step` apart, by n columns to n rows, `to` apart, by m columns; one tile per block.
template <class T> __global__ void transpose_kernel(Permutation p, int j, const T* x, T* y) {
  __shared__ T tile[kTile][kTile + 1];
  const int64_t m = p.shape[p.ndim - 1], n = p.shape[j], step = p.from[p.ndim - 1], to = p.to[j];
  const int64_t across = (n + kTile - 1) / kTile, down = (m + kTile - 1) / kTile;
  const int64_t strip = blockIdx.x / across, matrix = strip / down;
  const int64_t column = (blockIdx.x - strip * across) * kTile, row = (strip - matrix * down) * kTile;
  int64_t a = column + row * step, b = column * to + row;
  p.locate(matrix, j, a, b);
  const int lane = threadIdx.x % kTile, first = threadIdx.x / kTile;
  GENERANT_UNROLL
  for (int k = first; k < kTile; k += kTileThreads / kTile)
    if (row + k < m && column + lane < n) tile[k][lane] = x[a + k * step + lane];
  __syncthreads();
  GENERANT_UNROLL
  for (int k = first; k < kTile; k += kTileThreads / kTile)
    if (column + k < n && row + lane < m) y[b + k * to + lane] = tile[lane][k];
}

template <class T> void permute(const Call& c, const Permutation& p) {
  constexpr int N = 16 / sizeof(T);
  const T* x = in<T>(c, 0);
  T* y = out<T>(c);
  const int64_t all = size(c.in[0]), m = p.shape[p.ndim - 1];
  const bool aligned = (reinterpret_cast<uintptr_t>(x) | reinterpret_cast<uintptr_t>(y)) % 16 == 0;
  if (p.from[p.ndim - 1] == 1 && m % N == 0 && aligned) {
    launch(c, permute_kernel<T, N>, grid_of(ceil_div(all / N, kMapThreads)), kMapThreads, 0, all / N, p, x, reinterpret_cast<Pack<T, N>*>(y));
    return;
  }
  const int j = p.last_of_input();
  const int64_t n = p.shape[j];
  if (p.from[p.ndim - 1] == 1 || m < kNarrow || n < kNarrow)
    launch(c, permute_kernel<T, 1>, grid_of(ceil_div(all, kMapThreads)), kMapThreads, 0, all, p, x, reinterpret_cast<Pack<T, 1>*>(y));
  else
    launch(c, transpose_kernel<T>, grid_of(all / m / n * ceil_div(m, kTile) * ceil_div(n, kTile)), kTileThreads, 0, p, j, x, y);
}

}  // namespace

KERNEL(assign_) { map(c, size(c.in[0]), Same{}, static_cast<T*>(c.in[0].data), in<T>(c, 1)); }

KERNEL(concat) { join<T>(c, concat_pieces<T, uint32_t>(c)); }
KERNEL(slice_axis) { join<T>(c, slice_pieces<T, uint32_t>(c)); }
KERNEL(pad_axis) { join<T>(c, pad_pieces<T, uint32_t>(c)); }

KERNEL(transpose) {
  if (size(c.in[0])) permute<T>(c, Permutation(c.in[0], c.attr));
}

KERNEL(cast) {
  if (c.in[0].dtype == c.out[0].dtype) map(c, size(c.in[0]), Same{}, out<T>(c), in<T>(c, 0));
  else map(c, size(c.in[0]), Rounded<T>{}, out<T>(c), in<typename Other<T>::type>(c, 0));
}
