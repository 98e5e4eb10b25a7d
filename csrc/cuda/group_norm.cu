// Group normalisation with modulation and activation, forward and backward; see csrc/cpu/norm_sample.h.
#include "slab.h"

namespace {

inline int64_t positions(const Array& x) {
  int64_t n = 1;
  for (int i = 1; i < x.ndim - 1; ++i) n *= x.shape[i];
  return n;
}

// gain, bias, scale, shift from input `first` on; statistics of the forward pass, or null.
template <class T> inline NormAffine<T> affine_of(const Call& c, int first, int64_t channels, const T* means, const T* rstds) {
  return {in<T>(c, first), in<T>(c, first + 1), in<T>(c, first + 2), in<T>(c, first + 3), channels, int(channels / int64_t(c.attr[0])),
          c.attr[1],       means,               rstds,               nullptr,             nullptr,  nullptr};
}

template <class T> int64_t forward_bytes(const Call& c) {
  const Array& x = c.in[0];
  return norm_forward_bytes<T>(x.shape[0], positions(x), last(x), int64_t(c.attr[0]));
}
template <class T> int64_t backward_bytes(const Call& c) {
  const Array& x = c.in[1];
  return norm_backward_bytes<T>(x.shape[0], positions(x), last(x), int64_t(c.attr[0]));
}

}  // namespace

KERNEL_SCRATCH(group_norm, forward_bytes) {
  const Array& x = c.in[0];
  auto run = c.attr[2] == 1 ? norm_forward<T, true> : norm_forward<T, false>;
  run(c, in<T>(c, 0), out<T>(c), x.shape[0], positions(x), int64_t(c.attr[0]), affine_of<T>(c, 1, last(x), nullptr, nullptr), out<T>(c, 1),
      out<T>(c, 2));
}

KERNEL_SCRATCH(group_norm_bwd, backward_bytes) {
  const Array& x = c.in[1];
  auto run = c.attr[2] == 1 ? norm_backward<T, true> : norm_backward<T, false>;
  run(c, in<T>(c, 0), in<T>(c, 1), x.shape[0], positions(x), int64_t(c.attr[0]), affine_of<T>(c, 2, last(x), in<T>(c, 6), in<T>(c, 7)),
      {out<T>(c, 0), out<T>(c, 1), out<T>(c, 2), out<T>(c, 3), out<T>(c, 4)});
}
