// 3x3 convolution of silu(group_norm(x)) with bias and residual: the half of a ResNet block, without the normalised
// image ever being written.
//
// The statistics are one reading pass. The rest rides on the convolution: rows of the input are normalised and activated
// in the second-level cache, just before Winograd's transform reads them, and the residual is added to finished tiles.
// Where Winograd's algorithm does not serve, one sample at a time is activated into scratch.
#include "../epilogue.h"
#include "../implicit_gemm.h"
#include "../norm_sample.h"
#include "../winograd_conv.h"

namespace {

// in: x, gain, bias, scale, shift, w, b, residual; out: y, mean, rstd; attributes: groups, eps, activation.
template <class T> struct Norm {
  int64_t c, groups;
  const T *gain, *bias, *scale, *shift;
  const double *mean, *rstd;               // (n, groups)
  static void affine(const void* context, int64_t n, T* centre, T* a, T* b) {
    const Norm& s = *static_cast<const Norm*>(context);
    fold_norm(s.c, s.groups, s.mean + n * s.groups, s.rstd + n * s.groups, s.gain, s.bias, s.scale ? s.scale + n * s.c : nullptr,
              s.shift ? s.shift + n * s.c : nullptr, centre, a, b);
  }
};

inline Conv geometry(const Call& c) {
  const Array& x = c.in[0];
  Conv s{};
  s.n = x.shape[0], s.h = s.p = x.shape[1], s.w = s.q = x.shape[2], s.c = x.shape[3], s.o = c.out[0].shape[3];
  s.kh = s.kw = 3;
  s.stride_h = s.stride_w = s.dilation_h = s.dilation_w = s.groups = s.top = s.bottom = s.left = s.right = 1;
  return s;
}

// One sample, activated already, by the implicit matrix product.
template <class T> static TapConv<T> one_sample(const Conv& s, Tap* taps, const T* x, const T* w, T* y, Finish finish,
                                                const void* context) {
  TapList list{};
  list.taps = taps;
  for (int64_t i = 0; i < 3; ++i)
    for (int64_t j = 0; j < 3; ++j) add_tap(list, taps, {i - 1, j - 1, i * 3 + j});
  return {x, 1, s.h, s.w, s.c, s.h, s.w, 1, 1, y, s.h, s.w, s.o, 1, 1, 0, 0, list, w, s.c * s.o, s.o, s.o, true, 1, finish, context};
}

struct Layout {                            // of scratch, in bytes
  int64_t moments, slots, taps, image;
  bool together;                           // all workers on one sample, else a sample each
};

template <class T> inline Layout layout_of(const Call& c, const Conv& s, int64_t groups) {
  const ChannelRows r = channel_rows<T>(s.h * s.w, s.c);
  const int64_t workers = c.threads > 0 ? c.threads : 1;
  const int64_t lane = r.width * int64_t(sizeof(double));
  Layout a{};
  a.together = s.n < 2 * workers;
  a.moments = round64(2 * s.n * groups * int64_t(sizeof(double)));
  a.slots = round64(a.together ? (2 + kSlot * r.chunks) * lane : (2 + kSlot) * lane * workers);
  a.taps = round64(9 * int64_t(sizeof(Tap)));
  a.image = round64((3 * padded(s.c, kLanes<T>) + s.h * s.w * s.c) * int64_t(sizeof(T)));
  return a;
}

template <class T> static int64_t convolve(const Call& c, const Norm<T>& norm, char* scratch) {
  const Conv s = geometry(c);
  const Layout at = layout_of<T>(c, s, norm.groups);
  const T *x = in<T>(c, 0), *w = in<T>(c, 5);
  T* y = out<T>(c, 0);
  const Layer<T> layer = {in<T>(c, 6), in<T>(c, 7), y, nullptr, s.o};
  const Finish finish = layer.bias || layer.residual ? epilogue_of<T>(0) : nullptr;
  const bool silu = int(c.attr[2]) == 1;
  const auto activate = silu ? norm_apply<T, NormSilu<T>> : norm_apply<T, NormIdentity<T>>;
  if constexpr (sizeof(T) == sizeof(float)) {
    if (const ConvAlgorithm variant = winograd_choice(s, kAuto, s.c, s.o, s.p, s.q); variant != kGemm) {
      WinogradConv conv = whole_output(s, y);
      conv.finish = finish, conv.context = &layer, conv.affine = Norm<T>::affine, conv.norm = &norm, conv.activate = activate;
      return winograd_forward(c, s, variant, x, w, s.o, nullptr, conv, scratch);
    }
  }
  const int64_t bytes = at.taps + at.image + tap_conv_scratch(c, one_sample<T>(s, nullptr, x, w, y, nullptr, nullptr));
  if (!scratch) return bytes;
  Tap* const taps = reinterpret_cast<Tap*>(scratch);
  T *const affine = reinterpret_cast<T*>(scratch + at.taps), *const image = affine + 3 * padded(s.c, kLanes<T>);
  const int64_t ld = padded(s.c, kLanes<T>), pixels = s.h * s.w;
  for (int64_t n = 0; n < s.n; ++n) {
    Norm<T>::affine(&norm, n, affine, affine + ld, affine + 2 * ld);
    parallel_range(c, pixels, ceil_div(4096, s.c), [&](int64_t begin, int64_t end) {
      activate(x + (n * pixels + begin) * s.c, image + begin * s.c, end - begin, s.c, affine, affine + ld, affine + 2 * ld);
    });
    const Layer<T> own = {layer.bias, layer.residual ? layer.residual + n * pixels * s.o : nullptr, y + n * pixels * s.o, nullptr, s.o};
    tap_conv(c, one_sample<T>(s, taps, image, w, own.y, finish, &own), scratch + at.taps + at.image);
  }
  return bytes;
}

template <class T> inline Norm<T> norm_of(const Call& c, const double* moments) {
  const int64_t groups = int64_t(c.attr[0]);
  return {c.in[0].shape[3], groups, in<T>(c, 1), in<T>(c, 2), in<T>(c, 3), in<T>(c, 4), moments, moments + c.in[0].shape[0] * groups};
}

template <class T> int64_t norm_conv_bytes(const Call& c) {
  const Conv s = geometry(c);
  if (s.empty()) return 0;
  const Layout at = layout_of<T>(c, s, int64_t(c.attr[0]));
  return at.moments + at.slots + convolve<T>(c, norm_of<T>(c, nullptr), nullptr);
}

}  // namespace

