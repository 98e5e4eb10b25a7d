// The tile that every pairwise kernel is built from: a block's kTileRows rows of x against kTileColumns rows of y. What
// pairs are reduced to ("scores") is summed in registers and left in shared memory, where every thread goes on with the
// scores it made itself: nothing of size n x m reaches global memory, and no barrier stands between the two.
//
// Points are copied first, coordinates padded with zeros and rows to whole tiles, so tiles have no edges while they are
// summed. Up to kDifferenceDims coordinates squared distances are sums of squared differences. Above that they are
// |x|^2 + |y|^2 - 2<x, y> of centred rows, the products on tensor cores (three of TF32 for one of float32; float64 by
// plain arithmetic); pairs that are near compared with their norms are measured again from the raw rows in float64.
//
// A warp has 16 rows and all columns. With g = lane / 4 and t = lane % 4, a lane has the rows g and g + 8 of these (h = 0
// and 1) and the columns 8 s + 2 t and the one after it: what mma.h calls c.
#pragma once
#include "block.h"
#include "carve.h"
#include "elementwise.h"
#include "kernel_parameters.h"
#include "mma.h"

namespace {

constexpr int kTileColumns = 64, kStrips = kTileColumns / 8;
template <class T> constexpr int kTileRows = sizeof(T) == 4 ? 128 : 64;
template <class T> constexpr int kTileThreads = 2 * kTileRows<T>;
// Blocks that registers must leave room for on a multiprocessor; the shared memory of sm_75 has room for one.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
constexpr int kTileBlocks = 1;
#else
constexpr int kTileBlocks = 2;
#endif
constexpr int kRowPadding = 128;                     // packed rows are as many as whole tiles of either kind have
constexpr int kSlab = 16, kSlabStride = kSlab + 4;   // coordinates in shared memory at a time; no two rows in one bank
constexpr int kScoreStride = kTileColumns + 8;
constexpr int64_t kWantedBlocks = 528;               // enough for the largest GPU

template <class T> constexpr int kSlabSize = (kTileRows<T> + kTileColumns) * kSlabStride;
template <class T>
constexpr size_t kTileBytes = sizeof(T) * (2 * kSlabSize<T> > kTileRows<T> * kScoreStride ? 2 * kSlabSize<T> : kTileRows<T> * kScoreStride);

// ---- sums ----

// Of T, without losing what float32 would: the rounding error of every addition is summed beside it.
template <class T> struct Total {
  T sum = 0, rest = 0;
  __device__ void add(T v) {
    const T next = sum + v, back = next - sum;
    rest += (sum - (next - back)) + (v - back);
    sum = next;
  }
  __device__ double value() const { return sum - sum == 0 ? double(sum) + double(rest) : double(sum); }
  __device__ void scale(T by) { sum *= by, rest *= by; }         // by a power of 2
  static constexpr int kNumbers = 2;                             // which lie `stride` apart
  __device__ void load(const T* at, int stride) { sum = at[0], rest = at[stride]; }
  __device__ void store(T* at, int stride) const { at[0] = sum, at[stride] = rest; }
};
template <> struct Total<double> {
  double sum = 0;
  __device__ void add(double v) { sum += v; }
  __device__ double value() const { return sum; }
  __device__ void scale(double by) { sum *= by; }
  static constexpr int kNumbers = 1;
  __device__ void load(const double* at, int) { sum = at[0]; }
  __device__ void store(double* at, int) const { at[0] = sum; }
};

__device__ inline float fused(float a, float b, float c) { return __fmaf_rn(a, b, c); }
__device__ inline double fused(double a, double b, double c) { return __fma_rn(a, b, c); }

// ---- the points of a call ----

template <class T> struct Points {
  const T *x, *y;                                    // raw rows; y is x for x with itself
  int64_t n, m, d;
  bool self, expanded, sides;                        // sides: scores are made with `side` and `low`
  int form;
  int64_t width;                                     // padded coordinates
  T *packed_x, *packed_y;
  // What a row adds to its scores, and what rounding that has lost, as a part of the inner product: it is shared by all
  // pairs of the row, so it would not average out.
  T *side_x, *side_y, *low_x, *low_y;
  T* centre;                                         // null if rows are not centred
  double* sums;

  static constexpr int kMostParts = 64;
  int64_t parts() const { return min(int64_t(kMostParts), ceil_div(self ? n : n + m, 64)); }
  int64_t row_tiles() const { return ceil_div(n, kTileRows<T>); }
  HOST_DEVICE int64_t column_tiles() const { return (m + kTileColumns - 1) / kTileColumns; }

  // centred: whether rows of inner products are centred (those of expanded distances are).
  Points(const T* x_, int64_t n_, const T* y_, int64_t m_, int64_t d_, int form_, bool centred, Carve& scratch)
      : x(x_), y(y_ ? y_ : x_), n(n_), m(y_ ? m_ : n_), d(d_), self(!y_) {
    expanded = form_ == kSquare && d > kDifferenceDims;
    form = expanded ? kInner : form_;
    centred = expanded || (form == kInner && centred);
    sides = centred;
    width = padded(d, form == kInner ? 8 : 4);
    packed_x = scratch.take<T>(padded(n, kRowPadding) * width);
    packed_y = self ? packed_x : scratch.take<T>(padded(m, kRowPadding) * width);
    side_x = scratch.take<T>(sides ? 2 * padded(n, kRowPadding) : 0);
    side_y = self ? side_x : scratch.take<T>(sides ? 2 * padded(m, kRowPadding) : 0);
    low_x = side_x + padded(n, kRowPadding), low_y = side_y + padded(m, kRowPadding);
    centre = scratch.take<T>(centred ? d : 0);
    sums = scratch.take<double>(centred ? parts() * d : 0);
    if (!centred) centre = nullptr;
  }
};

constexpr int kMeanColumns = 32, kMeanRows = 8;

// sums[part][k]: of coordinate k over a share of the rows of x and then y.
template <class T> __global__ void coordinate_sums(Points<T> p, int64_t rows, int64_t share) {
  __shared__ double all[kMeanRows][kMeanColumns];
  const int column = threadIdx.x % kMeanColumns, r = threadIdx.x / kMeanColumns;
  const int64_t k = int64_t(blockIdx.x) * kMeanColumns + column, begin = blockIdx.y * share, end = min(rows, begin + share);
  double s = 0;
  if (k < p.d)
    for (int64_t i = begin + r; i < end; i += kMeanRows) s += double(i < p.n ? p.x[i * p.d + k] : p.y[(i - p.n) * p.d + k]);
  all[r][column] = s;
  __syncthreads();
  if (r == 0 && k < p.d) {
    for (int other = 1; other < kMeanRows; ++other) s += all[other][column];
    p.sums[blockIdx.y * p.d + k] = s;
  }
}

template <class T> __global__ void common_mean(Points<T> p, int64_t rows, int parts) {
  const int64_t k = global_thread();
  if (k >= p.d) return;
  double s = 0;
  for (int part = 0; part < parts; ++part) s += p.sums[part * p.d + k];
  s /= double(rows);
  p.centre[k] = s - s == 0 ? T(s) : T(0);            // NaN and infinities stay where they are
}

// side = |row|^2 of centred rows.
struct SideOfNorm {
  template <class T> __device__ double term(double x, T) const { return x * x; }
  template <class T> __device__ void split(double norm, T& side, T& low) const {
    side = T(norm), low = T(-0.5 * (norm - double(side)));
  }
};

// A warp per row, rows that do not exist included: zeros.
template <class T, class Side>
__global__ void pack_points(const T* rows, int64_t count, int64_t d, int64_t width, const T* centre, Side side, T* to, T* sides,
                            T* lows) {
  const int64_t i = global_thread() / kWarp;
  const int lane = threadIdx.x % kWarp;
  double s = 0;
  for (int64_t k = lane; k < width; k += kWarp) {
    const bool real = i < count && k < d;
    const T x = real ? rows[i * d + k] : T(0), c = real && centre ? centre[k] : T(0);
    to[i * width + k] = x - c;
    if (sides && real) s += side.term(double(x) - double(c), c);
  }
  if (!sides) return;
  s = warp_sum(s);
  if (lane == 0) side.split(s, sides[i], lows[i]);
}

constexpr int kPackThreads = 128;

template <class T, class Side>
inline void pack_rows(const Call& c, const T* rows, int64_t count, int64_t d, int64_t width, const T* centre, Side side, T* to,
                      T* sides, T* lows) {
  const int64_t warps = padded(count, kRowPadding);
  if (width == 0 && !sides) return;
  launch(c, pack_points<T, Side>, grid_of(warps / (kPackThreads / kWarp)), kPackThreads, 0, rows, count, d, width, centre, side, to,
         sides, lows);
}

// The mean first; between the two calls it may be looked at.
template <class T> inline void find_centre(const Call& c, const Points<T>& p) {
  if (!p.centre || p.d == 0) return;
  const int64_t rows = p.self ? p.n : p.n + p.m, parts = p.parts();
  if (rows == 0) return;
  launch(c, coordinate_sums<T>, grid_of(ceil_div(p.d, kMeanColumns), parts), kMeanColumns * kMeanRows, 0, p, rows,
         ceil_div(rows, parts));
  launch(c, common_mean<T>, grid_of(ceil_div(p.d, 128)), 128, 0, p, rows, parts);
}
template <class T, class Side = SideOfNorm> inline void pack(const Call& c, const Points<T>& p, Side side = {}) {
  T *const sx = p.sides ? p.side_x : nullptr, *const sy = p.sides ? p.side_y : nullptr;
  pack_rows(c, p.x, p.n, p.d, p.width, p.centre, side, p.packed_x, sx, p.low_x);
  if (!p.self) pack_rows(c, p.y, p.m, p.d, p.width, p.centre, side, p.packed_y, sy, p.low_y);
}

// ---- the tile ----

__device__ inline void copy16(void* to, const void* from) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(unsigned(__cvta_generic_to_shared(to))), "l"(from) : "memory");
#elif defined(__CUDACC__)
  *static_cast<uint4*>(to) = *static_cast<const uint4*>(from);
