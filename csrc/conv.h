// The geometry of a two-dimensional convolution, read from a call, and which algorithm serves it.
//
// Every element of the output is y[n, p, q, o] = sum over i, j, c of
//   x[n, p * stride + i * dilation - top, q * stride + j * dilation - left, first(o) + c] * w[i, j, c, o],
// zero outside x, where first(o) is the first channel of o's group. The gradients in x and in w contract the same sum
// over other indices, so the three kernels share this description.
#pragma once
#include "kernel.h"

namespace generant::GENERANT_NAMESPACE {

enum ConvAlgorithm { kAuto, kGemm, kDirect, kWinograd2, kWinograd4 };  // the order of ALGORITHMS in ops/conv.py

struct Conv {
  int64_t n, h, w, c;                        // input: samples, rows, columns, channels
  int64_t kh, kw, o;                         // filter: rows, columns, output channels
  int64_t p, q;                              // output: rows, columns
  int64_t stride_h, stride_w, top, left, bottom, right, dilation_h, dilation_w, groups;
  int64_t group_c() const { return c / groups; }
  int64_t group_o() const { return o / groups; }
  bool pointwise() const {                   // one product of matrices, with nothing to gather
    return kh == 1 && kw == 1 && stride_h == 1 && stride_w == 1 && top + left + bottom + right == 0 && groups == 1;
  }
  bool depthwise() const { return groups == c && groups == o && c > 1; }
  bool empty() const { return n * h * w * c * p * q * o * kh * kw == 0; }
};

enum ConvPass { kForward, kForwardAct, kGradientX, kGradientW };
// The float32 kernel of a pass, compiled in cpu/conv.cpp.
const Row& conv_row(ConvPass pass);

}  // namespace generant::GENERANT_NAMESPACE

