// Sums of kernel values over all pairs: what a tile of pairwise_tile.h becomes (the classes K), how a block of rows
// meets the panels of y (sweep), and what is summed of it (Total, RowTotals).
#pragma once
#include "kernel_function.h"
#include "pairwise_tile.h"

namespace {

// ---- kernels -----------------------------------------------------------------------------------------------------

// kForm: what `accumulate` computes. kExpanded: squared distances from inner products. prepare(tile) runs on a tile of
// scores, operator()(score, side of x + side of y) on each vector when it is summed; `constant`, in float64, is what
// kernel - center has beyond that value. kSides: rows have sides, which split makes of |row|^2, or of <row, mu> for
// kernels with a mean mu. A side is shared by all pairs of the row, so what rounding it loses would not average out:
// `low` is that, as a part of the score, and tiles start from it.

template <class T> void split_norm(double norm, T& side, T& low) {
  side = T(norm), low = T(-0.5 * (norm - double(side)));
}

// One Gaussian: nothing but the exponential, so it is worth its own loop.
template <class T, bool kGemm> struct Rbf {
  static constexpr int kForm = kGemm ? kInner : kSquare;
  static constexpr bool kExpanded = kGemm, kSides = kGemm;
  T scale, center;
  double constant;
  Rbf(const Call& c, const Pairs<T>& p) {
    scale = KernelFunction<T>(c.attr, c.attr + kBandwidth, p.d).scale[0];
    center = T(c.attr[kCenter]);
    constant = double(center) - c.attr[kCenter];
  }
  static constexpr const T* mu = nullptr;
  void split(double norm, T& side, T& low) const { split_norm(norm, side, low); }
  void prepare(Tile<T>&) const {}
  vec<T> operator()(vec<T> s, vec<T>) const { return exp2_negative(s * scale) - center; }
};

// Every other kernel but the polynomial.
template <class T, int kOf, bool kGemm> struct AnyKernel {
  static constexpr int kForm = kOf;
  static constexpr bool kExpanded = kGemm, kSides = kGemm;
  KernelFunction<T> function;
  T center;
  double constant;
  AnyKernel(const Call& c, const Pairs<T>& p) : function(c.attr, c.attr + kBandwidth, p.d), center(T(c.attr[kCenter])) {
    constant = double(center) - c.attr[kCenter];
  }
  static constexpr const T* mu = nullptr;
  void split(double norm, T& side, T& low) const { split_norm(norm, side, low); }
  void prepare(Tile<T>& tile) const { function.template apply<0>(tile.at[0], 2 * kTileRows); }
  vec<T> operator()(vec<T> k, vec<T>) const { return k - center; }
};

// (gamma <x, y> + coef0)^degree. With x = mu + x', y = mu + y' its base is q + t, q = gamma |mu|^2 + coef0 and
// t = gamma (<x', y'> + <mu, x'> + <mu, y'>). The value is (q + t)^degree - q^degree as a polynomial in t, so its
// rounding error is relative to how much kernel values differ, not to how large they are. Rounding the factors of t and
// t^2 would be an error of the mean that no number of pairs averages out: q is rounded to where 3 q is exact, the rest
// of it goes into t; what else they lose is `lost` (which takes a fused multiply-add to survive).
template <class T, int kFixed> struct Polynomial {   // kFixed: the degree, or 0 for any
  static constexpr int kForm = kInner;
  static constexpr bool kExpanded = false, kSides = true;
  static constexpr int kMost = 32;
  T gamma, q, power, factor[kMost + 1], lost[3];     // factor[m] of t^m
  int64_t degree;
  const T* mu;
  double scale, rest, constant;                      // rest: of q, half of it to the sides of x, half to those of y
  Polynomial(const Call& c, const Pairs<T>& p) : mu(p.centre) {
    const double g = c.attr[kGamma];
    scale = g == g ? g : 1.0 / double(p.d > 0 ? p.d : 1);
    gamma = T(scale);
    degree = int64_t(c.attr[kDegree]);
    long double base = 0;                            // `constant` enters once per pair: its error does not average out
    for (int64_t k = 0; k < p.d; ++k) base += static_cast<long double>(mu[k]) * mu[k];
    base = base * scale + c.attr[kCoef0];
    q = T(base);
    const T most = T(5) * q, rounded = most - (most - q);
    if (rounded - rounded == 0) q = rounded;
    rest = double(base - q);
    base = q;
    long double binomial = 1, powers = 1;            // of degree over m, and of q^(degree - m), from the top down
    for (int64_t m = degree; m >= 0; --m) {
      if (m <= kMost) factor[m] = T(binomial * powers);
      if (m < 3) lost[m] = T(binomial * powers - factor[m]);
      if (m == 0) break;
      binomial = binomial * m / (degree - m + 1);
      powers *= base;
    }
    power = T(powers);
    constant = double((degree > kMost ? power : powers) - c.attr[kCenter]);
  }
  void split(double along, T& side, T& low) const {
    const double s = scale * along + 0.5 * rest;
    side = T(s);
    low = scale == 0 ? T(0) : T((s - double(side)) / scale);
  }
  void prepare(Tile<T>&) const {}
  vec<T> operator()(vec<T> s, vec<T> sides) const {
    const vec<T> t = fma(s, broadcast(gamma), sides);
    if constexpr (kFixed == 3) return fma(t, fma(t, t + factor[2], broadcast(factor[1])), t * lost[1]);
    if (degree <= kMost) {
      vec<T> v = broadcast(factor[degree]);
      for (int64_t m = degree - 1; m >= 1; --m) v = fma(v, t, broadcast(factor[m]));
      return degree < 3 ? v * t : fma(v, t, t * fma(t, broadcast(lost[2]), broadcast(lost[1])));
    }
    vec<T> v = broadcast(T(1)), b = t + q;
    for (int64_t e = degree; e > 0; e >>= 1, b = b * b)
      if (e & 1) v = v * b;
    return v - power;
  }
};

// ---- blocks against panels ---------------------------------------------------------------------------------------

template <class T>
__attribute__((noinline)) void measure_again(vec<T>& s, uint32_t lanes, const Pairs<T>& p, int64_t i, int64_t j0) {
  T at[kLanes<T>];
  store(at, s);
  for (; lanes; lanes &= lanes - 1) {
    const int64_t l = __builtin_ctz(lanes), j = j0 + l;
    at[l] = j < p.m ? T(square_distance(p.x + i * p.d, p.y + j * p.d, p.d)) : T(0);
  }
  s = load(at);
}

// sum_k (x_k - centre_k) a_k in float64, a = mu or, if that is null, x - centre.
template <class T> double along(const T* x, const T* centre, const T* mu, int64_t d) {
  constexpr int lanes = kLanes<double>;
  typedef T part __attribute__((vector_size(lanes * sizeof(T)), aligned(alignof(T)), may_alias));
  auto wide = [](const T* p) { return __builtin_convertvector(*reinterpret_cast<const part*>(p), vd); };
  vd sum{};
  int64_t k = 0;
  for (; k + lanes <= d; k += lanes) {
    const vd u = wide(x + k) - wide(centre + k);
    sum = fma(u, mu ? wide(mu + k) : u, sum);
  }
  double s = lane_sum<double>(sum);
  for (; k < d; ++k) {
    const double u = double(x[k]) - double(centre[k]);
    s += u * (mu ? double(mu[k]) : u);
  }
  return s;
}

template <int W, class T, class K>
void pack_rows(const T* rows, int64_t begin, int64_t count, int64_t d, const T* centre, const K& kernel, T* packed,
               T* sides, T* lows) {
  pack<W>(rows, begin, count, d, centre, packed);
  if (!K::kSides) return;
  for (int i = 0; i < W; ++i) {
    const double s = i < count ? along(rows + (begin + i) * d, centre, kernel.mu, d) : 0;
    kernel.split(s, sides[i], lows[i]);
  }
}

template <class T, class K> void pack_phase(const Call& c, const Pairs<T>& p, int64_t phase, const K& kernel) {
  constexpr int w = kTileColumns<T>;
  const int64_t first = p.first_panel(phase);
  parallel(c, p.last_panel(phase) - first, [&](int64_t t, int) {
    pack_rows<w>(p.y, (first + t) * w, p.m - (first + t) * w, p.d, p.centre, kernel, p.packed_y + t * w * p.d,
                 p.sides_y + t * w, p.lows_y + t * w);
  });
}

template <class T, class K> void pack_block(const Pairs<T>& p, int64_t block, int worker, const K& kernel) {
  const int64_t at = worker * kBlockRows;
  for (int64_t t = 0, i = block * kBlockRows; t < kBlockRows && i < p.n; t += kTileRows, i += kTileRows)
    pack_rows<kTileRows>(p.x, i, p.n - i, p.d, p.centre, kernel, p.packed_x + (at + t) * p.d, p.sides_x + at + t,
                         p.lows_x + at + t);
}

constexpr int kBlockTiles = kBlockRows / kTileRows;
constexpr int kSlabPanels = 8;                       // of y that a block meets slab by slab: their tiles stay in L2

// One block of rows of x, packed by `worker`, against panels [panel, last) of y, tile by tile into `sum`. For x with
// itself tiles below the diagonal are left out. stored: kSlabPanels x kBlockTiles tiles if d > kSlab.
template <class T, class K, class S>
void sweep(const Pairs<T>& p, const K& kernel, S& sum, int64_t block, int64_t panel, int64_t last, int64_t phase,
           int worker, Tile<T>* stored) {
  const T *packed = p.packed_x + worker * kBlockRows * p.d;
  const T *sides = p.sides_x + worker * kBlockRows, *lows = p.lows_x + worker * kBlockRows;
  constexpr int lanes = kLanes<T>, columns = kTileColumns<T>;
  const int64_t i0 = block * kBlockRows, i1 = i0 + kBlockRows < p.n ? i0 + kBlockRows : p.n;
  const int64_t group = p.d > kSlab ? kSlabPanels : 1, first = p.first_panel(phase);
  if (p.self && i0 / columns > panel) panel = i0 / columns;
  for (; panel < last; panel += group) {
    const int64_t end = panel + group < last ? panel + group : last;
    if (p.d > kSlab) {
      for (int64_t k = 0; k < p.d; k += kSlab)
        for (int64_t j = panel; j < end; ++j)
          for (int64_t i = i0; i < i1 && !(p.self && (j + 1) * columns <= i); i += kTileRows)
            accumulate_slab<K::kForm>(stored[(j - panel) * kBlockTiles + (i - i0) / kTileRows],
                                      packed + (i - i0) * p.d + k * kTileRows,
                                      p.packed_y + ((j - first) * p.d + k) * columns, p.d - k < kSlab ? p.d - k : kSlab,
                                      k == 0);
    }
    for (int64_t j = panel; j < end; ++j) {
      const int64_t j0 = j * columns;
      const T *side = p.sides_y + (j - first) * columns, *low = p.lows_y + (j - first) * columns;
      const vec<T> s0 = load(side), s1 = load(side + lanes);
      for (int64_t i = i0; i < i1 && !(p.self && j0 + columns <= i); i += kTileRows) {
        Tile<T> tile = {};
        if constexpr (K::kSides) {
          const vec<T> l0 = load(low), l1 = load(low + lanes);
#pragma GCC unroll 16
          for (int r = 0; r < kTileRows; ++r)
            tile.at[r][0] = lows[i - i0 + r] + l0, tile.at[r][1] = lows[i - i0 + r] + l1;
        }
        if (p.d <= kSlab)
          accumulate<K::kForm>(tile, packed + (i - i0) * p.d, p.packed_y + (j - first) * columns * p.d, p.d);
        else
          add_tile(tile, stored[(j - panel) * kBlockTiles + (i - i0) / kTileRows]);
        const int64_t count = i1 - i < kTileRows ? i1 - i : kTileRows;
        if constexpr (K::kExpanded) {
          for (int64_t r = 0; r < count; ++r) {
            const T norm = sides[i - i0 + r];
            const vec<T> both0 = norm + s0, both1 = norm + s1;
            vec<T>& v0 = tile.at[r][0];
            vec<T>& v1 = tile.at[r][1];
            v0 = fma(v0, broadcast(T(-2)), both0);
            v1 = fma(v1, broadcast(T(-2)), both1);
            const uint32_t near0 = lanes_not_above(v0, both0 * T(kNear)), near1 = lanes_not_above(v1, both1 * T(kNear));
            if (__builtin_expect(near0 | near1, 0)) {
              measure_again(v0, near0, p, i + r, j0);
              measure_again(v1, near1, p, i + r, j0 + lanes);
            }
          }
        }
        kernel.prepare(tile);
        const bool whole = count == kTileRows && j0 + columns <= p.m && !(p.self && j0 < i + kTileRows);
        if (__builtin_expect(whole, 1)) {
          sum.whole(kernel, tile, sides + (i - i0), s0, s1, i, j0);
          continue;
        }
        const vec<T> end_lane = broadcast(T(p.m - j0 < columns ? p.m - j0 : columns));
        for (int64_t r = 0; r < count; ++r)
          for (int h = 0; h < 2; ++h) {
            const vec<T> lane = lane_numbers<T>() + T(h * lanes);
            vec<T> v = kernel(tile.at[r][h], sides[i - i0 + r] + (h ? s1 : s0)), own{};
            v = lane < end_lane ? v : own;
            if (p.self) {
              const int64_t at = i + r - j0 < columns ? i + r - j0 : columns;      // lane of j = i; negative if left
              const vec<T> diagonal = broadcast(T(at < -1 ? -1 : at));
              own = lane == diagonal ? v : vec<T>{};
              v = lane > diagonal ? v : vec<T>{};
            }
            sum.part(v, own, i + r, j0, h);
          }
      }
    }
  }
}

// ---- what is summed ----------------------------------------------------------------------------------------------

inline void add_lanes(vd (&total)[2], vf v) {
  float at[kLanes<float>];
  store(at, v);
  typedef float half __attribute__((vector_size(kVectorBytes / 2), aligned(4), may_alias));
  total[0] += __builtin_convertvector(*reinterpret_cast<const half*>(at), vd);
  total[1] += __builtin_convertvector(*reinterpret_cast<const half*>(at + kLanes<double>), vd);
}
inline void add_lanes(vd (&total)[2], vd v) { total[0] += v; }

template <class T> inline void add_columns(double* to, vec<T> v) {
  vd wide[2] = {};
  add_lanes(wide, v);
  store(to, load(to) + wide[0]);
  if constexpr (sizeof(T) == 4) store(to + kLanes<double>, load(to + kLanes<double>) + wide[1]);
}

// The sum of all values, weighted if there are weights: off the diagonal (the upper triangle of x with itself), and on.
template <class T> struct Total {
  const T *wx, *wy;
  int64_t m;
  vd off[2] = {}, on[2] = {};

  vec<T> weights(int64_t j) const { return load_first(wy + j, m - j < kLanes<T> ? (m > j ? m - j : 0) : kLanes<T>); }

  template <class K>
  __attribute__((always_inline)) void whole(const K& kernel, const Tile<T>& tile, const T* sides, vec<T> s0, vec<T> s1,
                                            int64_t i, int64_t j0) {
    vec<T> sum0{}, sum1{};
    if (wx) {
      const vec<T> w0 = load(wy + j0), w1 = load(wy + j0 + kLanes<T>);
#pragma GCC unroll 16
      for (int r = 0; r < kTileRows; ++r) {
        const vec<T> v0 = kernel(tile.at[r][0], sides[r] + s0), v1 = kernel(tile.at[r][1], sides[r] + s1);
        sum0 = fma(broadcast(wx[i + r]), v0 * w0 + v1 * w1, sum0);
      }
    } else {
#pragma GCC unroll 16
      for (int r = 0; r < kTileRows; ++r) {
        sum0 += kernel(tile.at[r][0], sides[r] + s0);
        sum1 += kernel(tile.at[r][1], sides[r] + s1);
      }
      add_lanes(off, sum1);
    }
    add_lanes(off, sum0);
  }
  void part(vec<T> v, vec<T> own, int64_t i, int64_t j0, int h) {
    if (wx) {
      const vec<T> w = wx[i] * weights(j0 + h * kLanes<T>);
      v = v * w, own = own * w;
    }
    add_lanes(off, v);
    add_lanes(on, own);
  }
};

// Sums of the rows of a block (off the diagonal and on it), of columns, and of squares.
template <class T> struct RowTotals {
  int64_t i0, first_column;
  double* columns;                                   // of column first_column and those after it
  double* diagonal;                                  // of row 0; null if it is left out
  vd off[2] = {}, on[2] = {};                        // sums of squares
  vd rows[kBlockRows][2] = {};

  template <class K>
  __attribute__((always_inline)) void whole(const K& kernel, const Tile<T>& tile, const T* sides, vec<T> s0, vec<T> s1,
                                            int64_t i, int64_t j0) {
    vec<T> sum0{}, sum1{}, square{};
#pragma GCC unroll 16
    for (int r = 0; r < kTileRows; ++r) {
      const vec<T> v0 = kernel(tile.at[r][0], sides[r] + s0), v1 = kernel(tile.at[r][1], sides[r] + s1);
      sum0 += v0, sum1 += v1;
      square = fma(v1, v1, fma(v0, v0, square));
      add_lanes(rows[i - i0 + r], v0 + v1);
    }
    add_columns<T>(columns + (j0 - first_column), sum0);
    add_columns<T>(columns + (j0 - first_column) + kLanes<T>, sum1);
    add_lanes(off, square);
  }
  void part(vec<T> v, vec<T> own, int64_t i, int64_t j0, int h) {
    add_lanes(rows[i - i0], v);
    add_columns<T>(columns + (j0 - first_column) + h * kLanes<T>, v);
    add_lanes(off, v * v);
    if (diagonal) {
      vd wide[2] = {};
      add_lanes(wide, own);
      diagonal[i] += lane_sum<double>(wide[0] + wide[1]);
      add_lanes(on, own * own);
    }
  }
};

}  // namespace
