// Pooling, resizing, filtering and padding of images: a thread makes 16 bytes of channels of a pixel, or one number where
// the channels do not allow that.
//
// Everything is gathered: an adjoint asks which outputs read its pixel (axis_map.h), so that nothing is added by atomics
// and no table is made. What rows and columns share is read again from the L1 cache. A row of the output is a block's
// blockIdx.x, so that its taps are the same for all threads.
#include "axis_map.h"
#include "block.h"
#include "carve.h"
#include "elementwise.h"

namespace {

constexpr int kPixelThreads = 128;
constexpr int64_t kMostPieces = 32768;               // of a row of the output, in grid.y; longer rows take turns

// Images (n, rows, columns, c) in packs of N channels. Their axes and a row's packs are fewer than 2^31.
struct Images {
  unsigned rows, columns, packs;                     // of the output: rows per image, pixels per row, packs per pixel
  int64_t in_rows, in_row;                           // of the input: rows per image, packs per row
};

// each(sample, row, column, pack of channels, pack of the output) for what this thread makes.
template <class F> __device__ inline void each_pack(const Images& g, F&& each) {
  const unsigned r = blockIdx.x, sample = r / g.rows, width = g.columns * g.packs;
  for (unsigned at = blockIdx.y * blockDim.x + threadIdx.x; at < width; at += gridDim.y * blockDim.x) {
    const unsigned column = at / g.packs;
    each(int64_t(sample), int(r - sample * g.rows), int(column), int(at - column * g.packs), int64_t(r) * width + at);
  }
}

template <class K, class... A> inline void over_images(const Call& c, int64_t n, const Images& g, K* kernel, A... args) {
  const int64_t pieces = ceil_div(int64_t(g.columns) * g.packs, kPixelThreads);
  launch(c, kernel, grid_of(n * g.rows, pieces < kMostPieces ? pieces : kMostPieces), kPixelThreads, 0, g, args...);
}

template <class P> struct PackOf;
template <class T, int N> struct PackOf<Pack<T, N>> {
  using Element = T;
  static constexpr int kSize = N;
};

template <class T, int N> inline Images images(const Array& x, const Array& y) {
  return {unsigned(y.shape[1]), unsigned(y.shape[2]), unsigned(y.shape[3] / N), x.shape[1], x.shape[2] * (x.shape[3] / N)};
}

// whole(pack type): packs of 16 bytes if the channels of all pixels start at multiples of 16 bytes, else of one number.
template <class T, class F> inline void by_packs(int64_t channels, uintptr_t addresses, F&& whole) {
  constexpr int N = 16 / sizeof(T);
  if (channels % N == 0 && addresses % 16 == 0) whole(Pack<T, N>{});
  else whole(Pack<T, 1>{});
}

inline uintptr_t bits_of(const void* p) { return reinterpret_cast<uintptr_t>(p); }

// ---- separable maps -------------------------------------------------------------------------------------------------

template <class T> using ShortMap = AxisMap<T, int>;

template <MapKind kind, bool kAdjoint, class T, class F>
__device__ inline void each_tap_at(const ShortMap<T>& m, int at, F&& emit) {
  if constexpr (kAdjoint) readers_of<kind>(m, at, emit);
  else taps_of<kind>(m, at, emit);
}

template <MapKind kind, bool kAdjoint, class T, int N>
__global__ void map_images(Images g, ShortMap<T> rows, ShortMap<T> columns, T fill, const Pack<T, N>* x, Pack<T, N>* y) {
  each_pack(g, [&](int64_t sample, int row, int column, int pack, int64_t to) {
    Pack<T, N> sum{};
    bool any = false;
    const Pack<T, N>* image = x + sample * g.in_rows * g.in_row + pack;
    each_tap_at<kind, kAdjoint>(columns, column, [&](int j, T w) {
      T part[N] = {};
      each_tap_at<kind, kAdjoint>(rows, row, [&](int i, T v) {
        const Pack<T, N> p = image[i * g.in_row + int64_t(j) * g.packs];
        any = true;
        GENERANT_UNROLL
        for (int k = 0; k < N; ++k) part[k] += v * p.v[k];
      });
      GENERANT_UNROLL
      for (int k = 0; k < N; ++k) sum.v[k] += w * part[k];
    });
    if (kind == kPad && !kAdjoint && !any)
      GENERANT_UNROLL
      for (int k = 0; k < N; ++k) sum.v[k] = fill;
    y[to] = sum;
  });
}

template <MapKind kind, bool kAdjoint, class T> inline void run_maps(const Call& c, const Maps<T>& m) {
  const Array &x = c.in[0], &y = c.out[0];
  if (size(y) == 0) return;
  by_packs<T>(x.shape[3], bits_of(x.data) | bits_of(y.data), [&](auto one) {
    using P = decltype(one);
    constexpr int N = PackOf<P>::kSize;
    over_images(c, x.shape[0], images<T, N>(x, y), map_images<kind, kAdjoint, T, N>, with_index<int>(m.rows),
                with_index<int>(m.columns), m.fill, static_cast<const P*>(x.data), static_cast<P*>(y.data));
  });
}

// ---- filters --------------------------------------------------------------------------------------------------------

// The maps' weights are places in the filter.
template <class T, int N>
__global__ void filter_images(Images g, ShortMap<T> rows, ShortMap<T> columns, const T* f, const Pack<T, N>* x, Pack<T, N>* y) {
  each_pack(g, [&](int64_t sample, int row, int column, int pack, int64_t to) {
    Pack<T, N> sum{};
    const Pack<T, N>* image = x + sample * g.in_rows * g.in_row + pack;
    taps_of<kFir>(rows, row, [&](int i, T a) {
      const T* taps = f + int(a) * columns.window;
      taps_of<kFir>(columns, column, [&](int j, T b) {
        const Pack<T, N> p = image[i * g.in_row + int64_t(j) * g.packs];
        const T w = taps[int(b)];
        GENERANT_UNROLL
        for (int k = 0; k < N; ++k) sum.v[k] += w * p.v[k];
      });
    });
    y[to] = sum;
  });
}

constexpr int kSumThreads = 256;
constexpr int64_t kChunkNumbers = 8192, kMostChunks = 65536;   // of g, per block: they stay in L1 while taps pass

struct FilterSum {
  int64_t n, p;
  int h, w, c, q;                                    // x (n, h, w, c), g (n, p, q, c)
  int64_t rows, chunks;                              // rows of g per chunk
};

template <class T> FilterSum filter_sum(const Call& c) {
  const Array &x = c.in[0], &g = c.in[1];
  FilterSum s{x.shape[0], g.shape[1], int(x.shape[1]), int(x.shape[2]), int(x.shape[3]), int(g.shape[2]), 1, 0};
  const int64_t row = int64_t(s.q) * s.c, all = s.n * s.p;
  if (row == 0 || all == 0) return s;
  s.rows = row < kChunkNumbers ? kChunkNumbers / row : 1;
  if (ceil_div(all, s.rows) > kMostChunks) s.rows = ceil_div(all, kMostChunks);
  s.chunks = ceil_div(all, s.rows);
  return s;
}

// partial[tap][chunk]: what a chunk of rows of g adds to df[tap].
template <class T>
__global__ void filter_chunk(FilterSum s, ShortMap<T> rows, ShortMap<T> columns, const T* x, const T* g, double* partial) {
  __shared__ double sums[kWarp];
  const int64_t first = int64_t(blockIdx.x) * s.rows, all = s.n * s.p, end = first + s.rows < all ? first + s.rows : all;
  const int row = s.q * s.c, taps = rows.window * columns.window;
  for (int t = 0; t < taps; ++t) {
    const int place_i = t / columns.window, place_j = t - place_i * columns.window;
    const int i = rows.flag ? place_i : rows.window - 1 - place_i, j = columns.flag ? place_j : columns.window - 1 - place_j;
    double sum = 0;
    for (int64_t r = first; r < end; ++r) {
      const int64_t sample = quotient(r, s.p);
      const int at = int(r - sample * s.p) * rows.down - rows.before + i, in_row = at / rows.up;
      if (at < 0 || in_row >= s.h || in_row * rows.up != at) continue;
      const T *from = x + (sample * s.h + in_row) * s.w * s.c, *grad = g + r * row;
      T part = 0;
      for (int e = threadIdx.x; e < row; e += kSumThreads) {
        const int q = e / s.c, place = q * columns.down - columns.before + j, in_column = place / columns.up;
        if (place < 0 || in_column >= s.w || in_column * columns.up != place) continue;
        part += grad[e] * from[in_column * s.c + e - q * s.c];
      }
      sum += double(part);
    }
    sum = block_sum(sum, sums);
    if (threadIdx.x == 0) partial[t * s.chunks + blockIdx.x] = sum;
  }
}

template <class T> __global__ void filter_total(int64_t chunks, const double* partial, T* df) {
  __shared__ double sums[kWarp];
  double sum = 0;
  for (int64_t b = threadIdx.x; b < chunks; b += kSumThreads) sum += partial[int64_t(blockIdx.x) * chunks + b];
  sum = block_sum(sum, sums);
  if (threadIdx.x == 0) df[blockIdx.x] = T(sum);
}

template <class T> int64_t upfirdn2d_df_bytes(const Call& c) {
  return filter_sum<T>(c).chunks * size(c.out[0]) * int64_t(sizeof(double));
}

// ---- maxima ---------------------------------------------------------------------------------------------------------

using ShortPooling = PoolingOf<int>;

template <int N> using Places = Pack<uint8_t, N>;

template <class T, int N>
__global__ void max_kernel(Images m, ShortPooling g, const Pack<T, N>* x, Pack<T, N>* y, Places<N>* index) {
  each_pack(m, [&](int64_t sample, int p, int q, int pack, int64_t to) {
    int i0, i1, j0, j1;
    inside(p, g.stride[0], g.padding[0], g.window[0], g.h, i0, i1);
    inside(q, g.stride[1], g.padding[2], g.window[1], g.w, j0, j1);
    const Pack<T, N>* from = x + (sample * g.h + p * g.stride[0] - g.padding[0]) * m.in_row +
                             (q * g.stride[1] - g.padding[2]) * int64_t(m.packs) + pack;
    Pack<T, N> best = from[i0 * m.in_row + int64_t(j0) * m.packs];
    Places<N> place;
    GENERANT_UNROLL
    for (int k = 0; k < N; ++k) place.v[k] = uint8_t(i0 * g.window[1] + j0);
    for (int i = i0; i < i1; ++i)
      for (int j = j0; j < j1; ++j) {
        const Pack<T, N> v = from[i * m.in_row + int64_t(j) * m.packs];
        GENERANT_UNROLL
        for (int k = 0; k < N; ++k)
          if (v.v[k] > best.v[k] || v.v[k] != v.v[k]) best.v[k] = v.v[k], place.v[k] = uint8_t(i * g.window[1] + j);
      }
    y[to] = best;
    if (index) index[to] = place;
  });
}

// x where `index` says; an index outside the window or the image reads zero.
template <class T, int N>
__global__ void chosen_kernel(Images m, ShortPooling g, const Pack<T, N>* x, const Places<N>* index, Pack<T, N>* y) {
  each_pack(m, [&](int64_t sample, int p, int q, int pack, int64_t to) {
    const Places<N> place = index[to];
    Pack<T, N> v{};
    GENERANT_UNROLL
    for (int k = 0; k < N; ++k) {
      const int at = place.v[k], down = at / g.window[1];
      const int i = p * g.stride[0] - g.padding[0] + down, j = q * g.stride[1] - g.padding[2] + at - down * g.window[1];
      if (down < g.window[0] && i >= 0 && i < g.h && j >= 0 && j < g.w)
        v.v[k] = x[(sample * g.h + i) * m.in_row + int64_t(j) * m.packs + pack].v[k];
    }
    y[to] = v;
  });
}

// The windows that hold a pixel are asked whether they chose it.
template <class T, int N>
__global__ void unpool_kernel(Images m, ShortPooling g, const Pack<T, N>* gy, const Places<N>* index, Pack<T, N>* gx) {
  each_pack(m, [&](int64_t sample, int row, int column, int pack, int64_t to) {
    const int i = row + g.padding[0], j = column + g.padding[2];
    int p0, p1, q0, q1;
    holding(i, g.stride[0], g.window[0], g.p, p0, p1);
    holding(j, g.stride[1], g.window[1], g.q, q0, q1);
    Pack<T, N> sum{};
    for (int p = p0; p < p1; ++p)
      for (int q = q0; q < q1; ++q) {
        const int64_t at = (sample * g.p + p) * m.in_row + int64_t(q) * m.packs + pack;
        const int place = int((i - p * g.stride[0]) * g.window[1] + j - q * g.stride[1]);
        const Places<N> chosen = index[at];
        const Pack<T, N> v = gy[at];
        GENERANT_UNROLL
        for (int k = 0; k < N; ++k) sum.v[k] += chosen.v[k] == place ? v.v[k] : T(0);
      }
    gx[to] = sum;
  });
}

}  // namespace

