// The bits of float and double as unsigned integers of their size.
#pragma once
#include <stdint.h>
#include <string.h>

#include "host_device.h"

namespace {

template <class T> struct BitsOf { typedef uint32_t type; };
template <> struct BitsOf<double> { typedef uint64_t type; };

template <class To, class From> HOST_DEVICE To same_bits(From x) {
  static_assert(sizeof(To) == sizeof(From), "as many bits");
  To y;
  memcpy(&y, &x, sizeof y);
  return y;
}

}  // namespace
