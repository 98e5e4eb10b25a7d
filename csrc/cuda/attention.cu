// Softmax attention and its gradients, in O(t s (d + e)) time and O(t + s) memory; see csrc/cpu/attention.cpp.
//
// float32 goes to tensor cores: forward (attention_forward.h, beyond 128 channels attention_wide.h), and backward of up to 128
// channels (attention_backward.h). All else goes to attention_plain.h.
#include "carve.h"
#include "attention_backward.h"
#include "attention_plain.h"
#include "attention_wide.h"

#include <stdlib.h>

namespace {

// Whether this GPU's tensor cores take TF32 and bfloat16.
inline bool has_tiles() {
#ifdef __CUDACC__
  int device = 0, major = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  return major >= 8;
#else
  return getenv("GENERANT_SIMULATE_SM75") == nullptr;
#endif
}

inline bool narrow(int64_t d, int64_t e) { return d <= 128 && e <= 128; }

// f(Width<W>{}) with the least width that holds both kinds of rows.
template <int W> struct Width { static constexpr int value = W; };
template <class F> inline void with_width(int64_t channels, F f) {
  if (channels <= 32) f(Width<32>{});
  else if (channels <= 64) f(Width<64>{});
  else f(Width<128>{});
}

// The attribute `precision` is the third; 1 is bf16, which ops/attention.py lets float32 arrays alone have.
template <class T> inline bool rounds(const Call& c) { return sizeof(T) == 4 && c.attr[2] == 1; }

// f(engine) for the engine of a call on tensor cores; false if there is none.
template <class T, class F> inline bool forward(const Call& c, Carve& scratch, F f) {
  if constexpr (sizeof(T) == 4) {
    const int64_t d = c.in[0].shape[3], e = c.in[2].shape[3];
    if (!has_tiles()) return false;
    if (!narrow(d, e)) f(ForwardWide(c, scratch, rounds<T>(c)));
    else
      with_width(max(d, e), [&](auto width) {
        if (rounds<T>(c)) f(ForwardTiles<width.value, true>(c, scratch));
        else f(ForwardTiles<width.value, false>(c, scratch));
      });
    return true;
  }
  return false;
}

template <class T> int64_t attention_scratch(const Call& c) {
  Carve counting{nullptr};
  forward<T>(c, counting, [](const auto&) {});
  return counting.used;
}

// What both ways of the backward pass begin with.
template <class T> struct Backward {
  PlainCall<T> p;
  T *low, *centre;

  Backward(const Call& c, Carve& scratch) : p{Heads<T>(c, 1), in<T>(c, 0), nullptr, nullptr, nullptr, nullptr, false, 0} {
    p.t_padded = padded(p.h.t, 64);
    low = scratch.take<T>(p.h.n * p.h.heads * p.t_padded);
    centre = scratch.take<T>(p.h.n * p.h.heads * p.t_padded);
    p.low = low, p.centre = centre;
  }
  // f(engine) for the engine on tensor cores; false if there is none.
  template <class F> bool with_tiles(const Call& c, Carve& scratch, F f) const {
    if constexpr (sizeof(T) == 4)
      if (has_tiles() && narrow(p.h.d, p.h.e)) {
        with_width(max(p.h.d, p.h.e), [&](auto width) { f(BackwardTiles<width.value>(c, scratch, low, centre, p.t_padded)); });
        return true;
      }
    return false;
  }
};

template <class T> int64_t attention_bwd_scratch(const Call& c) {
  Carve counting{nullptr};
  Backward<T>(c, counting).with_tiles(c, counting, [](const auto&) {});
  return counting.used;
}

}  // namespace

KERNEL_SCRATCH(attention, attention_scratch) {
  Carve scratch{static_cast<char*>(c.scratch)};
  if (!forward<T>(c, scratch, [&](const auto& engine) { engine.run(c); }))
    run_plain<T, kOutput>(c, {Heads<T>(c, 0), nullptr, nullptr, nullptr, out<T>(c, 0), out<T>(c, 1), rounds<T>(c), 0});
}

KERNEL_SCRATCH(attention_bwd, attention_bwd_scratch) {
  Carve scratch{static_cast<char*>(c.scratch)};
  Backward<T> b(c, scratch);
  const Heads<T>& h = b.p.h;
  launch(c, attention_rows<T>, grid_of(ceil_div(h.n * h.heads * b.p.t_padded, 256 / kWarp)), 256, 0, h, b.p.g, in<T>(c, 5), in<T>(c, 6),
         b.p.t_padded, b.low, b.centre);
  PlainCall<T> p = b.p;
  if (!b.with_tiles(c, scratch, [&](const auto& engine) { engine.run(c); })) {
    if ((p.out = out<T>(c, 0))) run_plain<T, kQueries>(c, p);
    if ((p.out = out<T>(c, 1))) run_plain<T, kQueryKeys>(c, p);
    if ((p.out = out<T>(c, 2))) run_plain<T, kValues>(c, p);
  }
  if ((p.out = out<T>(c, 3))) run_plain_bias<T>(c, p);
}
