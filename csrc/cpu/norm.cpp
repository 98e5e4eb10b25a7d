// Layer normalisation: a row is read from memory once, and again from L1 for its variance and for its output.
//
// Backward: rows in fixed blocks; a block adds its share of dgain and dbias into a line of scratch of its own, and the
// lines are merged in block order.
#include "../parallel.h"
#include "../simd.h"

namespace {

constexpr int64_t kBlock = 16384;          // elements per block of rows

// Lanes below n.
template <class T> inline vmask<T> first_lanes(int64_t n) {
  vmask<T> i;
  for (int k = 0; k < kLanes<T>; ++k) i[k] = k;
  return i < (vmask<T>{} + decltype(i[0] + 0)(n));
}

// Sum of all lanes by halves, in registers.
template <class T, class V> inline T sum_lanes(V v) {
  constexpr int n = int(sizeof(V) / sizeof(T));
  if constexpr (n <= 4) {
    T a[n];
    memcpy(a, &v, sizeof v);
    if constexpr (n == 4) return (a[0] + a[2]) + (a[1] + a[3]);
    else return a[0] + a[1];
  } else {
    typedef T half __attribute__((vector_size(sizeof(V) / 2)));
    half a, b;
    memcpy(&a, &v, sizeof a);
    memcpy(&b, reinterpret_cast<const char*>(&v) + sizeof a, sizeof b);
    return sum_lanes<T>(half(a + b));
  }
}

// sum over j of f(x_j), f given vectors at offset j, in a fixed order: four vectors of partial sums.
template <class T, class F> inline T row_sum(int64_t d, F f) {
  constexpr int L = kLanes<T>;
  vec<T> a[4] = {};
  int64_t j = 0;
  for (; j + 4 * L <= d; j += 4 * L)
    for (int k = 0; k < 4; ++k) a[k] += f(j + k * L, L);
  for (int k = 0; j < d; j += L, ++k) {
    const int64_t n = d - j < L ? d - j : L;
    const vec<T> v = f(j, n);
    a[k] += n < L ? (first_lanes<T>(n) ? v : vec<T>{}) : v;
  }
  return sum_lanes<T>((a[0] + a[1]) + (a[2] + a[3]));
}

template <class T> inline vec<T> load_n(const T* p, int64_t n) {
  return n == kLanes<T> ? load(p) : load_first(p, n);
}
template <class T> inline void store_n(T* p, vec<T> v, int64_t n) {
  if (n == kLanes<T>) store(p, v);
  else store_first(p, v, n);
}

// f(j, n) for the vectors of a row: n lanes from offset j.
template <class T, class F> inline void row_map(int64_t d, F f) {
  constexpr int L = kLanes<T>;
  int64_t j = 0;
  for (; j + L <= d; j += L) f(j, int64_t(L));
  if (j < d) f(j, d - j);
}

// Rows of a block of the backward pass: enough elements, and at most 64 blocks, since merging them costs too.
inline int64_t rows_per_block(int64_t n_rows, int64_t d) {
  const int64_t enough = ceil_div(kBlock, d > 0 ? d : 1), few = ceil_div(n_rows, 64);
  return enough > few ? enough : few;
}

template <class T> int64_t bwd_bytes(const Call& c) {
  const int64_t d = last(c.in[1]), n = rows(c.in[1]), blocks = ceil_div(n, rows_per_block(n, d));
  return blocks * 2 * d * int64_t(sizeof(T));
}

}  // namespace

KERNEL(layer_norm) {
  const int64_t d = last(c.in[0]);
  const T *x0 = in<T>(c, 0), *gain = in<T>(c, 1), *bias = in<T>(c, 2);
  T *y0 = out<T>(c, 0), *means = out<T>(c, 1), *rstds = out<T>(c, 2);
  const T eps = T(c.attr[0]);
  parallel_range(c, rows(c.in[0]), ceil_div(kBlock, d > 0 ? d : 1), [&](int64_t i, int64_t end) {
    for (; i < end; ++i) {
      const T* x = x0 + i * d;
      T* y = y0 + i * d;
      const T mean = row_sum<T>(d, [&](int64_t j, int64_t n) { return load_n(x + j, n); }) / T(d);
      const vec<T> m = broadcast(mean);
      const T var = row_sum<T>(d, [&](int64_t j, int64_t n) {
        const vec<T> z = load_n(x + j, n) - m;
        return z * z;
      }) / T(d);
      const T rstd = T(1) / T(__builtin_sqrt(double(var + eps)));
      const vec<T> r = broadcast(rstd);
      row_map<T>(d, [&](int64_t j, int64_t n) {
        const vec<T> z = (load_n(x + j, n) - m) * r;
        store_n(y + j, fma(z, load_n(gain + j, n), load_n(bias + j, n)), n);
      });
      if (means) means[i] = mean;
      if (rstds) rstds[i] = rstd;
    }
  });
}