KERNEL(avg_pool) { run_maps<kPool, false>(c, pool_maps<T>(c, false)); }
KERNEL(avg_pool_bwd) { run_maps<kPool, true>(c, pool_maps<T>(c, true)); }
KERNEL(resize) {
  const Maps<T> m = resize_maps<T>(c, false);
  m.rows.kind == kLinear ? run_maps<kLinear, false>(c, m) : run_maps<kNearest, false>(c, m);
}
KERNEL(resize_bwd) {
  const Maps<T> m = resize_maps<T>(c, true);
  m.rows.kind == kLinear ? run_maps<kLinear, true>(c, m) : run_maps<kNearest, true>(c, m);
}
KERNEL(pad) { run_maps<kPad, false>(c, pad_maps<T>(c, false)); }
KERNEL(pad_bwd) { run_maps<kPad, true>(c, pad_maps<T>(c, true)); }

KERNEL(upfirdn2d) {
  const Array &x = c.in[0], &y = c.out[0];
  if (size(y) == 0) return;
  const Maps<T> m = upfirdn2d_maps<T>(c);
  by_packs<T>(x.shape[3], bits_of(x.data) | bits_of(y.data), [&](auto one) {
    using P = decltype(one);
    constexpr int N = PackOf<P>::kSize;
    over_images(c, x.shape[0], images<T, N>(x, y), filter_images<T, N>, with_index<int>(m.rows), with_index<int>(m.columns), in<T>(c, 1),
                static_cast<const P*>(x.data), static_cast<P*>(y.data));
  });
}

