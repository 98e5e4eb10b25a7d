// Batch normalisation: one sample of all rows whose groups are single channels (slab.h), the form that applies given
// statistics, and the update of running statistics.
#include "slab.h"

namespace {

// gain and bias are inputs `first` and the next.
template <class T> inline NormAffine<T> affine_of(const Call& c, int first, double eps, const T* means, const T* rstds, const T* vars) {
  return {in<T>(c, first), in<T>(c, first + 1), nullptr, nullptr, last(c.in[first]), 1, eps, means, rstds, vars, nullptr, nullptr};
}

template <class T> int64_t forward_bytes(const Call& c) { return norm_forward_bytes<T>(1, rows(c.in[0]), last(c.in[0]), last(c.in[0])); }
template <class T> int64_t backward_bytes(const Call& c) { return norm_backward_bytes<T>(1, rows(c.in[1]), last(c.in[1]), last(c.in[1])); }

}  // namespace

KERNEL_SCRATCH(batch_norm, forward_bytes) {
  norm_forward<T, false>(c, in<T>(c, 0), out<T>(c), 1, rows(c.in[0]), last(c.in[0]),
                         affine_of<T>(c, 1, c.attr[0], nullptr, nullptr, nullptr), out<T>(c, 1), out<T>(c, 2));
}

KERNEL_SCRATCH(batch_norm_bwd, backward_bytes) {
  norm_backward<T, false>(c, in<T>(c, 0), in<T>(c, 1), 1, rows(c.in[1]), last(c.in[1]),
                          affine_of<T>(c, 2, c.attr[0], in<T>(c, 4), in<T>(c, 5), nullptr),
                          {out<T>(c, 0), out<T>(c, 1), out<T>(c, 2), nullptr, nullptr});
}

KERNEL(batch_norm_apply) {
  apply_norm<T, false>(c, in<T>(c, 0), out<T>(c), 1, column_grid<T>(rows(c.in[0]), last(c.in[0])),
                       affine_of<T>(c, 1, c.attr[0], in<T>(c, 3), nullptr, in<T>(c, 4)));
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
  each(c, last(c.in[0]), Update<T>{static_cast<T*>(c.in[0].data), static_cast<T*>(c.in[1].data), in<T>(c, 2), in<T>(c, 3),
                                   c.attr[1], c.attr[2], count / (count - 1)});
}
