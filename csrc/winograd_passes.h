// The passes of a convolution as calls of Winograd's engines: which pixels and which taps each of them takes.
//
// A strided pass reads or writes every second pixel in place; no phase is ever copied.
#pragma once
#include "winograd.h"
#include "winograd_dw.h"

namespace {

// The parts of scratch of one call.
struct Arena {
  float* at;
  int64_t used = 0;
  float* take(int64_t n) {
    float* p = at ? at + used : nullptr;
    used += padded(n, 16);
    return p;
  }
};

static void transpose_taps(const Call& call, const float* w, int64_t taps, int64_t c, int64_t o, int64_t ld, float* to) {
  constexpr int L = kLanes<float>;
  const int64_t grain = padded(ceil_div(65536, ld), L), blocks = ceil_div(o, grain);
  parallel(call, taps * blocks, [&](int64_t task, int) {
    const int64_t k = task / blocks, j = task % blocks * grain;
    pack_transpose<float>(least(grain, o - j), w + k * c * o + j, o, c, ld, 0, to + (k * o + j) * ld);
  });
}

// ---- forward and gradient in x ----------------------------------------------------------------------------------------

// Everything a pass does, told to `run`: prepare(u, w, row, column, ld) transforms a filter, conv(problem) convolves.
// With scratch null, only what it takes is counted.
template <class F> struct WinogradPass {
  const Call& call;
  Arena arena;
  int64_t most = 0;                        // the largest need of a convolution after the filters
  float* filter(const float* w, int64_t row, int64_t column, int64_t ld, int64_t c, int64_t o) {
    float* u = arena.take(filter_size<F>(c, o));
    if (u) transform_filter<F>(call, w, row, column, ld, c, o, u);
    return u;
  }
  void run(const WinogradConv& s) {
    const int64_t need = winograd_size<F>(s, call.threads);
    if (need > most) most = need;
    if (arena.at) winograd_conv<F>(call, s, arena.at + arena.used);
  }
  int64_t bytes() const { return (arena.used + most) * int64_t(sizeof(float)); }
};

template <class F>
static int64_t forward_pass(const Call& call, const Conv& s, const float* x, const float* w, int64_t ld, const float* u,
                            WinogradConv conv, void* scratch) {
  WinogradPass<F> pass{call, {static_cast<float*>(scratch)}};
  const int64_t sample = s.h * s.w * s.c, column = s.c * ld, row = s.kw * column;
  if constexpr (F::kR == 3) {
    if (!u) u = pass.filter(w, row, column, ld, s.c, s.o);
    conv.source[0] = {x, sample, s.w * s.c, s.c, s.h, s.w, s.top, s.left, u};
  } else {
    conv.sources = 4;
    for (int k = 0; k < 4; ++k) {
      const Phase a(s.h, s.top, k / 2), b(s.w, s.left, k % 2);
      const float* v = u ? u + k * filter_size<F>(s.c, s.o)
                     : pass.filter(w + a.first * row + b.first * column, 2 * row, 2 * column, ld, s.c, s.o);
      conv.source[k] = {x + (k / 2 * s.w + k % 2) * s.c, sample, 2 * s.w * s.c, 2 * s.c, a.size, b.size, -a.shift, -b.shift, v};
    }
  }
  pass.run(conv);
  return pass.bytes();
}

template <class F>
static int64_t dx_pass(const Call& call, const Conv& s, const float* g, const float* w, bool turned, float* dx, void* scratch) {
  WinogradPass<F> pass{call, {static_cast<float*>(scratch)}};
  const int64_t ld = turned ? s.c : padded(s.c, kLanes<float>), column = s.o * ld, row = s.kw * column, sample = s.p * s.q * s.o;
  float* const to = turned ? nullptr : pass.arena.take(s.kh * row);
  if (to) transpose_taps(call, w, s.kh * s.kw, s.c, s.o, ld, to);
  const float* const wt = to ? to : w;
  WinogradConv conv = {s.n, s.o, s.c, s.h, s.w, {}, 1, dx, s.h * s.w * s.c, s.w * s.c, s.c, nullptr, nullptr, nullptr, nullptr, nullptr};
  if constexpr (F::kR == 3) {
    const float* u = pass.filter(wt + 2 * row + 2 * column, -row, -column, ld, s.o, s.c);
    conv.source[0] = {g, sample, s.q * s.o, s.o, s.p, s.q, 2 - s.top, 2 - s.left, u};
    pass.run(conv);
  } else {
    conv.row = 2 * s.w * s.c, conv.pixel = 2 * s.c;
    const int64_t begin = pass.arena.used;
    for (int k = 0; k < 4; ++k) {
      const Phase a(s.h, s.top, k / 2), b(s.w, s.left, k % 2);
      pass.arena.used = begin;             // one filter after the other
      const float* u = pass.filter(wt + (a.first + 2) * row + (b.first + 2) * column, -2 * row, -2 * column, ld, s.o, s.c);
      conv.p = a.size, conv.q = b.size, conv.y = dx + (k / 2 * s.w + k % 2) * s.c;
      conv.source[0] = {g, sample, s.q * s.o, s.o, s.p, s.q, a.shift + 1, b.shift + 1, u};
      if (a.size > 0 && b.size > 0) pass.run(conv);
    }
  }
  return pass.bytes();
}

// ---- gradient in the filter -------------------------------------------------------------------------------------------

template <class F>
static int64_t dw_pass(const Call& call, const Conv& s, const float* x, const float* g, float* dw, void* scratch) {
  const int64_t column = s.c * s.o, row = s.kw * column;
  WinogradDw problem = {s.n, s.top, s.left, {x, s.h * s.w * s.c, s.w * s.c, s.c, s.h, s.w, s.c},
                        {g, s.p * s.q * s.o, s.q * s.o, s.o, s.p, s.q, s.o}, dw, row, column};
  const int64_t bytes = WinogradDwPlan<F>(problem).size() * int64_t(sizeof(float));
  if (!scratch) return bytes;
  if constexpr (F::kR == 3) {
    winograd_dw<F>(call, problem, static_cast<float*>(scratch));
  } else {
    for (int k = 0; k < 4; ++k) {
      const Phase a(s.h, s.top, k / 2), b(s.w, s.left, k % 2);
      problem.x = {x + (k / 2 * s.w + k % 2) * s.c, s.h * s.w * s.c, 2 * s.w * s.c, 2 * s.c, a.size, b.size, s.c};
      problem.top = -a.shift, problem.left = -b.shift;
      problem.dw = dw + a.first * row + b.first * column, problem.row = 2 * row, problem.column = 2 * column;
      winograd_dw<F>(call, problem, static_cast<float*>(scratch));
    }
  }
  return bytes;
}

// ---- by variant ---------------------------------------------------------------------------------------------------------

// f(F) for the transforms F of a variant.
template <class F> inline int64_t with_variant(const Conv& s, ConvAlgorithm variant, F f) {
  if (winograd_halving(s)) return f(Winograd<4, 2>{});
  return variant == kWinograd4 ? f(Winograd<4, 3>{}) : f(Winograd<2, 3>{});
}

}  // namespace
