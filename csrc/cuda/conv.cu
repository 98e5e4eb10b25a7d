// Convolutions of float32 and float64, for this unit's kernels and for the other units (convolve.h).
//
// All of `algorithm` is one here: the product whose matrix of pixels is never formed.
#include "conv_passes.h"

namespace generant::GENERANT_NAMESPACE {

template <class T> constexpr Precision kPlain = sizeof(T) == 4 ? kFloatProduct : kDoubleProduct;

template <class T> void conv_forward(const Call& c, const Conv& s, const T* x, const T* w, const Layer<T>& layer) {
  forward_pass<kPlain<T>, T>(c, s, x, w, layer);
}
template <class T> void conv_dx(const Call& c, const Conv& s, const T* g, const T* w, T* dx) { backward_pass<kPlain<T>, T>(c, s, g, w, dx); }
template <class T> int64_t conv_dw_bytes(const Conv& s) { return filter_bytes<kPlain<T>>(s); }
template <class T> void conv_dw(const Call& c, const Conv& s, const T* x, const T* g, T* dw, void* scratch) {
  filter_pass<kPlain<T>, T>(c, s, x, g, dw, scratch);
}

#define GENERANT_PASSES(T)                                                                       \
  template void conv_forward<T>(const Call&, const Conv&, const T*, const T*, const Layer<T>&);  \
  template void conv_dx<T>(const Call&, const Conv&, const T*, const T*, T*);                    \
  template int64_t conv_dw_bytes<T>(const Conv&);                                                \
  template void conv_dw<T>(const Call&, const Conv&, const T*, const T*, T*, void*);
GENERANT_PASSES(float)
GENERANT_PASSES(double)
#undef GENERANT_PASSES

}  // namespace generant::GENERANT_NAMESPACE

namespace {

template <class T> int64_t conv2d_dw_bytes(const Call& c) { return conv_dw_bytes<T>(of_x_g(c).s); }

}  // namespace

KERNEL(conv2d) { conv_forward<T>(c, of_x_w(c.in[0], c.in[1], c.attr).s, in<T>(c, 0), in<T>(c, 1), {nullptr, nullptr, out<T>(c), nullptr, 0}); }

KERNEL(conv2d_act) {
  conv_forward<T>(c, of_x_w(c.in[0], c.in[1], c.attr + 1).s, in<T>(c, 0), in<T>(c, 1),
                  {in<T>(c, 2), in<T>(c, 3), out<T>(c), out<T>(c, 1), int(c.attr[0])});
}

KERNEL(conv2d_dx) { conv_dx<T>(c, of_g_w(c).s, in<T>(c, 0), in<T>(c, 1), out<T>(c)); }

KERNEL_SCRATCH(conv2d_dw, conv2d_dw_bytes) { conv_dw<T>(c, of_x_g(c).s, in<T>(c, 0), in<T>(c, 1), out<T>(c), c.scratch); }
