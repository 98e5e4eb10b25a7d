// Convolution with operands rounded to bfloat16 and sums in float32: the kernels of precision="bf16".
//
// With AVX512-BF16 the products of the forward pass and of the gradient in x are tap_conv() over pairs: strips and
// panels hold two neighbouring channels, rounded, in a 32-bit lane (an odd last channel has zero beside it), and one
// instruction adds the dot product of two pairs. A chain is kConvDepth pairs. The gradient in a large 1 x 1 filter is
// gemm_bf16().
// Everything else is the float32 kernel on rounded copies of the operands: products of two such numbers are exact in
// float32, so it is the same sum.
#include "conv_taps.h"
#include "gemm_bf16.h"

#if defined(__AVX512BF16__)

namespace {

struct Pair {
  uint32_t bits;
};
template <> struct VecOf<Pair> : VecOf<uint32_t> {};
inline pairs broadcast(Pair x) { return x.bits - pairs{}; }
inline vf multiply_add(pairs a, pairs b, vf acc) { return dot_pairs(acc, a, b); }

}  // namespace

namespace generant::GENERANT_NAMESPACE {

template <> struct Terms<Pair> {
  using Sum = float;
  static constexpr bool kNumbers = false;
  static constexpr int64_t count(int64_t numbers) { return (numbers + 1) / 2; }
};

}  // namespace generant::GENERANT_NAMESPACE

#include "micro_runs.h"

namespace {

static void put_pixels(const Strip& s, const float* from, int64_t pixels, Pair* to) {
  constexpr int64_t L = kLanes<Pair>;
  const int64_t group_c = s.c / s.groups;
  const bool whole = group_c % 2 == 0;                     // pairs end where groups end
  const int64_t length = whole ? pixels * s.c : group_c, lines = whole ? 1 : pixels * s.groups;
  for (int64_t i = 0; i < lines; ++i, from += length) {
    int64_t k = 0;
    for (; k + 2 * L <= length; k += 2 * L, to += L) store_pairs(&to->bits, load_as_pairs(from + k, 2 * L));
    const int64_t rest = Terms<Pair>::count(length - k);
    if (rest > 0) store_first(reinterpret_cast<float*>(to), (vf)load_as_pairs(from + k, length - k), rest);
    to += rest;
  }
}

static void pack_tap(bool rows, int64_t k, const float* from, int64_t ld, int64_t w, Pair* to) {
  if (rows) pack_pairs_across(k, from, ld, w, kPairsCols, &to->bits);
  else pack_pairs_along(k, from, ld, w, kPairsCols, &to->bits);
}

}  // namespace

#endif