namespace {

// Reads a tuple attribute, encoded as its length and its values: one value stands for all, two for (rows, columns) or,
// of four, for (both of the rows, both of the columns).
inline const double* read_tuple(const double* attr, int64_t* values, int count) {
  const int n = int(attr[0]);
  for (int i = 0; i < count; ++i) values[i] = int64_t(attr[1 + (n == 1 ? 0 : n == count ? i : i / (count / 2))]);
  return attr + 1 + n;
}

// stride, padding (top, bottom, left, right), dilation, groups, algorithm, precision. p and q from everything else.
// Operands that were rounded to bfloat16 never go through Winograd's transforms, which would need more digits.
inline ConvAlgorithm read_geometry(const double* attr, Conv& s) {
  int64_t stride[2], padding[4], dilation[2];
  attr = read_tuple(attr, stride, 2);
  attr = read_tuple(attr, padding, 4);
  attr = read_tuple(attr, dilation, 2);
  s.stride_h = stride[0], s.stride_w = stride[1], s.dilation_h = dilation[0], s.dilation_w = dilation[1];
  s.top = padding[0], s.bottom = padding[1], s.left = padding[2], s.right = padding[3];
  s.groups = int64_t(attr[0]);
  const int64_t rows = s.h + padding[0] + padding[1] - dilation[0] * (s.kh - 1) - 1;
  const int64_t columns = s.w + padding[2] + padding[3] - dilation[1] * (s.kw - 1) - 1;
  s.p = rows < 0 ? 0 : rows / stride[0] + 1;
  s.q = columns < 0 ? 0 : columns / stride[1] + 1;
  const ConvAlgorithm asked = ConvAlgorithm(int(attr[1]));
  return attr[2] == 1 && asked != kGemm ? kDirect : asked;
}

// ---- which algorithm serves a pass: a matter of the shape of one sample, so that a batch does not change bits ---------

constexpr int64_t kFewChannels = 4;          // so few outputs waste most of a tile of a matrix product

inline bool few_outputs_serve(const Conv& s, int64_t outputs, int64_t inputs) {
  return s.groups == 1 && outputs <= kFewChannels && inputs >= 2 * kFewChannels;
}
inline ConvAlgorithm direct_or_gemm(bool direct, ConvAlgorithm asked) {
  return direct && (asked == kAuto || asked == kDirect) ? kDirect : kGemm;
}

inline ConvAlgorithm choose_forward(const Conv& s, ConvAlgorithm asked) {
  return direct_or_gemm(s.depthwise() || few_outputs_serve(s, s.o, s.c), asked);
}
inline ConvAlgorithm choose_dx(const Conv& s, ConvAlgorithm asked) {
  return direct_or_gemm(s.depthwise() || few_outputs_serve(s, s.c, s.o), asked);
}
inline ConvAlgorithm choose_dw(const Conv& s, ConvAlgorithm asked) {
  return direct_or_gemm(s.depthwise() || few_outputs_serve(s, s.o, s.c), asked);
}

// ---- and Winograd's algorithm -----------------------------------------------------------------------------------------

constexpr int64_t kFewestChannels = 24;    // below, transforms cost more than they save

inline bool winograd_square(const Conv& s) {
  return s.kh == 3 && s.kw == 3 && s.stride_h == 1 && s.stride_w == 1;
}
inline bool winograd_halving(const Conv& s) {
  return s.kh == 4 && s.kw == 4 && s.stride_h == 2 && s.stride_w == 2;
}

// How many products per output a grid of p x q needs, tiles that hang over included, against those of a direct sum.
inline double winograd_cost(int64_t p, int64_t q, int m, int n, int sources) {
  const double tiles = double(ceil_div(p, m)) * double(ceil_div(q, m));
  return tiles * n * n * sources / (double(p) * double(q));
}

// The variant for a pass that sums over `c` channels, writes `o` and has its tiles on a grid of p x q, or kGemm for
// none. A matter of one sample's shape: a batch does not change bits.
inline ConvAlgorithm winograd_choice(const Conv& s, ConvAlgorithm asked, int64_t c, int64_t o, int64_t p, int64_t q) {
  const bool square = winograd_square(s), halving = winograd_halving(s);
  const bool fits = s.dilation_h == 1 && s.dilation_w == 1 && s.groups == 1 && (square || halving) && p > 0 && q > 0 && c > 0 && o > 0;
  if (!fits || asked == kGemm || asked == kDirect) return kGemm;
  if (asked == kWinograd4) return kWinograd4;
  if (asked == kWinograd2) return square ? kWinograd2 : kGemm;
  if (c < kFewestChannels || o < kFewestChannels) return kGemm;
  if (halving) return winograd_cost(p, q, 4, 5, 4) <= 10 ? kWinograd4 : kGemm;
  const double four = winograd_cost(p, q, 4, 6, 1), two = winograd_cost(p, q, 2, 4, 1);
  if ((four < two ? four : two) > 6) return kGemm;
  return four < two ? kWinograd4 : kWinograd2;
}

// One dimension of a phase of a 4 x 4 filter with stride 2: pixels 2 k + a of the input meet its rows `first`, first + 2.
struct Phase {
  int64_t size, first, shift;              // pixels; y[p] reads pixels p + shift and p + shift + 1 of the phase
  Phase(int64_t n, int64_t before, int64_t a) : size((n - a + 1) / 2), first((before + a) & 1), shift((first - before - a) / 2) {}
};

// ---- calls ----------------------------------------------------------------------------------------------------------

struct Problem {
  Conv s;
  ConvAlgorithm algorithm;
};

// `attr` starts at stride. x (n, h, w, c); w (kh, kw, c / groups, o).
inline Problem of_x_w(const Array& x, const Array& w, const double* attr) {
  Problem a{};
  Conv& s = a.s;
  s.n = x.shape[0], s.h = x.shape[1], s.w = x.shape[2], s.c = x.shape[3];
  s.kh = w.shape[0], s.kw = w.shape[1], s.o = w.shape[3];
  a.algorithm = read_geometry(attr, s);
  return a;
}

inline Problem of_g_w(const Call& c) {       // size, stride, ...
  Problem a{};
  Conv& s = a.s;
  const Array &g = c.in[0], &w = c.in[1];
  int64_t size[2];
  const double* attr = read_tuple(c.attr, size, 2);
  s.n = g.shape[0], s.h = size[0], s.w = size[1];
  s.kh = w.shape[0], s.kw = w.shape[1], s.o = w.shape[3];
  a.algorithm = read_geometry(attr, s);
  s.c = w.shape[2] * s.groups;
  return a;
}

inline Problem of_x_g(const Call& c) {       // kernel, stride, ...
  Problem a{};
  Conv& s = a.s;
  const Array &x = c.in[0], &g = c.in[1];
  int64_t kernel[2];
  const double* attr = read_tuple(c.attr, kernel, 2);
  s.n = x.shape[0], s.h = x.shape[1], s.w = x.shape[2], s.c = x.shape[3];
  s.kh = kernel[0], s.kw = kernel[1], s.o = g.shape[3];
  a.algorithm = read_geometry(attr, s);
  return a;
}

// winograd_conv2d: x, u; o, padding, activation.
inline Conv of_x_u(const Call& c) {
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

}  // namespace
