// Softmax attention and its gradients, in O(t s (d + e)) time and O(t + s) memory: the engines are attention.h,
// attention_bf16.h and attention_bwd.h.
#include "../attention_bf16.h"
#include "../attention_bwd.h"

namespace {

template <class Engine> int64_t bytes_of(const Call& c) {
  Carve counting{nullptr};
  Engine(c, counting);
  return counting.used;
}
template <class Engine> void run(const Call& c) {
  Carve scratch{static_cast<char*>(c.scratch)};
  Engine(c, scratch).run(c);
}

}  // namespace

namespace generant::GENERANT_NAMESPACE {

// The forward pass on operands as they are: a partial set calls that of the whole one.
template <class T> int64_t attention_bytes(const Call& c);
template <class T> void attention_run(const Call& c);

#ifndef GENERANT_PARTIAL
template <class T> int64_t attention_bytes(const Call& c) { return bytes_of<AttentionForward<T>>(c); }
template <class T> void attention_run(const Call& c) { run<AttentionForward<T>>(c); }
template int64_t attention_bytes<float>(const Call&);
template int64_t attention_bytes<double>(const Call&);
template void attention_run<float>(const Call&);
template void attention_run<double>(const Call&);
#endif

}  // namespace generant::GENERANT_NAMESPACE

namespace {

// The attribute `precision` is the third; 1 is bf16, which ops/attention.py lets float32 arrays alone have.
template <class T> bool rounds(const Call& c) { return sizeof(T) == 4 && c.attr[2] == 1; }

template <class T> int64_t attention_scratch(const Call& c) {
  return rounds<T>(c) ? bytes_of<AttentionForward<float, AsPairs>>(c) : attention_bytes<T>(c);
}

}  // namespace

KERNEL_SCRATCH(attention, attention_scratch) {
  if (rounds<T>(c)) run<AttentionForward<float, AsPairs>>(c);
  else attention_run<T>(c);
}

#ifndef GENERANT_PARTIAL
namespace {

template <class T> int64_t attention_bwd_scratch(const Call& c) { return bytes_of<AttentionBackward<T>>(c); }

}  // namespace

KERNEL_SCRATCH(attention_bwd, attention_bwd_scratch) { run<AttentionBackward<T>>(c); }
#endif
