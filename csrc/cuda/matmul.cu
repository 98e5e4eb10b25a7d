// Matrix products and the linear layer: convolutions of images of one pixel (convolve.h).
#include "convolve.h"

namespace {

// The attribute `precision` is the last one; 1 is bf16, which ops/matmul.py lets float32 arrays alone have.
inline bool rounds(double precision) { return precision == 1; }

inline Conv forward_sizes(const Call& c) { return matrices(rows(c.in[0]), c.in[1].shape[0], c.in[1].shape[1]); }
inline Conv dw_sizes(const Call& c) { return matrices(rows(c.in[0]), last(c.in[0]), last(c.in[1])); }

template <class T> inline void forward(const Call& c, double precision, const Layer<T>& layer) {
  if constexpr (sizeof(T) == 4)
    if (rounds(precision)) return conv_forward_bf16(c, forward_sizes(c), in<T>(c, 0), in<T>(c, 1), layer, c.scratch);
  conv_forward<T>(c, forward_sizes(c), in<T>(c, 0), in<T>(c, 1), layer, kGemm, c.scratch);
}

template <class T> int64_t forward_bytes(const Call& c) { return conv_forward_bytes<T>(forward_sizes(c), kGemm); }
template <class T> int64_t dx_bytes(const Call& c) { return conv_dx_bytes<T>(forward_sizes(c), kGemm); }
template <class T> int64_t dw_bytes(const Call& c) { return conv_dw_bytes<T>(dw_sizes(c)); }

}  // namespace

KERNEL_SCRATCH(matmul, forward_bytes) { forward<T>(c, c.attr[0], {nullptr, nullptr, out<T>(c), nullptr, 0}); }

KERNEL_SCRATCH(linear, forward_bytes) { forward<T>(c, c.attr[0], {in<T>(c, 2), nullptr, out<T>(c), nullptr, 0}); }

// Activations are counted from identity in EPILOGUES, from relu in ACTIVATIONS (ops/conv.py, ops/matmul.py).
KERNEL_SCRATCH(linear_act, forward_bytes) { forward<T>(c, c.attr[1], {in<T>(c, 2), nullptr, out<T>(c), out<T>(c, 1), 1 + int(c.attr[0])}); }

KERNEL_SCRATCH(matmul_dx, dx_bytes) {
  const Conv s = forward_sizes(c);
  if constexpr (sizeof(T) == 4)
    if (rounds(c.attr[0])) return conv_dx_bf16(c, s, in<T>(c, 0), in<T>(c, 1), out<T>(c));
  conv_dx<T>(c, s, in<T>(c, 0), in<T>(c, 1), out<T>(c), kGemm, c.scratch);
}

KERNEL_SCRATCH(matmul_dw, dw_bytes) {
  if constexpr (sizeof(T) == 4)
    if (rounds(c.attr[0])) return conv_dw_bf16(c, dw_sizes(c), in<T>(c, 0), in<T>(c, 1), out<T>(c), c.scratch);
  conv_dw<T>(c, dw_sizes(c), in<T>(c, 0), in<T>(c, 1), out<T>(c), c.scratch);
}
