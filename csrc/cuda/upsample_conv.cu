// A 3 x 3 convolution of an image enlarged twice by repeating pixels, without the enlarged image.
//
// Seen from the enlarged side it is the gradient of a convolution of 4 x 4 with stride 2, whose taps are sums of w's
// (csrc/cpu/upsample_conv.cpp): so the three kernels are conv_dx, conv_forward and conv_dw with that filter, (4, 4, o, c).
#include "convolve.h"
#include "../upsample_taps.h"

namespace {

constexpr int kTile = 32, kTileThreads = 256;

// to (4, 4, o, c) from w (3, 3, c, o), added in float64; turned in shared memory, so that both are whole lines.
template <class T> __global__ void __launch_bounds__(kTileThreads) fold(int c, int o, const T* w, T* to) {
  __shared__ T tile[kTile][kTile + 1];
  const int x = threadIdx.x % kTile, y = threadIdx.x / kTile, c0 = blockIdx.y * kTile, o0 = blockIdx.x * kTile;
  const int k = blockIdx.z / 4, l = blockIdx.z % 4;
  const int i0 = int(first_row(phase_of(k), place_of(k))), i1 = int(end_row(phase_of(k), place_of(k)));
  const int j0 = int(first_row(phase_of(l), place_of(l))), j1 = int(end_row(phase_of(l), place_of(l)));
  for (int r = y; r < kTile; r += kTileThreads / kTile) {
    double sum = 0;
    if (c0 + r < c && o0 + x < o)
      for (int i = i0; i < i1; ++i)
        for (int j = j0; j < j1; ++j) sum += double(w[(int64_t(i * 3 + j) * c + c0 + r) * o + o0 + x]);
    tile[r][x] = T(sum);
  }
  __syncthreads();
  for (int r = y; r < kTile; r += kTileThreads / kTile)
    if (o0 + r < o && c0 + x < c) to[(int64_t(blockIdx.z) * o + o0 + r) * c + c0 + x] = tile[x][r];
}

// dw (3, 3, c, o) from the gradient in the folded filter: every tap of w is in four of its taps.
template <class T> __global__ void __launch_bounds__(kTileThreads) unfold(int c, int o, const T* from, T* dw) {
  __shared__ T tile[kTile][kTile + 1];
  const int x = threadIdx.x % kTile, y = threadIdx.x / kTile, c0 = blockIdx.y * kTile, o0 = blockIdx.x * kTile;
  const int i = blockIdx.z / 3, j = blockIdx.z % 3;
  for (int r = y; r < kTile; r += kTileThreads / kTile) {
    double sum = 0;
    if (o0 + r < o && c0 + x < c)
      for (int k = 0; k < 4; ++k)
        for (int l = 0; l < 4; ++l)
          if (first_row(phase_of(k), place_of(k)) <= i && i < end_row(phase_of(k), place_of(k)) && first_row(phase_of(l), place_of(l)) <= j &&
              j < end_row(phase_of(l), place_of(l)))
            sum += double(from[(int64_t(k * 4 + l) * o + o0 + r) * c + c0 + x]);
    tile[r][x] = T(sum);
  }
  __syncthreads();
  for (int r = y; r < kTile; r += kTileThreads / kTile)
    if (c0 + r < c && o0 + x < o) dw[(int64_t(blockIdx.z) * c + c0 + r) * o + o0 + x] = tile[x][r];
}

// That convolution: from (n, 2 h, 2 w, o) to the small image (n, h, w, c).
inline Conv enlarged_to_small(const Array& small, int64_t o) {
  Conv s{};
  s.n = small.shape[0], s.p = small.shape[1], s.q = small.shape[2], s.o = small.shape[3];
  s.h = 2 * s.p, s.w = 2 * s.q, s.c = o, s.kh = s.kw = 4;
  s.stride_h = s.stride_w = 2, s.dilation_h = s.dilation_w = s.groups = 1, s.top = s.left = s.bottom = s.right = 1;
  return s;
}

inline dim3 tiles(int64_t c, int64_t o, int64_t taps) { return grid_of(ceil_div(o, kTile), ceil_div(c, kTile), taps); }

template <class T> inline int64_t filter_size(const Conv& s) { return padded(16 * s.c * s.o * int64_t(sizeof(T)), 64); }
template <class T> int64_t forward_bytes(const Call& c) { return filter_size<T>(enlarged_to_small(c.in[0], c.in[1].shape[3])); }
template <class T> int64_t dx_bytes(const Call& c) { return filter_size<T>(enlarged_to_small(c.out[0], c.in[1].shape[3])); }
template <class T> int64_t dw_bytes(const Call& c) {
  const Conv s = enlarged_to_small(c.in[0], last(c.in[1]));
  return filter_size<T>(s) + conv_dw_bytes<T>(s);
}

template <class T> inline T* folded(const Call& c, const Conv& s) {
  T* const to = static_cast<T*>(c.scratch);
  launch(c, fold<T>, tiles(s.o, s.c, 16), kTileThreads, 0, s.o, s.c, in<T>(c, 1), to);
  return to;
}

}  // namespace

KERNEL_SCRATCH(upsample_conv2d, forward_bytes) {
  const Conv s = enlarged_to_small(c.in[0], c.in[1].shape[3]);
  const T* const w = folded<T>(c, s);
  conv_dx<T>(c, s, in<T>(c, 0), w, out<T>(c));
}

KERNEL_SCRATCH(upsample_conv2d_dx, dx_bytes) {
  const Conv s = enlarged_to_small(c.out[0], c.in[1].shape[3]);
  const T* const w = folded<T>(c, s);
  conv_forward<T>(c, s, in<T>(c, 0), w, {nullptr, nullptr, out<T>(c), nullptr, 0});
}

KERNEL_SCRATCH(upsample_conv2d_dw, dw_bytes) {
  const Conv s = enlarged_to_small(c.in[0], last(c.in[1]));
  T* const of_folded = static_cast<T*>(c.scratch);
  conv_dw<T>(c, s, in<T>(c, 1), in<T>(c, 0), of_folded, static_cast<char*>(c.scratch) + filter_size<T>(s));
  launch(c, unfold<T>, tiles(s.o, s.c, 9), kTileThreads, 0, s.o, s.c, static_cast<const T*>(of_folded), out<T>(c));
}
