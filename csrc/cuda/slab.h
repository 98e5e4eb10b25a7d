// A normalisation of groups of channels in one kernel, for maps of which a few groups fit into the registers of a block.
//
// A block has all positions of neighbouring groups of one sample, 64 bytes or more of every position: its slab. A thread has
// one pack of channels of every rows_at_once-th position. What threads have summed is added up by channel and then by group
// in shared memory, in double. Which maps fit depends on the shape of a sample only.
#pragma once
#include "group_norm_bwd.h"

namespace {

constexpr int kSlabThreads = 512;
// Packs of x in a thread, and of x and of g; beside double there is not room for as many.
template <class T> constexpr int kMostHeld = sizeof(T) == 4 ? 16 : 8;
template <class T> constexpr int kMostPairs = sizeof(T) == 4 ? 8 : 4;

struct Slab {
  int64_t rows, c, groups, tiles;                    // positions; tiles: blocks per sample
  int each, wide_groups, packs, rows_at_once, slices, held;   // channels per group, groups and packs per tile; held: V
  int threads() const { return int(padded(int64_t(packs) * rows_at_once, kWarp)); }
  bool fits() const { return held > 0; }
};

// Shared memory: part (2, slices, width), two numbers per group; five per channel and terms (2, rows_at_once, width) in T.
template <class T> inline size_t slab_shared(const Slab& s) {
  const size_t width = size_t(s.packs) * kPack<T>;
  return (2 * s.slices * width + 2 * s.wide_groups) * sizeof(double) + (5 + 2 * s.rows_at_once) * width * sizeof(T);
}

template <class T> inline Slab slab_plan(int64_t rows, int64_t c, int64_t groups, int most) {
  constexpr int N = kPack<T>;
  Slab s{rows, c, groups, 0, groups > 0 ? int(c / groups) : 0, 1, 0, 0, 1, 0};
  if (rows == 0 || c == 0) return s;
  const int targets[] = {128, 64, 64}, middle = most > 8 ? 8 : most, limits[] = {middle, middle, most}, helds[] = {2, middle, most};
  for (int i = 0; i < 3; ++i) {
    int64_t k = 1;
    while (k < groups && (k * s.each * int64_t(sizeof(T)) < targets[i] || (c % N == 0 && k * s.each % N != 0))) ++k;
    const int64_t packs = ceil_div(k * s.each, N);
    for (int held : helds) {
      const int64_t at_once = ceil_div(rows, held);
      if (held > limits[i] || at_once * packs > (held < most ? 256 : kSlabThreads)) continue;
      s.tiles = ceil_div(groups, k), s.wide_groups = int(k), s.packs = int(packs), s.rows_at_once = int(at_once), s.held = held;
      const int64_t slices = s.threads() / (packs * N);
      s.slices = int(slices < 1 ? 1 : slices < at_once ? slices : at_once);
      if (slab_shared<T>(s) <= kMaxShared) return s;
      s.held = 0;
    }
  }
  return s;
}

// The place of a thread in a slab.
template <class T> struct SlabPlace {
  int sample, first_group, column;                   // column: of x
  int groups, lane, row, n;                          // groups of this block; n: how many numbers of the pack are there
  __device__ SlabPlace(const Slab& s) {
    sample = int(blockIdx.x / unsigned(s.tiles)), first_group = int(blockIdx.x % unsigned(s.tiles)) * s.wide_groups;
    groups = int(s.groups - first_group < s.wide_groups ? s.groups - first_group : s.wide_groups);
    lane = threadIdx.x % s.packs, row = threadIdx.x / s.packs;
    column = first_group * s.each + lane * kPack<T>, n = row < s.rows_at_once ? groups * s.each - lane * kPack<T> : 0;
  }
};

template <class T> struct SlabMemory {
  double *part, *group0, *group1;
  T *channels, *terms;
  __device__ SlabMemory(double* shared, const Slab& s) {
    part = shared, group0 = part + 2 * s.slices * s.packs * kPack<T>, group1 = group0 + s.wide_groups;
    channels = reinterpret_cast<T*>(group1 + s.wide_groups), terms = channels + 5 * s.packs * kPack<T>;
  }
  __device__ void put(const Slab& s, const SlabPlace<T>& at, int which, const T* sums) {
    if (at.row >= s.rows_at_once) return;
    T* to = terms + ((which * s.rows_at_once + at.row) * s.packs + at.lane) * kPack<T>;
    GENERANT_UNROLL
    for (int k = 0; k < kPack<T>; ++k) to[k] = sums[k];
  }
  __device__ double& total(const Slab& s, int which, int channel) { return part[which * s.slices * s.packs * kPack<T> + channel]; }

  // f(j, p, width) for every channel j of the block, counted from its first; p[k * width] is to be its number k.
  template <class F> __device__ void by_channel(const Slab& s, const SlabPlace<T>& at, F f) {
    const int width = s.packs * kPack<T>;
    _Pragma("unroll 1")
    for (int j = threadIdx.x; j < at.groups * s.each; j += blockDim.x) f(j, channels + j, width);
    __syncthreads();
  }
  __device__ PackOf<T> pack(const Slab& s, const SlabPlace<T>& at, int k) const {
    return *reinterpret_cast<const PackOf<T>*>(channels + (k * s.packs + at.lane) * kPack<T>);
  }

  // K numbers per channel: terms (K, rows_at_once, width) summed over rows, into total(which, channel).
  __device__ void add_up(const Slab& s, int K) {
    const int width = s.packs * kPack<T>;
    __syncthreads();
    for (int e = threadIdx.x; e < K * s.slices * width; e += blockDim.x) {
      const int channel = e % width, which = e / width / s.slices, slice = e / width % s.slices;
      double sum = 0;
      for (int r = slice; r < s.rows_at_once; r += s.slices) sum += double(terms[(which * s.rows_at_once + r) * width + channel]);
      part[e] = sum;
    }
    __syncthreads();
    for (int e = threadIdx.x; e < K * width && s.slices > 1; e += blockDim.x) {
      const int which = e / width, channel = e % width;
      double sum = 0;
      for (int k = 0; k < s.slices; ++k) sum += part[(which * s.slices + k) * width + channel];
      total(s, which, channel) = sum;
    }
    __syncthreads();
  }

  // f(g, a, b) in one lane of a warp per group: the sums over its channels of what channel(j, a, b) adds.
  template <class C, class F> __device__ void by_group(const Slab& s, int groups, C channel, F f) {
    _Pragma("unroll 1")
    for (int g = threadIdx.x / kWarp; g < groups; g += blockDim.x / kWarp) {
      double a = 0, b = 0;
      _Pragma("unroll 1")
      for (int j = threadIdx.x % kWarp; j < s.each; j += kWarp) channel(g * s.each + j, a, b);
      a = warp_sum(a), b = warp_sum(b);
      if (threadIdx.x % kWarp == 0) f(g, a, b);
    }
    __syncthreads();
  }
};

template <class T, int V, bool kSilu>
__global__ void __launch_bounds__(V < kMostHeld<T> ? 256 : kSlabThreads, V < kMostHeld<T> ? 2 : 1)
slab_norm(const T* x, T* y, NormAffine<T> affine, Slab s, T* means, T* rstds, bool wide) {
  constexpr int N = kPack<T>;
  DYNAMIC_SHARED(double, shared);
  const SlabPlace<T> at(s);
  SlabMemory<T> m(shared, s);
  const int64_t first = (int64_t(at.sample) * s.rows + at.row) * s.c + at.column, step = int64_t(s.rows_at_once) * s.c;
  const int rows = int(s.rows) - at.row;             // of this thread: 0, rows_at_once, ... < rows
  PackOf<T> a[V];
  T sums[N] = {}, lost[N] = {};                      // and what rounding has lost: far from zero the mean needs it
  GENERANT_UNROLL
  for (int i = 0; i < V; ++i) a[i] = load_pack(x + first + i * step, i * s.rows_at_once < rows ? at.n : 0, wide);
  GENERANT_UNROLL
  for (int i = 0; i < V; ++i) {
    GENERANT_UNROLL
    for (int k = 0; k < N; ++k) {                    // Knuth's two-sum
      const T v = a[i].v[k], t = sums[k] + v, z = t - sums[k];
      lost[k] += (sums[k] - (t - z)) + (v - z);
      sums[k] = t;
    }
  }
  m.put(s, at, 0, sums);
  m.put(s, at, 1, lost);
  m.add_up(s, 2);
  const double count = double(s.rows) * s.each;
  m.by_group(s, at.groups, [&](int j, double& sum, double&) { sum += m.total(s, 0, j) + m.total(s, 1, j); },
             [&](int g, double sum, double) { m.group0[g] = sum / count; });

  m.by_channel(s, at, [&](int j, T* p, int) { *p = T(m.group0[j / s.each]); });
  Folded<T> f;
  f.centre = m.pack(s, at, 0);
  GENERANT_UNROLL
  for (int k = 0; k < N; ++k) sums[k] = T(0);
  GENERANT_UNROLL
  for (int i = 0; i < V; ++i)
    if (i * s.rows_at_once < rows) {
      GENERANT_UNROLL
      for (int k = 0; k < N; ++k) {
        const T d = a[i].v[k] - f.centre.v[k];
        sums[k] += d * d;
      }
    }
  m.put(s, at, 0, sums);
  m.add_up(s, 1);
  m.by_group(s, at.groups, [&](int j, double& sum, double&) { sum += m.total(s, 0, j); }, [&](int g, double sum, double) {
    const double mean = m.group0[g], off = mean - double(T(mean)), rstd = 1.0 / sqrt(sum / count - off * off + affine.eps);
    m.group1[g] = rstd;
    const int64_t to = int64_t(at.sample) * s.groups + at.first_group + g;
    if (means) means[to] = T(mean);
    if (rstds) rstds[to] = T(rstd);
  });

  m.by_channel(s, at, [&](int j, T* p, int width) {
    affine.fold(at.sample, at.first_group * s.each + j, m.group0[j / s.each], m.group1[j / s.each], p[0], p[width], p[2 * width]);
  });
  f.a = m.pack(s, at, 1), f.b = m.pack(s, at, 2);
  GENERANT_UNROLL
  for (int i = 0; i < V; ++i)
    store_pack(y + first + i * step, normalised<T, kSilu>(a[i], f), i * s.rows_at_once < rows ? at.n : 0, wide);
}

template <class T, int V, bool kSilu>
__global__ void __launch_bounds__(V == 2 ? 256 : kSlabThreads, V == 2 ? 2 : 1)
slab_gradient(const T* x, const T* g, NormAffine<T> affine, Slab s, ChannelGradients<T> d, T* dx, bool wide) {
  constexpr int N = kPack<T>;
  DYNAMIC_SHARED(double, shared);
  const SlabPlace<T> at(s);
  SlabMemory<T> m(shared, s);
  const int64_t first = (int64_t(at.sample) * s.rows + at.row) * s.c + at.column, step = int64_t(s.rows_at_once) * s.c;
  const int rows = int(s.rows) - at.row;
  PackOf<T> a[V], b[V];
  GENERANT_UNROLL
  for (int i = 0; i < V; ++i) {
    const int n = i * s.rows_at_once < rows ? at.n : 0;
    a[i] = load_pack(x + first + i * step, n, wide), b[i] = load_pack(g + first + i * step, n, wide);
  }
  const int64_t group0 = int64_t(at.sample) * s.groups + at.first_group;
  m.by_channel(s, at, [&](int j, T* p, int width) {
    const int64_t own = group0 + j / s.each;
    affine.fold(at.sample, at.first_group * s.each + j, affine.mean_of(own), affine.rstd_of(own), p[0], p[width], p[2 * width]);
  });
  const Folded<T> f{m.pack(s, at, 0), m.pack(s, at, 1), m.pack(s, at, 2)};
  T s0[N] = {}, s1[N] = {};
  GENERANT_UNROLL
  for (int i = 0; i < V; ++i) {                      // where there is no row, g is 0
    GENERANT_UNROLL
    for (int k = 0; k < N; ++k) {
      const T z = a[i].v[k] - f.centre.v[k];
      b[i].v[k] = slope<T, kSilu>(b[i].v[k], z, f.a.v[k], f.b.v[k]);
      s0[k] += b[i].v[k];
      s1[k] += b[i].v[k] * z;
    }
  }
  m.put(s, at, 0, s0);
  m.put(s, at, 1, s1);
  m.add_up(s, 2);
  const double count = double(s.rows) * s.each;
  m.by_group(s, at.groups, [&](int j, double& t, double& tz) {
    const double rstd = affine.rstd_of(group0 + j / s.each);
    d.write(affine, at.sample, at.first_group * s.each + j, m.total(s, 0, j), m.total(s, 1, j) * rstd, t, tz);
  }, [&](int k, double t, double tz) { m.group0[k] = t / count, m.group1[k] = tz / count; });
  if (!dx) return;
  m.by_channel(s, at, [&](int j, T* p, int width) {
    const int k = j / s.each;
    const Rest<T> rest = rest_of<T>(affine.rstd_of(group0 + k), m.group0[k], m.group1[k]);
    p[3 * width] = rest.q, p[4 * width] = rest.o;
  });
  const PackOf<T> q = m.pack(s, at, 3), o = m.pack(s, at, 4);
  GENERANT_UNROLL
  for (int i = 0; i < V; ++i) {
    PackOf<T> r;
    GENERANT_UNROLL
    for (int k = 0; k < N; ++k) r.v[k] = b[i].v[k] * f.a.v[k] + ((a[i].v[k] - f.centre.v[k]) * q.v[k] + o.v[k]);
    store_pack(dx + first + i * step, r, i * s.rows_at_once < rows ? at.n : 0, wide);
  }
}

// ---- whichever way fits ---------------------------------------------------------------------------------------------

// The scratch of norm_forward and norm_backward for n samples, in bytes.
template <class T> inline int64_t norm_forward_bytes(int64_t n, int64_t rows, int64_t c, int64_t groups) {
  if (slab_plan<T>(rows, c, groups, kMostHeld<T>).fits()) return 0;
  return (column_grid<T>(rows, c).partials(n) + 2 * n * groups) * int64_t(sizeof(double));
}
template <class T> inline int64_t norm_backward_bytes(int64_t n, int64_t rows, int64_t c, int64_t groups) {
  if (slab_plan<T>(rows, c, groups, kMostPairs<T>).fits()) return 2 * n * c * int64_t(sizeof(double));
  return two_pass_bytes<T>(n, column_grid<T>(rows, c), groups);
}

// affine: without statistics; they go to means and rstds (n, groups), which may be null.
template <class T, bool kSilu>
inline void norm_forward(const Call& c, const T* x, T* y, int64_t n, int64_t rows, int64_t groups, NormAffine<T> affine,
                         T* means, T* rstds) {
  const Slab slab = slab_plan<T>(rows, affine.c, groups, kMostHeld<T>);
  if (slab.fits()) {
    auto run = slab.held == 2 ? slab_norm<T, 2, kSilu> : slab.held == 8 ? slab_norm<T, 8, kSilu> : slab_norm<T, kMostHeld<T>, kSilu>;
    return launch(c, run, grid_of(n * slab.tiles), slab.threads(), slab_shared<T>(slab), x, y, affine, slab, means, rstds,
                  wide_rows<T>(affine.c, x, y));
  }
  const ColumnGrid s = column_grid<T>(rows, affine.c);
  double *partial = static_cast<double*>(c.scratch), *mean = partial + s.partials(n), *rstd = mean + n * groups;
  group_moments(c, x, n, s, groups, affine.eps, partial, mean, rstd, means, rstds);
  affine.mean = mean, affine.rstd = rstd;
  apply_norm<T, kSilu>(c, x, y, n, s, affine);
}

template <class T, bool kSilu>
inline void norm_backward(const Call& c, const T* g, const T* x, int64_t n, int64_t rows, int64_t groups, const NormAffine<T>& affine,
                          const NormGradients<T>& d) {
  const Slab slab = slab_plan<T>(rows, affine.c, groups, kMostPairs<T>);
  if (!slab.fits()) return two_pass_backward<T, kSilu>(c, g, x, n, column_grid<T>(rows, affine.c), affine, d);
  const bool wanted = d.gain || d.bias;
  double* parameters = wanted ? static_cast<double*>(c.scratch) : nullptr;
  launch(c, slab.held == 2 ? slab_gradient<T, 2, kSilu> : slab_gradient<T, kMostPairs<T>, kSilu>, grid_of(n * slab.tiles), slab.threads(),
         slab_shared<T>(slab), x, g, affine, slab, ChannelGradients<T>{d.scale, d.shift, parameters}, d.x,
         wide_rows<T>(affine.c, x, g, d.x));
  if (wanted) parameter_gradients(c, parameters, n, affine.c, d);
}

}  // namespace
