// 3x3 convolution of silu(group_norm(x)) with bias and residual: group_norm's own kernel into scratch, then the convolution.
//
// A tensor core's product takes several times as long as writing the normalised image and reading it again, and activating
// it in every tile that reads it would take longer than that.
#include "convolve.h"

extern "C" const generant::Row __start_generant_rows_cuda[] __attribute__((visibility("hidden")));
extern "C" const generant::Row __stop_generant_rows_cuda[] __attribute__((visibility("hidden")));

namespace {

template <class T> inline const generant::Row& group_norm_row() {
  const char* const name = sizeof(T) == 4 ? "group_norm.f32" : "group_norm.f64";
  const generant::Row* row = __start_generant_rows_cuda;
  while (row + 1 < __stop_generant_rows_cuda && strcmp(row->name, name) != 0) ++row;
  return *row;
}

// The call of group_norm whose y is in scratch, and that scratch.
template <class T> struct NormCall {
  Array out[3];
  Call call;
  int64_t image;                                     // bytes of y
  void* rest;                                        // what comes after it
  explicit NormCall(const Call& c) : out{c.in[0], c.out[1], c.out[2]}, call(c), image(padded(size(c.in[0]) * int64_t(sizeof(T)), 256)) {
    out[0].data = c.scratch;
    call.out = out, call.n_in = 5, call.n_out = 3;   // x, gain, bias, scale, shift; groups, eps, activation
    call.scratch = rest = static_cast<char*>(c.scratch) + image;
  }
  NormCall(const NormCall&) = delete;
};

inline Conv geometry(const Call& c) {
  const Array& x = c.in[0];
  Conv s{};
  s.n = x.shape[0], s.h = s.p = x.shape[1], s.w = s.q = x.shape[2], s.c = x.shape[3], s.o = c.out[0].shape[3];
  s.kh = s.kw = 3;
  s.stride_h = s.stride_w = s.dilation_h = s.dilation_w = s.groups = s.top = s.bottom = s.left = s.right = 1;
  return s;
}

template <class T> int64_t norm_conv_bytes(const Call& c) {
  const NormCall<T> norm(c);
  const generant::Scratch rest = group_norm_row<T>().scratch;
  const int64_t of_norm = rest ? rest(norm.call) : 0, of_conv = conv_forward_bytes<T>(geometry(c), kAuto);
  return norm.image + (of_norm > of_conv ? of_norm : of_conv);
}

}  // namespace

KERNEL_SCRATCH(group_norm_conv2d, norm_conv_bytes) {
  const NormCall<T> norm(c);
  group_norm_row<T>().run(norm.call);
  conv_forward<T>(c, geometry(c), static_cast<const T*>(c.scratch), in<T>(c, 5), {in<T>(c, 6), in<T>(c, 7), out<T>(c), nullptr, 0}, kAuto,
                  norm.rest);
}