#else
  generant::simulator::check_aligned(to, 16), generant::simulator::check_aligned(from, 16);
  memcpy(to, from, 16);
#endif
}
__device__ inline void copies_done() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

// Coordinates [k0, k0 + kSlab) below `width` of a tile's rows of a and then of b; rows are lda and ldb apart.
template <class T>
__device__ inline void load_slab(T* to, const T* a, int64_t lda, const T* b, int64_t ldb, int64_t k0, int64_t width) {
  constexpr int n = 16 / sizeof(T), pieces = kSlab / n, rows = kTileRows<T> + kTileColumns;
  static_assert(rows * pieces % kTileThreads<T> == 0, "all threads copy alike");
  GENERANT_UNROLL
  for (int u = 0; u < rows * pieces; u += kTileThreads<T>) {
    const int at = u + threadIdx.x, row = at / pieces, k = at % pieces * n;
    const T* from = row < kTileRows<T> ? a + row * lda : b + (row - kTileRows<T>) * ldb;
    if (k0 + k < width) copy16(to + row * kSlabStride + k, from + k0 + k);
  }
}

template <class T> struct Scores { T at[kStrips][4]; };

// Where there are no tensor cores for TF32 (sm_75), plain arithmetic is faster than doing without them.
#if (defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800) || defined(GENERANT_SIMULATE_PLAIN)
template <class T> constexpr bool kByTensorCores = false;
#else
template <class T> constexpr bool kByTensorCores = sizeof(T) == 4;
#endif

