// Winograd's engine, compiled here for all units of this instruction set (winograd_conv.h); filters transformed ahead,
// and the convolution that takes them.
#include "../epilogue.h"
#include "../winograd_passes.h"

namespace generant::GENERANT_NAMESPACE {

int64_t winograd_forward(const Call& call, const Conv& s, ConvAlgorithm variant, const float* x, const float* w, int64_t ld,
                         const float* u, WinogradConv conv, void* scratch) {
  return with_variant(s, variant, [&](auto f) { return forward_pass<decltype(f)>(call, s, x, w, ld, u, conv, scratch); });
}

int64_t winograd_dx(const Call& call, const Conv& s, ConvAlgorithm variant, const float* g, const float* w, bool turned,
                    float* dx, void* scratch) {
  return with_variant(s, variant, [&](auto f) { return dx_pass<decltype(f)>(call, s, g, w, turned, dx, scratch); });
}

int64_t winograd_filter_gradient(const Call& call, const Conv& s, ConvAlgorithm variant, const float* x, const float* g,
                                 float* dw, void* scratch) {
  return with_variant(s, variant, [&](auto f) { return dw_pass<decltype(f)>(call, s, x, g, dw, scratch); });
}

void transpose_filter(const Call& call, const float* w, int64_t taps, int64_t c, int64_t o, int64_t ld, float* to) {
  transpose_taps(call, w, taps, c, o, ld, to);
}

}  // namespace generant::GENERANT_NAMESPACE

namespace {

template <class T> static int64_t convolve(const Call& c, void* scratch) {
  const Conv s = of_x_u(c);
  if (s.empty()) return 0;
  T* y = out<T>(c);
  const Layer<T> layer = {in<T>(c, 2), in<T>(c, 3), y, nullptr, s.o};
  int64_t padding[4];
  const int activation = int(*read_tuple(c.attr + 1, padding, 4));
  WinogradConv conv = whole_output(s, y);
  conv.finish = epilogue_of<T>(activation), conv.context = &layer;
  if (activation == 0 && !layer.bias && !layer.residual) conv.finish = nullptr;
  const ConvAlgorithm variant = c.in[1].shape[0] == 16 ? kWinograd2 : kWinograd4;
  return winograd_forward(c, s, variant, in<T>(c, 0), nullptr, s.o, in<T>(c, 1), conv, scratch);
}

template <class T> int64_t conv_bytes(const Call& c) { return convolve<T>(c, nullptr); }
template <class T> int64_t no_bytes(const Call&) { return 0; }

}  // namespace

KERNEL_SCRATCH_F32(winograd_filter, no_bytes) {
  const Array& w = c.in[0];
  const int64_t kh = w.shape[0], in_channels = w.shape[2], o = w.shape[3], column = in_channels * o, row = kh * column;
  if (kh == 3) {
    if (c.out[0].shape[0] == 36) transform_filter<Winograd<4, 3>>(c, in<T>(c, 0), row, column, o, in_channels, o, out<T>(c));
    else transform_filter<Winograd<2, 3>>(c, in<T>(c, 0), row, column, o, in_channels, o, out<T>(c));
    return;
  }
  int64_t padding[4];
  read_tuple(c.attr, padding, 4);
  for (int k = 0; k < 4; ++k) {
    const Phase a(4, padding[0], k / 2), b(4, padding[2], k % 2);
    transform_filter<Winograd<4, 2>>(c, in<T>(c, 0) + a.first * row + b.first * column, 2 * row, 2 * column, o,
                                        in_channels, o, out<T>(c) + k * filter_size<Winograd<4, 2>>(in_channels, o));
  }
}

KERNEL_SCRATCH_F32(winograd_conv2d, conv_bytes) { convolve<T>(c, c.scratch); }
