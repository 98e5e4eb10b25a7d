// AsPairs: the operands of attention.h as pairs of bfloat16 (gemm_bf16.h).
//
// Queries, times log2(e) scale, and keys are pairs along their channels, weights and values pairs along the keys. Weights
// are rounded as 2^(score - top), while sums of rows are of the weights in float32. Scores, what is added to them, maxima
// and averages are as in float32.
#pragma once
#include "attention.h"

namespace {

struct AsPairs {
  using type = uint32_t;
  static constexpr int L = kLanes<float>, W = kTileCols<float>;
  static constexpr bool kKeyRows = false;
  static constexpr int kKeysAtOnce = 2;
  static int64_t lines(int64_t k) { return pair_lines(k); }
  static int64_t key_stride(int64_t block, int64_t) { return padded(block, L); }
  static int64_t value_stride(int64_t e) { return padded(e, L); }
  static void keys(int64_t rows, int64_t d, const float* from, int64_t ld, uint32_t* to, int64_t stride) {
    pack_pairs_along(d, from, ld, rows, stride, to);
  }
  static void values(int64_t rows, int64_t e, const float* from, int64_t ld, uint32_t* to, int64_t stride) {
    pack_pairs_across(rows, from, ld, e, stride, to);
  }
  static void query(int64_t d, const float* from, int64_t ld, int64_t lanes, float factor, float* spare, uint32_t* to) {
    pack_panel<float>(d, from, ld, lanes, factor, spare);
    pack_pairs_across(d, spare, W, W, W, to);
  }
  // As exponentials(), the weights of two rows becoming a line of pairs in their place.
  __attribute__((noinline)) static void weights(float* scores, int64_t rows, const vf* top, vf* sum) {
    const vf t[2] = {top[0], top[1]};
    vf even[2] = {}, odd[2] = {};
    uint32_t* to = reinterpret_cast<uint32_t*>(scores);
    for (int64_t j = 0; j < rows; j += 2, scores += 2 * W, to += kDotSteps * W) {
      vf a[2], b[2];
      for (int h = 0; h < 2; ++h) {
        a[h] = exp2_negative(load(scores + h * L) - t[h]);
        b[h] = j + 1 < rows ? exp2_negative(load(scores + W + h * L) - t[h]) : vf{};
        even[h] += a[h], odd[h] += b[h];
      }
      for (int h = 0; h < 2; ++h) put_pairs(to + h * L, W, pair_of(a[h], b[h]));
    }
    for (int h = 0; h < 2; ++h) sum[h] = even[h] + odd[h];
  }
};

}  // namespace
