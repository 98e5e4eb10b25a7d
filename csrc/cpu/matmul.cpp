// Matrix products and the linear layer: gemm.h with the right strides, and an epilogue for bias and activation.
//
// The epilogue runs on each finished tile while it is in the first-level cache (epilogue.h).
#include "epilogue.h"
#include "gemm_bf16.h"

#ifndef GENERANT_PARTIAL
#include "micro.h"
#include "micro_runs.h"

namespace generant::GENERANT_NAMESPACE {

#define GENERANT_TILES(T)                                                                             \
  template Micro<T> micro_of<T, 1, false>(int64_t);                                                   \
  template Micro<T> micro_of<T, 1, true>(int64_t);                                                    \
  template Micro<T> micro_of<T, 2, false>(int64_t);                                                   \
  template Micro<T> micro_of<T, 2, true>(int64_t);                                                    \
  template Micro<T> micro_of<T, 8, false>(int64_t);                                                   \
  template Micro<T> micro_of<T, 8, true>(int64_t);                                                    \
  template MicroRuns<T> micro_runs_of<T, 1>(int64_t);                                                 \
  template MicroRuns<T> micro_runs_of<T, 2>(int64_t);                                                 \
  template void pack_transpose<T>(int64_t, const T*, int64_t, int64_t, int64_t, int64_t, T*);
GENERANT_TILES(float)
GENERANT_TILES(double)
#undef GENERANT_TILES

}  // namespace generant::GENERANT_NAMESPACE
#endif

namespace {

// ---- shapes: x (n, d), w (d, o), g (n, o) ---------------------------------------------------------------------------

// The attribute `precision` is the last one; 1 is bf16, which ops/matmul.py lets float32 arrays alone have.
template <class T> inline bool rounds(double precision) { return sizeof(T) == 4 && precision == 1; }

template <class T>
inline int64_t product_bytes(const Call& c, double precision, int64_t m, int64_t n, int64_t k, bool a_rows,
                             bool b_rows) {
  return rounds<T>(precision) ? gemm_bf16_scratch(c, m, n, k) : gemm_scratch<T>(c, m, n, k, a_rows, b_rows);
}
template <class T> inline void product(const Call& c, double precision, const Product<T>& g) {
  if constexpr (sizeof(T) == 4)
    if (rounds<T>(precision)) return gemm_bf16(c, g);
  gemm(c, g);
}

template <class T, int precision = 0> int64_t forward_bytes(const Call& c) {
  return product_bytes<T>(c, c.attr[precision], rows(c.in[0]), c.in[1].shape[1], c.in[1].shape[0], true, true);
}
template <class T> int64_t linear_act_bytes(const Call& c) { return forward_bytes<T, 1>(c); }
template <class T> int64_t matmul_bytes(const Call& c) { return forward_bytes<T>(c); }
template <class T> int64_t matmul_dx_bytes(const Call& c) {
  return product_bytes<T>(c, c.attr[0], rows(c.in[0]), c.in[1].shape[0], c.in[1].shape[1], true, false);
}
template <class T> int64_t matmul_dw_bytes(const Call& c) {
  return product_bytes<T>(c, c.attr[0], last(c.in[0]), last(c.in[1]), rows(c.in[0]), false, true);
}

template <class T> inline Product<T> forward(const Call& c, T* to) {
  const int64_t n = rows(c.in[0]), d = c.in[1].shape[0], o = c.in[1].shape[1];
  return {n, o, d, in<T>(c, 0), d, true, in<T>(c, 1), o, true, to, o, nullptr, nullptr};
}

}  // namespace

KERNEL_SCRATCH(matmul, matmul_bytes) { product(c, c.attr[0], forward<T>(c, out<T>(c))); }

KERNEL_SCRATCH(matmul_dx, matmul_dx_bytes) {
  const int64_t n = rows(c.in[0]), d = c.in[1].shape[0], o = c.in[1].shape[1];
  const Product<T> g = {n, d, o, in<T>(c, 0), o, true, in<T>(c, 1), o, false, out<T>(c), d, nullptr, nullptr};
  product(c, c.attr[0], g);
}

KERNEL_SCRATCH(matmul_dw, matmul_dw_bytes) {
  const int64_t n = rows(c.in[0]), d = last(c.in[0]), o = last(c.in[1]);
  const Product<T> g = {d, o, n, in<T>(c, 0), d, false, in<T>(c, 1), o, true, out<T>(c), o, nullptr, nullptr};
  product(c, c.attr[0], g);
}

KERNEL_SCRATCH(linear, matmul_bytes) {
  Product<T> g = forward<T>(c, out<T>(c));
  const Layer<T> layer = {in<T>(c, 2), nullptr, out<T>(c), nullptr, g.n};
  g.finish = epilogue_of<T>(0);
  g.context = &layer;
  product(c, c.attr[0], g);
}

KERNEL_SCRATCH(linear_act, linear_act_bytes) {
  T *y = out<T>(c, 0), *h = out<T>(c, 1);
  Product<T> g = forward<T>(c, h ? h : y);
  const Layer<T> layer = {in<T>(c, 2), nullptr, y, h, g.n};
  g.finish = epilogue_of<T>(1 + int(c.attr[0]));
  g.context = &layer;
  product(c, c.attr[1], g);
}
