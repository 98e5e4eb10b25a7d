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

// Images (n, rows, columns, c) in packs of N channels.
struct Images {
  int64_t rows, columns, packs;                      // of the output: rows per image, pixels per row, packs per pixel
  int64_t in_rows, in_row;                           // of the input: rows per image, packs per row
};

// each(sample, row, column, pack of channels, pack of the output) for what this thread makes. Rows are shorter than 2^31.
template <class F> __device__ inline void each_pack(const Images& g, F&& each) {
  const int64_t r = blockIdx.x, sample = r / g.rows, row = r - sample * g.rows;
  const unsigned packs = unsigned(g.packs), width = unsigned(g.columns) * packs;
  for (unsigned at = blockIdx.y * blockDim.x + threadIdx.x; at < width; at += gridDim.y * blockDim.x) {
    const unsigned column = at / packs;
    each(sample, row, int64_t(column), int64_t(at - column * packs), r * width + at);
  }
}

template <class K, class... A> inline void over_images(const Call& c, int64_t n, const Images& g, K* kernel, A... args) {
  const int64_t pieces = ceil_div(g.columns * g.packs, kPixelThreads);
  launch(c, kernel, grid_of(n * g.rows, pieces < kMostPieces ? pieces : kMostPieces), kPixelThreads, 0, g, args...);
}

template <class P> struct PackOf;
template <class T, int N> struct PackOf<Pack<T, N>> {
  using Element = T;
  static constexpr int kSize = N;
};

template <class T, int N> inline Images images(const Array& x, const Array& y) {
  return {y.shape[1], y.shape[2], y.shape[3] / N, x.shape[1], x.shape[2] * (x.shape[3] / N)};
}

// whole(pack type): packs of 16 bytes if the channels of all pixels start at multiples of 16 bytes, else of one number.
template <class T, class F> inline void by_packs(int64_t channels, uintptr_t addresses, F&& whole) {
  constexpr int N = 16 / sizeof(T);
  if (channels % N == 0 && addresses % 16 == 0) whole(Pack<T, N>{});
  else whole(Pack<T, 1>{});
}

inline uintptr_t bits_of(const void* p) { return reinterpret_cast<uintptr_t>(p); }

// ---- separable maps -------------------------------------------------------------------------------------------------

template <MapKind kind, bool kAdjoint, class T, class F>
__device__ inline void each_tap_at(const AxisMap<T>& m, int64_t at, F&& emit) {
  if constexpr (kAdjoint) readers_of<kind>(m, at, emit);
  else taps_of<kind>(m, at, emit);
}

template <MapKind kind, bool kAdjoint, class T, int N>
__global__ void __launch_bounds__(kPixelThreads) map_images(Images g, Maps<T> m, const Pack<T, N>* x, Pack<T, N>* y) {
  each_pack(g, [&](int64_t sample, int64_t row, int64_t column, int64_t pack, int64_t to) {
    Pack<T, N> sum{};
    bool any = false;
    const Pack<T, N>* image = x + sample * g.in_rows * g.in_row + pack;
    each_tap_at<kind, kAdjoint>(m.columns, column, [&](int64_t j, T w) {
      T part[N] = {};
      each_tap_at<kind, kAdjoint>(m.rows, row, [&](int64_t i, T v) {
        const Pack<T, N> p = image[i * g.in_row + j * g.packs];
        any = true;
        GENERANT_UNROLL
        for (int k = 0; k < N; ++k) part[k] += v * p.v[k];
      });
      GENERANT_UNROLL
      for (int k = 0; k < N; ++k) sum.v[k] += w * part[k];
    });
    if (kind == kPad && !kAdjoint && !any)
      GENERANT_UNROLL
      for (int k = 0; k < N; ++k) sum.v[k] = m.fill;
    y[to] = sum;
  });
}

template <MapKind kind, bool kAdjoint, class T> inline void run_maps(const Call& c, const Maps<T>& m) {
  const Array &x = c.in[0], &y = c.out[0];
  if (size(y) == 0) return;
  by_packs<T>(x.shape[3], bits_of(x.data) | bits_of(y.data), [&](auto one) {
    using P = decltype(one);
    constexpr int N = PackOf<P>::kSize;
    over_images(c, x.shape[0], images<T, N>(x, y), map_images<kind, kAdjoint, T, N>, m, static_cast<const P*>(x.data),
                static_cast<P*>(y.data));
  });
}

// ---- filters --------------------------------------------------------------------------------------------------------

