// Convolutions and products of matrices as the kernels of several units see them; conv.cu and conv_bf16.cu have the code.
//
// A product of matrices is a convolution of images of one pixel with a filter of 1 x 1.
#pragma once
#include "conv.h"
#include "device.h"

namespace generant::GENERANT_NAMESPACE {

template <class T> struct Layer {                    // what happens to finished sums
  const T* bias;                                     // one per column, or null
  const T* residual;                                 // like y, or null
  T *y, *h;                                          // h = sums + bias + residual, may be null; y = activation(h)
  int activation;                                    // its number in EPILOGUES (ops/conv.py); 0 is the identity
};

// y = conv2d(x, w), by Winograd's algorithm or in a split sum where that suits and the `_bytes` of scratch are given; else by
// a product in one piece.
template <class T> int64_t conv_forward_bytes(const Conv& s, ConvAlgorithm asked);
template <class T>
void conv_forward(const Call& c, const Conv& s, const T* x, const T* w, const Layer<T>& layer, ConvAlgorithm asked = kGemm,
                  void* scratch = nullptr);
// dx = conv2d_dx(g, w); likewise.
template <class T> int64_t conv_dx_bytes(const Conv& s, ConvAlgorithm asked);
template <class T>
void conv_dx(const Call& c, const Conv& s, const T* g, const T* w, T* dx, ConvAlgorithm asked = kGemm, void* scratch = nullptr);
// dw = conv2d_dw(x, g); scratch: conv_dw_bytes.
template <class T> int64_t conv_dw_bytes(const Conv& s);
template <class T> void conv_dw(const Call& c, const Conv& s, const T* x, const T* g, T* dw, void* scratch);

// Those of operands rounded to bfloat16.
int64_t conv_forward_bf16_bytes(const Conv& s);
void conv_forward_bf16(const Call& c, const Conv& s, const float* x, const float* w, const Layer<float>& layer, void* scratch);
void conv_dx_bf16(const Call& c, const Conv& s, const float* g, const float* w, float* dx);
void conv_dw_bf16(const Call& c, const Conv& s, const float* x, const float* g, float* dw, void* scratch);

// to[i] (m, n) = a[i] (m, k) b[i] (k, n), or b[i] (n, k) turned, for i < batch; all dense, one after the other.
void products(const Call& c, int64_t batch, int64_t m, int64_t k, int64_t n, const float* a, const float* b, bool turned, float* to);

// The passes of a 3x3 convolution with stride 1 by F(4x4, 3x3) or F(2x2, 3x3): winograd.cu.
int64_t winograd_bytes(const Conv& s, ConvAlgorithm variant, bool gradient);
void winograd_forward(const Call& c, const Conv& s, ConvAlgorithm variant, const float* x, const float* w, const Layer<float>& layer,
                      void* scratch);
void winograd_dx(const Call& c, const Conv& s, ConvAlgorithm variant, const float* g, const float* w, float* dx, void* scratch);

}  // namespace generant::GENERANT_NAMESPACE

namespace {

// x (n, d) times w (d, o).
inline Conv matrices(int64_t n, int64_t d, int64_t o) {
  Conv s{};
  s.n = n, s.h = s.w = s.p = s.q = s.kh = s.kw = 1, s.c = d, s.o = o;
  s.stride_h = s.stride_w = s.dilation_h = s.dilation_w = s.groups = 1;
  return s;
}

}  // namespace
