// What the kernel functions of the pairwise ops are made of, for CPU and GPU alike: their numbers, their attributes, and
// the constants that follow from those.
#pragma once
#include <math.h>
#include <stdint.h>

#include "host_device.h"

namespace {

// What a pair of rows is reduced to: sum_k of x y, (x - y)^2, |x - y|.
enum Form { kInner, kSquare, kManhattan };

// The order of the ops' choices, and of the attributes that all kernel ops begin with.
enum KernelName {
  kRbf, kLaplace, kLaplacian, kPolynomial, kEnergy, kRationalQuadratic, kMatern32, kMatern52, kExpDot
};
enum KernelAttr { kKernel, kDegree, kGamma, kCoef0, kAlpha, kExcludeDiagonal };
enum MatvecAttr { kBandwidthAttr = kExcludeDiagonal + 1 };        // kernel_matvec and its derivatives
enum SumAttr { kCenter = kExcludeDiagonal + 1, kBandwidth };      // kernel_sum, kernel_row_sums
enum SoftmaxAttr { kScoreScale, kScoreCost };                     // logsumexp, softmax_matmul
enum SoftmaxCost { kSquareEuclidean, kEuclidean, kDot };

constexpr int kMaxBandwidths = 16;
constexpr double kLog2E = 1.4426950408889634074, kLn2 = 0.69314718055994530942;

// Up to so many coordinates squared distances are sums of squared differences; above, they are expanded.
constexpr int kDifferenceDims = 24;
// A pair is measured again from the raw rows where |x - y|^2 < kNear (|x|^2 + |y|^2): there cancellation has cost more
// than two of float32's seven digits.
constexpr double kNear = 1.0 / 64;

template <class T> struct Limits;
template <> struct Limits<float> { static constexpr float unit = 0x1p-24f, tiny = 0x1p-126f, huge = 0x1p120f; };
template <> struct Limits<double> { static constexpr double unit = 0x1p-53, tiny = 0x1p-1022, huge = 0x1p1000; };

// b^e for e >= 1.
template <class V> HOST_DEVICE V integer_power(V b, int64_t e) {
  for (; !(e & 1); e >>= 1) b = b * b;
  V v = b;
  while (e >>= 1) {
    b = b * b;
    if (e & 1) v = v * b;
  }
  return v;
}

template <class T> struct KernelParameters {
  static constexpr int kMostSquarings = 4;           // so a mixture errs less than 16 times as much as one exponential
  int kernel, form, count;                           // count: bandwidths, 1 for kernels that have none
  // Of the bandwidths, from the widest: exp(-rate q) or exp(-rate sqrt(q)) is 2^(scale ..), or the exponential before,
  // squared `step` times (-1: not at all); 0 means one of its own. rate2 = rate^2.
  T scale[kMaxBandwidths], rate[kMaxBandwidths], rate2[kMaxBandwidths];
  int step[kMaxBandwidths];
  T gamma, coef0, alpha;
  double wide_gamma;
  int64_t degree;

  // attr: the call's attributes, kernel first; bandwidth_attr: a count and so many values; d: columns of x.
  KernelParameters(const double* attr, const double* bandwidth_attr, int64_t d) {
    kernel = int(attr[kKernel]);
    degree = int64_t(attr[kDegree]);
    wide_gamma = attr[kGamma] == attr[kGamma] ? attr[kGamma] : 1.0 / double(d > 0 ? d : 1);
    gamma = T(wide_gamma), coef0 = T(attr[kCoef0]), alpha = T(attr[kAlpha]);
    form = kernel == kPolynomial || kernel == kExpDot ? kInner : kernel == kLaplacian ? kManhattan : kSquare;
    count = int(bandwidth_attr[0]);
    if (form == kInner || kernel == kEnergy || count < 1) count = 1;
    double rates[kMaxBandwidths];
    for (int b = 0; b < count; ++b) {
      const double h = bandwidth_attr[1 + b];
      double r = 1 / h;
      if (kernel == kRbf) r = 0.5 / (h * h);
      if (kernel == kRationalQuadratic) r = 0.5 / (h * h * attr[kAlpha]);
      if (kernel == kMatern32) r = 1.7320508075688772935 / h;
      if (kernel == kMatern52) r = 2.2360679774997896964 / h;
      if (kernel == kExpDot) r = -wide_gamma;
      int at = b;
      for (; at > 0 && rates[at - 1] > r; --at) rates[at] = rates[at - 1];
      rates[at] = r;
    }
    int squared = 0;                                 // since the last exponential; each doubles its relative error
    for (int b = 0; b < count; ++b) {
      scale[b] = T(-kLog2E * rates[b]), rate[b] = T(rates[b]), rate2[b] = T(rates[b] * rates[b]);
      step[b] = 0;
      if (b > 0) {
        const double ratio = rates[b] / rates[b - 1], eps = 4 * double(Limits<T>::unit);
        for (int k = 1; k + squared <= kMostSquarings; ++k)
          if (ratio > double(1 << k) * (1 - eps) && ratio < double(1 << k) * (1 + eps)) step[b] = k;
        if (ratio == 1) step[b] = -1;
      }
      squared = step[b] == 0 ? 0 : squared + (step[b] > 0 ? step[b] : 0);
    }
  }
};

}  // namespace