KERNEL_SCRATCH(upfirdn2d_df, upfirdn2d_df_bytes) {
  const FilterSum s = filter_sum<T>(c);
  const Maps<T> m = upfirdn2d_df_maps<T>(c);
  double* partial = static_cast<double*>(c.scratch);
  launch(c, filter_chunk<T>, grid_of(s.chunks), kSumThreads, 0, s, with_index<int>(m.rows), with_index<int>(m.columns),
         in<T>(c, 0), in<T>(c, 1), partial);
  launch(c, filter_total<T>, grid_of(size(c.out[0])), kSumThreads, 0, s.chunks, partial, out<T>(c));
}

KERNEL(max_pool) {
  const Array &x = c.in[0], &y = c.out[0];
  if (size(y) == 0) return;
  const ShortPooling g = read_pooling<int>(c.attr, x, y);
  void* index = c.out[1].data;
  by_packs<T>(g.c, bits_of(x.data) | bits_of(y.data) | bits_of(index), [&](auto one) {
    using P = decltype(one);
    constexpr int N = PackOf<P>::kSize;
    over_images(c, g.n, images<T, N>(x, y), max_kernel<T, N>, g, static_cast<const P*>(x.data), static_cast<P*>(y.data),
                static_cast<Places<N>*>(index));
  });
}

