// The tile that every pairwise kernel is built from: kTileRows rows of x against kTileColumns rows of y, held in
// registers, so that neither distances nor kernel values are ever written to an n x m matrix.
//
// Points are packed coordinate by coordinate ([d][kTileRows] and [d][kTileColumns]); padded rows are zero. Up to
// kDifferenceDims coordinates squared distances are sums of squared differences. Above that they are
// |x|^2 + |y|^2 - 2<x, y> of centred rows (inner products are of centred rows too): half the arithmetic, and wrong by
// rounding errors of |x|^2 + |y|^2, so whoever uses them recomputes pairs that are near compared with that from the raw
// rows (square_distance).
#pragma once
#include <math.h>
#include "carve.h"
#include "exp2.h"
#include "kernel_parameters.h"
#include "parallel.h"
#include "simd.h"
#include "transpose.h"

namespace {

#if defined(__AVX512F__)
constexpr int kTileRows = 12;                        // 12 x 2 accumulators of 32 registers
#else
constexpr int kTileRows = 6;                         // 6 x 2 of 16
#endif
template <class T> constexpr int kTileColumns = 2 * kLanes<T>;
constexpr int kBlockRows = 8 * kTileRows;            // rows of one task; at d = 64 they and a panel stay in L1
constexpr int64_t kPanelBytes = int64_t(4) << 20;    // y is packed in phases of at most this size

// ---- lane masks --------------------------------------------------------------------------------------------------

// Bit l is set unless a[l] > b[l]: a NaN sets it.
inline uint32_t lanes_not_above(vf a, vf b) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask(a, b, _CMP_NGT_UQ);
#elif defined(__AVX2__)
  return uint32_t(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_NGT_UQ)));
#elif defined(__SSE2__)
  return uint32_t(_mm_movemask_ps(_mm_cmpngt_ps(a, b)));
#else
  uint32_t bits = 0;
  for (int l = 0; l < kLanes<float>; ++l) bits |= uint32_t(!(a[l] > b[l])) << l;
  return bits;
#endif
}
inline uint32_t lanes_not_above(vd a, vd b) {
#if defined(__AVX512F__)
  return _mm512_cmp_pd_mask(a, b, _CMP_NGT_UQ);
#elif defined(__AVX2__)
  return uint32_t(_mm256_movemask_pd(_mm256_cmp_pd(a, b, _CMP_NGT_UQ)));
#elif defined(__SSE2__)
  return uint32_t(_mm_movemask_pd(_mm_cmpngt_pd(a, b)));
#else
  uint32_t bits = 0;
  for (int l = 0; l < kLanes<double>; ++l) bits |= uint32_t(!(a[l] > b[l])) << l;
  return bits;
#endif
}

template <class T> inline vec<T> lane_numbers() {
  vec<T> v;
  for (int l = 0; l < kLanes<T>; ++l) v[l] = T(l);
  return v;
}

// ---- exact distances ---------------------------------------------------------------------------------------------

// |x - y|^2 in float64, from differences, in an order that depends on d only.
inline double square_distance(const float* x, const float* y, int64_t d) {
  typedef float half __attribute__((vector_size(kVectorBytes / 2), aligned(4), may_alias));
  constexpr int lanes = kLanes<double>;
  vd a{}, b{};
  int64_t k = 0;
  for (; k + 2 * lanes <= d; k += 2 * lanes) {
    const vd u = __builtin_convertvector(*reinterpret_cast<const half*>(x + k), vd) -
                 __builtin_convertvector(*reinterpret_cast<const half*>(y + k), vd);
    const vd v = __builtin_convertvector(*reinterpret_cast<const half*>(x + k + lanes), vd) -
                 __builtin_convertvector(*reinterpret_cast<const half*>(y + k + lanes), vd);
    a = fma(u, u, a);
    b = fma(v, v, b);
  }
  double s = k ? lane_sum<double>(a + b) : 0;
  for (; k < d; ++k) s += (double(x[k]) - double(y[k])) * (double(x[k]) - double(y[k]));
  return s;
}
inline double square_distance(const double* x, const double* y, int64_t d) {
  constexpr int lanes = kLanes<double>;
  vd a{};
  int64_t k = 0;
  for (; k + lanes <= d; k += lanes) {
    const vd u = load(x + k) - load(y + k);
    a = fma(u, u, a);
  }
  double s = k ? lane_sum<double>(a) : 0;
  for (; k < d; ++k) s += (x[k] - y[k]) * (x[k] - y[k]);
  return s;
}

// ---- packing -----------------------------------------------------------------------------------------------------