namespace {

// ---- the float32 kernel on rounded operands -------------------------------------------------------------------------

inline int64_t operand_bytes(const Array& a) { return round64(size(a) * int64_t(sizeof(float))); }

inline int64_t rounded_bytes(const Call& c, ConvPass pass) {
  const auto rest = conv_row(pass).scratch;
  return operand_bytes(c.in[0]) + operand_bytes(c.in[1]) + rest(c);
}

static void run_rounded(const Call& c, ConvPass pass) {
  constexpr int64_t L = kLanes<float>;
  Array in[4];
  for (int i = 0; i < c.n_in; ++i) in[i] = c.in[i];
  char* scratch = static_cast<char*>(c.scratch);
  for (int i = 0; i < 2; ++i) {
    const float* from = static_cast<const float*>(in[i].data);
    float* to = reinterpret_cast<float*>(scratch);
    parallel_range(c, size(in[i]), 1 << 15, [&](int64_t begin, int64_t end) {
      for (int64_t k = begin; k < end; k += L) {
        const int64_t n = least(L, end - k);
        const vf x = n == L ? load(from + k) : load_first(from + k, n);
        store_first(to + k, (vf)(round_bf16(x) & 0xffff0000u), n);
      }
    });
    in[i].data = to;
    scratch += operand_bytes(c.in[i]);
  }
  Call call = c;
  call.in = in;
  call.scratch = scratch;
  conv_row(pass).run(call);
}

// ---- passes ---------------------------------------------------------------------------------------------------------

#if defined(__AVX512BF16__)

inline bool forward_by_pairs(const Problem& a) { return !a.s.empty() && choose_forward(a.s, a.algorithm) == kGemm; }
inline bool dx_by_pairs(const Problem& a) { return !a.s.empty() && choose_dx(a.s, a.algorithm) == kGemm; }

static int64_t forward_bytes(const Call& c, ConvPass pass) {
  const Problem a = of_x_w(c.in[0], c.in[1], c.attr + (pass == kForwardAct));
  if (!forward_by_pairs(a)) return rounded_bytes(c, pass);
  return taps_bytes(a.s) + tap_conv_scratch<float, Pair>(c, forward_conv<float>(a.s, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr));
}

static void forward(const Call& c, ConvPass pass) {
  const Problem a = of_x_w(c.in[0], c.in[1], c.attr + (pass == kForwardAct));
  if (!forward_by_pairs(a)) return run_rounded(c, pass);
  float *y = out<float>(c), *h = nullptr;
  Finish finish = nullptr;
  if (pass == kForwardAct) h = out<float>(c, 1), finish = epilogue_of<float>(int(c.attr[0]));
  const Layer<float> layer = {finish ? in<float>(c, 2) : nullptr, finish ? in<float>(c, 3) : nullptr, y, h, a.s.o};
  tap_conv<float, Pair>(c, forward_conv(a.s, static_cast<Tap*>(c.scratch), in<float>(c, 0), in<float>(c, 1), h ? h : y,
                                        finish, &layer), static_cast<char*>(c.scratch) + taps_bytes(a.s));
}

static int64_t dx_bytes(const Call& c) {
  const Problem a = of_g_w(c);
  if (!dx_by_pairs(a)) return rounded_bytes(c, kGradientX);
  int64_t most = 0;
  phases(a.s, [&](int64_t i, int64_t j) {
    const int64_t bytes = tap_conv_scratch<float, Pair>(c, phase_conv<float>(a.s, i, j, nullptr, nullptr, nullptr, nullptr));
    if (bytes > most) most = bytes;
  });
  return taps_bytes(a.s) + most;
}

static void gradient_x(const Call& c) {
  const Problem a = of_g_w(c);
  if (!dx_by_pairs(a)) return run_rounded(c, kGradientX);
  phases(a.s, [&](int64_t i, int64_t j) {
    tap_conv<float, Pair>(c, phase_conv(a.s, i, j, static_cast<Tap*>(c.scratch), in<float>(c, 0), in<float>(c, 1), out<float>(c)),
                          static_cast<char*>(c.scratch) + taps_bytes(a.s));
  });
}

// Not for small filters, whose tiles are too few for many threads: conv_dw() shares out the pixels.
inline bool dw_by_pairs(const Problem& a) {
  return !a.s.empty() && a.s.pointwise() && choose_dw(a.s, a.algorithm) == kGemm && a.s.c * a.s.o >= 1 << 14;
}

static int64_t dw_bytes(const Call& c) {
  const Problem a = of_x_g(c);
  return dw_by_pairs(a) ? gemm_bf16_scratch(c, a.s.c, a.s.o, a.s.n * a.s.h * a.s.w) : rounded_bytes(c, kGradientW);
}

static void gradient_w(const Call& c) {
  const Problem a = of_x_g(c);
  const Conv& s = a.s;
  if (!dw_by_pairs(a)) return run_rounded(c, kGradientW);
  gemm_bf16(c, {s.c, s.o, s.n * s.h * s.w, in<float>(c, 0), s.c, false, in<float>(c, 1), s.o, true, out<float>(c), s.o,
                nullptr, nullptr});
}

#else

inline int64_t forward_bytes(const Call& c, ConvPass pass) { return rounded_bytes(c, pass); }
inline void forward(const Call& c, ConvPass pass) { run_rounded(c, pass); }
inline int64_t dx_bytes(const Call& c) { return rounded_bytes(c, kGradientX); }
inline void gradient_x(const Call& c) { run_rounded(c, kGradientX); }
inline int64_t dw_bytes(const Call& c) { return rounded_bytes(c, kGradientW); }
inline void gradient_w(const Call& c) { run_rounded(c, kGradientW); }

#endif

template <class T> int64_t conv2d_bytes(const Call& c) { return forward_bytes(c, kForward); }
template <class T> int64_t conv2d_act_bytes(const Call& c) { return forward_bytes(c, kForwardAct); }
template <class T> int64_t conv2d_dx_bytes(const Call& c) { return dx_bytes(c); }
template <class T> int64_t conv2d_dw_bytes(const Call& c) { return dw_bytes(c); }

}  // namespace

KERNEL_SCRATCH_F32(conv2d_bf16, conv2d_bytes) { forward(c, kForward); }
KERNEL_SCRATCH_F32(conv2d_act_bf16, conv2d_act_bytes) { forward(c, kForwardAct); }
KERNEL_SCRATCH_F32(conv2d_dx_bf16, conv2d_dx_bytes) { gradient_x(c); }
KERNEL_SCRATCH_F32(conv2d_dw_bf16, conv2d_dw_bytes) { gradient_w(c); }
