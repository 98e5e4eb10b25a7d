// Sums, means and maxima over any axes, and expand (broadcasting as a copy); passes and monoids are those of ../reduction.h.
//
// A pass over (batch, reduced, kept) has a thread per result where little is reduced, some lanes per row where short rows
// are, and otherwise blocks that each take a chunk of the reduced axis and a few columns and leave partial results, which
// the same kernel merges. Chunks depend on (reduced, kept) only: no result depends on the batch it came in.
#include "block.h"
#include "broadcast.h"
#include "reduction.h"

namespace {

constexpr int64_t kShort = 1024;             // rows up to here have lanes of one warp
constexpr int64_t kFew = 32;                 // columns up to here have one thread
constexpr int64_t kEach = 16, kMostChunks = 1024;  // elements of a chunk per thread, at least; chunks at most

struct Target {                              // of results; the last pass writes T, the others double
  void* y;
  bool wide;
  double divisor;
  __device__ void put(int64_t i, double v) const {
    if (divisor != 1.0) v /= divisor;
    if (wide) static_cast<double*>(y)[i] = v;
    else static_cast<float*>(y)[i] = float(v);
  }
};

template <class Op> __device__ inline void accumulate(Total<Op>& total, float x) { Op::add(total, double(x)); }
template <class Op> __device__ inline void accumulate(Total<Op>& total, double x) { Op::add(total, x); }
template <class Op> __device__ inline void accumulate(Total<Op>& total, const Total<Op>& part) { Op::merge(total, part); }

template <class Total> __device__ inline Total from_lane(const Total& mine, int mask) {
  double v[sizeof(Total) / sizeof(double)];
  memcpy(v, &mine, sizeof mine);
  GENERANT_UNROLL
  for (auto& part : v) part = warp_xor(part, mask);
  Total other;
  memcpy(&other, v, sizeof other);
  return other;
}

// Groups of `width` lanes sum rows of n elements, which they read by 16 bytes.
template <class Op, class S> __global__ void rows_kernel(int64_t batch, int64_t n, int width, const S* x, Target y) {
  constexpr int N = 16 / sizeof(S);
  const int64_t row = global_thread() / width;
  Total<Op> total = Op::template zero<double>();
  if (row < batch) {
    x += row * n;
    const bool aligned = reinterpret_cast<uintptr_t>(x) % 16 == 0;
    for (int64_t i = int64_t(threadIdx.x % width) * N; i < n; i += int64_t(width) * N) {
      if (aligned && i + N <= n) {
        const Pack<S, N> p = *reinterpret_cast<const Pack<S, N>*>(x + i);
        GENERANT_UNROLL
        for (int k = 0; k < N; ++k) accumulate<Op>(total, p.v[k]);
      } else {
        for (int k = 0; k < N && i + k < n; ++k) accumulate<Op>(total, x[i + k]);  // in the same order
      }
    }
  }
  for (int mask = width / 2; mask > 0; mask /= 2) Op::merge(total, from_lane(total, mask));
  if (row < batch && threadIdx.x % width == 0) y.put(row, Op::value(total));
}

// One thread per result.
template <class Op, class S> __global__ void results_kernel(int64_t results, int64_t n, int64_t kept, const S* x, Target y) {
  const int64_t i = global_thread();
  if (i >= results) return;
  const int64_t b = i / kept;
  x += b * n * kept + (i - b * kept);
  Total<Op> total = Op::template zero<double>();
#pragma unroll 4
  for (int64_t r = 0; r < n; ++r) accumulate<Op>(total, x[r * kept]);
  y.put(i, Op::value(total));
}

struct Chunks {                              // of a pass, for blocks
  int threads, width, step;                  // columns per block, and rows it reads at a time
  int64_t groups, rows, n;                   // of columns; of a chunk; chunks
  explicit Chunks(const Pass& p) {
    width = p.kept < 64 ? int(p.kept) : 32;
    threads = p.reduced * width <= 2048 ? 64 : 256;
    step = threads / width;
    groups = ceil_div(p.kept, width);
    const int64_t few = ceil_div(p.reduced, kMostChunks);
    rows = step * kEach > few ? step * kEach : few;
    n = p.reduced <= 2 * rows ? 1 : ceil_div(p.reduced, rows);
    if (n == 1) rows = p.reduced;
  }
};

// Thread t has column t % width of the block's and every step-th row of its chunk; S is a number or a partial result.
template <class Op, class S> __global__ void __launch_bounds__(256) chunks_kernel(Pass p, Chunks k, const S* x, Total<Op>* partial, Target y) {
  __shared__ Total<Op> shared[256];
  const int64_t per_batch = k.n * k.groups, b = blockIdx.x / per_batch, rest = blockIdx.x - b * per_batch;
  const int64_t chunk = rest / k.groups, group = rest - chunk * k.groups;
  const int t = threadIdx.x, r = t / k.width;
  const int64_t column = group * k.width + (t - r * k.width), begin = chunk * k.rows;
  const int64_t end = begin + k.rows < p.reduced ? begin + k.rows : p.reduced;
  const bool mine = r < k.step && column < p.kept;
  Total<Op> total = Op::template zero<double>();
  if (mine) {
    x += b * p.reduced * p.kept + column;
#pragma unroll 8
    for (int64_t i = begin + r; i < end; i += k.step) accumulate<Op>(total, x[i * p.kept]);
    shared[t] = total;
  }
  int half = 1;
  while (2 * half < k.step) half *= 2;
  for (; half > 0; half /= 2) {
    __syncthreads();
    if (mine && r < half && r + half < k.step) Op::merge(shared[t], shared[t + half * k.width]);
  }
  if (!mine || r > 0) return;
  if (partial) partial[(b * k.n + chunk) * p.kept + column] = shared[t];
  else y.put(b * p.kept + column, Op::value(shared[t]));
}

template <class Op, class S> inline void in_chunks(const Call& c, const Pass& p, const S* x, Total<Op>* partial, Target y) {
  const Chunks k(p);
  const bool split = k.n > 1;
  launch(c, chunks_kernel<Op, S>, grid_of(p.batch * k.n * k.groups), k.threads, 0, p, k, x, split ? partial : nullptr, y);
  if (!split) return;
  const Pass merged{p.batch, k.n, p.kept};
  Chunks all(merged);
  all.rows = k.n, all.n = 1;
  launch(c, chunks_kernel<Op, Total<Op>>, grid_of(p.batch * all.groups), all.threads, 0, merged, all, partial, nullptr, y);
}

template <class Op, class S> inline void run_pass(const Call& c, const Pass& p, const S* x, Total<Op>* partial, Target y) {
  const int64_t results = p.batch * p.kept;
  if (results == 0) return;
  if (p.kept == 1 && p.reduced <= kShort) {
    int width = 1;
    while (width < kWarp && width * int64_t(16 / sizeof(S)) < p.reduced) width *= 2;
    launch(c, rows_kernel<Op, S>, grid_of(ceil_div(p.batch * width, kMapThreads)), kMapThreads, 0, p.batch, p.reduced, width, x, y);
  } else if (p.kept > 1 && p.reduced <= kFew) {
    launch(c, results_kernel<Op, S>, grid_of(ceil_div(results, kMapThreads)), kMapThreads, 0, results, p.reduced, p.kept, x, y);
  } else {
    in_chunks<Op>(c, p, x, partial, y);
  }
}

inline int64_t bytes_of(const Passes& p) {
  int64_t most = 0;
  for (const Pass* q = p.pass; q < p.pass + p.n; ++q) {
    if (q->batch * q->kept == 0) continue;
    const Chunks k(*q);
    const int64_t n = k.n > 1 ? q->batch * k.n * q->kept : 0;
    most = n > most ? n : most;
  }
  return most * int64_t(sizeof(Total<SumOf<double>>)) + 2 * p.between() * int64_t(sizeof(double));  // the largest state
}

// The passes see `Op<T>` on the input and `Op<double>` on what the earlier ones left.
template <template <class> class Op, class T> inline void reduce(const Call& c, const bool* reduced, bool mean) {
  const Passes p(c.in[0], reduced);
  if (size(c.out[0]) == 0) return;
  double* between[2];
  double* const partial = static_cast<double*>(c.scratch);     // first, for its alignment
  const int64_t own = bytes_of(p) / int64_t(sizeof(double)) - 2 * p.between();
  between[0] = partial + own, between[1] = between[0] + p.between();
  for (int i = 0; i < p.n; ++i) {
    const bool end = i + 1 == p.n;
    const Target y = end ? Target{out<T>(c), sizeof(T) == 8, mean ? double(p.count) : 1.0} : Target{between[i % 2], true, 1.0};
    if (i == 0) run_pass<Op<T>>(c, p.pass[i], in<T>(c, 0), reinterpret_cast<Total<Op<T>>*>(partial), y);
    else run_pass<Op<double>>(c, p.pass[i], const_cast<const double*>(between[(i + 1) % 2]), reinterpret_cast<Total<Op<double>>*>(partial), y);
  }
}

template <class T> int64_t axis_bytes(const Call& c) {
  bool reduced[generant::kMaxDims];
  axes_of_attr(c, reduced);
  return bytes_of(Passes(c.in[0], reduced));
}

template <class T> int64_t sum_to_bytes(const Call& c) {
  bool reduced[generant::kMaxDims];
  axes_of_shape(c, reduced);
  return bytes_of(Passes(c.in[0], reduced));
}

struct First {
  template <class T> __device__ T operator()(T a, T) const { return a; }
};

}  // namespace

KERNEL_SCRATCH(sum, axis_bytes) {
  bool reduced[generant::kMaxDims];
  axes_of_attr(c, reduced);
  reduce<SumOf, T>(c, reduced, false);
}

KERNEL_SCRATCH(mean, axis_bytes) {
  bool reduced[generant::kMaxDims];
  axes_of_attr(c, reduced);
  reduce<SumOf, T>(c, reduced, true);
}

KERNEL_SCRATCH(max, axis_bytes) {
  bool reduced[generant::kMaxDims];
  axes_of_attr(c, reduced);
  reduce<MaxOf, T>(c, reduced, false);
}

KERNEL_SCRATCH(sum_to, sum_to_bytes) {
  bool reduced[generant::kMaxDims];
  axes_of_shape(c, reduced);
  reduce<SumOf, T>(c, reduced, false);
}

KERNEL(expand) { broadcast_map<T>(c, c.in[0], c.in[0], First{}); }
