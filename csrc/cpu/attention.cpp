// Softmax attention and its gradients, in O(t s (d + e)) time and O(t + s) memory: the engines are attention.h and
// attention_bwd.h.
#include "../attention_bwd.h"

namespace {

template <class T> int64_t attention_scratch(const Call& c) {
  Carve counting{nullptr};
  AttentionForward<T>(c, counting);
  return counting.used;
}
template <class T> int64_t attention_bwd_scratch(const Call& c) {
  Carve counting{nullptr};
  AttentionBackward<T>(c, counting);
  return counting.used;
}

}  // namespace

KERNEL_SCRATCH(attention, attention_scratch) {
  Carve scratch{static_cast<char*>(c.scratch)};
  AttentionForward<T>(c, scratch).run(c);
}

KERNEL_SCRATCH(attention_bwd, attention_bwd_scratch) {
  Carve scratch{static_cast<char*>(c.scratch)};
  AttentionBackward<T>(c, scratch).run(c);
}
