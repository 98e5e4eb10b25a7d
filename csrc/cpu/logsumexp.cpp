// Log-sum-exp and softmax averages over all pairs, in O(n m (d + e)) time and O(n + m) memory: what Sinkhorn, kernel
// density estimates and attention are made of. The scores come from row_tile.h, the rest is in logsumexp.h.
#include "../logsumexp.h"

namespace {

inline int score_form(const Call& c) { return c.attr[kScoreCost] == kDot ? kInner : kSquare; }

template <class T> struct LogSumExpPlan {
  Carve scratch;
  RowTile<T> tile;
  T* bias;
  explicit LogSumExpPlan(const Call& c)
      : scratch{static_cast<char*>(c.scratch)},
        tile(c, score_form(c), in<T>(c, 0), c.in[0].shape[0], in<T>(c, 1), c.in[1].shape[0], c.in[0].shape[1]) {
    bias = scratch.take<T>(c.in[2].data ? tile.m : 0);
    tile.plan(SoftmaxState<T>::doubles(1), scratch);
  }
};

template <class T> struct SoftmaxMatmulPlan {
  Carve scratch;
  RowTile<T> tile;
  T* bias;
  explicit SoftmaxMatmulPlan(const Call& c)
      : scratch{static_cast<char*>(c.scratch)},
        tile(c, score_form(c), in<T>(c, 0), c.in[0].shape[0], in<T>(c, 1), c.in[1].shape[0], c.in[0].shape[1]) {
    const int64_t e = c.in[2].shape[1];
    bias = scratch.take<T>(c.in[3].data ? tile.m : 0);
    tile.add_side(in<T>(c, 2), e);
    tile.plan(SoftmaxState<T>::doubles(1 + packed_columns(e)), scratch);
  }
};

template <class T> int64_t logsumexp_scratch(const Call& c) {
  Call counting = c;
  counting.scratch = nullptr;
  return LogSumExpPlan<T>(counting).scratch.used;
}
template <class T> int64_t softmax_matmul_scratch(const Call& c) {
  Call counting = c;
  counting.scratch = nullptr;
  return SoftmaxMatmulPlan<T>(counting).scratch.used;
}

}  // namespace

KERNEL_SCRATCH(logsumexp, logsumexp_scratch) {
  const LogSumExpPlan<T> plan(c);
  const Scores<T> scores(c, in<double>(c, 2), plan.tile.m, plan.bias);
  plan.tile.run(c, LogSumExp<T>{scores, out<double>(c)});
}

KERNEL_SCRATCH(softmax_matmul, softmax_matmul_scratch) {
  const SoftmaxMatmulPlan<T> plan(c);
  const Scores<T> scores(c, in<double>(c, 3), plan.tile.m, plan.bias);
  plan.tile.run(c, SoftmaxMatmul<T>{scores, c.in[2].shape[1], out<T>(c, 0), out<double>(c, 1)});
}
