// Which convolutions Winograd's algorithm serves, and how: 3x3 filters with stride 1 as they are; 4x4 filters with
// stride 2 as four 2x2 ones over the phases of the pixels, which the forward pass sums and the gradient in x writes.
//
// A strided pass reads or writes every second pixel in place; no phase is ever copied.
#pragma once
#include "conv.h"
#include "winograd_dw.h"

namespace {

constexpr int64_t kFewestChannels = 24;    // below, transforms cost more than they save

inline bool winograd_square(const Conv& s) {
  return s.kh == 3 && s.kw == 3 && s.stride_h == 1 && s.stride_w == 1;
}
inline bool winograd_halving(const Conv& s) {
  return s.kh == 4 && s.kw == 4 && s.stride_h == 2 && s.stride_w == 2;
}

// How many products per output a grid of p x q needs, tiles that hang over included, against those of a direct sum.
inline double winograd_cost(int64_t p, int64_t q, int m, int n, int sources) {
  const double tiles = double(ceil_div(p, m)) * double(ceil_div(q, m));
  return tiles * n * n * sources / (double(p) * double(q));
}

// The variant for a pass that sums over `c` channels, writes `o` and has its tiles on a grid of p x q, or kGemm for
// none. A matter of one sample's shape: a batch does not change bits. float64 is for checking and stays exact.
template <class T>
inline ConvAlgorithm winograd_choice(const Conv& s, ConvAlgorithm asked, int64_t c, int64_t o, int64_t p, int64_t q) {
  const bool square = winograd_square(s), halving = winograd_halving(s);
  const bool fits = s.dilation_h == 1 && s.dilation_w == 1 && s.groups == 1 && (square || halving) && p > 0 && q > 0 && c > 0 && o > 0;
  if (!fits || asked == kGemm || asked == kDirect) return kGemm;
  if (asked == kWinograd4) return kWinograd4;
  if (asked == kWinograd2) return square ? kWinograd2 : kGemm;
  if (sizeof(T) > 4 || c < kFewestChannels || o < kFewestChannels) return kGemm;
  if (halving) return winograd_cost(p, q, 4, 5, 4) <= 10 ? kWinograd4 : kGemm;
  const double four = winograd_cost(p, q, 4, 6, 1), two = winograd_cost(p, q, 2, 4, 1);
  if ((four < two ? four : two) > 6) return kGemm;
  return four < two ? kWinograd4 : kWinograd2;
}

// ---- one dimension of a phase: pixels 2 k + a of the input meet the filter's rows `first` and first + 2 ---------------

struct Phase {
  int64_t size, first, shift;              // pixels; y[p] reads pixels p + shift and p + shift + 1 of the phase
  Phase(int64_t n, int64_t before, int64_t a) : size((n - a + 1) / 2), first((before + a) & 1), shift((first - before - a) / 2) {}
};

// The parts of scratch of one call.
template <class T> struct Arena {
  T* at;
  int64_t used = 0;
  T* take(int64_t n) {
    T* p = at ? at + used : nullptr;
    used += padded(n, 16);
    return p;
  }
};

// (kh kw, c, o) -> (kh kw, o, padded c): rows of the transposed filter are whole vectors.
template <class T>
static void transpose_filter(const Call& call, const T* w, int64_t taps, int64_t c, int64_t o, T* to) {
  constexpr int L = kLanes<T>;
  const int64_t ld = padded(c, L), grain = padded(ceil_div(65536, ld), L), blocks = ceil_div(o, grain);
  parallel(call, taps * blocks, [&](int64_t task, int) {
    const int64_t k = task / blocks, j = task % blocks * grain;
    pack_transpose<T>(least(grain, o - j), w + k * c * o + j, o, c, ld, 0, to + (k * o + j) * ld);
  });
}

// ---- forward and gradient in x ----------------------------------------------------------------------------------------

// Everything a pass does, told to `run`: prepare(u, w, row, column, ld) transforms a filter, conv(problem) convolves.
// With scratch null, only what it takes is counted.
template <class T, class F> struct WinogradPass {
  const Call& call;
  Arena<T> arena;
  int64_t most = 0;                        // the largest need of a convolution after the filters
  T* filter(const T* w, int64_t row, int64_t column, int64_t ld, int64_t c, int64_t o) {
    T* u = arena.take(filter_size<F>(c, o));
    if (u) transform_filter<T, F>(call, w, row, column, ld, c, o, u);
    return u;
  }
  void run(const WinogradConv<T>& s) {
    const int64_t need = winograd_size<T, F>(s, call.threads);
    if (need > most) most = need;
    if (arena.at) winograd_conv<T, F>(call, s, arena.at + arena.used);
  }
  int64_t bytes() const { return (arena.used + most) * int64_t(sizeof(T)); }
};

template <class T>
static WinogradConv<T> whole_output(const Conv& s, T* y) {
  return {s.n, s.c, s.o, s.p, s.q, {}, 1, y, s.p * s.q * s.o, s.q * s.o, s.o, nullptr, nullptr, nullptr, nullptr, nullptr};
}

// w has rows of ld numbers. The transformed filter may come from outside (`u`); `conv` has the output, its epilogue and the activation of x.
template <class T, class F>
static int64_t winograd_forward(const Call& call, const Conv& s, const T* x, const T* w, int64_t ld, const T* u,
                                WinogradConv<T> conv, void* scratch) {
  WinogradPass<T, F> pass{call, {static_cast<T*>(scratch)}};
  const int64_t sample = s.h * s.w * s.c, column = s.c * ld, row = s.kw * column;
  if constexpr (F::kR == 3) {
    if (!u) u = pass.filter(w, row, column, ld, s.c, s.o);
    conv.source[0] = {x, sample, s.w * s.c, s.c, s.h, s.w, s.top, s.left, u};
  } else {
    conv.sources = 4;
    for (int k = 0; k < 4; ++k) {
      const Phase a(s.h, s.top, k / 2), b(s.w, s.left, k % 2);
      const T* v = u ? u + k * filter_size<F>(s.c, s.o)
                     : pass.filter(w + a.first * row + b.first * column, 2 * row, 2 * column, ld, s.c, s.o);
      conv.source[k] = {x + (k / 2 * s.w + k % 2) * s.c, sample, 2 * s.w * s.c, 2 * s.c, a.size, b.size, -a.shift, -b.shift, v};
    }
  }
  pass.run(conv);
  return pass.bytes();
}

// `turned`: w is (kh, kw, o, c) already.
template <class T, class F>
static int64_t winograd_dx(const Call& call, const Conv& s, const T* g, const T* w, bool turned, T* dx, void* scratch) {
  WinogradPass<T, F> pass{call, {static_cast<T*>(scratch)}};
  const int64_t ld = turned ? s.c : padded(s.c, kLanes<T>), column = s.o * ld, row = s.kw * column, sample = s.p * s.q * s.o;
  T* const to = turned ? nullptr : pass.arena.take(s.kh * row);
  if (to) transpose_filter(call, w, s.kh * s.kw, s.c, s.o, to);
  const T* const wt = to ? to : w;
  WinogradConv<T> conv = {s.n, s.o, s.c, s.h, s.w, {}, 1, dx, s.h * s.w * s.c, s.w * s.c, s.c, nullptr, nullptr, nullptr, nullptr, nullptr};
  if constexpr (F::kR == 3) {
    const T* u = pass.filter(wt + 2 * row + 2 * column, -row, -column, ld, s.o, s.c);
    conv.source[0] = {g, sample, s.q * s.o, s.o, s.p, s.q, 2 - s.top, 2 - s.left, u};
    pass.run(conv);
  } else {
    conv.row = 2 * s.w * s.c, conv.pixel = 2 * s.c;
    const int64_t begin = pass.arena.used;
    for (int k = 0; k < 4; ++k) {
      const Phase a(s.h, s.top, k / 2), b(s.w, s.left, k % 2);
      pass.arena.used = begin;             // one filter after the other
      const T* u = pass.filter(wt + (a.first + 2) * row + (b.first + 2) * column, -2 * row, -2 * column, ld, s.o, s.c);
      conv.p = a.size, conv.q = b.size, conv.y = dx + (k / 2 * s.w + k % 2) * s.c;
      conv.source[0] = {g, sample, s.q * s.o, s.o, s.p, s.q, a.shift + 1, b.shift + 1, u};
      if (a.size > 0 && b.size > 0) pass.run(conv);
    }
  }
  return pass.bytes();
}

// ---- gradient in the filter -------------------------------------------------------------------------------------------

template <class T, class F>
static int64_t winograd_filter_gradient(const Call& call, const Conv& s, const T* x, const T* g, T* dw, void* scratch) {
  const int64_t column = s.c * s.o, row = s.kw * column;
  WinogradDw<T> problem = {s.n, s.top, s.left, {x, s.h * s.w * s.c, s.w * s.c, s.c, s.h, s.w, s.c},
                           {g, s.p * s.q * s.o, s.q * s.o, s.o, s.p, s.q, s.o}, dw, row, column};
  const int64_t bytes = WinogradDwPlan<T, F>(problem).size() * int64_t(sizeof(T));
  if (!scratch) return bytes;
  if constexpr (F::kR == 3) {
    winograd_dw<T, F>(call, problem, static_cast<T*>(scratch));
  } else {
    for (int k = 0; k < 4; ++k) {
      const Phase a(s.h, s.top, k / 2), b(s.w, s.left, k % 2);
      problem.x = {x + (k / 2 * s.w + k % 2) * s.c, s.h * s.w * s.c, 2 * s.w * s.c, 2 * s.c, a.size, b.size, s.c};
      problem.top = -a.shift, problem.left = -b.shift;
      problem.dw = dw + a.first * row + b.first * column, problem.row = 2 * row, problem.column = 2 * column;
      winograd_dw<T, F>(call, problem, static_cast<T*>(scratch));
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