KERNEL_SCRATCH(layer_norm_bwd, bwd_bytes) {
  const int64_t d = last(c.in[1]), n_rows = rows(c.in[1]);
  const int64_t block = rows_per_block(n_rows, d), blocks = ceil_div(n_rows, block);
  const T *g0 = in<T>(c, 0), *x0 = in<T>(c, 1), *gain = in<T>(c, 2), *means = in<T>(c, 4), *rstds = in<T>(c, 5);
  T *dx0 = out<T>(c, 0), *dgain = out<T>(c, 1), *dbias = out<T>(c, 2);
  T* partial = static_cast<T*>(c.scratch);         // blocks x (dgain, dbias) x d
  const bool parameters = dgain || dbias;
  if (d == 0) return;
  parallel(c, blocks, [&](int64_t b, int) {
    T *pg = partial + b * 2 * d, *pb = pg + d;
    if (parameters) __builtin_memset(pg, 0, size_t(2 * d) * sizeof(T));
    const int64_t end = (b + 1) * block < n_rows ? (b + 1) * block : n_rows;
    for (int64_t i = b * block; i < end; ++i) {
      const T *g = g0 + i * d, *x = x0 + i * d;
      const vec<T> m = broadcast(means[i]), r = broadcast(rstds[i]);
      vec<T> su[2] = {}, suz[2] = {};                // of u = g gain and u z
      int k = 0;
      auto first = [&](int64_t j, int64_t n) {
        const vec<T> gv = load_n(g + j, n), u = gv * load_n(gain + j, n);
        vec<T> z = (load_n(x + j, n) - m) * r;       // in lanes from n on u and g are 0
        if (parameters) {
          store_n(pg + j, fma(gv, z, load_n(pg + j, n)), n);
          store_n(pb + j, gv + load_n(pb + j, n), n);
        }
        su[k] += u;
        suz[k] = fma(u, z, suz[k]);
        k ^= 1;
      };
      row_map<T>(d, first);
      if (!dx0) continue;
      T* dx = dx0 + i * d;
      const T mean_u = sum_lanes<T>(su[0] + su[1]) / T(d), mean_uz = sum_lanes<T>(suz[0] + suz[1]) / T(d);
      const vec<T> mu = broadcast(mean_u), muz = broadcast(mean_uz);
      row_map<T>(d, [&](int64_t j, int64_t n) {
        const vec<T> z = (load_n(x + j, n) - m) * r, u = load_n(g + j, n) * load_n(gain + j, n);
        store_n(dx + j, r * ((u - mu) - z * muz), n);
      });
    }
  });
  if (!parameters) return;
  constexpr int64_t kTile = 64;                      // columns merged together
  const int64_t grain = ceil_div(kBlock, 2 * kTile * (blocks > 0 ? blocks : 1));
  parallel_range(c, ceil_div(d, kTile), grain, [&](int64_t i, int64_t end) {
    for (; i < end; ++i) {
      const int64_t column = i * kTile, n = d - column < kTile ? d - column : kTile;
      double total[2][kTile] = {};
      for (int64_t b = 0; b < blocks; ++b)
        for (int k = 0; k < 2; ++k)
          for (int64_t j = 0; j < n; ++j) total[k][j] += double(partial[(2 * b + k) * d + column + j]);
      for (int64_t j = 0; j < n; ++j) {
        if (dgain) dgain[column + j] = T(total[0][j]);
        if (dbias) dbias[column + j] = T(total[1][j]);
      }
    }
  });
}