// Fragments of mma.h as big + small, both TF32.
template <int N> struct Split {
  float big[N], small[N];
  __device__ Split() : big{}, small{} {}
  template <class... F> __device__ explicit Split(F... x) : big{x...} {
    GENERANT_UNROLL
    for (int i = 0; i < N; ++i) {
      const float whole = big[i];
      big[i] = to_tf32(whole), small[i] = to_tf32(whole - big[i]);
    }
  }
};
__device__ inline void mma_split(float (&c)[4], const Split<4>& a, const Split<2>& b) {
  mma_tf32(c, a.small, b.big);
  mma_tf32(c, a.big, b.small);
  mma_tf32(c, a.big, b.big);
}

// s.at += the products of a slab's w coordinates, a multiple of 8. Each slab is summed from zero: that loses fewer digits,
// and tensor cores round towards zero, so their sums must be short.
__device__ inline void add_products(Scores<float>& s, const float* a, const float* b, int w) {
  const int lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
  const float *x = a + g * kSlabStride + t, *y = b + g * kSlabStride + t;
  const bool whole = w > 8;
  Split<4> x0(x[0], x[8 * kSlabStride], x[4], x[8 * kSlabStride + 4]), x1;
  if (whole) x1 = Split<4>(x[8], x[8 * kSlabStride + 8], x[12], x[8 * kSlabStride + 12]);
  GENERANT_UNROLL
  for (int strip = 0; strip < kStrips; ++strip, y += 8 * kSlabStride) {
    float part[4] = {};
    mma_split(part, x0, Split<2>(y[0], y[4]));
    if (whole) mma_split(part, x1, Split<2>(y[8], y[12]));
    GENERANT_UNROLL
    for (int c = 0; c < 4; ++c) s.at[strip][c] += part[c];
  }
}

