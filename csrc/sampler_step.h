// What both kernels of sampler_step read and work out: its inputs, its coefficients, and what depends on a whole sample.
#pragma once
#include <stdint.h>

#include "host_device.h"

namespace {

enum StepAttr { kClip, kThreshold, kThresholdMax, kRescale };
enum StepInput { kX, kPrediction, kUncond, kH, kKeys = kH + 4, kCoef };
enum StepCoefficient { kAX, kAP, kAU, kCX, kCD, kCH, kCNoise = kCH + 4, kNumber, kGX, kGD, kStepCoefficients };

// Which of a key's streams the noise of a step is.
HOST_DEVICE uint64_t step_stream(const double* coef) { return uint64_t(int64_t(coef[kNumber])); }

// A dynamic threshold: the quantile of |D| kept in [1, most].
template <class T> HOST_DEVICE T step_limit(T quantile, T most) { return quantile < 1 ? T(1) : quantile > most ? most : quantile; }

// n numbers by the sums of (number - shift) and of its square: their variance times n.
struct Spread {
  double sum, square;
  HOST_DEVICE double value(int64_t n) const { return square - sum * sum / double(n); }
};

// rescale std(prediction) / std(guided) + 1 - rescale.
HOST_DEVICE double step_rescale(double alone, double guided, double rescale) {
#ifdef __CUDA_ARCH__
  const double ratio = sqrt(alone > 0 ? alone / guided : 0.0);
#else
  const double ratio = __builtin_sqrt(alone > 0 ? alone / guided : 0.0);
#endif
  return rescale * (guided > 0 ? ratio : 1.0) + (1 - rescale);
}

}  // namespace
