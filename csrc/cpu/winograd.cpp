// Filters transformed ahead, and the convolution that takes them: winograd_conv.h with the filter as an argument.
#include "../epilogue.h"
#include "../winograd_conv.h"

namespace {

// f(F) for the transforms of a filter with `k` products per tile.
template <class F> inline int64_t with_products(int64_t k, F f) {
  if (k == 100) return f(Winograd<4, 2>{});
  return k == 36 ? f(Winograd<4, 3>{}) : f(Winograd<2, 3>{});
}

// x, u; o, padding, activation.
inline Conv geometry(const Call& c) {
  const Array &x = c.in[0], &u = c.in[1], &y = c.out[0];
  Conv s{};
  s.n = x.shape[0], s.h = x.shape[1], s.w = x.shape[2], s.c = x.shape[3];
  s.kh = s.kw = u.shape[0] == 100 ? 4 : 3;
  s.stride_h = s.stride_w = s.kh - 2, s.dilation_h = s.dilation_w = s.groups = 1;
  s.o = y.shape[3], s.p = y.shape[1], s.q = y.shape[2];
  int64_t padding[4];
  read_tuple(c.attr + 1, padding, 4);
  s.top = padding[0], s.bottom = padding[1], s.left = padding[2], s.right = padding[3];
  return s;
}

template <class T> static int64_t convolve(const Call& c, void* scratch) {
  const Conv s = geometry(c);
  if (s.empty()) return 0;
  T* y = out<T>(c);
  const Layer<T> layer = {in<T>(c, 2), in<T>(c, 3), y, nullptr, s.o};
  int64_t padding[4];
  const int activation = int(*read_tuple(c.attr + 1, padding, 4));
  WinogradConv<T> conv = whole_output(s, y);
  conv.finish = activation == 0 ? finish_layer<T, Identity> : activation_of<T>(activation - 1), conv.context = &layer;
  if (activation == 0 && !layer.bias && !layer.residual) conv.finish = nullptr;
  return with_products(c.in[1].shape[0], [&](auto f) {
    return winograd_forward<T, decltype(f)>(c, s, in<T>(c, 0), nullptr, s.o, in<T>(c, 1), conv, scratch);
  });
}

template <class T> int64_t conv_bytes(const Call& c) { return convolve<T>(c, nullptr); }

}  // namespace

KERNEL(winograd_filter) {
  const Array& w = c.in[0];
  const int64_t kh = w.shape[0], in_channels = w.shape[2], o = w.shape[3], column = in_channels * o, row = kh * column;
  if (kh == 3) {
    if (c.out[0].shape[0] == 36) transform_filter<T, Winograd<4, 3>>(c, in<T>(c, 0), row, column, o, in_channels, o, out<T>(c));
    else transform_filter<T, Winograd<2, 3>>(c, in<T>(c, 0), row, column, o, in_channels, o, out<T>(c));
    return;
  }
  int64_t padding[4];
  read_tuple(c.attr, padding, 4);
  for (int k = 0; k < 4; ++k) {
    const Phase a(4, padding[0], k / 2), b(4, padding[2], k % 2);
    transform_filter<T, Winograd<4, 2>>(c, in<T>(c, 0) + a.first * row + b.first * column, 2 * row, 2 * column, o,
                                        in_channels, o, out<T>(c) + k * filter_size<Winograd<4, 2>>(in_channels, o));
  }
}

KERNEL_SCRATCH(winograd_conv2d, conv_bytes) { convolve<T>(c, c.scratch); }