// The same for sums that are not products (or not of float32); w is a multiple of 4.
template <int kForm, class T> __device__ inline void add_terms(Scores<T>& s, const T* a, const T* b, int w) {
  constexpr int n = 16 / sizeof(T);
  using Some = Pack<T, n>;
  const T *x = a + threadIdx.x % kWarp / 4 * kSlabStride, *y = b + 2 * (threadIdx.x % 4) * kSlabStride;
  GENERANT_UNROLL
  for (int strip = 0; strip < kStrips; ++strip, y += 8 * kSlabStride) {
    T part[4] = {};
#pragma unroll 1
    for (int k = 0; k < w; k += n) {
      GENERANT_UNROLL
      for (int at = 0; at < 4; ++at) {
        const Some p = *reinterpret_cast<const Some*>(x + at / 2 * 8 * kSlabStride + k);
        const Some q = *reinterpret_cast<const Some*>(y + at % 2 * kSlabStride + k);
        GENERANT_UNROLL
        for (int r = 0; r < n; ++r) {
          const T u = p.v[r] - q.v[r];
          if constexpr (kForm == kInner) part[at] = fused(p.v[r], q.v[r], part[at]);
          if constexpr (kForm == kSquare) part[at] = fused(u, u, part[at]);
          if constexpr (kForm == kManhattan) part[at] += u < 0 ? -u : u;
        }
      }
    }
    GENERANT_UNROLL
    for (int at = 0; at < 4; ++at) s.at[strip][at] += part[at];
  }
}

// Sums over `width` coordinates of kTileRows rows of a against kTileColumns rows of b. idle: no row of this warp exists.
// Barriers before and after: `shared` may be in use by others.
template <class T>
__device__ inline Scores<T> sum_scores(int form, const T* a, int64_t lda, const T* b, int64_t ldb, int64_t width, bool idle, T* shared) {
  Scores<T> total = {};
  __syncthreads();
  if (width > 0) load_slab(shared, a, lda, b, ldb, 0, width);
  int turn = 0;
  for (int64_t k = 0; k < width; k += kSlab, turn ^= 1) {
    const T* slab = shared + turn * kSlabSize<T>;
    copies_done();
    __syncthreads();
    if (k + kSlab < width) load_slab(shared + (turn ^ 1) * kSlabSize<T>, a, lda, b, ldb, k + kSlab, width);
    if (idle) continue;
    const T *of_a = slab + threadIdx.x / kWarp * 16 * kSlabStride, *of_b = slab + kTileRows<T> * kSlabStride;
    const int w = width - k < kSlab ? int(width - k) : kSlab;
    if (form == kSquare) add_terms<kSquare>(total, of_a, of_b, w);
    else if (form == kManhattan) add_terms<kManhattan>(total, of_a, of_b, w);
    else if constexpr (kByTensorCores<T>) add_products(total, of_a, of_b, w);
    else add_terms<kInner>(total, of_a, of_b, w);
  }
  __syncthreads();
  return total;
}

// Where this thread's scores are: (h, strip, c) at own(shared)[own_offset(h, strip) + c].
template <class T> __device__ inline T* own_scores(T* shared) {
  const int lane = threadIdx.x % kWarp;
  return shared + (threadIdx.x / kWarp * 16 + lane / 4) * kScoreStride + 2 * (lane % 4);
}
__device__ inline int own_offset(int h, int strip) { return h * 8 * kScoreStride + 8 * strip; }
__device__ inline int own_row(int h) { return threadIdx.x / kWarp * 16 + threadIdx.x % kWarp / 4 + 8 * h; }
__device__ inline int own_column(int strip) { return 8 * strip + 2 * (threadIdx.x % 4); }

// score = f(score, h, column of the tile), for every score of this thread.
template <class T, class F> __device__ inline void each_score(T* own, F&& f) {
#pragma unroll 1
  for (int h = 0; h < 2; ++h)
#pragma unroll 1
    for (int strip = 0; strip < kStrips; ++strip) {
      Pack<T, 2>& pair = *reinterpret_cast<Pack<T, 2>*>(own + own_offset(h, strip));
      Pack<T, 2> v = pair;
      v.v[0] = f(v.v[0], h, own_column(strip)), v.v[1] = f(v.v[1], h, own_column(strip) + 1);
      pair = v;
    }
}

