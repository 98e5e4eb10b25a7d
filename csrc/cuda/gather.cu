// Rows of a table by index, and adding rows into a table. An index that is out of range, which a replayed step could bring,
// touches no memory: its row of gather is NaN, scatter_add passes it over.
//
// scatter_add gives every destination its rows in the order of the indices. Small problems search all indices for each
// destination. Others sort the positions by destination; then the sorted list is cut into chunks of equal length, so that
// it does not matter how the indices are distributed. A destination that crosses chunks is summed from their parts.
#include "elementwise.h"
#include "stable_sort.h"

namespace {

constexpr int64_t kSearch = int64_t(1) << 22;        // destinations x indices up to where searching is faster than sorting
constexpr int kSearchColumns = 4;                    // per lane
constexpr int kAhead = 4;                            // rows read at a time

template <class T, int N> __global__ void gather_kernel(int64_t packs, int64_t width, int64_t m, const Pack<T, N>* table, const int64_t* index,
                                                        Pack<T, N>* y) {
  const int64_t i = global_thread();
  if (i >= packs) return;
  const int64_t row = i / width, from = index[row];
  Pack<T, N> v;
  if (from >= 0 && from < m) v = table[from * width + (i - row * width)];
  else for (auto& x : v.v) x = T(NAN);
  y[i] = v;
}

// A warp per destination and 32 * kSearchColumns columns.
template <class T> __global__ void search_kernel(int64_t n, int64_t m, int64_t d, int64_t groups, const T* g, const int64_t* index, T* y) {
  const int lane = threadIdx.x % kWarp;
  const int64_t warp = global_thread() / kWarp, destination = warp / groups;
  const int64_t column = (warp - destination * groups) * (kWarp * kSearchColumns) + lane;
  if (destination >= m) return;                      // the whole warp
  T sum[kSearchColumns] = {};
  for (int64_t begin = 0; begin < n; begin += kWarp) {
    const int64_t own = begin + lane < n ? index[begin + lane] : -1;
    for (unsigned found = __ballot_sync(0xffffffffu, own == destination); found; found &= found - 1) {
      const int64_t row = (begin + __ffs(int(found)) - 1) * d;
      GENERANT_UNROLL
      for (int k = 0; k < kSearchColumns; ++k)
        if (column + k * kWarp < d) sum[k] += g[row + column + k * kWarp];
    }
  }
  GENERANT_UNROLL
  for (int k = 0; k < kSearchColumns; ++k)
    if (column + k * kWarp < d) y[destination * d + column + k * kWarp] = sum[k];
}

struct Destination {                                 // of index i; m where it is out of range
  const int64_t* index;
  int64_t m;
  __device__ uint32_t operator()(int64_t i) const { return uint32_t(index[i] >= 0 && index[i] < m ? index[i] : m); }
};

struct Segments {                                    // the sorted list in chunks
  int64_t n, chunk, chunks;
  uint32_t m;
  explicit Segments(int64_t n_, int64_t m_) : n(n_), m(uint32_t(m_)) {
    chunk = n / 4096 > 64 ? n / 4096 : 64;           // 4096 chunks or so at most: one destination may have them all
    chunks = ceil_div(n, chunk);
  }
};

// One chunk and one pack of columns per thread. A destination's first chunk writes its sum to y, the others leave theirs in
// `carried`.
template <class T, int N> __global__ void chunk_sums_kernel(Segments s, int64_t width, const uint32_t* keys, const uint32_t* positions,
                                                            const Pack<T, N>* g, Pack<T, N>* y, Pack<T, N>* carried) {
  const int64_t i = global_thread(), chunk = i / width, column = i - chunk * width;
  if (chunk >= s.chunks) return;
  const int64_t begin = chunk * s.chunk, end = begin + s.chunk < s.n ? begin + s.chunk : s.n;
  uint32_t now = keys[begin];
  bool first = begin > 0 && keys[begin - 1] == now;
  Pack<T, N> sum{};
  auto leave = [&] {
    if (first) carried[i] = sum;
    else if (now < s.m) y[now * width + column] = sum;
    first = false, sum = Pack<T, N>{};
  };
  for (int64_t at = begin; at < end; at += kAhead) {
    Pack<T, N> row[kAhead];
    uint32_t key[kAhead];
    GENERANT_UNROLL
    for (int k = 0; k < kAhead; ++k) {
      if (at + k >= end) break;
      key[k] = keys[at + k], row[k] = g[positions[at + k] * width + column];
    }
    GENERANT_UNROLL
    for (int k = 0; k < kAhead; ++k) {
      if (at + k >= end) break;
      if (key[k] != now) leave(), now = key[k];
      GENERANT_UNROLL
      for (int e = 0; e < N; ++e) sum.v[e] += row[k].v[e];
    }
  }
  leave();
}

// Where a destination begins in a chunk and goes on in later ones: adds what they left.
template <class T, int N> __global__ void carry_kernel(Segments s, int64_t width, const uint32_t* keys, Pack<T, N>* y, const Pack<T, N>* carried) {
  const int64_t i = global_thread(), chunk = i / width, column = i - chunk * width;
  if (chunk >= s.chunks) return;
  const int64_t begin = chunk * s.chunk;
  int64_t end = begin + s.chunk;
  if (end >= s.n) return;
  const uint32_t own = keys[end];
  const bool begins_here = keys[begin] != own || begin == 0 || keys[begin - 1] != own;
  if (keys[end - 1] != own || !begins_here || own >= s.m) return;
  Pack<T, N> sum = y[own * width + column];
  for (int64_t k = chunk + 1; end < s.n && keys[end] == own; ++k, end += s.chunk) {
    const Pack<T, N> part = carried[k * width + column];
    GENERANT_UNROLL
    for (int e = 0; e < N; ++e) sum.v[e] += part.v[e];
  }
  y[own * width + column] = sum;
}

template <class T, int N> inline Pack<T, N>* packs(T* p) { return reinterpret_cast<Pack<T, N>*>(p); }
template <class T, int N> inline const Pack<T, N>* packs(const T* p) { return reinterpret_cast<const Pack<T, N>*>(p); }

inline bool searched(int64_t n, int64_t m) {         // the sort has 32 bits for keys and positions
  return n == 0 || m <= kSearch / n || m >= 0xffffffff || n >= 0xffffffff;
}

template <class T> int64_t scatter_bytes(const Call& c) {
  const int64_t n = rows(c.in[0]), m = c.out[0].shape[0], d = c.out[0].shape[1];
  if (searched(n, m)) return 0;
  return padded(SortScratch(n).bytes(), 16) + Segments(n, m).chunks * d * int64_t(sizeof(T));
}

template <class T, int N> inline void sum_sorted(const Call& c, const Segments& s, const Sorted& sorted, int64_t d, T* carried) {
  const int64_t width = d / N;
  const dim3 grid = grid_of(ceil_div(s.chunks * width, kMapThreads));
  launch(c, chunk_sums_kernel<T, N>, grid, kMapThreads, 0, s, width, sorted.keys, sorted.positions, packs<T, N>(in<T>(c, 0)),
         packs<T, N>(out<T>(c)), packs<T, N>(carried));
  launch(c, carry_kernel<T, N>, grid, kMapThreads, 0, s, width, sorted.keys, packs<T, N>(out<T>(c)), packs<T, N>(carried));
}

inline bool aligned(const void* a, const void* b) { return (reinterpret_cast<uintptr_t>(a) | reinterpret_cast<uintptr_t>(b)) % 16 == 0; }

}  // namespace

