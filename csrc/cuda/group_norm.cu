// Group normalisation with modulation and activation, forward and backward; see csrc/cpu/norm_sample.h.
#include "group_norm_bwd.h"

namespace {

inline int64_t positions(const Array& x) {
  int64_t n = 1;
  for (int i = 1; i < x.ndim - 1; ++i) n *= x.shape[i];
  return n;
}

template <class T> inline ColumnGrid grid_of_sample(const Array& x) { return column_grid<T>(positions(x), last(x)); }

template <class T> int64_t forward_bytes(const Call& c) {
  const int64_t n = c.in[0].shape[0];
  return (grid_of_sample<T>(c.in[0]).partials(n) + 2 * n * int64_t(c.attr[0])) * int64_t(sizeof(double));
}
template <class T> int64_t backward_bytes(const Call& c) {
  return norm_backward_bytes<T>(c.in[1].shape[0], grid_of_sample<T>(c.in[1]), int64_t(c.attr[0]));
}

}  // namespace

KERNEL_SCRATCH(group_norm, forward_bytes) {
  const int64_t n = c.in[0].shape[0], groups = int64_t(c.attr[0]), channels = last(c.in[0]);
  const ColumnGrid s = grid_of_sample<T>(c.in[0]);
  const T* x = in<T>(c, 0);
  double *partial = static_cast<double*>(c.scratch), *mean = partial + s.partials(n), *rstd = mean + n * groups;
  group_moments(c, x, n, s, groups, c.attr[1], partial, mean, rstd, out<T>(c, 1), out<T>(c, 2));
  const NormAffine<T> affine{in<T>(c, 1), in<T>(c, 2), in<T>(c, 3), in<T>(c, 4), channels, int(channels / groups), mean, rstd, nullptr, nullptr, nullptr, 0};
  auto run = c.attr[2] == 1 ? apply_norm<T, true> : apply_norm<T, false>;
  run(c, x, out<T>(c), n, s, affine);
}

KERNEL_SCRATCH(group_norm_bwd, backward_bytes) {
  const int64_t n = c.in[1].shape[0], groups = int64_t(c.attr[0]), channels = last(c.in[1]);
  const ColumnGrid s = grid_of_sample<T>(c.in[1]);
  const NormAffine<T> affine{in<T>(c, 2), in<T>(c, 3), in<T>(c, 4), in<T>(c, 5), channels, int(channels / groups), nullptr, nullptr, in<T>(c, 6), in<T>(c, 7), nullptr, 0};
  const NormGradients<T> d{out<T>(c, 0), out<T>(c, 1), out<T>(c, 2), out<T>(c, 3), out<T>(c, 4)};
  auto run = c.attr[2] == 1 ? norm_backward<T, true> : norm_backward<T, false>;
  run(c, in<T>(c, 0), in<T>(c, 1), n, s, affine, d);
}