// f(row, column of the tile, owner, bit) for every bit of every lane's mask, by the whole warp. Bits: h 16 + strip 2 + c.
template <class F> __device__ inline void each_marked(uint32_t mask, F&& f) {
  for (;;) {
    const unsigned lanes = __ballot_sync(0xffffffffu, mask != 0);
    if (lanes == 0) return;
    const int owner = __ffs(int(lanes)) - 1, bit = warp_from(__ffs(int(mask)) - 1, owner);
    f(int(threadIdx.x / kWarp * 16) + owner / 4 + 8 * (bit >> 4), 8 * ((bit >> 1) & 7) + 2 * (owner % 4) + (bit & 1), owner, bit);
    if (int(threadIdx.x % kWarp) == owner) mask &= mask - 1;
  }
}
__device__ inline int bit_offset(int bit) { return own_offset(bit >> 4, (bit >> 1) & 7) + (bit & 1); }

// |x_i - y_j|^2, or <x_i - centre, y_j - centre>, in float64, by a warp.
template <class T> __device__ inline double measure(const Points<T>& p, int64_t i, int64_t j) {
  double s = 0;
  for (int64_t k = threadIdx.x % kWarp; k < p.d; k += kWarp) {
    const double x = double(p.x[i * p.d + k]), y = double(p.y[j * p.d + k]), c = p.centre ? double(p.centre[k]) : 0;
    s += p.expanded ? (x - y) * (x - y) : (x - c) * (y - c);
  }
  return warp_sum(s);
}

// The scores of the tile whose first pair is (i0, j0), each with its thread. Returns the mask of those that were measured
// again. Scores of rows that do not exist are of no meaning.
template <class T> __device__ inline uint32_t score_tile(const Points<T>& p, int64_t i0, int64_t j0, T* shared) {
  const bool idle = i0 + int(threadIdx.x / kWarp * 16) >= p.n;
  Scores<T> s = sum_scores(p.form, p.packed_x + i0 * p.width, p.width, p.packed_y + j0 * p.width, p.width, p.width, idle, shared);
  T* own = own_scores(shared);
  uint32_t near = 0;
  if (!idle) {
    T low_x[2] = {}, side_x[2] = {};
    if (p.sides)
      GENERANT_UNROLL
      for (int h = 0; h < 2; ++h) low_x[h] = p.low_x[i0 + own_row(h)], side_x[h] = p.side_x[i0 + own_row(h)];
    GENERANT_UNROLL
    for (int strip = 0; strip < kStrips; ++strip) {
      const int column = own_column(strip);
      Pack<T, 2> low_y = {}, side_y = {};
      if (p.sides) {
        low_y = *reinterpret_cast<const Pack<T, 2>*>(p.low_y + j0 + column);
        side_y = *reinterpret_cast<const Pack<T, 2>*>(p.side_y + j0 + column);
      }
      GENERANT_UNROLL
      for (int h = 0; h < 2; ++h) {
        Pack<T, 2> v;
        GENERANT_UNROLL
        for (int c = 0; c < 2; ++c) {
          v.v[c] = s.at[strip][2 * h + c];
          bool again = false;
          if (p.sides) v.v[c] += low_x[h] + low_y.v[c];
          if (p.expanded) {
            const T both = side_x[h] + side_y.v[c];
            v.v[c] = fused(T(-2), v.v[c], both);
            again = !(v.v[c] > both * T(kNear));
          } else if (p.form == kInner) {
            again = !(v.v[c] - v.v[c] == 0);         // split into two of TF32, infinities are NaN
          }
          if (again && i0 + own_row(h) < p.n && j0 + column + c < p.m) near |= 1u << (16 * h + 2 * strip + c);
        }
        *reinterpret_cast<Pack<T, 2>*>(own + own_offset(h, strip)) = v;
      }
    }
  }
  each_marked(near, [&](int row, int column, int owner, int bit) {
    const double again = measure(p, i0 + row, j0 + column);
    if (int(threadIdx.x % kWarp) == owner) own[bit_offset(bit)] = T(again);
  });
  return near;
}

// How many parts y is cut into so that `blocks` blocks per part fill the GPU.
inline int64_t parts_of(int64_t blocks, int64_t tiles) {
  const int64_t wanted = blocks > 0 ? ceil_div(kWantedBlocks, blocks) : 1;
  const int64_t most = tiles < 1 ? 1 : tiles > 65535 ? 65535 : tiles;
  return wanted < most ? wanted : most;
}

}  // namespace
