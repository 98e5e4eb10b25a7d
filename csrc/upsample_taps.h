// Which taps of a 3 x 3 filter meet which pixels of the small image, once a convolution of the enlarged one is written as
// four phases of 2 x 2 or, seen from the enlarged side, as a filter of 4 x 4 with stride 2. For both kinds of kernels.
#pragma once
#include <stdint.h>

#include "host_device.h"

namespace {

// w's rows that meet at place u of phase a: a = 0: {0}, {1, 2}; a = 1: {0, 1}, {2}.
HOST_DEVICE int64_t first_row(int64_t a, int64_t u) { return u == 0 ? 0 : 2 - (a == 0); }
HOST_DEVICE int64_t end_row(int64_t a, int64_t u) { return u == 1 ? 3 : 1 + a; }

// Tap k = 0 ... 3 of the filter of 4 along an axis, seen from the enlarged side: it is at 2 i - 1 + k.
HOST_DEVICE int64_t phase_of(int64_t k) { return (k + 1) % 2; }
HOST_DEVICE int64_t place_of(int64_t k) { return k < 2 ? 1 : 0; }
HOST_DEVICE int64_t tap_of(int64_t a, int64_t u) { return 3 - a - 2 * u; }

}  // namespace
