// Winograd's engine as other units see it: 3x3 filters with stride 1 as they are; 4x4 filters with stride 2 as four 2x2 ones
// over the phases of the pixels, which the forward pass sums and the gradient in x writes. Which convolutions it serves
// is in conv.h.
//
// The engine (winograd.h, winograd_dw.h) is compiled once per instruction set, in cpu/winograd.cpp, for float32 only:
// its rounding errors would be a waste of float64.
#pragma once
#include "conv.h"
#include "epilogue.h"

namespace generant::GENERANT_NAMESPACE {

// A stride-1 convolution as the engine sees it: sums over one or more sources, written with a stride. Several sources
// are the phases of a strided convolution, several calls those of its adjoint.
struct WinogradSource {
  const float* x;                          // pixel (n, i, j) at x + n * sample + i * row + j * pixel
  int64_t sample, row, pixel;
  int64_t h, w, top, left;                 // size, and padding before it
  const float* u;                          // the transformed filter
};
struct WinogradConv {
  int64_t n, c, o, p, q;                   // samples, channels of every source, channels, rows and columns of the output
  WinogradSource source[4];
  int sources;
  float* y;                                // pixel (n, p, q) at y + n * sample + p * row + q * pixel
  int64_t sample, row, pixel;
  Finish finish;                           // or null
  const void* context;
  // If given, the input is activate((x - centre) * a + b): `affine` writes c of each for sample n, and `activate` makes
  // y of rows of x. Else it is x itself.
  void (*affine)(const void* norm, int64_t n, float* centre, float* a, float* b);
  const void* norm;
  void (*activate)(const float* x, float* y, int64_t rows, int64_t width, const float* centre, const float* a, const float* b);
};

// All of s's output, at y.
inline WinogradConv whole_output(const Conv& s, float* y) {
  return {s.n, s.c, s.o, s.p, s.q, {}, 1, y, s.p * s.q * s.o, s.q * s.o, s.o, nullptr, nullptr, nullptr, nullptr, nullptr};
}

// The passes under a variant. Each returns its bytes of scratch, and runs if scratch is given.
//
// w (kh, kw, c, o) with rows of ld numbers, or the transformed filter u from outside; `conv` has the output, its epilogue
// and the activation of x.
int64_t winograd_forward(const Call& call, const Conv& s, ConvAlgorithm variant, const float* x, const float* w, int64_t ld,
                         const float* u, WinogradConv conv, void* scratch);
// `turned`: w is (kh, kw, o, c) already.
int64_t winograd_dx(const Call& call, const Conv& s, ConvAlgorithm variant, const float* g, const float* w, bool turned,
                    float* dx, void* scratch);
int64_t winograd_filter_gradient(const Call& call, const Conv& s, ConvAlgorithm variant, const float* x, const float* g,
                                 float* dw, void* scratch);

// (taps, c, o) -> (taps, o, ld): rows of the transposed filter are whole vectors.
void transpose_filter(const Call& call, const float* w, int64_t taps, int64_t c, int64_t o, int64_t ld, float* to);

}  // namespace generant::GENERANT_NAMESPACE
