// ((x - mean) * rstd * gain + bias) * s + shift as (x - centre) * a + b, for one channel: on the CPU and on the GPU.
#pragma once
#include "host_device.h"

namespace {

// centre is the mean rounded to T, and b makes up for the rounding; with 0 for a centre, b contains -mean * a, whose
// rounding costs |mean| / std in accuracy.
template <class T>
HOST_DEVICE void fold_channel(double mean, double rstd, double gain, double bias, double s, double shift, T centre, T& a, T& b) {
  a = T(rstd * gain * s);
  b = T(bias * s + shift - (mean - double(centre)) * double(a));
}

}  // namespace
