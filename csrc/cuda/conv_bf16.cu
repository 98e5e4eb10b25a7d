// Convolutions of operands rounded to bfloat16, sums in float32: the kernels of precision="bf16" (ops/conv_bf16.py).
//
// Numbers are rounded where tensor cores take them, so no copy of an operand is made.
#include "conv_passes.h"

namespace generant::GENERANT_NAMESPACE {

int64_t conv_forward_bf16_bytes(const Conv& s) { return forward_split_bytes<float>(s); }
void conv_forward_bf16(const Call& c, const Conv& s, const float* x, const float* w, const Layer<float>& layer, void* scratch) {
  forward_pass<kBf16Product>(c, s, x, w, layer, scratch);
}
void conv_dx_bf16(const Call& c, const Conv& s, const float* g, const float* w, float* dx) { backward_pass<kBf16Product>(c, s, g, w, dx); }
void conv_dw_bf16(const Call& c, const Conv& s, const float* x, const float* g, float* dw, void* scratch) {
  filter_pass<kBf16Product>(c, s, x, g, dw, scratch);
}

}  // namespace generant::GENERANT_NAMESPACE

namespace {

template <class T> int64_t no_bytes(const Call&) { return 0; }
template <class T> int64_t conv2d_bytes(const Call& c) { return conv_forward_bf16_bytes(of_x_w(c.in[0], c.in[1], c.attr).s); }
template <class T> int64_t conv2d_act_bytes(const Call& c) { return conv_forward_bf16_bytes(of_x_w(c.in[0], c.in[1], c.attr + 1).s); }
template <class T> int64_t conv2d_dw_bytes(const Call& c) { return filter_bytes<kBf16Product>(of_x_g(c).s); }

}  // namespace

KERNEL_SCRATCH_F32(conv2d_bf16, conv2d_bytes) {
  conv_forward_bf16(c, of_x_w(c.in[0], c.in[1], c.attr).s, in<T>(c, 0), in<T>(c, 1), {nullptr, nullptr, out<T>(c), nullptr, 0},
                    c.scratch);
}

KERNEL_SCRATCH_F32(conv2d_act_bf16, conv2d_act_bytes) {
  conv_forward_bf16(c, of_x_w(c.in[0], c.in[1], c.attr + 1).s, in<T>(c, 0), in<T>(c, 1),
                    {in<T>(c, 2), in<T>(c, 3), out<T>(c), out<T>(c, 1), int(c.attr[0])}, c.scratch);
}

KERNEL_SCRATCH_F32(conv2d_dx_bf16, no_bytes) { conv_dx_bf16(c, of_g_w(c).s, in<T>(c, 0), in<T>(c, 1), out<T>(c)); }

KERNEL_SCRATCH_F32(conv2d_dw_bf16, conv2d_dw_bytes) { conv_dw_bf16(c, of_x_g(c).s, in<T>(c, 0), in<T>(c, 1), out<T>(c), c.scratch); }
