// Carve: the arrays of a kernel, one after the other in its scratch memory.
#pragma once
#include <stdint.h>

namespace {

// Hands out 64-byte aligned pieces of scratch; with a null base it only counts.
struct Carve {
  char* base;
  int64_t used = 0;
  template <class U> U* take(int64_t count) {
    char* p = base + used;
    used += (count * int64_t(sizeof(U)) + 63) & ~int64_t(63);
    return base ? reinterpret_cast<U*>(p) : nullptr;
  }
};

}  // namespace
