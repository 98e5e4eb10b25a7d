// Convolution: which engine serves which shape, and how its three passes are lists of filter taps.
//
// conv2d_dx with a stride is one convolution per phase of the input pixels, each with the taps that meet it. Everything
// else is in the engines: implicit_gemm.h, conv_dw.h, depthwise.h, few_outputs.h, and gemm.h for 1 x 1.
#include "conv_taps.h"

#include "conv_dw.h"
#include "depthwise.h"
#include "epilogue.h"
#include "few_outputs.h"
#include "gemm.h"
#include "winograd_conv.h"

namespace {

// ---- forward --------------------------------------------------------------------------------------------------------

template <class T>
static Product<T> forward_product(const Conv& s, const T* x, const T* w, T* y, Finish finish, const void* context) {
  return {s.n * s.h * s.w, s.o, s.c, x, s.c, true, w, s.o, true, y, s.o, finish, context};
}

// Bytes of scratch where Winograd's algorithm serves the pass, and the pass itself if there is scratch; else 0.
template <class T>
static int64_t forward_by_winograd(const Call& c, const Conv& s, ConvAlgorithm asked, const T* x, const T* w, T* y,
                                   Finish finish, const void* context, void* scratch) {
  if constexpr (sizeof(T) == sizeof(float)) {
    const ConvAlgorithm variant = winograd_choice(s, asked, s.c, s.o, s.p, s.q);
    if (s.empty() || variant == kGemm) return 0;
    WinogradConv conv = whole_output(s, y);
    conv.finish = finish, conv.context = context;
    return winograd_forward(c, s, variant, x, w, s.o, nullptr, conv, scratch);
  } else {
    return 0;
  }
}

template <class T> static int64_t forward_scratch(const Call& c, const Conv& s, ConvAlgorithm asked) {
  if (const int64_t bytes = forward_by_winograd<T>(c, s, asked, in<T>(c, 0), in<T>(c, 1), nullptr, nullptr, nullptr, nullptr))
    return bytes;
  if (s.empty()) return taps_bytes(s);
  const TapConv<T> conv = forward_conv<T>(s, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr);
  switch (choose_forward(s, asked)) {
    case kDirect: return s.depthwise() ? 0 : taps_bytes(s) + few_outputs_scratch(c, conv);
    default: break;
  }
  if (s.pointwise()) return gemm_scratch<T>(c, s.n * s.h * s.w, s.o, s.c, true, true);
  return taps_bytes(s) + tap_conv_scratch(c, conv);
}

// y = conv2d(x, w), each finished piece given to `finish`, which may be null.
template <class T>
static void forward(const Call& c, const Conv& s, ConvAlgorithm asked, const T* x, const T* w, T* y, Finish finish,
                    const void* context) {
  Tap* const taps = static_cast<Tap*>(c.scratch);
  if (s.empty()) {                           // no channels or no filter: a sum of nothing
    memset(y, 0, size_t(s.n * s.p * s.q * s.o) * sizeof(T));
    if (finish && s.n * s.p * s.q * s.o > 0) finish(context, 0, 0, s.n * s.p * s.q, s.o);
    return;
  }
  if (forward_by_winograd(c, s, asked, x, w, y, finish, context, c.scratch)) return;
  switch (choose_forward(s, asked)) {
    case kDirect:
      if (s.depthwise()) {
        depthwise(c, s, x, w, false, y, [&](int64_t pixel, int64_t count) {
          if (finish) finish(context, pixel, 0, count, s.o);
        });
      } else {
        few_outputs(c, forward_conv<T>(s, taps, x, w, y, finish, context), static_cast<char*>(c.scratch) + taps_bytes(s));
      }
      return;
    default: break;
  }
  if (s.pointwise()) gemm(c, forward_product<T>(s, x, w, y, finish, context));
  else tap_conv(c, forward_conv<T>(s, taps, x, w, y, finish, context), static_cast<char*>(c.scratch) + taps_bytes(s));
}

// ---- gradient in x --------------------------------------------------------------------------------------------------

template <class T>
static int64_t dx_by_winograd(const Call& c, const Conv& s, ConvAlgorithm asked, const T* g, const T* w, T* dx, void* scratch) {
  if constexpr (sizeof(T) == sizeof(float)) {
    const int64_t halves = s.stride_h;
    const ConvAlgorithm variant = winograd_choice(s, asked, s.o, s.c, ceil_div(s.h, halves), ceil_div(s.w, halves));
    return s.empty() || variant == kGemm ? 0 : winograd_dx(c, s, variant, g, w, false, dx, scratch);
  } else {
    return 0;
  }
}

template <class T> static int64_t dx_scratch(const Call& c, const Conv& s, ConvAlgorithm asked) {
  if (s.empty()) return 0;
  if (const int64_t bytes = dx_by_winograd<T>(c, s, asked, in<T>(c, 0), in<T>(c, 1), out<T>(c), nullptr)) return bytes;
  const bool direct = choose_dx(s, asked) == kDirect;
  if (direct && s.depthwise()) return 0;
  if (!direct && s.pointwise()) return gemm_scratch<T>(c, s.n * s.h * s.w, s.c, s.o, true, false);
  int64_t most = 0;
  phases(s, [&](int64_t a, int64_t b) {
    const TapConv<T> conv = phase_conv<T>(s, a, b, nullptr, nullptr, nullptr, nullptr);
    const int64_t bytes = direct ? few_outputs_scratch(c, conv) : tap_conv_scratch(c, conv);
    if (bytes > most) most = bytes;
  });
  return taps_bytes(s) + most;
}

template <class T>
static void gradient_x(const Call& c, const Conv& s, ConvAlgorithm asked, const T* g, const T* w, T* dx) {
  if (s.empty()) {
    memset(dx, 0, size_t(s.n * s.h * s.w * s.c) * sizeof(T));
    return;
  }
  if (dx_by_winograd(c, s, asked, g, w, dx, c.scratch)) return;
  const bool direct = choose_dx(s, asked) == kDirect;
  if (direct && s.depthwise()) return depthwise_dx(c, s, g, w, dx);
  if (!direct && s.pointwise())
    return gemm(c, Product<T>{s.n * s.h * s.w, s.c, s.o, g, s.o, true, w, s.o, false, dx, s.c, nullptr, nullptr});
  phases(s, [&](int64_t a, int64_t b) {
    const TapConv<T> conv = phase_conv<T>(s, a, b, static_cast<Tap*>(c.scratch), g, w, dx);
    void* const rest = static_cast<char*>(c.scratch) + taps_bytes(s);
    if (direct) few_outputs(c, conv, rest);
    else tap_conv(c, conv, rest);
  });
}

// ---- gradient in w --------------------------------------------------------------------------------------------------

template <class T>
static int64_t dw_by_winograd(const Call& c, const Conv& s, ConvAlgorithm asked, const T* x, const T* g, T* dw, void* scratch) {
  if constexpr (sizeof(T) == sizeof(float)) {
    const ConvAlgorithm variant = winograd_choice(s, asked, s.c, s.o, s.p, s.q);
    return s.empty() || variant == kGemm ? 0 : winograd_filter_gradient(c, s, variant, x, g, dw, scratch);
  } else {
    return 0;
  }
}

template <class T> static int64_t dw_scratch(const Call& c, const Conv& s, ConvAlgorithm asked) {
  if (s.empty()) return 0;
  if (const int64_t bytes = dw_by_winograd<T>(c, s, asked, in<T>(c, 0), in<T>(c, 1), out<T>(c), nullptr)) return bytes;
  switch (choose_dw(s, asked)) {
    case kDirect: return s.depthwise() ? depthwise_dw_scratch<T>(s) : few_outputs_dw_scratch<T>(c, s);
    default: return conv_dw_scratch<T>(c, s);
  }
}

template <class T>
static void gradient_w(const Call& c, const Conv& s, ConvAlgorithm asked, const T* x, const T* g, T* dw) {
  if (dw_by_winograd(c, s, asked, x, g, dw, c.scratch)) return;
  if (s.empty()) {
    memset(dw, 0, size_t(s.kh * s.kw * s.group_c() * s.o) * sizeof(T));
    return;
  }
  switch (choose_dw(s, asked)) {
    case kDirect:
      if (s.depthwise()) depthwise_dw(c, s, x, g, dw, c.scratch);
      else few_outputs_dw(c, s, x, g, dw, c.scratch);
      return;
    default: conv_dw(c, s, x, g, dw, c.scratch);
  }
}

// ---- calls ----------------------------------------------------------------------------------------------------------

template <class T> int64_t conv2d_bytes(const Call& c) {
  const Problem a = of_x_w(c.in[0], c.in[1], c.attr);
  return forward_scratch<T>(c, a.s, a.algorithm);
}
template <class T> int64_t conv2d_act_bytes(const Call& c) {
  const Problem a = of_x_w(c.in[0], c.in[1], c.attr + 1);
  return forward_scratch<T>(c, a.s, a.algorithm);
}
template <class T> int64_t conv2d_dx_bytes(const Call& c) {
  const Problem a = of_g_w(c);
  return dx_scratch<T>(c, a.s, a.algorithm);
}
template <class T> int64_t conv2d_dw_bytes(const Call& c) {
  const Problem a = of_x_g(c);
  return dw_scratch<T>(c, a.s, a.algorithm);
}

}  // namespace

