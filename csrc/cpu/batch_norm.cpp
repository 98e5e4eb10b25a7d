// Batch normalisation: one sample of all rows whose groups are single channels (norm_sample.h), the form that applies
// given statistics, and the update of running statistics.
#include "../norm_sample.h"

namespace {

template <class T> inline ChannelRows batch_rows(const Array& x) { return channel_rows<T>(rows(x), last(x)); }
inline NormShape batch_shape(const Call& c, const Array& x) { return {1, last(x), c.attr[0], false}; }

template <class T> int64_t forward_bytes(const Call& c) {
  return NormScratch<T>::all(c, 1, batch_rows<T>(c.in[0]), last(c.in[0])) * int64_t(sizeof(double));
}

template <class T> int64_t backward_bytes(const Call& c) {
  return norm_backward_bytes<T>(c, batch_rows<T>(c.in[1]), batch_shape(c, c.in[1]));
}

template <class T> int64_t apply_bytes(const Call& c) {
  return 5 * batch_rows<T>(c.in[0]).width * int64_t(sizeof(double));
}

}  // namespace

KERNEL_SCRATCH(batch_norm, forward_bytes) {
  norm_forward<T>(c, batch_rows<T>(c.in[0]), batch_shape(c, c.in[0]), in<T>(c, 0), in<T>(c, 1), in<T>(c, 2), nullptr,
                  nullptr, out<T>(c, 0), out<T>(c, 1), out<T>(c, 2));
}

KERNEL_SCRATCH(batch_norm_bwd, backward_bytes) {
  const NormGradients<T> d{out<T>(c, 0), out<T>(c, 1), out<T>(c, 2), nullptr, nullptr};
  norm_backward<T, false>(c, batch_rows<T>(c.in[1]), batch_shape(c, c.in[1]), in<T>(c, 0), in<T>(c, 1), in<T>(c, 2),
                          in<T>(c, 3), nullptr, nullptr, in<T>(c, 4), in<T>(c, 5), d);
}

KERNEL_SCRATCH(batch_norm_apply, apply_bytes) {
  const ChannelRows r = batch_rows<T>(c.in[0]);
  const T *x = in<T>(c, 0), *means = in<T>(c, 3), *vars = in<T>(c, 4);
  T* y = out<T>(c);
  double *mean = static_cast<double*>(c.scratch), *rstd = mean + r.width;
  T *centre = reinterpret_cast<T*>(rstd + r.width), *a = centre + r.width, *b = a + r.width;
  for (int64_t j = 0; j < r.c; ++j)
    mean[j] = double(means[j]), rstd[j] = 1.0 / __builtin_sqrt(double(vars[j]) + c.attr[0]);
  if (r.c == 0) return;
  fold_norm<T>(r.c, r.c, mean, rstd, in<T>(c, 1), in<T>(c, 2), nullptr, nullptr, centre, a, b);
  repeat_channels(r, centre, a, b);
  parallel(c, r.chunks, [&](int64_t t, int) {
    const int64_t at = r.begin(t) * r.width;
    norm_apply<T, NormIdentity<T>>(x + at, y + at, r.size(t), r.width, centre, a, b);
  });
  if (r.tail) norm_apply<T, NormIdentity<T>>(x + r.rows * r.width, y + r.rows * r.width, 1, r.tail, centre, a, b);
}

KERNEL(batch_norm_update_) {
  T *running_mean = static_cast<T*>(c.in[0].data), *running_var = static_cast<T*>(c.in[1].data);
  const T *mean = in<T>(c, 2), *rstd = in<T>(c, 3);
  const double count = c.attr[0], momentum = c.attr[1], eps = c.attr[2], unbiased = count / (count - 1);
  for (int64_t j = 0; j < last(c.in[0]); ++j) {
    const double var = 1.0 / (double(rstd[j]) * double(rstd[j])) - eps, m = double(running_mean[j]);
    const double v = double(running_var[j]);
    running_mean[j] = T(m + momentum * (double(mean[j]) - m));
    running_var[j] = T(v + momentum * ((var > 0 ? var : var != var ? var : 0) * unbiased - v));
  }
}
