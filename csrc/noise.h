// Standard normal numbers into small buffers: noise is made a block at a time and used while it is in cache.
//
// A buffer instead of registers, so that one copy of the generator serves every kernel that adds noise; writing and
// reading 4 kB in the first cache costs a few per cent of making the numbers.
#pragma once
#include "parallel.h"
#include "philox.h"

namespace {

constexpr int64_t kNoise = 1024;                    // elements of a buffer: a multiple of every block

// out[0, n) = elements first .. of the stream `key`; first is a multiple of kNoise, and they do not cross 2^34.
template <class T> __attribute__((noinline)) void fill_normals(const uint64_t* key, int64_t first, int64_t n, T* out) {
  generate<T, Normal>(key, first, first + n, [=](int64_t e, vec<T> z, int m) {
    if (m == kLanes<T>) store(out + (e - first), z);
    else store_first(out + (e - first), z, m);
  });
}

// Philox with a key and a stream of its own in every 64-bit lane: low = word 0 of the counter, high = word 1 of all.
inline void philox_lanes(vw low, uint64_t high, vw seed, vw stream, vw (&c)[4]) {
  vw k0 = seed & kLow32, k1 = seed >> 32;
  c[0] = low, c[1] = high - vw{}, c[2] = stream & kLow32, c[3] = stream >> 32;
  for (int r = 0; r < 10; ++r) {
    const vw p = mul_low(c[0], kPhiloxA), q = mul_low(c[2], kPhiloxB);
    c[0] = ((q >> 32) ^ c[1] ^ k0) & kLow32, c[1] = q & kLow32, c[2] = ((p >> 32) ^ c[3] ^ k1) & kLow32, c[3] = p & kLow32;
    k0 = (k0 + kPhiloxKey0) & kLow32, k1 = (k1 + kPhiloxKey1) & kLow32;
  }
}

// Short rows: out[0, count row) = count rows, row i from the key (keys[i].seed, keys[i].stream + number). A vector holds
// counters of several rows, for one row would leave most of its lanes empty.
template <class T>
__attribute__((noinline)) void fill_rows(const uint64_t* keys, uint64_t number, int64_t row, int64_t count, T* out) {
  constexpr int L = kLanes<T>, W = kLanes<double>, V = L / W;      // V vectors of 64-bit lanes make one of T
  const int64_t each = ceil_div(row, 4), total = count * each;
  for (int64_t at = 0; at < total; at += L) {
    const int64_t n = total - at < L ? total - at : L;
    vw low[V] = {}, seed[V] = {}, stream[V] = {};
    for (int64_t l = 0; l < n; ++l) {
      const int64_t i = (at + l) / each;
      low[l % V][l / V] = uint64_t((at + l) % each);
      seed[l % V][l / V] = keys[2 * i], stream[l % V][l / V] = keys[2 * i + 1] + number;
    }
    vec<T> z[4];
    if constexpr (sizeof(T) == 4) {
      vw even[4], odd[4];
      vu w[4];
      philox_lanes(low[0], 0, seed[0], stream[0], even), philox_lanes(low[V - 1], 0, seed[V - 1], stream[V - 1], odd);
      for (int j = 0; j < 4; ++j) w[j] = (vu)(even[j] | (odd[j] << 32));
      Normal::draw(w, z);
    } else {
      vw a[4], b[4], w[4];
      philox_lanes(low[0], 0, seed[0], stream[0], a), philox_lanes(low[0], kLowWords >> 32, seed[0], stream[0], b);
      for (int j = 0; j < 4; ++j) w[j] = (a[j] << 32) | b[j];
      Normal::draw(w, z);
    }
    for (int64_t l = 0; l < n; ++l) {
      const int64_t i = (at + l) / each, e = (at + l) % each * 4;
      for (int64_t j = 0; j < 4 && e + j < row; ++j) out[i * row + e + j] = z[j][l];
    }
  }
}

// Rows [i, i + count) of noise with a key per row, elements [first, first + n) of each; count is 1 unless rows are short
// enough for kNoise to hold several.
template <class T>
inline void fill_keyed(const uint64_t* keys, uint64_t number, int64_t row, int64_t i, int64_t count, int64_t first, int64_t n, T* out) {
  if (row < kBlock<T>) return fill_rows(keys + 2 * i, number, row, count, out);
  for (int64_t k = 0; k < count; ++k) {
    const uint64_t key[2] = {keys[2 * (i + k)], keys[2 * (i + k) + 1] + number};
    fill_normals<T>(key, first, n, out + k * row);
  }
}

// f(e, n, i, count, first): pieces of at most kNoise elements, e .. e + n, of rows of `row` elements: whole rows i .. i +
// count, or, where rows are longer, part of row i from its element `first`. In a thread per piece of `grain` or more.
template <class F> inline void each_piece(const Call& c, int64_t rows, int64_t row, int64_t grain, F&& f) {
  if (rows == 0 || row == 0) return;
  if (row <= kNoise) {
    const int64_t some = kNoise / row, task = ceil_div(grain, some * row) * some;
    parallel_range(c, rows, task, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i += some) {
        const int64_t count = end - i < some ? end - i : some;
        f(i * row, count * row, i, count, int64_t(0));
      }
    });
    return;
  }
  const int64_t tasks = ceil_div(row, grain);
  parallel(c, rows * tasks, [&](int64_t t, int) {
    const int64_t i = t / tasks, begin = t % tasks * grain, end = begin + grain < row ? begin + grain : row;
    for (int64_t first = begin; first < end; first += kNoise)
      f(i * row + first, end - first < kNoise ? end - first : kNoise, i, int64_t(1), first);
  });
}

}  // namespace
