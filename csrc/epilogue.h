// The epilogue of a product or a convolution: bias, residual and activation on a tile while it is in L1.
//
// Compiled once per instruction set, in cpu/activation.cpp, from the vector functions of the elementwise kernels: a
// fused op has the bits of the separate ones.
#pragma once
#include "kernel.h"

namespace generant::GENERANT_NAMESPACE {

template <class T> struct Layer {
  const T* bias;           // one per column, or null
  const T* residual;       // like y, or null
  T *y, *h;                // h may be null
  int64_t ld;
};

// Rows [i, i + m) and columns [j, j + n) are final.
using Finish = void (*)(const void* context, int64_t i, int64_t j, int64_t m, int64_t n);

// For a context that is a Layer<T>. The tile holds the sums, in h if it is wanted and in y otherwise; it leaves
// h = sums + bias + residual and y = activation(h). activation: in the order of EPILOGUES in ops/conv.py, 0 = identity.
template <class T> Finish epilogue_of(int activation);

}  // namespace generant::GENERANT_NAMESPACE
