// Convolutions of float32 and float64, for this unit's kernels and for the other units (convolve.h).
//
// "gemm" and "direct" are one here: the product whose matrix of pixels is never formed. Filters of 1 x 1 are plain products,
// which cuBLAS may serve.
#include "conv_passes.h"
#include "cublas.h"

namespace {

inline int64_t pixels(const Conv& s) { return s.n * s.h * s.w; }

}  // namespace

namespace generant::GENERANT_NAMESPACE {

template <class T> constexpr Precision kPlain = sizeof(T) == 4 ? kFloatProduct : kDoubleProduct;

// ---- Winograd's algorithm: a matter of one sample's shape, as on the CPU. Transforms and the numbers between them go through
// memory here, so fewer channels are not worth it. ----

constexpr int64_t kFewestOnGpu = 64;

inline ConvAlgorithm variant_of(const Conv& s, ConvAlgorithm asked, int64_t c, int64_t o, int64_t p, int64_t q) {
  if (!winograd_square(s) || s.empty() || (asked == kAuto && (c < kFewestOnGpu || o < kFewestOnGpu))) return kGemm;
  return winograd_choice(s, asked, c, o, p, q);
}
template <class T> inline ConvAlgorithm forward_variant(const Conv& s, ConvAlgorithm asked) {
  return sizeof(T) == 4 ? variant_of(s, asked, s.c, s.o, s.p, s.q) : kGemm;
}
template <class T> inline ConvAlgorithm dx_variant(const Conv& s, ConvAlgorithm asked) {
  return sizeof(T) == 4 ? variant_of(s, asked, s.o, s.c, s.h, s.w) : kGemm;
}

template <class T> int64_t conv_forward_bytes(const Conv& s, ConvAlgorithm asked) {
  const ConvAlgorithm variant = forward_variant<T>(s, asked);
  if (variant != kGemm) return winograd_bytes(s, variant, false);
  const int64_t own = forward_split_bytes<T>(s), of_cublas = s.pointwise() ? cublas_bytes<T>(kRows, pixels(s), s.o, s.c) : 0;
  return own > of_cublas ? own : of_cublas;
}
template <class T>
void conv_forward(const Call& c, const Conv& s, const T* x, const T* w, const Layer<T>& layer, ConvAlgorithm asked, void* scratch) {
  if (s.pointwise() && cublas_product<T>(c, kRows, pixels(s), s.o, s.c, x, false, w, false, layer.h ? layer.h : layer.y, scratch)) {
    if (layer.bias || layer.residual || layer.h || layer.activation)
      each(c, pixels(s) * s.o, SumParts<T>{layer.h ? layer.h : layer.y, 1, 0, s.o, layer});
    return;
  }
  if constexpr (sizeof(T) == 4) {
    const ConvAlgorithm variant = forward_variant<T>(s, asked);
    if (variant != kGemm) return winograd_forward(c, s, variant, x, w, layer, scratch);
  }
  forward_pass<kPlain<T>, T>(c, s, x, w, layer, scratch);
}

template <class T> int64_t conv_dx_bytes(const Conv& s, ConvAlgorithm asked) {
  if (s.pointwise()) return cublas_bytes<T>(kRows, pixels(s), s.c, s.o);
  const ConvAlgorithm variant = dx_variant<T>(s, asked);
  return variant == kGemm ? 0 : winograd_bytes(s, variant, true);
}
template <class T> void conv_dx(const Call& c, const Conv& s, const T* g, const T* w, T* dx, ConvAlgorithm asked, void* scratch) {
  if (s.pointwise() && cublas_product<T>(c, kRows, pixels(s), s.c, s.o, g, false, w, true, dx, scratch)) return;
  if constexpr (sizeof(T) == 4) {
    const ConvAlgorithm variant = dx_variant<T>(s, asked);
    if (variant != kGemm) return winograd_dx(c, s, variant, g, w, dx, scratch);
  }
  backward_pass<kPlain<T>, T>(c, s, g, w, dx);
}

template <class T> int64_t conv_dw_bytes(const Conv& s) {
  const int64_t own = filter_bytes<kPlain<T>>(s), of_cublas = s.pointwise() ? cublas_bytes<T>(kSumOverRows, s.c, s.o, pixels(s)) : 0;
  return own > of_cublas ? own : of_cublas;
}
template <class T> void conv_dw(const Call& c, const Conv& s, const T* x, const T* g, T* dw, void* scratch) {
  if (s.pointwise() && cublas_product<T>(c, kSumOverRows, s.c, s.o, pixels(s), x, true, g, false, dw, scratch)) return;
  filter_pass<kPlain<T>, T>(c, s, x, g, dw, scratch);
}

void products(const Call& c, int64_t batch, int64_t m, int64_t k, int64_t n, const float* a, const float* b, bool turned, float* to) {
  TapArgs<float> t = taps_of<float>(matrices(m, k, n), a, b);
  t.layer.y = to, t.groups = int(batch);
  t.c = t.in_group = int(k), t.made_c = t.out_group = int(n), t.filter_c = int(turned ? n : k), t.filter_o = int(turned ? k : n);
  t.x_group = m * k, t.w_group = k * n, t.y_group = m * n;
  t.wide_x = whole_vectors<float>(k, k, a), t.wide_w = whole_vectors<float>(t.filter_o, t.filter_o, b);
  t.wide_y = whole_vectors<float>(n, n, to);
  if (turned) launch_taps<kFloatProduct, BackwardTask, false>(c, t, m);
  else launch_taps<kFloatProduct, ForwardTask, true>(c, t, m);
}

#define GENERANT_PASSES(T)                                                                                                   \
  template int64_t conv_forward_bytes<T>(const Conv&, ConvAlgorithm);                                                        \
  template void conv_forward<T>(const Call&, const Conv&, const T*, const T*, const Layer<T>&, ConvAlgorithm, void*);         \
  template int64_t conv_dx_bytes<T>(const Conv&, ConvAlgorithm);                                                             \
  template void conv_dx<T>(const Call&, const Conv&, const T*, const T*, T*, ConvAlgorithm, void*);                           \
  template int64_t conv_dw_bytes<T>(const Conv&);                                                                            \
  template void conv_dw<T>(const Call&, const Conv&, const T*, const T*, T*, void*);
GENERANT_PASSES(float)
GENERANT_PASSES(double)
#undef GENERANT_PASSES

}  // namespace generant::GENERANT_NAMESPACE

