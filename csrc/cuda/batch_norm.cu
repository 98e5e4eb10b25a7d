// Batch normalisation: one sample of all rows whose groups are single channels (group_norm.h), the form that applies given
// statistics, and the update of running statistics.
#include "group_norm_bwd.h"

namespace {

template <class T> inline ColumnGrid batch_grid(const Array& x) { return column_grid<T>(rows(x), last(x)); }

template <class T> int64_t forward_bytes(const Call& c) {
  return (batch_grid<T>(c.in[0]).partials(1) + 2 * last(c.in[0])) * int64_t(sizeof(double));
}
template <class T> int64_t backward_bytes(const Call& c) { return norm_backward_bytes<T>(1, batch_grid<T>(c.in[1]), last(c.in[1])); }

}  // namespace

KERNEL_SCRATCH(batch_norm, forward_bytes) {
  const ColumnGrid s = batch_grid<T>(c.in[0]);
  const T* x = in<T>(c, 0);
  double *partial = static_cast<double*>(c.scratch), *mean = partial + s.partials(1), *rstd = mean + s.c;
  group_moments(c, x, 1, s, s.c, c.attr[0], partial, mean, rstd, out<T>(c, 1), out<T>(c, 2));
  const NormAffine<T> affine{in<T>(c, 1), in<T>(c, 2), nullptr, nullptr, s.c, 1, mean, rstd, nullptr, nullptr, nullptr, 0};
  apply_norm<T, false>(c, x, out<T>(c), 1, s, affine);
}

KERNEL_SCRATCH(batch_norm_bwd, backward_bytes) {
  const ColumnGrid s = batch_grid<T>(c.in[1]);
  const NormAffine<T> affine{in<T>(c, 2), in<T>(c, 3), nullptr, nullptr, s.c, 1, nullptr, nullptr, in<T>(c, 4), in<T>(c, 5), nullptr, 0};
  norm_backward<T, false>(c, in<T>(c, 0), in<T>(c, 1), 1, s, affine, {out<T>(c, 0), out<T>(c, 1), out<T>(c, 2), nullptr, nullptr});
}

KERNEL(batch_norm_apply) {
  const ColumnGrid s = batch_grid<T>(c.in[0]);
  const NormAffine<T> affine{in<T>(c, 1), in<T>(c, 2), nullptr, nullptr, s.c, 1, nullptr, nullptr, in<T>(c, 3), nullptr, in<T>(c, 4), c.attr[0]};
  apply_norm<T, false>(c, in<T>(c, 0), out<T>(c), 1, s, affine);
}

namespace {

template <class T> struct Update {
  T *running_mean, *running_var;
  const T *mean, *rstd;
  double momentum, eps, unbiased;
  __device__ void operator()(int64_t j) const {
    const double var = 1.0 / (double(rstd[j]) * double(rstd[j])) - eps, m = double(running_mean[j]), v = double(running_var[j]);
    running_mean[j] = T(m + momentum * (double(mean[j]) - m));
    running_var[j] = T(v + momentum * ((var > 0 ? var : var != var ? var : 0) * unbiased - v));
  }
};

}  // namespace

KERNEL(batch_norm_update_) {
  const double count = c.attr[0];
  each(c, last(c.in[0]), Update<T>{static_cast<T*>(c.in[0].data), static_cast<T*>(c.in[1].data), in<T>(c, 2), in<T>(c, 3), c.attr[1], c.attr[2],
                                   count / (count - 1)});
}