// packed[k][W] = rows[begin + i][k] - centre[k] for i < count, 0 above; centre may be null.
template <int W, class T>
inline void pack(const T* rows, int64_t begin, int64_t count, int64_t d, const T* centre, T* packed) {
  constexpr int lanes = kLanes<T>;
  const int64_t squares = d >= lanes / 2 ? d : 0;    // with few coordinates most of a square would be empty
  for (int64_t i0 = 0; i0 < W; i0 += lanes) {
    const int width = W - i0 < lanes ? int(W - i0) : lanes;
    for (int64_t k = 0; k < squares; k += lanes) {
      const int64_t left = d - k < lanes ? d - k : lanes;
      const vec<T> mean = !centre ? vec<T>{} : left == lanes ? load(centre + k) : load_first(centre + k, left);
      vec<T> r[lanes];
#pragma GCC unroll 16
      for (int s = 0; s < lanes; ++s) {
        if (s >= width || i0 + s >= count) {
          r[s] = vec<T>{};
          continue;
        }
        const T* from = rows + (begin + i0 + s) * d + k;
        r[s] = (left == lanes ? load(from) : load_first(from, left)) - mean;
      }
      transpose<T>(r);
      T* to = packed + k * W + i0;
#pragma GCC unroll 16
      for (int s = 0; s < lanes; ++s)
        if (s < left) width == lanes ? store(to + s * W, r[s]) : store_first(to + s * W, r[s], width);
    }
  }
  if (squares) return;
  for (int64_t i = 0; i < W; ++i)
    for (int64_t k = 0; k < d; ++k)
      packed[k * W + i] = i < count ? rows[(begin + i) * d + k] - (centre ? centre[k] : T(0)) : T(0);
}

// sides[i] = side(|row|^2, row, W, begin + i) for W packed rows; the norm is summed in float64, and `side` may change
// the row, whose coordinates are W apart. Padded rows are included.
template <int W, class T, class F> inline void pack_sides(T* packed, int64_t begin, int64_t d, F&& side, T* sides) {
  double s[W] = {};
  for (int64_t k = 0; k < d; ++k)
    for (int i = 0; i < W; ++i) s[i] += double(packed[k * W + i]) * double(packed[k * W + i]);
  for (int i = 0; i < W; ++i) sides[i] = side(s[i], packed + i, W, begin + i);
}

// ---- the tile ----------------------------------------------------------------------------------------------------

template <class T> struct Tile { vec<T> at[kTileRows][2]; };