KERNEL(max_pool_at) {
  const Array &x = c.in[0], &y = c.out[0];
  if (size(y) == 0) return;
  const ShortPooling g = read_pooling<int>(c.attr, x, y);
  const void* index = c.in[1].data;
  by_packs<T>(g.c, bits_of(x.data) | bits_of(y.data) | bits_of(index), [&](auto one) {
    using P = decltype(one);
    constexpr int N = PackOf<P>::kSize;
    over_images(c, g.n, images<T, N>(x, y), chosen_kernel<T, N>, g, static_cast<const P*>(x.data),
                static_cast<const Places<N>*>(index), static_cast<P*>(y.data));
  });
}

KERNEL(max_pool_bwd) {
  const Array &gy = c.in[0], &gx = c.out[0];
  if (size(gx) == 0) return;
  const ShortPooling g = read_pooling<int>(skip_tuple(c.attr), gx, gy);
  const void* index = c.in[1].data;
  by_packs<T>(g.c, bits_of(gy.data) | bits_of(gx.data) | bits_of(index), [&](auto one) {
    using P = decltype(one);
    constexpr int N = PackOf<P>::kSize;
    over_images(c, g.n, images<T, N>(gy, gx), unpool_kernel<T, N>, g, static_cast<const P*>(gy.data),
                static_cast<const Places<N>*>(index), static_cast<P*>(gx.data));
  });
}
