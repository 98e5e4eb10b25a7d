// A caching allocator for outputs and scratch.
//
// Fresh pages cost more than the arithmetic of most kernels, so freed blocks are kept by size class (four steps per
// power of two) and handed out again, most recently freed first. Blocks are 64-byte aligned; large ones are aligned to
// and advised as huge pages. At most kCacheBytes are kept; trim() gives everything back to the system.
#pragma once
#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <mutex>
#include <unordered_map>
#include <vector>

namespace generant {

class BlockPool {
 public:
  // bytes rounded up to the size class the block really has
  static size_t rounded(size_t bytes) {
    if (bytes <= 256) return 256;
    const int top = 63 - __builtin_clzll(bytes - 1);           // 2^top < bytes <= 2^(top+1)
    const size_t step = size_t(1) << (top - 2);
    return (bytes + step - 1) & ~(step - 1);
  }

  void* take(size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)                              // every block fresh and no larger than asked: overruns show
    void* exact = nullptr;
    return posix_memalign(&exact, 64, bytes) == 0 ? exact : nullptr;
#endif
    bytes = rounded(bytes);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      auto it = free_.find(bytes);
      if (it != free_.end() && !it->second.empty()) {
        void* p = it->second.back();
        it->second.pop_back();
        cached_ -= bytes;
        return p;
      }
    }
    const size_t align = bytes >= kHuge ? kHuge : 64;
    void* p = aligned_alloc(align, (bytes + align - 1) / align * align);
    if (p && bytes >= kHuge) madvise(p, bytes, MADV_HUGEPAGE);
    return p;                                                  // null when memory has run out
  }

  void give(void* p, size_t bytes) {
    bytes = rounded(bytes);
#if !defined(__SANITIZE_ADDRESS__)
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (cached_ + bytes <= kCacheBytes) {
        free_[bytes].push_back(p);
        cached_ += bytes;
        return;
      }
    }
#endif
    free(p);
  }

  void trim() {
    std::lock_guard<std::mutex> lock(mutex_);
    for (auto& [bytes, blocks] : free_)
      for (void* p : blocks) free(p);
    free_.clear();
    cached_ = 0;
  }

  size_t cached() const { return cached_; }

 private:
  static constexpr size_t kHuge = size_t(2) << 20, kCacheBytes = size_t(512) << 20;
  std::mutex mutex_;
  std::unordered_map<size_t, std::vector<void*>> free_;
  size_t cached_ = 0;
};

}  // namespace generant