// The maps' weights are places in the filter.
template <class T, int N>
__global__ void __launch_bounds__(kPixelThreads) filter_images(Images g, Maps<T> m, const T* f, const Pack<T, N>* x, Pack<T, N>* y) {
  each_pack(g, [&](int64_t sample, int64_t row, int64_t column, int64_t pack, int64_t to) {
    Pack<T, N> sum{};
    const Pack<T, N>* image = x + sample * g.in_rows * g.in_row + pack;
    taps_of<kFir>(m.rows, row, [&](int64_t i, T a) {
      const T* taps = f + int(a) * m.columns.window;
      taps_of<kFir>(m.columns, column, [&](int64_t j, T b) {
        const Pack<T, N> p = image[i * g.in_row + j * g.packs];
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
  int64_t n, h, w, c, p, q;                          // x (n, h, w, c), g (n, p, q, c)
  int64_t rows, chunks;                              // rows of g per chunk
};

template <class T> FilterSum filter_sum(const Call& c) {
  const Array &x = c.in[0], &g = c.in[1];
  FilterSum s{x.shape[0], x.shape[1], x.shape[2], x.shape[3], g.shape[1], g.shape[2], 1, 0};
  const int64_t row = s.q * s.c, all = s.n * s.p;
  if (row == 0 || all == 0) return s;
  s.rows = row < kChunkNumbers ? kChunkNumbers / row : 1;
  if (ceil_div(all, s.rows) > kMostChunks) s.rows = ceil_div(all, kMostChunks);
  s.chunks = ceil_div(all, s.rows);
  return s;
}

// partial[tap][chunk]: what a chunk of rows of g adds to df[tap].
template <class T>
__global__ void __launch_bounds__(kSumThreads) filter_chunk(FilterSum s, AxisMap<T> rows, AxisMap<T> columns, const T* x, const T* g, double* partial) {
  __shared__ double sums[kWarp];
  const int64_t first = int64_t(blockIdx.x) * s.rows, all = s.n * s.p, end = first + s.rows < all ? first + s.rows : all;
  const int64_t row = s.q * s.c, taps = rows.window * columns.window;
  for (int64_t t = 0; t < taps; ++t) {
    const int64_t place_i = t / columns.window, place_j = t - place_i * columns.window;
    const int64_t i = rows.flag ? place_i : rows.window - 1 - place_i, j = columns.flag ? place_j : columns.window - 1 - place_j;
    double sum = 0;
    T part = 0;
    for (int64_t r = first; r < end; ++r) {
      const int64_t sample = r / s.p, at = (r - sample * s.p) * rows.down - rows.before + i;
      const int64_t in_row = at / rows.up;
      if (at < 0 || in_row >= s.h || in_row * rows.up != at) continue;
      const T *from = x + (sample * s.h + in_row) * s.w * s.c, *grad = g + r * row;
      for (int64_t e = threadIdx.x; e < row; e += kSumThreads) {
        const int64_t q = e / s.c, place = q * columns.down - columns.before + j, in_column = place / columns.up;
        if (place < 0 || in_column >= s.w || in_column * columns.up != place) continue;
        part += grad[e] * from[in_column * s.c + e - q * s.c];
      }
      sum += double(part), part = 0;
    }
    sum = block_sum(sum, sums);
    if (threadIdx.x == 0) partial[t * s.chunks + blockIdx.x] = sum;
  }
}

template <class T> __global__ void __launch_bounds__(kSumThreads) filter_total(int64_t chunks, const double* partial, T* df) {
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

template <int N> using Places = Pack<uint8_t, N>;

template <class T, int N>
__global__ void __launch_bounds__(kPixelThreads) max_kernel(Images m, Pooling g, const Pack<T, N>* x, Pack<T, N>* y, Places<N>* index) {
  each_pack(m, [&](int64_t sample, int64_t p, int64_t q, int64_t pack, int64_t to) {
    int64_t i0, i1, j0, j1;
    inside(p, g.s.stride[0], g.s.padding[0], g.s.window[0], g.h, i0, i1);
    inside(q, g.s.stride[1], g.s.padding[2], g.s.window[1], g.w, j0, j1);
    const Pack<T, N>* from = x + (sample * g.h + p * g.s.stride[0] - g.s.padding[0]) * m.in_row +
                             (q * g.s.stride[1] - g.s.padding[2]) * m.packs + pack;
    Pack<T, N> best = from[i0 * m.in_row + j0 * m.packs];
    Places<N> place;
    GENERANT_UNROLL
    for (int k = 0; k < N; ++k) place.v[k] = uint8_t(i0 * g.s.window[1] + j0);
    for (int64_t i = i0; i < i1; ++i)
      for (int64_t j = j0; j < j1; ++j) {
        const Pack<T, N> v = from[i * m.in_row + j * m.packs];
        GENERANT_UNROLL
        for (int k = 0; k < N; ++k)
          if (v.v[k] > best.v[k] || v.v[k] != v.v[k]) best.v[k] = v.v[k], place.v[k] = uint8_t(i * g.s.window[1] + j);
      }
    y[to] = best;
    if (index) index[to] = place;
  });
}

// x where `index` says; an index outside the window or the image reads zero.
template <class T, int N>
__global__ void __launch_bounds__(kPixelThreads) chosen_kernel(Images m, Pooling g, const Pack<T, N>* x, const Places<N>* index, Pack<T, N>* y) {
  each_pack(m, [&](int64_t sample, int64_t p, int64_t q, int64_t pack, int64_t to) {
    const Places<N> place = index[to];
    Pack<T, N> v{};
    GENERANT_UNROLL
    for (int k = 0; k < N; ++k) {
      const int64_t at = place.v[k], down = at / g.s.window[1];
      const int64_t i = p * g.s.stride[0] - g.s.padding[0] + down, j = q * g.s.stride[1] - g.s.padding[2] + at - down * g.s.window[1];
      if (down < g.s.window[0] && i >= 0 && i < g.h && j >= 0 && j < g.w)
        v.v[k] = x[(sample * g.h + i) * m.in_row + j * m.packs + pack].v[k];
    }
    y[to] = v;
  });
}

// The windows that hold a pixel are asked whether they chose it.
template <class T, int N>
__global__ void __launch_bounds__(kPixelThreads) unpool_kernel(Images m, Pooling g, const Pack<T, N>* gy, const Places<N>* index, Pack<T, N>* gx) {
  each_pack(m, [&](int64_t sample, int64_t row, int64_t column, int64_t pack, int64_t to) {
    const int64_t i = row + g.s.padding[0], j = column + g.s.padding[2];
    int64_t p0, p1, q0, q1;
    holding(i, g.s.stride[0], g.s.window[0], g.p, p0, p1);
    holding(j, g.s.stride[1], g.s.window[1], g.q, q0, q1);
    Pack<T, N> sum{};
    for (int64_t p = p0; p < p1; ++p)
      for (int64_t q = q0; q < q1; ++q) {
        const int64_t at = (sample * g.p + p) * m.in_row + q * m.packs + pack;
        const int place = int((i - p * g.s.stride[0]) * g.s.window[1] + j - q * g.s.stride[1]);
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
KERNEL(resize) { run_maps<kResize, false>(c, resize_maps<T>(c, false)); }
KERNEL(resize_bwd) { run_maps<kResize, true>(c, resize_maps<T>(c, true)); }
KERNEL(pad) { run_maps<kPad, false>(c, pad_maps<T>(c, false)); }
KERNEL(pad_bwd) { run_maps<kPad, true>(c, pad_maps<T>(c, true)); }

KERNEL(upfirdn2d) {
  const Array &x = c.in[0], &y = c.out[0];
  if (size(y) == 0) return;
  const Maps<T> m = upfirdn2d_maps<T>(c);
  by_packs<T>(x.shape[3], bits_of(x.data) | bits_of(y.data), [&](auto one) {
    using P = decltype(one);
    constexpr int N = PackOf<P>::kSize;
    over_images(c, x.shape[0], images<T, N>(x, y), filter_images<T, N>, m, in<T>(c, 1), static_cast<const P*>(x.data),
                static_cast<P*>(y.data));
  });
}

KERNEL_SCRATCH(upfirdn2d_df, upfirdn2d_df_bytes) {
  const FilterSum s = filter_sum<T>(c);
  const Maps<T> m = upfirdn2d_df_maps<T>(c);
  double* partial = static_cast<double*>(c.scratch);
  launch(c, filter_chunk<T>, grid_of(s.chunks), kSumThreads, 0, s, m.rows, m.columns, in<T>(c, 0), in<T>(c, 1), partial);
  launch(c, filter_total<T>, grid_of(size(c.out[0])), kSumThreads, 0, s.chunks, partial, out<T>(c));
}

KERNEL(max_pool) {
  const Array &x = c.in[0], &y = c.out[0];
  if (size(y) == 0) return;
  const Pooling g = read_pooling(c.attr, x, y);
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
  const Pooling g = read_pooling(c.attr, x, y);
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
  const Pooling g = read_pooling(skip_tuple(c.attr), gx, gy);
  const void* index = c.in[1].data;
  by_packs<T>(g.c, bits_of(gy.data) | bits_of(gx.data) | bits_of(index), [&](auto one) {
    using P = decltype(one);
    constexpr int N = PackOf<P>::kSize;
    over_images(c, g.n, images<T, N>(gy, gx), unpool_kernel<T, N>, g, static_cast<const P*>(gy.data),
                static_cast<const Places<N>*>(index), static_cast<P*>(gx.data));
  });
}
