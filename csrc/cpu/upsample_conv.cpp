// A 3 x 3 convolution of an image enlarged twice by repeating pixels, without the enlarged image.
//
// Output pixel (2 i + a, 2 j + b) sees only 2 x 2 pixels of the small image, so every phase (a, b) is a convolution with
// a 2 x 2 filter whose taps are sums of w's: 16 products per small pixel instead of 36. Read by phase and tap those 16
// matrices are the 4 x 4 filter of a convolution with stride 2 from the enlarged side to the small one, so the gradient
// in x is that convolution, and the gradient in w is its own gradient folded back to 3 x 3.
//
// With enough channels all three run by Winograd's algorithm, as that convolution and its gradients do.
#include "conv.h"

#include "conv_dw.h"
#include "implicit_gemm.h"
#include "upsample_taps.h"
#include "winograd_conv.h"

namespace {

struct Sizes {
  int64_t n, h, w, c, o;                     // the small image, and the channels of the enlarged side
};

inline int64_t folded_index(int64_t a, int64_t b, int64_t u, int64_t v) { return tap_of(a, u) * 4 + tap_of(b, v); }

template <class T> static int64_t folded_bytes(const Sizes& s) { return round64(16 * s.c * s.o * int64_t(sizeof(T))); }

// The 16 sums of taps, each (c, o), added in float64.
template <class T> static void fold(const Call& c, const Sizes& s, const T* w, T* to) {
  const int64_t size = s.c * s.o;
  parallel(c, 16, [&](int64_t k, int) {
    const int64_t a = k >> 3, b = k >> 2 & 1, u = k >> 1 & 1, v = k & 1;
    const T* taps[4];
    int64_t count = 0;
    for (int64_t i = first_row(a, u); i < end_row(a, u); ++i)
      for (int64_t j = first_row(b, v); j < end_row(b, v); ++j) taps[count++] = w + (i * 3 + j) * size;
    for (int64_t t = 0; t < size; ++t) {
      double sum = double(taps[0][t]);
      for (int64_t m = 1; m < count; ++m) sum += double(taps[m][t]);
      to[folded_index(a, b, u, v) * size + t] = T(sum);
    }
  });
}

constexpr int64_t kTapBytes = (16 * sizeof(Tap) + 63) / 64 * 64;

template <class T>
static TapConv<T> phase_conv(const Sizes& s, int64_t a, int64_t b, Tap* taps, const T* x, const T* folded, T* y) {
  TapList list{};
  list.taps = taps;
  for (int64_t u = 0; u < 2; ++u)
    for (int64_t v = 0; v < 2; ++v) add_tap(list, taps, {u - 1 + a, v - 1 + b, folded_index(a, b, u, v)});
  return {x, s.n, s.h, s.w, s.c, s.h, s.w, 1, 1, y, 2 * s.h, 2 * s.w, s.o, 2, 2, a, b, list,
          folded, s.c * s.o, s.o, s.o, true, 1, nullptr, nullptr};
}

template <class T> static TapConv<T> back_conv(const Sizes& s, Tap* taps, const T* g, const T* folded, T* dx) {
  TapList list{};
  list.taps = taps;
  for (int64_t k = 0; k < 4; ++k)
    for (int64_t l = 0; l < 4; ++l)
      add_tap(list, taps, {k - 1, l - 1, k * 4 + l});
  return {g, s.n, 2 * s.h, 2 * s.w, s.o, s.h, s.w, 2, 2, dx, s.h, s.w, s.c, 1, 1, 0, 0, list,
          folded, s.c * s.o, s.o, s.o, false, 1, nullptr, nullptr};
}

// The convolution of 4 x 4 with stride 2 from the enlarged side to the small one.
inline Conv enlarged_to_small(const Sizes& s) {
  Conv v{};
  v.n = s.n, v.h = 2 * s.h, v.w = 2 * s.w, v.c = s.o;
  v.kh = v.kw = 4, v.o = s.c, v.p = s.h, v.q = s.w;
  v.stride_h = v.stride_w = 2, v.dilation_h = v.dilation_w = 1, v.groups = 1;
  v.top = v.left = v.bottom = v.right = 1;
  return v;
}

inline Sizes forward_sizes(const Call& c) {
  const Array &x = c.in[0], &w = c.in[1];
  return {x.shape[0], x.shape[1], x.shape[2], x.shape[3], w.shape[3]};
}
inline Sizes dx_sizes(const Call& c) {
  const Array &dx = c.out[0], &w = c.in[1];
  return {dx.shape[0], dx.shape[1], dx.shape[2], dx.shape[3], w.shape[3]};
}
inline Sizes dw_sizes(const Call& c) {
  const Array &x = c.in[0], &g = c.in[1];
  return {x.shape[0], x.shape[1], x.shape[2], x.shape[3], g.shape[3]};
}

// ---- by Winograd's algorithm: bytes of scratch after the folded filter, and the pass itself if there is scratch; else 0

inline bool suits(const Conv& v, int64_t c, int64_t o) {
  return !v.empty() && winograd_choice(v, kAuto, c, o, v.p, v.q) != kGemm;
}

inline int64_t forward_by_winograd(const Call& call, const Conv& v, const float* x, const float* folded, float* y, void* scratch) {
  return suits(v, v.o, v.c) ? winograd_dx(call, v, kWinograd4, x, folded, true, y, scratch) : 0;
}

inline int64_t dx_by_winograd(const Call& call, const Conv& v, const float* g, const float* folded, float* dx, void* scratch) {
  if (!suits(v, v.c, v.o)) return 0;
  const int64_t ld = padded(v.o, kLanes<float>), size = padded(16 * v.c * ld, 16);
  float* const turned = static_cast<float*>(scratch);
  if (turned) transpose_filter(call, folded, 16, v.o, v.c, ld, turned);
  return size * int64_t(sizeof(float)) + winograd_forward(call, v, kWinograd4, g, turned ? turned : folded, ld, nullptr,
                                                          whole_output(v, dx), turned ? turned + size : nullptr);
}

inline int64_t dw_by_winograd(const Call& call, const Conv& v, const float* g, const float* x, float* folded, void* scratch) {
  return suits(v, v.c, v.o) ? winograd_filter_gradient(call, v, kWinograd4, g, x, folded, scratch) : 0;
}

// float64 has none of it.
inline int64_t forward_by_winograd(const Call&, const Conv&, const double*, const double*, double*, void*) { return 0; }
inline int64_t dx_by_winograd(const Call&, const Conv&, const double*, const double*, double*, void*) { return 0; }
inline int64_t dw_by_winograd(const Call&, const Conv&, const double*, const double*, double*, void*) { return 0; }

template <class T> int64_t forward_bytes(const Call& c) {
  const Sizes s = forward_sizes(c);
  if (const int64_t bytes = forward_by_winograd(c, enlarged_to_small(s), in<T>(c, 0), in<T>(c, 1), out<T>(c), nullptr))
    return kTapBytes + folded_bytes<T>(s) + bytes;
  int64_t most = 0;
  for (int64_t k = 0; k < 4; ++k) {
    const int64_t bytes = tap_conv_scratch(c, phase_conv<T>(s, k >> 1, k & 1, nullptr, nullptr, nullptr, nullptr));
    if (bytes > most) most = bytes;
  }
  return kTapBytes + folded_bytes<T>(s) + most;
}
template <class T> int64_t dx_bytes(const Call& c) {
  const Sizes s = dx_sizes(c);
  if (const int64_t bytes = dx_by_winograd(c, enlarged_to_small(s), in<T>(c, 0), in<T>(c, 1), out<T>(c), nullptr))
    return kTapBytes + folded_bytes<T>(s) + bytes;
  return kTapBytes + folded_bytes<T>(s) + tap_conv_scratch(c, back_conv<T>(s, nullptr, nullptr, nullptr, nullptr));
}
template <class T> int64_t dw_bytes(const Call& c) {
  const Sizes s = dw_sizes(c);
  const Conv v = enlarged_to_small(s);
  if (v.empty()) return 0;
  const int64_t bytes = dw_by_winograd(c, v, in<T>(c, 1), in<T>(c, 0), out<T>(c), nullptr);
  return folded_bytes<T>(s) + (bytes ? bytes : conv_dw_scratch<T>(c, v));
}

}  // namespace

