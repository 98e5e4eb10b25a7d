// Rows of a table by index, and adding rows into a table. Indices have been checked.
//
// scatter_add is split over ranges of destinations: every task reads all indices and adds the rows that fall into its
// own range, so each destination is summed in the order of n by one thread, without atomics.
#include <string.h>

#include "../parallel.h"
#include "../simd.h"

namespace {
constexpr int64_t kGrain = 16384;
}

KERNEL(gather) {
  const int64_t d = c.out[0].shape[1], n = c.out[0].shape[0];
  const T* table = in<T>(c, 0);
  const int64_t* index = in<int64_t>(c, 1);
  T* y = out<T>(c);
  if (d == 0) return;
  parallel_range(c, n, ceil_div(kGrain, d), [&](int64_t i, int64_t end) {
    for (; i < end; ++i) memcpy(y + i * d, table + index[i] * d, size_t(d) * sizeof(T));
  });
}

KERNEL(scatter_add) {
  const int64_t m = c.out[0].shape[0], d = c.out[0].shape[1], n = c.in[0].shape[0];
  const T* g = in<T>(c, 0);
  const int64_t* index = in<int64_t>(c, 1);
  T* y = out<T>(c);
  if (m == 0 || d == 0) return;
  int64_t tasks = (n + m) * d / (4 * kGrain);
  tasks = tasks > 16 ? 16 : tasks < 1 ? 1 : tasks;
  const int64_t range = ceil_div(m, tasks);
  parallel(c, ceil_div(m, range), [&](int64_t task, int) {
    const int64_t begin = task * range, end = begin + range < m ? begin + range : m;
    memset(y + begin * d, 0, size_t((end - begin) * d) * sizeof(T));
    for (int64_t i = 0; i < n; ++i) {
      if (index[i] < begin || index[i] >= end) continue;
      const T* from = g + i * d;
      T* to = y + index[i] * d;
      constexpr int L = kLanes<T>;
      int64_t j = 0;
      for (; j + L <= d; j += L) store(to + j, load(to + j) + load(from + j));
      if (j < d) store_first(to + j, load_first(to + j, d - j) + load_first(from + j, d - j), d - j);
    }
  });
}
