// Log-sum-exp and softmax over the rows of y, one block of scores after another (row_tile.h), as states that hold
// log sum_j exp(score_j) as (top, sum): sum_j 2^(t_j - top), t_j = log2(e) score_j.
//
// `top` is a large t, not always the largest: exponents a little above it are harmless. So a block is first summed as
// if its maximum were known, and only when a sum passes kReach is the maximum looked for and `top` raised to it: one
// pass over the pairs instead of two. Within a block sums are in T, from block to block in float64.
#pragma once
#include "row_tile.h"

namespace {

// 2^t, 1 ulp (double: 2 ulp); 0 at -inf, NaN at NaN. Large t give inf or something above kReach, which is all that
// matters about them.
inline vf exp2_score(vf t) {
#if defined(__AVX512F__)
  return exp2_negative(t);                             // has no clamps
#else
  const vf high = broadcast(127.0f);
  return exp2_negative(t > high ? high : t);
#endif
}
inline vd exp2_score(vd t) {
  const vd high = broadcast(1023.0);
  return exp2_negative(t > high ? high : t);
}

template <class T> struct Largest;
template <> struct Largest<float> { static constexpr float value = __FLT_MAX__; };
template <> struct Largest<double> { static constexpr double value = __DBL_MAX__; };
constexpr float kReach = 0x1p20f;                      // largest sum of a block that is taken as it is

// What turns the numbers of a block into t: t = scale q + bias, q the distance, its square or the inner product.
template <class T> struct Scores {
  T scale;
  const T* bias;                                       // log2(e) (bias - most), or null
  double most;                                         // largest finite bias
  bool root;

  // bias is given room for by the caller, [m], or is null.
  Scores(const Call& c, const double* given, int64_t m, T* reduced) : bias(given ? reduced : nullptr), most(0) {
    const int cost = int(c.attr[kScoreCost]);
    constexpr double log2e = kLog2E;
    scale = T((cost == kDot ? 1 : -1) * c.attr[kScoreScale] * log2e);
    root = cost == kEuclidean;
    if (!given) return;
    const double infinity = __builtin_inf();
    vd high = broadcast(-infinity);
    int64_t j = 0;
    auto look = [&](vd b) { high = vmax(b < infinity ? b : broadcast(-infinity), high); };
    for (; j + kLanes<double> <= m; j += kLanes<double>) look(load(given + j));
    for (; j < m; ++j) look(broadcast(given[j]));
    most = lane_max<double>(high);
    if (!(most > -infinity)) most = 0;
    for (j = 0; j < m; ++j) reduced[j] = T((given[j] - most) * log2e);
  }
};

// t, rounded to T before the top is taken off: a fused q scale - top would differ from the t that was found to be the
// largest by the rounding error of that, which for |t| beyond 2^30 is more than an exponent holds.
template <bool kBias, class T>
__attribute__((always_inline)) inline vec<T> exponent(vec<T> q, vec<T> scale, const T* bias, int r) {
  if constexpr (kBias) return fma(q, scale, broadcast(bias[r]));
  else return q * scale;
}
// The largest t of every lane, at least top; NaNs do not count.
template <bool kBias, class T>
inline void largest(const RowBlock<T>& b, vec<T> scale, const T* bias, vec<T>* top) {
  vec<T> a0 = top[0], a1 = top[1], b0 = a0, b1 = a1;
  int r = 0;
  for (; r + 2 <= b.rows; r += 2) {
    a0 = vmax(exponent<kBias>(b.q[r][0], scale, bias, r), a0);
    a1 = vmax(exponent<kBias>(b.q[r][1], scale, bias, r), a1);
    b0 = vmax(exponent<kBias>(b.q[r + 1][0], scale, bias, r + 1), b0);
    b1 = vmax(exponent<kBias>(b.q[r + 1][1], scale, bias, r + 1), b1);
  }
  if (r < b.rows) {
    a0 = vmax(exponent<kBias>(b.q[r][0], scale, bias, r), a0);
    a1 = vmax(exponent<kBias>(b.q[r][1], scale, bias, r), a1);
  }
  top[0] = vmax(a0, b0), top[1] = vmax(a1, b1);
}

// sum[half] = sum_r 2^(t_r - top); kKeep leaves the terms in the block.
template <bool kBias, bool kKeep, class T>
inline void sum_exponentials(const RowBlock<T>& b, vec<T> scale, const T* bias, const vec<T>* top, vec<T>* sum) {
  const vec<T> top0 = top[0], top1 = top[1];
  vec<T> a0{}, a1{}, b0{}, b1{};
  auto add = [&](int r, vec<T>& s0, vec<T>& s1) __attribute__((always_inline)) {
    const vec<T> p0 = exp2_score(exponent<kBias>(b.q[r][0], scale, bias, r) - top0);
    const vec<T> p1 = exp2_score(exponent<kBias>(b.q[r][1], scale, bias, r) - top1);
    if constexpr (kKeep) b.q[r][0] = p0, b.q[r][1] = p1;
    s0 += p0;
    s1 += p1;
  };
  int r = 0;
  for (; r + 2 <= b.rows; r += 2) add(r, a0, a1), add(r + 1, b0, b1);
  if (r < b.rows) add(r, a0, a1);
  sum[0] = a0 + b0, sum[1] = a1 + b1;
}

template <class T> inline void take_roots(const RowBlock<T>& b) {
  for (int r = 0; r < b.rows; ++r) b.q[r][0] = sqrt(b.q[r][0]), b.q[r][1] = sqrt(b.q[r][1]);
}

// A panel's state: top of every lane, as T, then `sums` rows of kTileColumns float64, the first of which is the sum of
// the exponentials.
template <class T> struct SoftmaxState {
  static constexpr int kWidth = kTileColumns<T>;
  T* top;
  double* sums;
  explicit SoftmaxState(double* state) : top(reinterpret_cast<T*>(state)), sums(state + kWidth) {}
  explicit SoftmaxState(const double* state) : SoftmaxState(const_cast<double*>(state)) {}   // of who only reads
  static int64_t doubles(int64_t rows) { return (1 + rows) * kWidth; }

  void start(int64_t rows) const {
    store(top, broadcast(-Largest<T>::value));         // not -inf: differences of it must not be NaN
    store(top + kLanes<T>, broadcast(-Largest<T>::value));
    for (int64_t t = 0; t < rows * kWidth; ++t) sums[t] = 0;
  }

  // Raise the tops to `to`, which are not below them.
  void raise(const vec<T>* to, int64_t rows) const {
    T moved[kWidth];
    double down[kWidth];
    bool changes = false;
    for (int half = 0; half < 2; ++half) {             // inf - inf must not be NaN either
      const vec<T> most = broadcast(Largest<T>::value);
      store(moved + half * kLanes<T>, to[half] > most ? most : to[half]);
    }
    for (int l = 0; l < kWidth; ++l) {
      down[l] = double(top[l]) - double(moved[l]);
      changes |= down[l] != 0 && sums[l] != 0;
    }
    memcpy(top, moved, sizeof moved);
    if (changes) multiply(sums, down, rows);
  }

  // sums *= 2^exponent, for exponents <= 0.
  static void multiply(double* sums, const double* exponent, int64_t rows) {
    for (int l = 0; l < kWidth; l += kLanes<double>) {
      const vd factor = exp2_score(load(exponent + l));
      for (int64_t r = 0; r < rows; ++r) store(sums + r * kWidth + l, load(sums + r * kWidth + l) * factor);
    }
  }

  void merge(const double* from, int64_t rows) const {
    T other[kWidth];
    memcpy(other, from, sizeof other);
    double down[kWidth], up[kWidth], added[kWidth];
    for (int l = 0; l < kWidth; ++l) {
      const T most = other[l] > top[l] ? other[l] : top[l];
      down[l] = double(top[l]) - double(most), up[l] = double(other[l]) - double(most);
      top[l] = most;
    }
    multiply(sums, down, rows);
    for (int64_t r = 0; r < rows; ++r) {
      memcpy(added, from + (1 + r) * kWidth, sizeof added);
      multiply(added, up, 1);
      for (int l = 0; l < kWidth; ++l) sums[r * kWidth + l] += added[l];
    }
  }

  // The log-sum-exp of lane l, without what Scores took off the bias.
  double log_sum(int l) const {
    const double sum = sums[l];
    if (top[l] >= Largest<T>::value) return sum == sum ? __builtin_inf() : sum;
    return double(top[l]) * kLn2 + __builtin_log(sum);
  }
};

// ---- logsumexp ---------------------------------------------------------------------------------------------------

template <class T> struct LogSumExp {
  Scores<T> scores;
  double* result;

  void start(double* state) const { SoftmaxState<T>(state).start(1); }
  void merge(double* into, const double* from) const { SoftmaxState<T>(into).merge(from, 1); }
  void finish(int64_t i0, int lanes, const double* state) const {
    const SoftmaxState<T> s(state);
    for (int l = 0; l < lanes; ++l) result[i0 + l] = s.log_sum(l) + scores.most;
  }
  void block(const RowBlock<T>& b, double* state) const {
    if (scores.root) take_roots(b);
    if (scores.bias) add<true>(b, state);
    else add<false>(b, state);
  }

  template <bool kBias> __attribute__((noinline)) void add(const RowBlock<T>& b, double* state) const {
    const SoftmaxState<T> s(state);
    const vec<T> scale = broadcast(scores.scale), reach = broadcast(T(kReach));
    const T* bias = kBias ? scores.bias + b.j0 : nullptr;
    vec<T> top[2] = {load(s.top), load(s.top + kLanes<T>)}, sum[2];
    const bool first = b.j0 == 0;
    if (!first) sum_exponentials<kBias, false>(b, scale, bias, top, sum);
    if (first || lanes_not_above(reach, sum[0]) | lanes_not_above(reach, sum[1])) {
      largest<kBias>(b, scale, bias, top);
      s.raise(top, 1);
      top[0] = load(s.top), top[1] = load(s.top + kLanes<T>);
      sum_exponentials<kBias, false>(b, scale, bias, top, sum);
    }
    add_panel<T>(s.sums, sum[0], sum[1]);
  }
};

// ---- softmax_matmul ----------------------------------------------------------------------------------------------

// Rows of the state after the first: the columns of v. Terms up to 2^kAhead above the top are let be.
constexpr float kAhead = 10.0f;

template <class T> struct SoftmaxMatmul {
  Scores<T> scores;
  int64_t columns;
  T* average;
  double* result;                                      // log-sum-exp, or null

  int64_t rows() const { return 1 + packed_columns(columns); }
  void start(double* state) const { SoftmaxState<T>(state).start(rows()); }
  void merge(double* into, const double* from) const { SoftmaxState<T>(into).merge(from, rows()); }
  void finish(int64_t i0, int lanes, const double* state) const {
    constexpr int width = kTileColumns<T>;
    const SoftmaxState<T> s(state);
    for (int l = 0; l < lanes; ++l) {
      const double log_sum = s.log_sum(l), sum = log_sum < __builtin_inf() ? s.sums[l] : __builtin_nan("");
      if (result) result[i0 + l] = log_sum + scores.most;
      T* to = average + (i0 + l) * columns;
      for (int64_t k = 0; k < columns; ++k) to[k] = T(s.sums[(1 + k) * width + l] / sum);
    }
  }
  void block(const RowBlock<T>& b, double* state) const {
    if (scores.root) take_roots(b);
    if (scores.bias) add<true>(b, state);
    else add<false>(b, state);
    multiply_columns<T>(b.q, b.side[0], columns, b.rows, SoftmaxState<T>(state).sums + kTileColumns<T>);
  }

  template <bool kBias> __attribute__((noinline)) void add(const RowBlock<T>& b, double* state) const {
    const SoftmaxState<T> s(state);
    const vec<T> scale = broadcast(scores.scale), ahead = broadcast(T(kAhead));
    const T* bias = kBias ? scores.bias + b.j0 : nullptr;
    vec<T> top[2] = {load(s.top), load(s.top + kLanes<T>)}, high[2] = {top[0], top[1]}, sum[2];
    largest<kBias>(b, scale, bias, high);
    if (lanes_not_above(top[0] + ahead, high[0]) | lanes_not_above(top[1] + ahead, high[1])) {
      s.raise(high, rows());
      top[0] = load(s.top), top[1] = load(s.top + kLanes<T>);
    }
    sum_exponentials<kBias, true>(b, scale, bias, top, sum);
    add_panel<T>(s.sums, sum[0], sum[1]);
  }
};

}  // namespace
