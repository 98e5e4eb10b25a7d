// Matrix products and the linear layer: gemm.h with the right strides, and an epilogue for bias and activation.
//
// The epilogue runs on each finished tile while it is in the first-level cache (epilogue.h).
#include "epilogue.h"
#include "gemm.h"

namespace {

// ---- shapes: x (n, d), w (d, o), g (n, o) ---------------------------------------------------------------------------

template <class T> int64_t matmul_bytes(const Call& c) {
  return gemm_scratch<T>(c, rows(c.in[0]), c.in[1].shape[1], c.in[1].shape[0], true, true);
}
template <class T> int64_t matmul_dx_bytes(const Call& c) {
  return gemm_scratch<T>(c, rows(c.in[0]), c.in[1].shape[0], c.in[1].shape[1], true, false);
}
template <class T> int64_t matmul_dw_bytes(const Call& c) {
  return gemm_scratch<T>(c, last(c.in[0]), last(c.in[1]), rows(c.in[0]), false, true);
}

template <class T> inline Product<T> forward(const Call& c, T* to) {
  const int64_t n = rows(c.in[0]), d = c.in[1].shape[0], o = c.in[1].shape[1];
  return {n, o, d, in<T>(c, 0), d, true, in<T>(c, 1), o, true, to, o, nullptr, nullptr};
}

}  // namespace

KERNEL_SCRATCH(matmul, matmul_bytes) { gemm(c, forward<T>(c, out<T>(c))); }

KERNEL_SCRATCH(matmul_dx, matmul_dx_bytes) {
  const int64_t n = rows(c.in[0]), d = c.in[1].shape[0], o = c.in[1].shape[1];
  gemm(c, Product<T>{n, d, o, in<T>(c, 0), o, true, in<T>(c, 1), o, false, out<T>(c), d, nullptr, nullptr});
}

KERNEL_SCRATCH(matmul_dw, matmul_dw_bytes) {
  const int64_t n = rows(c.in[0]), d = last(c.in[0]), o = last(c.in[1]);
  gemm(c, Product<T>{d, o, n, in<T>(c, 0), d, false, in<T>(c, 1), o, true, out<T>(c), o, nullptr, nullptr});
}

KERNEL_SCRATCH(linear, matmul_bytes) {
  Product<T> g = forward<T>(c, out<T>(c));
  const Layer<T> layer = {in<T>(c, 2), nullptr, out<T>(c), nullptr, g.n};
  g.finish = finish_layer<T, Identity>;
  g.context = &layer;
  gemm(c, g);
}

KERNEL_SCRATCH(linear_act, matmul_bytes) {
  T *y = out<T>(c, 0), *h = out<T>(c, 1);
  Product<T> g = forward<T>(c, h ? h : y);
  const Layer<T> layer = {in<T>(c, 2), nullptr, y, h, g.n};
  g.finish = activation_of<T>(int(c.attr[0]));
  g.context = &layer;
  gemm(c, g);
}
