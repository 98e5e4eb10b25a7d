// Rows of a table by index, and adding rows into a table. Indices have been checked.
//
// scatter_add first sorts the positions stably into ranges of destinations that fit in cache; then every range is
// summed by one thread in the order of n, so no destination is shared and the order of additions is fixed.
#include <string.h>

#include "../parallel.h"
#include "../simd.h"

namespace {

constexpr int64_t kGrain = 16384;          // elements per task
constexpr int64_t kAhead = 16;             // rows that are prefetched ahead
constexpr int64_t kMaxRanges = 256;

// Destinations are split into ranges of 2^shift rows.
struct Ranges {
  int shift = 0;
  int64_t n = 1;
  Ranges(int64_t m, int64_t d, int64_t n_rows, int64_t element) {
    int64_t wanted = n_rows * d / kGrain, fit = ceil_div(m * d * element, 256 << 10);
    if (wanted > 16) wanted = 16;
    if (fit > kMaxRanges) fit = kMaxRanges;
    if (fit > wanted) wanted = fit;
    if (wanted < 1) wanted = 1;
    while (ceil_div(m, int64_t(1) << shift) > wanted) ++shift;
    n = ceil_div(m, int64_t(1) << shift);
  }
};

template <class T> int64_t order_bytes(const Call& c) { return rows(c.in[0]) * int64_t(sizeof(int64_t)); }

template <class T> inline void add_row(const T* from, T* to, int64_t d) {
  constexpr int L = kLanes<T>;
  int64_t j = 0;
  for (; j + L <= d; j += L) store(to + j, load(to + j) + load(from + j));
  for (; j < d; ++j) to[j] += from[j];
}

}  // namespace

KERNEL(gather) {
  const int64_t d = last(c.out[0]), n = rows(c.out[0]);
  const T* table = in<T>(c, 0);
  const int64_t* index = in<int64_t>(c, 1);
  T* y = out<T>(c);
  if (d == 0) return;
  parallel_range(c, n, ceil_div(kGrain, d), [&](int64_t i, int64_t end) {
    for (; i < end; ++i) {
      if (i + kAhead < end) __builtin_prefetch(table + index[i + kAhead] * d);
      const T* from = table + index[i] * d;
      T* to = y + i * d;
      constexpr int L = kLanes<T>;
      int64_t j = 0;
      for (; j + L <= d; j += L) store(to + j, load(from + j));
      for (; j < d; ++j) to[j] = from[j];
    }
  });
}

KERNEL_SCRATCH(scatter_add, order_bytes) {
  const int64_t m = c.out[0].shape[0], d = c.out[0].shape[1], n = rows(c.in[0]);
  const T* g = in<T>(c, 0);
  const int64_t* index = in<int64_t>(c, 1);
  T* y = out<T>(c);
  if (m == 0 || d == 0) return;
  const Ranges ranges(m, d, n, sizeof(T));
  if (ranges.n == 1) {
    memset(y, 0, size_t(m * d) * sizeof(T));
    for (int64_t i = 0; i < n; ++i) add_row(g + i * d, y + index[i] * d, d);
    return;
  }
  int64_t* order = static_cast<int64_t*>(c.scratch);   // positions, range after range
  int64_t end[kMaxRanges + 1] = {};
  for (int64_t i = 0; i < n; ++i) ++end[(index[i] >> ranges.shift) + 1];
  for (int64_t r = 0; r < ranges.n; ++r) end[r + 1] += end[r];
  for (int64_t i = 0; i < n; ++i) order[end[index[i] >> ranges.shift]++] = i;   // end[r] was r's begin until now
  parallel(c, ranges.n, [&](int64_t r, int) {
    const int64_t first = r << ranges.shift, stop = (r + 1) << ranges.shift;
    memset(y + first * d, 0, size_t(((stop < m ? stop : m) - first) * d) * sizeof(T));
    for (int64_t k = r > 0 ? end[r - 1] : 0; k < end[r]; ++k) {
      if (k + kAhead < end[r])
        for (int64_t j = 0; j < d; j += 64 / int64_t(sizeof(T))) __builtin_prefetch(g + order[k + kAhead] * d + j);
      add_row(g + order[k] * d, y + index[order[k]] * d, d);
    }
  });
}
