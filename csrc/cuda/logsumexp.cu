// Log-sum-exp and softmax averages over all pairs, in O(n m (d + e)) time and O(n + m) memory: what Sinkhorn, kernel
// density estimates and attention are made of.
//
// log sum_j exp(score_j) is held as (top, sum): sum_j 2^(t_j - top), t_j = log2(e) score_j, one such state per thread and
// row until the last tile of its part is done. Averages are a second pass over the scores, when the largest is known: see
// row_products.h.
#include "row_products.h"

namespace {

template <class T> struct Largest;
template <> struct Largest<float> { static constexpr float value = 3.402823466e+38f; };
template <> struct Largest<double> { static constexpr double value = 1.7976931348623157e308; };

__device__ inline float power_of_2(float t) { return exp2f(t); }
__device__ inline double power_of_2(double t) { return exp2(t); }

// What turns scores into t: t = scale q + bias, q the distance, its square or the inner product. t is rounded before a
// top is taken off: fused, it would differ from the t that was found to be the largest by the rounding error of that.
template <class T> struct SoftmaxScores {
  Points<T> points;
  T scale;
  bool root;
  const double* given;                               // bias
  T* bias;                                           // log2(e) (bias - most), or null
  double* most;                                      // [kMostBlocks]: largest finite bias, of a share of them

  static constexpr int kMostBlocks = 128, kThreads = 256;

  SoftmaxScores(const Call& c, int bias_at, Carve& scratch)
      : points(in<T>(c, 0), c.in[0].shape[0], in<T>(c, 1), c.in[1].shape[0], c.in[0].shape[1],
               c.attr[kScoreCost] == kDot ? kInner : kSquare, false, scratch),
        scale(T((c.attr[kScoreCost] == kDot ? 1 : -1) * c.attr[kScoreScale] * kLog2E)), root(c.attr[kScoreCost] == kEuclidean),
        given(in<double>(c, bias_at)) {
    bias = scratch.take<T>(given ? points.m : 0);
    most = scratch.take<double>(given ? kMostBlocks : 0);
    if (!given) bias = nullptr, most = nullptr;
  }
  int64_t bias_blocks() const { return min(int64_t(kMostBlocks), ceil_div(points.m, kThreads)); }
  void prepare(const Call& c) const;

  __device__ T exponent(T q, int64_t j) const {
    if (root) q = sqrt(q);
    if (j >= points.m) return -T(INFINITY);
    return fused(q, scale, bias ? bias[j] : T(0));
  }
};

template <class T> __global__ void largest_bias(SoftmaxScores<T> s) {
  __shared__ double reduced[kWarp];
  double top = -double(INFINITY);
  for (int64_t j = global_thread(); j < s.points.m; j += global_threads())
    if (s.given[j] > top && s.given[j] < double(INFINITY)) top = s.given[j];
  top = block_reduce(top, Max{}, -double(INFINITY), reduced);
  if (threadIdx.x == 0) s.most[blockIdx.x] = top;
}

// The largest of all blocks; 0 if none is finite.
template <class T> __device__ inline double largest_of(const SoftmaxScores<T>& s, int64_t blocks) {
  double top = -double(INFINITY);
  for (int64_t b = threadIdx.x % kWarp; b < blocks; b += kWarp) top = Max{}(top, s.most[b]);
  top = warp_reduce(top, Max{});
  return top > -double(INFINITY) ? top : 0;
}

template <class T> __global__ void reduce_bias(SoftmaxScores<T> s, int64_t blocks) {
  const double top = largest_of(s, blocks);
  const int64_t j = global_thread();
  if (j < s.points.m) s.bias[j] = T((s.given[j] - top) * kLog2E);
}

template <class T> void SoftmaxScores<T>::prepare(const Call& c) const {
  find_centre(c, points);
  pack(c, points);
  if (!given) return;
  launch(c, largest_bias<T>, grid_of(bias_blocks()), kThreads, 0, *this);
  launch(c, reduce_bias<T>, grid_of(ceil_div(points.m, kThreads)), kThreads, 0, *this, bias_blocks());
}

// ---- states ----

// `top` starts at -largest and never is infinite: differences of tops must not be NaN.
template <class T> struct SoftmaxState {
  T top = -Largest<T>::value;
  Total<T> sum;

  __device__ void raise(T to) {
    to = to > Largest<T>::value ? Largest<T>::value : to;
    if (to > top) {
      sum.scale(power_of_2(top - to));
      top = to;
    }
  }
};

__device__ inline void merge(double& top, double& sum, double other_top, double other_sum) {
  const double most = other_top > top ? other_top : top;
  sum = sum * exp2(top - most) + other_sum * exp2(other_top - most);
  top = most;
}

// tops[part][i] and sums[part][i], of `share` tiles of columns each.
template <class T>
__global__ void __launch_bounds__(kTileThreads<T>, kTileBlocks)
sum_exponentials(SoftmaxScores<T> scores, int64_t share, double* tops, double* sums) {
  DYNAMIC_SHARED(T, shared);
  const Points<T>& p = scores.points;
  const int64_t i0 = int64_t(blockIdx.x) * kTileRows<T>;
  const int first = int(blockIdx.y * share), last = int(min(p.column_tiles(), first + share));
  const T* own = own_scores(shared);
  SoftmaxState<T> state[2];
  for (int tile = first; tile < last; ++tile) {
    const int64_t j0 = int64_t(tile) * kTileColumns;
    score_tile(p, i0, j0, shared);
    GENERANT_UNROLL
    for (int h = 0; h < 2; ++h) {
      T top = state[h].top, sum = 0;
      auto exponent = [&](int strip, int c) {
        return scores.exponent(own[own_offset(h, strip) + c], j0 + own_column(strip) + c);
      };
#pragma unroll (sizeof(T) == 4 ? kStrips : 1)
      for (int strip = 0; strip < kStrips; ++strip)
        GENERANT_UNROLL
        for (int c = 0; c < 2; ++c) {
          const T t = exponent(strip, c);
          top = t > top ? t : top;
        }
      state[h].raise(top);
      top = state[h].top;
#pragma unroll (sizeof(T) == 4 ? kStrips : 1)
      for (int strip = 0; strip < kStrips; ++strip)
        GENERANT_UNROLL
        for (int c = 0; c < 2; ++c) sum += power_of_2(exponent(strip, c) - top);
      state[h].sum.add(sum);
    }
  }
  GENERANT_UNROLL
  for (int h = 0; h < 2; ++h) {
    double top = double(state[h].top), sum = state[h].sum.value();
    for (int mask = 1; mask < 4; mask *= 2) merge(top, sum, warp_xor(top, mask), warp_xor(sum, mask));
    const int64_t i = i0 + own_row(h);
    if (threadIdx.x % 4 == 0 && i < p.n) tops[blockIdx.y * p.n + i] = top, sums[blockIdx.y * p.n + i] = sum;
  }
}

// The states of all parts become those of the first, and lse, unless that is null.
template <class T>
__global__ void finish_exponentials(SoftmaxScores<T> scores, int64_t blocks, int64_t parts, double* tops, double* sums, double* lse) {
  const double most = scores.given ? largest_of(scores, blocks) : 0;
  const int64_t i = global_thread(), n = scores.points.n;
  if (i >= n) return;
  double top = tops[i], sum = sums[i];
  for (int64_t part = 1; part < parts; ++part) merge(top, sum, tops[part * n + i], sums[part * n + i]);
  double log_sum = top * kLn2 + log(sum);
  if (top >= double(Largest<T>::value)) log_sum = sum == sum ? double(INFINITY) : sum;
  tops[i] = top, sums[i] = log_sum < double(INFINITY) ? sum : double(NAN);
  if (lse) lse[i] = log_sum + most;
}

template <class T> struct SoftmaxPlan {
  Carve scratch;
  SoftmaxScores<T> scores;
  int64_t parts, share;
  double *tops, *sums;
  SoftmaxPlan(const Call& c, int bias_at, void* memory)
      : scratch{static_cast<char*>(memory)}, scores(c, bias_at, scratch) {
    const Points<T>& p = scores.points;
    parts = parts_of(p.row_tiles(), p.column_tiles()), share = ceil_div(p.column_tiles(), parts);
    tops = scratch.take<double>(parts * p.n), sums = scratch.take<double>(parts * p.n);
  }
  void run(const Call& c, double* lse) const {
    const Points<T>& p = scores.points;
    scores.prepare(c);
    launch(c, sum_exponentials<T>, grid_of(p.row_tiles(), parts), kTileThreads<T>, kTileBytes<T>, scores, share, tops, sums);
    launch(c, finish_exponentials<T>, grid_of(ceil_div(p.n, 128)), 128, 0, scores, scores.bias_blocks(), parts, tops, sums, lse);
  }
};

// ---- averages ----

template <class T> struct SoftmaxWeights : SoftmaxScores<T> {
  const double* tops;
  SoftmaxWeights(const SoftmaxScores<T>& scores, const double* tops) : SoftmaxScores<T>(scores), tops(tops) {}

  __device__ uint32_t tile(int64_t i0, int64_t j0, T* shared) const {
    const Points<T>& p = this->points;
    const uint32_t near = score_tile(p, i0, j0, shared);
    const int64_t a = i0 + own_row(0), b = i0 + own_row(1);
    const T top0 = a < p.n ? T(tops[a]) : T(0), top1 = b < p.n ? T(tops[b]) : T(0);
    each_score(own_scores(shared), [&](T q, int h, int column) {
      return (h ? b : a) < p.n ? power_of_2(this->exponent(q, j0 + column) - (h ? top1 : top0)) : T(0);
    });
    return near;
  }
};

struct Averaged {
  static constexpr bool kOwnColumn = false;
  const double* sums;
  template <class T> __device__ T finish(int64_t i, int64_t, double sum, double, T) const { return T(sum / sums[i]); }
};

template <class T> int64_t logsumexp_scratch(const Call& c) { return SoftmaxPlan<T>(c, 2, nullptr).scratch.used; }
template <class T> int64_t softmax_matmul_scratch(const Call& c) {
  SoftmaxPlan<T> plan(c, 3, nullptr);
  ProductPlan<T>(plan.scores.points, c.in[2].shape[1], false, false, plan.scratch);
  return plan.scratch.used;
}

}  // namespace

KERNEL_SCRATCH(logsumexp, logsumexp_scratch) { SoftmaxPlan<T>(c, 2, c.scratch).run(c, out<double>(c)); }

KERNEL_SCRATCH(softmax_matmul, softmax_matmul_scratch) {
  SoftmaxPlan<T> plan(c, 3, c.scratch);
  const ProductPlan<T> product(plan.scores.points, c.in[2].shape[1], false, false, plan.scratch);
  plan.run(c, out<double>(c, 1));
  product.run(c, SoftmaxWeights<T>(plan.scores, plan.tops), in<T>(c, 2), Averaged{plan.sums}, out<T>(c));
}