// at[r][..] += sum_k of kForm. a is [d][kTileRows], b is [d][kTileColumns].
template <int kForm, class T>
__attribute__((always_inline)) inline void accumulate(Tile<T>& tile, const T* a, const T* b, int64_t d) {
  constexpr int lanes = kLanes<T>;
  vec<T> s[kTileRows][2];
#pragma GCC unroll 16
  for (int r = 0; r < kTileRows; ++r) s[r][0] = tile.at[r][0], s[r][1] = tile.at[r][1];
  for (int64_t k = 0; k < d; ++k, a += kTileRows, b += kTileColumns<T>) {
    const vec<T> b0 = load(b), b1 = load(b + lanes);
#pragma GCC unroll 16
    for (int r = 0; r < kTileRows; ++r) {
      const vec<T> x = broadcast(a[r]);
      if constexpr (kForm == kManhattan) {
        s[r][0] += vabs(x - b0);
        s[r][1] += vabs(x - b1);
      } else if constexpr (kForm == kSquare) {
        const vec<T> u = x - b0, v = x - b1;
        s[r][0] = fma(u, u, s[r][0]);
        s[r][1] = fma(v, v, s[r][1]);
      } else {
        s[r][0] = fma(x, b0, s[r][0]);
        s[r][1] = fma(x, b1, s[r][1]);
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kTileRows; ++r) tile.at[r][0] = s[r][0], tile.at[r][1] = s[r][1];
}

// The same over d > kSlab coordinates: a slab of a panel stays in the first cache while tiles of x pass by. The sum of
// each slab starts from zero, which costs nothing and loses fewer digits.
constexpr int64_t kSlab = 256;

template <class T> inline void add_tile(Tile<T>& tile, const Tile<T>& more) {
#pragma GCC unroll 16
  for (int r = 0; r < kTileRows; ++r) tile.at[r][0] += more.at[r][0], tile.at[r][1] += more.at[r][1];
}

template <int kForm, class T>
__attribute__((noinline)) void accumulate_slab(Tile<T>& tile, const T* a, const T* b, int64_t d, bool first) {
  Tile<T> sum = {};
  accumulate<kForm>(sum, a, b, d);
  if (first) tile = sum;
  else add_tile(tile, sum);
}

// ---- shapes, phases and scratch ----------------------------------------------------------------------------------

constexpr int kCentreBlocks = 16;

// centre[k]: the mean of coordinate k over all rows of x and, unless y is x, of y; 0 where that is not finite. sums has
// room for 2 kCentreBlocks d.
template <class T>
inline void common_mean(const Call& c, const T* x, int64_t n, const T* y, int64_t m, int64_t d, double* sums,
                        T* centre) {
  const int sets = x == y ? 1 : 2;
  const int64_t longest = sets == 2 && m > n ? m : n;
  const int parts = longest < 64 * kCentreBlocks ? int(ceil_div(longest, 64)) : kCentreBlocks;
  parallel(c, sets * parts, [&](int64_t t, int) {
    const T* rows = t < parts ? x : y;
    const int64_t count = t < parts ? n : m, part = ceil_div(count, parts);
    const int64_t begin = t % parts * part, end = begin + part < count ? begin + part : count;
    double* s = sums + t * d;
    for (int64_t k = 0; k < d; ++k) s[k] = 0;
    for (int64_t i = begin; i < end; ++i)
      for (int64_t k = 0; k < d; ++k) s[k] += double(rows[i * d + k]);
  });
  for (int64_t k = 0; k < d; ++k) {
    double s = 0;
    for (int t = 0; t < sets * parts; ++t) s += sums[t * d + k];
    s /= double(sets == 1 ? n : n + m);
    centre[k] = s - s == 0 ? T(s) : T(0);
  }
}

// One call's problem: rows of x in blocks (the tasks), rows of y packed in phases. y == x where y is absent.
template <class T> struct Pairs {
  const T *x, *y;
  int64_t n, m, d;
  bool self, gemm;
  int64_t blocks, panels, phase_panels;
  T *packed_y, *packed_x, *centre;                   // one phase of y; one block of x per worker
  T *sides_y, *sides_x;                              // what each packed row adds to its tile: its norm, see pack_sides
  T *lows_y, *lows_x;                                // the same in more digits: what tiles start from (kernel_sum.h)
  double* sums;

  // distances: not inner products. most_columns of y are packed at a time; inner products are of centred rows.
  Pairs(const Call& c, bool distances, Carve& scratch, int64_t most_columns = int64_t(1) << 40, bool centred = true) {
    self = c.in[1].data == nullptr;
    x = in<T>(c, 0), y = self ? x : in<T>(c, 1);
    n = c.in[0].shape[0], d = c.in[0].shape[1], m = self ? n : c.in[1].shape[0];
    gemm = !distances || d > kDifferenceDims;
    blocks = ceil_div(n, kBlockRows), panels = ceil_div(m, kTileColumns<T>);
    const int64_t panel_bytes = (d > 0 ? d : 1) * kTileColumns<T> * int64_t(sizeof(T));
    phase_panels = (d > kSlab ? 2 : 1) * kPanelBytes / panel_bytes;   // every phase packs all of x again
    if (phase_panels > most_columns / kTileColumns<T>) phase_panels = most_columns / kTileColumns<T>;
    if (phase_panels < 1) phase_panels = 1;
    if (phase_panels > panels) phase_panels = panels;
    const int64_t workers = c.threads > 1 ? c.threads : 1;
    packed_y = scratch.take<T>(phase_panels * kTileColumns<T> * d);
    packed_x = scratch.take<T>(workers * kBlockRows * d);
    sides_y = scratch.take<T>(phase_panels * kTileColumns<T>);
    sides_x = scratch.take<T>(workers * kBlockRows);
    lows_y = scratch.take<T>(phase_panels * kTileColumns<T>);
    lows_x = scratch.take<T>(workers * kBlockRows);
    centred = centred && gemm;
    centre = scratch.take<T>(centred ? d : 0);
    sums = scratch.take<double>(centred ? 2 * kCentreBlocks * d : 0);
    if (!centred) centre = nullptr;
  }

  void find_centre(const Call& c) const { common_mean(c, x, n, y, m, d, sums, centre); }

  int64_t phases() const { return panels ? ceil_div(panels, phase_panels) : 0; }
  int64_t first_panel(int64_t phase) const { return phase * phase_panels; }
  int64_t last_panel(int64_t phase) const {
    const int64_t end = (phase + 1) * phase_panels;
    return end < panels ? end : panels;
  }

  template <class F> void pack_phase(const Call& c, int64_t phase, F&& side) const {
    constexpr int w = kTileColumns<T>;
    const int64_t first = first_panel(phase);
    parallel(c, last_panel(phase) - first, [&](int64_t t, int) {
      pack<w>(y, (first + t) * w, m - (first + t) * w, d, centre, packed_y + t * w * d);
      pack_sides<w>(packed_y + t * w * d, (first + t) * w, d, side, sides_y + t * w);
    });
  }
  template <class F> const T* pack_block(int64_t block, int worker, F&& side) const {
    T *to = packed_x + worker * kBlockRows * d, *sides = sides_x + worker * kBlockRows;
    for (int64_t t = 0, i = block * kBlockRows; t < kBlockRows && i < n; t += kTileRows, i += kTileRows) {
      pack<kTileRows>(x, i, n - i, d, centre, to + t * d);
      pack_sides<kTileRows>(to + t * d, i, d, side, sides + t);
    }
    return to;
  }
};

}  // namespace
