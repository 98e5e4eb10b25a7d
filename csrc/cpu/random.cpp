// Arrays of random numbers, and Philox itself for its known answers.
#include "../noise.h"
#include "../parallel.h"

namespace {

constexpr int64_t kGrain = 1 << 16;                 // elements per task: a divisor of 2^34, a multiple of every block
constexpr int64_t kStreamBytes = 24 << 20;          // outputs beyond the caches are written around them

template <class T> inline void write_around(T* p, vec<T> z) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) _mm512_stream_ps(p, z);
  else _mm512_stream_pd(p, z);
#elif defined(__AVX2__)
  if constexpr (sizeof(T) == 4) _mm256_stream_ps(p, z);
  else _mm256_stream_pd(p, z);
#else
  store(p, z);
#endif
}

template <class T, class Draw> void fill(const Call& c) {
  const uint64_t* key = in<uint64_t>(c, 0);
  T* y = out<T>(c);
  const int64_t n = size(c.out[0]);
  const bool around = n * int64_t(sizeof(T)) >= kStreamBytes && reinterpret_cast<uintptr_t>(y) % kVectorBytes == 0;
  parallel_range(c, n, kGrain, [&](int64_t begin, int64_t end) {
    generate<T, Draw>(key, begin, end, [=](int64_t e, vec<T> z, int m) {
      if (m < kLanes<T>) store_first(y + e, z, m);
      else if (around) write_around(y + e, z);
      else store(y + e, z);
    });
#if defined(__x86_64__)
    if (around) _mm_sfence();
#endif
  });
}

}  // namespace

KERNEL(normal) { fill<T, Normal>(c); }
KERNEL(uniform) { fill<T, Uniform>(c); }

KERNEL(normals) {
  const uint64_t *keys = in<uint64_t>(c, 0), *streams = in<uint64_t>(c, 1);
  const double* weights = in<double>(c, 2);
  T* y = out<T>(c);
  const int64_t rows = c.out[0].shape[0], row = rows ? size(c.out[0]) / rows : 0, m = c.in[1].shape[0];
  each_piece(c, rows, row, kGrain, [=](int64_t e, int64_t n, int64_t i, int64_t count, int64_t first) {
    constexpr int L = kLanes<T>;
    T z[kNoise], sum[kNoise];
    for (int64_t k = 0; k < n; k += L) store(sum + k, vec<T>{});
    for (int64_t j = 0; j < m; ++j) {
      fill_keyed<T>(keys, streams[j], row, i, count, first, count > 1 ? row : n, z);
      const T w = T(weights[j]);
      for (int64_t k = 0; k < n; k += L) store(sum + k, load(sum + k) + w * load(z + k));
    }
    memcpy(y + e, sum, size_t(n) * sizeof(T));
  });
}

KERNEL(philox) {
  const uint32_t *counter = in<uint32_t>(c, 0), *key = in<uint32_t>(c, 1);
  uint32_t* y = out<uint32_t>(c);
  parallel_range(c, c.in[0].shape[0], 4096, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      uint32_t x[4];
      memcpy(x, counter + 4 * i, sizeof x);
      philox4x32(x, key[0], key[1]);
      memcpy(y + 4 * i, x, sizeof x);
    }
  });
}

KERNEL(advance_) { static_cast<uint64_t*>(c.in[0].data)[1] += 1; }