KERNEL_SCRATCH(conv2d, conv2d_bytes) {
  const Problem a = of_x_w(c.in[0], c.in[1], c.attr);
  forward<T>(c, a.s, a.algorithm, in<T>(c, 0), in<T>(c, 1), out<T>(c), nullptr, nullptr);
}

KERNEL_SCRATCH(conv2d_act, conv2d_act_bytes) {
  const Problem a = of_x_w(c.in[0], c.in[1], c.attr + 1);
  T *y = out<T>(c, 0), *h = out<T>(c, 1);
  const Layer<T> layer = {in<T>(c, 2), in<T>(c, 3), y, h, a.s.o};
  const Finish finish = epilogue_of<T>(int(c.attr[0]));
  forward<T>(c, a.s, a.algorithm, in<T>(c, 0), in<T>(c, 1), h ? h : y, finish, &layer);
}

KERNEL_SCRATCH(conv2d_dx, conv2d_dx_bytes) {
  const Problem a = of_g_w(c);
  gradient_x<T>(c, a.s, a.algorithm, in<T>(c, 0), in<T>(c, 1), out<T>(c));
}

KERNEL_SCRATCH(conv2d_dw, conv2d_dw_bytes) {
  const Problem a = of_x_g(c);
  gradient_w<T>(c, a.s, a.algorithm, in<T>(c, 0), in<T>(c, 1), out<T>(c));
}

namespace generant::GENERANT_NAMESPACE {

const Row& conv_row(ConvPass pass) {
  static const Row* const rows[] = {&conv2d_f32_row, &conv2d_act_f32_row, &conv2d_dx_f32_row, &conv2d_dw_f32_row};
  return *rows[pass];
}

}  // namespace generant::GENERANT_NAMESPACE