namespace {

template <class T, int first> int64_t forward_bytes(const Call& c) {
  const Problem a = of_x_w(c.in[0], c.in[1], c.attr + first);
  return conv_forward_bytes<T>(a.s, a.algorithm);
}
template <class T> int64_t conv2d_bytes(const Call& c) { return forward_bytes<T, 0>(c); }
template <class T> int64_t conv2d_act_bytes(const Call& c) { return forward_bytes<T, 1>(c); }
template <class T> int64_t conv2d_dx_bytes(const Call& c) {
  const Problem a = of_g_w(c);
  return conv_dx_bytes<T>(a.s, a.algorithm);
}
template <class T> int64_t conv2d_dw_bytes(const Call& c) { return conv_dw_bytes<T>(of_x_g(c).s); }

}  // namespace

KERNEL_SCRATCH(conv2d, conv2d_bytes) {
  const Problem a = of_x_w(c.in[0], c.in[1], c.attr);
  conv_forward<T>(c, a.s, in<T>(c, 0), in<T>(c, 1), {nullptr, nullptr, out<T>(c), nullptr, 0}, a.algorithm, c.scratch);
}

KERNEL_SCRATCH(conv2d_act, conv2d_act_bytes) {
  const Problem a = of_x_w(c.in[0], c.in[1], c.attr + 1);
  conv_forward<T>(c, a.s, in<T>(c, 0), in<T>(c, 1), {in<T>(c, 2), in<T>(c, 3), out<T>(c), out<T>(c, 1), int(c.attr[0])}, a.algorithm, c.scratch);
}

KERNEL_SCRATCH(conv2d_dx, conv2d_dx_bytes) {
  const Problem a = of_g_w(c);
  conv_dx<T>(c, a.s, in<T>(c, 0), in<T>(c, 1), out<T>(c), a.algorithm, c.scratch);
}

KERNEL_SCRATCH(conv2d_dw, conv2d_dw_bytes) { conv_dw<T>(c, of_x_g(c).s, in<T>(c, 0), in<T>(c, 1), out<T>(c), c.scratch); }
