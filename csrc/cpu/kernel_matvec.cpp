// Kernel matrices times vectors, without the matrices: kernel_matvec, its gradient with respect to rows of x, and the
// backward of that. O(n m (d + e)) time, O((n + m) (d + e)) memory.
//
// Blocks of scores come from row_tile.h and become kernel values in L1 (kernel_function.h); what multiplies them is a
// second product over the block. Error of out_i, u = unit rounding of T, in terms of sum_j |k_ij v_j|: at most
// kRowBlock u for the sums (T within a block, float64 from block to block, so it does not grow with m; a few u in
// practice), and what k_ij itself is wrong by: a few u, and 2 u for every unit of its exponent |x - y|^2 / (2 h^2) or
// logarithmic weight, as any evaluation in T. The gradient's is in terms of sum_j |W_ij| |x_i - y_j|,
// 12 times that where distances are expanded (pairs that are not near have |x| + |y| <= 12 |x - y|).
#include "../kernel_gradient.h"
#include "../kernel_gradient_bwd.h"

namespace {

template <class T> KernelFunction<T> kernel_of(const Call& c) {
  return KernelFunction<T>(c.attr, c.attr + kBandwidthAttr, c.in[0].shape[1]);
}

template <class T> RowTile<T> rows_of(const Call& c, int form) {
  const Array &x = c.in[0], &y = c.in[1];
  return RowTile<T>(c, form, in<T>(c, 0), x.shape[0], in<T>(c, 1), y.shape[0], x.shape[1]);
}

template <class Plan> int64_t scratch_of(const Call& c) {
  Call counting = c;
  counting.scratch = nullptr;
  return Plan(counting).scratch.used;
}

// out_i = sum_j k(x_i, y_j) v_j: the functor. State: sums [columns of v][kTileColumns].
template <class T> struct MatvecRows {
  const KernelFunction<T>& kernel;
  const LogWeights<T>& logs;
  int64_t e;
  bool exclude_diagonal;
  T* out;

  static constexpr int kWidth = kTileColumns<T>;
  static int64_t state(int64_t e) { return packed_columns(e) * kWidth; }

  void start(double* at) const {
    for (int64_t t = 0; t < state(e); ++t) at[t] = 0;
  }
  void block(const RowBlock<T>& b, double* at) const {
    logs.template apply<0>(kernel, b);
    if (exclude_diagonal && b.meets_diagonal()) b.set_diagonal(0);
    multiply_columns<T>(b.q, b.side[0], e, b.rows, at);
  }
  void merge(double* into, const double* from) const {
    for (int64_t t = 0; t < state(e); ++t) into[t] += from[t];
  }
  void finish(int64_t i0, int lanes, const double* at) const {
    for (int l = 0; l < lanes; ++l)
      for (int64_t k = 0; k < e; ++k) out[(i0 + l) * e + k] = T(at[k * kWidth + l]);
  }
};

template <class T> struct MatvecPlan {
  Carve scratch;
  KernelFunction<T> kernel;
  RowTile<T> rows;
  LogWeights<T> logs;
  int64_t e;
  explicit MatvecPlan(const Call& c)
      : scratch{static_cast<char*>(c.scratch)}, kernel(kernel_of<T>(c)), rows(rows_of<T>(c, kernel.form)),
        logs(in<double>(c, 3), in<double>(c, 4), rows.n, rows.m, scratch), e(c.in[2].shape[1]) {
    rows.add_side(in<T>(c, 2), e);
    rows.plan(MatvecRows<T>::state(e), scratch);
  }
};

template <class T> struct GradientPlan {
  Carve scratch;
  KernelFunction<T> kernel;
  RowTile<T> rows;
  LogWeights<T> logs;
  int64_t e;
  explicit GradientPlan(const Call& c)
      : scratch{static_cast<char*>(c.scratch)}, kernel(kernel_of<T>(c)), rows(rows_of<T>(c, kernel.form)),
        logs(in<double>(c, 4), in<double>(c, 5), rows.n, rows.m, scratch), e(c.in[3].shape[1]) {
    rows.add_x(in<T>(c, 2), e);
    rows.add_y(in<T>(c, 3), e);
    if (rows.form == kInner || rows.expanded) rows.add_side(rows.y, rows.d, true, rows.expanded);
    rows.plan(GradientRows<T>::state(rows), scratch);
  }
};

template <class T> int64_t matvec_scratch(const Call& c) { return scratch_of<MatvecPlan<T>>(c); }
template <class T> int64_t gradient_scratch(const Call& c) { return scratch_of<GradientPlan<T>>(c); }

}  // namespace

KERNEL_SCRATCH(kernel_matvec, matvec_scratch) {
  const MatvecPlan<T> plan(c);
  plan.logs.prepare(c);
  plan.rows.run(c, MatvecRows<T>{plan.kernel, plan.logs, plan.e, c.attr[kExcludeDiagonal] != 0, out<T>(c)});
}

KERNEL_SCRATCH(kernel_matvec_dx, gradient_scratch) {
  const GradientPlan<T> plan(c);
  plan.logs.prepare(c);
  const bool exclude_diagonal = c.attr[kExcludeDiagonal] != 0;
  plan.rows.run(c, GradientRows<T>{plan.rows, plan.kernel, plan.logs, plan.e, exclude_diagonal, out<T>(c)});
}