KERNEL_SCRATCH(upsample_conv2d, forward_bytes) {
  const Sizes s = forward_sizes(c);
  Tap* taps = static_cast<Tap*>(c.scratch);
  char* memory = static_cast<char*>(c.scratch) + kTapBytes;
  T* folded = reinterpret_cast<T*>(memory);
  fold(c, s, in<T>(c, 1), folded);
  void* const rest = memory + folded_bytes<T>(s);
  if (forward_by_winograd(c, enlarged_to_small(s), in<T>(c, 0), folded, out<T>(c), rest)) return;
  for (int64_t k = 0; k < 4; ++k)
    tap_conv(c, phase_conv<T>(s, k >> 1, k & 1, taps, in<T>(c, 0), folded, out<T>(c)), rest);
}

KERNEL_SCRATCH(upsample_conv2d_dx, dx_bytes) {
  const Sizes s = dx_sizes(c);
  Tap* taps = static_cast<Tap*>(c.scratch);
  char* memory = static_cast<char*>(c.scratch) + kTapBytes;
  T* folded = reinterpret_cast<T*>(memory);
  fold(c, s, in<T>(c, 1), folded);
  void* const rest = memory + folded_bytes<T>(s);
  if (dx_by_winograd(c, enlarged_to_small(s), in<T>(c, 0), folded, out<T>(c), rest)) return;
  tap_conv(c, back_conv<T>(s, taps, in<T>(c, 0), folded, out<T>(c)), rest);
}

KERNEL_SCRATCH(upsample_conv2d_dw, dw_bytes) {
  const Sizes s = dw_sizes(c);
  const Conv v = enlarged_to_small(s);
  T* dw = out<T>(c);
  if (v.empty()) {
    memset(dw, 0, size_t(9 * s.c * s.o) * sizeof(T));
    return;
  }
  T* folded = static_cast<T*>(c.scratch);    // (4, 4, o, c)
  void* const rest = static_cast<char*>(c.scratch) + folded_bytes<T>(s);
  if (!dw_by_winograd(c, v, in<T>(c, 1), in<T>(c, 0), folded, rest)) conv_dw(c, v, in<T>(c, 1), in<T>(c, 0), folded, rest);
  const int64_t size = s.c * s.o;
  parallel(c, 9 * s.c, [&](int64_t task, int) {
    const int64_t i = task / s.c / 3, j = task / s.c % 3, ch = task % s.c;
    const T* taps[4];
    int64_t count = 0;
    for (int64_t k = 0; k < 4; ++k)
      for (int64_t l = 0; l < 4; ++l) {
        const int64_t a = phase_of(k), b = phase_of(l), u = place_of(k), t = place_of(l);
        if (first_row(a, u) <= i && i < end_row(a, u) && first_row(b, t) <= j && j < end_row(b, t))
          taps[count++] = folded + (k * 4 + l) * size + ch;
      }
    T* to = dw + task * s.o;
    for (int64_t o = 0; o < s.o; ++o) {
      double sum = 0;
      for (int64_t m = 0; m < count; ++m) sum += double(taps[m][o * s.c]);
      to[o] = T(sum);
    }
  });
}
