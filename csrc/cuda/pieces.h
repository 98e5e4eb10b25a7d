// Rows too long for one block, in pieces: block b has piece b % pieces of row b / pieces. What a piece is depends on the
// row's length only, and partial results are merged in the order of the pieces.
#pragma once
#include "block.h"

namespace {

// a / b; in 32 bits where both fit, which is four times as fast.
__device__ inline int64_t quotient(int64_t a, int64_t b) {
  return ((a | b) >> 32) == 0 ? int64_t(uint32_t(a) / uint32_t(b)) : a / b;
}

struct Piece {
  int64_t row, begin, end;                           // elements of the row
};
// Of rows of n elements, `size` in a piece.
__device__ inline Piece piece_of_block(int64_t n, int64_t pieces, int64_t size) {
  const int64_t row = quotient(blockIdx.x, pieces), begin = (blockIdx.x - row * pieces) * size;
  return {row, begin, begin + size < n ? begin + size : n};
}

// The sum of part k of `parts` over the pieces of a row, by a warp.
__device__ inline double sum_of_pieces(const double* partial, int64_t pieces, int parts = 1, int k = 0) {
  double sum = 0;
  for (int64_t p = threadIdx.x % kWarp; p < pieces; p += kWarp) sum += partial[p * parts + k];
  return warp_sum(sum);
}

}  // namespace