KERNEL(gather) {
  constexpr int N = 16 / sizeof(T);
  const int64_t d = last(c.out[0]), n = size(c.out[0]), m = c.in[0].shape[0];
  const T* table = in<T>(c, 0);
  const int64_t* index = in<int64_t>(c, 1);
  if (d % N == 0 && aligned(table, out<T>(c)))
    launch(c, gather_kernel<T, N>, grid_of(ceil_div(n / N, kMapThreads)), kMapThreads, 0, n / N, d / N, m, packs<T, N>(table), index,
           packs<T, N>(out<T>(c)));
  else
    launch(c, gather_kernel<T, 1>, grid_of(ceil_div(n, kMapThreads)), kMapThreads, 0, n, d, m, packs<T, 1>(table), index,
           packs<T, 1>(out<T>(c)));
}

KERNEL_SCRATCH(scatter_add, scatter_bytes) {
  constexpr int N = 16 / sizeof(T);
  const int64_t m = c.out[0].shape[0], d = c.out[0].shape[1], n = rows(c.in[0]);
  const T* g = in<T>(c, 0);
  const int64_t* index = in<int64_t>(c, 1);
  T* y = out<T>(c);
  if (m == 0 || d == 0) return;
  if (searched(n, m)) {
    const int64_t groups = ceil_div(d, kWarp * kSearchColumns);
    launch(c, search_kernel<T>, grid_of(ceil_div(m * groups * kWarp, kMapThreads)), kMapThreads, 0, n, m, d, groups, g, index, y);
    return;
  }
  clear(c, y, size_t(m * d) * sizeof(T));
  const Sorted sorted = sort_positions(c, n, uint32_t(m), Destination{index, m}, c.scratch);
  T* carried = reinterpret_cast<T*>(static_cast<char*>(c.scratch) + padded(SortScratch(n).bytes(), 16));
  const Segments s(n, m);
  if (d % N == 0 && aligned(g, y)) sum_sorted<T, N>(c, s, sorted, d, carried);
  else sum_sorted<T, 1>(c, s, sorted, d, carried);
}