KERNEL_SCRATCH(group_norm_conv2d, norm_conv_bytes) {
  const Conv s = geometry(c);
  if (s.empty()) return;
  const int64_t groups = int64_t(c.attr[0]), positions = s.h * s.w;
  const double eps = c.attr[1];
  const Layout at = layout_of<T>(c, s, groups);
  char* const memory = static_cast<char*>(c.scratch);
  double *const mean = reinterpret_cast<double*>(memory), *const rstd = mean + s.n * groups;
  double* const slots = reinterpret_cast<double*>(memory + at.moments);
  const ChannelRows r = channel_rows<T>(positions, s.c);
  const auto moments = [&](int64_t n, double* total) {
    const T* x = in<T>(c, 0) + n * positions * s.c;
    sample_moments(c, x, r, total, total + 2 * r.width, at.together);
    group_moments(x, r, total, groups, eps, mean + n * groups, rstd + n * groups);
  };
  if (at.together) for (int64_t n = 0; n < s.n; ++n) moments(n, slots);
  else parallel(c, s.n, [&](int64_t n, int worker) { moments(n, slots + worker * (2 + kSlot) * r.width); });
  T *means = out<T>(c, 1), *rstds = out<T>(c, 2);
  for (int64_t i = 0; i < s.n * groups; ++i) {
    if (means) means[i] = T(mean[i]);
    if (rstds) rstds[i] = T(rstd[i]);
  }
  convolve<T>(c, norm_of<T>(c, mean), memory + at.moments + at.slots);
}
