// Which tiles of a table of pairs a task has: exact whole numbers, for CPU and GPU alike.
#pragma once
#include <math.h>
#include <stdint.h>

#include "host_device.h"

namespace {

struct TileIndex { int64_t row, column; };

HOST_DEVICE int64_t triangle_size(int64_t n) { return n * (n + 1) / 2; }

// The t-th pair (row, column) with row <= column < n, row after row: (0, 0), (0, 1), .., (1, 1), .. Counted from the end
// row n - 1 - k begins after k (k + 1) / 2 pairs; a square root finds k but for rounding. t < 2^60.
HOST_DEVICE TileIndex triangle_tile(int64_t t, int64_t n) {
  const int64_t left = triangle_size(n) - 1 - t;
  int64_t k = int64_t((sqrt(8.0 * double(left) + 1.0) - 1.0) / 2.0);
  while (triangle_size(k) > left) --k;
  while (triangle_size(k + 1) <= left) ++k;
  return {n - 1 - k, n - 1 - (left - triangle_size(k))};
}

// Side of the squares that a table of n x m pairs is cut into: a multiple of `unit`, the smallest power of two times it
// that leaves at most `most` squares. What squares leave behind is then O(sqrt(n m most)).
HOST_DEVICE int64_t square_side(int64_t n, int64_t m, int64_t unit, int64_t most) {
  int64_t side = unit;
  while (double((n + side - 1) / side) * double((m + side - 1) / side) > double(most)) side *= 2;
  return side;
}

}  // namespace
