// All pairs of two point sets: kernel_sum, knn and radius_count, in O(n m d) time and O(n + m) memory.
//
// All run the tile of pairwise_tile.h over blocks of rows and differ in what they do with a finished tile: sum a kernel
// over it (here), or look for lanes that could be among the nearest or inside a ball (neighbours.h).
#include "../neighbours.h"
#include "../pairwise_tile.h"

namespace {

// ---- kernel_sum --------------------------------------------------------------------------------------------------

enum SumAttr { kKernel, kBandwidth, kDegree, kGamma, kCoef0, kCenter, kExcludeDiagonal };

// Kernels: value(s, sides) of what the tile computed and the sum of what both rows add to it; `constant`, in float64,
// is what kernel - center has beyond that value. K::side makes a row's side.

// exp(-s / (2 bandwidth^2)) of squared distances s.
template <class T, bool kGemm> struct Rbf {
  static constexpr bool kDistances = true, kExpanded = kGemm;
  T scale, center;
  double constant;
  Rbf(const Call& c, const Pairs<T>&) {
    scale = T(-0.5 * 1.4426950408889634074 / (c.attr[kBandwidth] * c.attr[kBandwidth]));
    center = T(c.attr[kCenter]);
    constant = double(center) - c.attr[kCenter];
  }
  T side(double norm, const T*, int) const { return T(norm); }
  vec<T> operator()(vec<T> s, vec<T>) const { return exp2_negative(s * scale) - center; }
};

// (gamma <x, y> + coef0)^degree. With x = mu + x', y = mu + y' its base is q + t, q = gamma |mu|^2 + coef0 and
// t = gamma (<x', y'> + <mu, x'> + <mu, y'>). The value is (q + t)^degree - q^degree as a polynomial in t, so its
// rounding error is relative to how much kernel values differ, not to how large they are.
template <class T, int kFixed> struct Polynomial {   // kFixed: the degree, or 0 for any
  static constexpr bool kDistances = false, kExpanded = true;
  static constexpr int kMost = 32;
  T gamma, q, power, factor[kMost + 1];              // factor[m] of t^m
  int64_t degree, d;
  const T* mu;
  double scale, constant;
  Polynomial(const Call& c, const Pairs<T>& p) : d(p.d), mu(p.centre) {
    const double g = c.attr[kGamma];
    scale = g == g ? g : 1.0 / double(d);
    gamma = T(scale);
    degree = int64_t(c.attr[kDegree]);
    long double base = 0;                            // `constant` enters once per pair: its error does not average out
    for (int64_t k = 0; k < d; ++k) base += static_cast<long double>(mu[k]) * mu[k];
    base = base * scale + c.attr[kCoef0];
    q = T(base);
    long double binomial = 1, powers = 1;            // of degree over m, and of q^(degree - m), from the top down
    for (int64_t m = degree; m >= 0; --m) {
      if (m <= kMost) factor[m] = T(binomial * powers);
      if (m == 0) break;
      binomial = binomial * m / (degree - m + 1);
      powers *= base;
    }
    power = T(powers);
    constant = double((degree > kMost ? power : powers) - c.attr[kCenter]);
  }
  T side(double, const T* row, int stride) const {
    double s = 0;
    for (int64_t k = 0; k < d; ++k) s += double(row[k * stride]) * double(mu[k]);
    return T(scale * s);
  }
  vec<T> operator()(vec<T> s, vec<T> sides) const {
    const vec<T> t = fma(s, broadcast(gamma), sides);
    if constexpr (kFixed == 2) return t * (t + factor[1]);
    if constexpr (kFixed == 3) return t * fma(t, t + factor[2], broadcast(factor[1]));
    if (degree <= kMost) {
      vec<T> v = broadcast(factor[degree]);
      for (int64_t m = degree - 1; m >= 1; --m) v = fma(v, t, broadcast(factor[m]));
      return v * t;
    }
    vec<T> v = broadcast(T(1)), b = t + q;
    for (int64_t e = degree; e > 0; e >>= 1, b = b * b)
      if (e & 1) v = v * b;
    return v - power;
  }
};

// A pair is measured again from the raw rows where |x - y|^2 < kNear (|x|^2 + |y|^2): there cancellation has cost more
// than two of float32's seven digits.
constexpr double kNear = 1.0 / 64;

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

// Float64 sums of a block: pairs off the diagonal (upper triangle only for x with itself), and on it.
struct BlockSum { double pairs, diagonal; };

inline void add_lanes(vd (&total)[2], vf v) {
  float at[kLanes<float>];
  store(at, v);
  typedef float half __attribute__((vector_size(kVectorBytes / 2), aligned(4), may_alias));
  total[0] += __builtin_convertvector(*reinterpret_cast<const half*>(at), vd);
  total[1] += __builtin_convertvector(*reinterpret_cast<const half*>(at + kLanes<double>), vd);
}
inline void add_lanes(vd (&total)[2], vd v) { total[0] += v; }

template <class T, class K, bool kWeighted>
BlockSum sum_block(const Pairs<T>& p, const K& kernel, const T* wx, const T* wy, bool diagonal, int64_t block,
                   int64_t phase, const T* packed, const T* sides) {
  constexpr int lanes = kLanes<T>, columns = kTileColumns<T>;
  const vec<T> number = lane_numbers<T>();
  vd pairs[2] = {}, on[2] = {};
  const int64_t i0 = block * kBlockRows, i1 = i0 + kBlockRows < p.n ? i0 + kBlockRows : p.n;
  int64_t panel = p.first_panel(phase);
  const int64_t last = p.last_panel(phase);
  if (p.self && i0 / columns > panel) panel = i0 / columns;
  for (; panel < last; ++panel) {
    const int64_t j0 = panel * columns;
    const T* b = p.packed_y + (panel - p.first_panel(phase)) * columns * p.d;
    const T* side = p.sides_y + (panel - p.first_panel(phase)) * columns;
    for (int64_t i = i0; i < i1; i += kTileRows) {
      if (p.self && j0 + columns <= i) break;
      Tile<T> tile = {};
      accumulate<K::kDistances && !K::kExpanded>(tile, packed + (i - i0) * p.d, b, p.d);
      const int64_t count = i1 - i < kTileRows ? i1 - i : kTileRows;
      const vec<T> s0 = load(side), s1 = load(side + lanes);
      if constexpr (K::kDistances && K::kExpanded) {
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
      vec<T> w0{}, w1{};
      if constexpr (kWeighted) {
        w0 = load_first(wy + j0, p.m - j0 < lanes ? p.m - j0 : lanes);
        if (p.m - j0 > lanes) w1 = load_first(wy + j0 + lanes, p.m - j0 < columns ? p.m - j0 - lanes : lanes);
      }
      const bool whole = count == kTileRows && j0 + columns <= p.m && !(p.self && j0 < i + kTileRows);
      vec<T> sum0{}, sum1{};
      if (__builtin_expect(whole, 1)) {
#pragma GCC unroll 16
        for (int r = 0; r < kTileRows; ++r) {
          const T own = sides[i - i0 + r];
          const vec<T> v0 = kernel(tile.at[r][0], own + s0), v1 = kernel(tile.at[r][1], own + s1);
          if constexpr (kWeighted) {
            sum0 = fma(broadcast(wx[i + r]), v0 * w0 + v1 * w1, sum0);
          } else {
            sum0 += v0;
            sum1 += v1;
          }
        }
      } else {
        vec<T> equal{};
        const vec<T> end = broadcast(T(p.m - j0 < columns ? p.m - j0 : columns));
        for (int64_t r = 0; r < count; ++r) {
          const T weight = kWeighted ? wx[i + r] : T(1);
          for (int h = 0; h < 2; ++h) {
            vec<T> v = kernel(tile.at[r][h], sides[i - i0 + r] + (h ? s1 : s0));
            const vec<T> j = number + T(h * lanes);
            if constexpr (kWeighted) v = weight * (v * (h ? w1 : w0));
            v = j < end ? v : vec<T>{};
            if (p.self) {
              const int64_t at = i + r - j0 < columns ? i + r - j0 : columns;      // lane of j = i; negative if left
              const vec<T> own = broadcast(T(at < -1 ? -1 : at));
              equal += j == own ? v : vec<T>{};
              v = j > own ? v : vec<T>{};
            }
            sum0 += v;
          }
        }
        if (diagonal) add_lanes(on, equal);
      }
      add_lanes(pairs, sum0);
      if constexpr (!kWeighted) add_lanes(pairs, sum1);
    }
  }
  return {lane_sum<double>(pairs[0] + pairs[1]), lane_sum<double>(on[0] + on[1])};
}

// sum_ij u_i v_j over the pairs that count.
template <class T> double sum_weights(const Call& c, const Pairs<T>& p) {
  auto sum = [](const T* w, int64_t n, bool square) {
    double s = 0;
    for (int64_t i = 0; i < n; ++i) s += square ? double(w[i]) * double(w[i]) : double(w[i]);
    return s;
  };
  const T *u = in<T>(c, 2), *v = p.self ? u : in<T>(c, 3);
  const double all = (u ? sum(u, p.n, false) : double(p.n)) * (v ? sum(v, p.m, false) : double(p.m));
  return c.attr[kExcludeDiagonal] == 0 ? all : all - (u ? sum(u, p.n, true) : double(p.n));
}

template <class T, class K, bool kWeighted>
double sum_pairs(const Call& c, const Pairs<T>& p, const T* wx, const T* wy, BlockSum* partial) {
  const K kernel(c, p);
  const bool diagonal = p.self && c.attr[kExcludeDiagonal] == 0;
  auto side = [&](double norm, const T* row, int stride, int64_t) { return kernel.side(norm, row, stride); };
  for (int64_t b = 0; b < p.blocks; ++b) partial[b] = {0, 0};
  for (int64_t phase = 0; phase < p.phases(); ++phase) {
    p.pack_phase(c, phase, side);
    parallel(c, p.blocks, [&](int64_t block, int worker) {
      if (p.self && p.last_panel(phase) * kTileColumns<T> <= block * kBlockRows) return;
      const T* packed = p.pack_block(block, worker, side);
      const BlockSum s = sum_block<T, K, kWeighted>(p, kernel, wx, wy, diagonal, block, phase, packed,
                                                    p.sides_x + worker * kBlockRows);
      partial[block].pairs += s.pairs;
      partial[block].diagonal += s.diagonal;
    });
  }
  double pairs = 0, on = 0;
  for (int64_t b = 0; b < p.blocks; ++b) pairs += partial[b].pairs, on += partial[b].diagonal;
  const double sum = p.self ? 2 * pairs + on : pairs;
  return kernel.constant == 0 ? sum : sum + kernel.constant * sum_weights(c, p);
}

template <class T> struct SumPlan {
  Carve scratch;
  Pairs<T> pairs;
  BlockSum* partial;
  T *ones;                                           // weights for the side that has none, where the other has some
  explicit SumPlan(const Call& c) : scratch{static_cast<char*>(c.scratch)}, pairs(c, c.attr[kKernel] == 0, scratch) {
    partial = scratch.take<BlockSum>(pairs.blocks);
    const T *u = in<T>(c, 2), *v = pairs.self ? u : in<T>(c, 3);
    const int64_t count = !u && v ? pairs.n : u && !v ? pairs.m : 0;
    ones = scratch.take<T>(count);
    if (ones)
      for (int64_t i = 0; i < count; ++i) ones[i] = 1;
  }
};
template <class T> int64_t kernel_sum_scratch(const Call& c) {
  Call counting = c;
  counting.scratch = nullptr;
  return SumPlan<T>(counting).scratch.used;
}

template <class T, class K> double sum_weighted_or_not(const Call& c, const SumPlan<T>& plan) {
  const T *u = in<T>(c, 2), *v = plan.pairs.self ? u : in<T>(c, 3);
  if (!u && !v) return sum_pairs<T, K, false>(c, plan.pairs, u, v, plan.partial);
  return sum_pairs<T, K, true>(c, plan.pairs, u ? u : plan.ones, v ? v : plan.ones, plan.partial);
}

}  // namespace

KERNEL_SCRATCH(kernel_sum, kernel_sum_scratch) {
  const SumPlan<T> plan(c);
  const bool rbf = c.attr[kKernel] == 0;
  if (plan.pairs.centre) plan.pairs.find_centre(c);
  double sum;
  if (rbf && plan.pairs.gemm) sum = sum_weighted_or_not<T, Rbf<T, true>>(c, plan);
  else if (rbf) sum = sum_weighted_or_not<T, Rbf<T, false>>(c, plan);
  else if (c.attr[kDegree] == 3) sum = sum_weighted_or_not<T, Polynomial<T, 3>>(c, plan);
  else if (c.attr[kDegree] == 2) sum = sum_weighted_or_not<T, Polynomial<T, 2>>(c, plan);
  else sum = sum_weighted_or_not<T, Polynomial<T, 0>>(c, plan);
  *out<double>(c) = sum;
}

KERNEL_SCRATCH(knn, knn_scratch) {
  const SearchPlan<T> plan(c);
  const Pairs<T>& p = plan.pairs;
  if (p.n == 0 || plan.lists.k == 0) return;
  if (p.centre) p.find_centre(c);
  if (p.gemm) p.self ? search<T, true, true>(c, plan) : search<T, true, false>(c, plan);
  else p.self ? search<T, false, true>(c, plan) : search<T, false, false>(c, plan);
}

KERNEL_SCRATCH(radius_count, radius_count_scratch) {
  const CountPlan<T> plan(c);
  if (plan.pairs.centre) plan.pairs.find_centre(c);
  if (plan.pairs.gemm) count<T, true>(c, plan.pairs, plan.margin);
  else count<T, false>(c, plan.pairs, plan.margin);
}
