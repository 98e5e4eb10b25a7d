// Group normalisation with modulation and activation, forward and backward.
#include "../norm_sample.h"

namespace {

template <class T> inline ChannelRows group_rows(const Array& x) {
  int64_t positions = 1;
  for (int i = 1; i < x.ndim - 1; ++i) positions *= x.shape[i];
  return channel_rows<T>(positions, last(x));
}

inline NormShape group_shape(const Call& c, const Array& x) {
  return {x.shape[0], int64_t(c.attr[0]), c.attr[1], c.attr[2] == 1};
}

template <class T> int64_t forward_bytes(const Call& c) {
  const NormShape s = group_shape(c, c.in[0]);
  return NormScratch<T>::all(c, s.n, group_rows<T>(c.in[0]), s.groups) * int64_t(sizeof(double));
}

template <class T> int64_t backward_bytes(const Call& c) {
  return norm_backward_bytes<T>(c, group_rows<T>(c.in[1]), group_shape(c, c.in[1]));
}

}  // namespace

KERNEL_SCRATCH(group_norm, forward_bytes) {
  norm_forward(c, group_rows<T>(c.in[0]), group_shape(c, c.in[0]), in<T>(c, 0), in<T>(c, 1), in<T>(c, 2), in<T>(c, 3),
               in<T>(c, 4), out<T>(c, 0), out<T>(c, 1), out<T>(c, 2));
}

KERNEL_SCRATCH(group_norm_bwd, backward_bytes) {
  const NormShape s = group_shape(c, c.in[1]);
  const NormGradients<T> d{out<T>(c, 0), out<T>(c, 1), out<T>(c, 2), out<T>(c, 3), out<T>(c, 4)};
  auto run = s.silu ? norm_backward<T, true> : norm_backward<T, false>;
  run(c, group_rows<T>(c.in[1]), s, in<T>(c, 0), in<T>(c, 1), in<T>(c, 2), in<T>(c, 3), in<T>(c, 4), in<T>(c, 5),
      in<T>(c, 6), in<T>(c, 7), d);
}
