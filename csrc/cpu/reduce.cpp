// Sums, means and maxima over any axes, and expand (broadcasting as a copy).
//
// The chain of passes and what a pass accumulates are in reduction.h. Within a pass the reduced axis is cut into blocks by
// shape alone, and partial results are merged in block order.
#include "../broadcast.h"
#include "../parallel.h"
#include "../reduction.h"

namespace {

constexpr int D = kLanes<double>;
constexpr int64_t kBlock = 16384;          // elements per block, at least
constexpr int64_t kColumns = 512;          // columns per task
constexpr int64_t kNarrow = 64;            // fewer columns than this are reduced as a periodic flat array

inline vd widen(const double* p) { return load(p); }
inline vd widen(const float* p) {
#if defined(__AVX512F__)
  return _mm512_maskz_cvtps_pd(0xff, _mm256_loadu_ps(p));  // the plain form makes GCC 12 warn
#elif defined(__AVX2__)
  return _mm256_cvtps_pd(_mm_loadu_ps(p));
#else
  vd v;
  for (int i = 0; i < D; ++i) v[i] = p[i];
  return v;
#endif
}

// ---- blocks ---------------------------------------------------------------------------------------------------------

template <class Op> using Totals = typename Op::template State<vd>;

// n neighbouring elements to one.
template <class Op, class S> inline Total<Op> reduce_run(const S* x, int64_t n) {
  Total<Op> total = Op::template zero<double>();
  int64_t i = 0;
  if (n >= D) {
    Totals<Op> a[4];
    for (auto& v : a) v = Op::template zero<vd>();
    for (; i + 4 * D <= n; i += 4 * D)
      for (int k = 0; k < 4; ++k) Op::add(a[k], widen(x + i + k * D));
    for (int k = 0; i + D <= n; i += D, ++k) Op::add(a[k], widen(x + i));
    Op::merge(a[0], a[1]);
    Op::merge(a[2], a[3]);
    Op::merge(a[0], a[2]);
    Total<Op> lanes[D];
    for (int j = 0; j < D; ++j) lanes[j] = Op::lane(a[0], j);
    for (int half = D / 2; half > 0; half /= 2)
      for (int j = 0; j < half; ++j) Op::merge(lanes[j], lanes[j + half]);
    total = lanes[0];
  }
  for (; i < n; ++i) Op::add(total, double(x[i]));
  return total;
}

// Columns [0, n) of `rows` rows that are `stride` apart, into to[0, n).
template <class Op, int V, class S>
inline void reduce_tile(const S* x, int64_t rows, int64_t stride, Total<Op>* to) {
  Totals<Op> a[V];
  for (auto& v : a) v = Op::template zero<vd>();
  for (int64_t r = 0; r < rows; ++r, x += stride)
    for (int k = 0; k < V; ++k) Op::add(a[k], widen(x + k * D));
  for (int k = 0; k < V; ++k)
    for (int j = 0; j < D; ++j) to[k * D + j] = Op::lane(a[k], j);
}

template <class Op, class S>
__attribute__((noinline)) void reduce_columns(const S* x, int64_t rows, int64_t stride, int64_t n, Total<Op>* to) {
  int64_t j = 0;
  for (; j + 8 * D <= n; j += 8 * D) reduce_tile<Op, 8>(x + j, rows, stride, to + j);
  for (; j + 2 * D <= n; j += 2 * D) reduce_tile<Op, 2>(x + j, rows, stride, to + j);
  for (; j + D <= n; j += D) reduce_tile<Op, 1>(x + j, rows, stride, to + j);
  for (; j < n; ++j) {
    Total<Op> total = Op::template zero<double>();
    for (int64_t r = 0; r < rows; ++r) Op::add(total, double(x[r * stride + j]));
    to[j] = total;
  }
}

// `rows` dense rows of n < kNarrow columns: a flat array of period n, handled as one of a period of whole vectors.
template <class Op, class S>
__attribute__((noinline)) void reduce_narrow(const S* x, int64_t rows, int64_t n, Total<Op>* to) {
  for (int64_t j = 0; j < n; ++j) to[j] = Op::template zero<double>();
  const int64_t length = rows * n, period = n * D;
  int64_t i = 0;
  if (length >= 2 * period) {
    Totals<Op> a[kNarrow];
    for (int64_t k = 0; k < n; ++k) a[k] = Op::template zero<vd>();
    for (; i + period <= length; i += period)
      for (int64_t k = 0; k < n; ++k) Op::add(a[k], widen(x + i + k * D));
    for (int64_t k = 0, column = 0; k < n; ++k)
      for (int j = 0; j < D; ++j) {
        Op::merge(to[column], Op::lane(a[k], j));
        if (++column == n) column = 0;
      }
  }
  for (; i < length; i += n)
    for (int64_t j = 0; j < n; ++j) Op::add(to[j], double(x[i + j]));
}

// ---- one pass: (batch, reduced, kept) to (batch, kept) --------------------------------------------------------------

inline int64_t block_of(const Pass& p) {     // of the reduced axis
  const int64_t width = p.kept < kColumns ? p.kept : kColumns, n = kBlock / (width > 0 ? width : 1);
  const int64_t few = ceil_div(p.reduced, 64);       // at most so many blocks: merging them costs too
  return n > few ? n : few;
}
inline int64_t blocks_of(const Pass& p) { return p.reduced > block_of(p) ? ceil_div(p.reduced, block_of(p)) : 1; }

template <class Op, class S, class R>
inline void run_pass(const Call& c, const Pass& p, const S* x, R* y, Total<Op>* partial, double divisor) {
  const int64_t blocks = blocks_of(p), rows = block_of(p), groups = p.kept >= kNarrow ? ceil_div(p.kept, kColumns) : 1;
  const int64_t each = p.reduced * p.kept, together = each >= kBlock ? 1 : kBlock / (each > 0 ? each : 1);
  const int64_t per_batch = blocks * groups;
  // A task is one block and column group of one batch entry, or several whole batch entries where they are small.
  parallel(c, ceil_div(p.batch, together) * per_batch, [&](int64_t task, int) {
    const int64_t at = task / per_batch * together, block = task % per_batch / groups, group = task % groups;
    const int64_t end = at + together < p.batch ? at + together : p.batch;
    const int64_t begin = block * rows, stop = blocks > 1 && begin + rows < p.reduced ? begin + rows : p.reduced;
    const int64_t column = group * kColumns;
    const int64_t columns = groups == 1 ? p.kept : (column + kColumns < p.kept ? kColumns : p.kept - column);
    for (int64_t b = at; b < end; ++b) {
      const S* from = x + (b * p.reduced + begin) * p.kept + column;
      Total<Op> local[kColumns];
      Total<Op>* to = blocks > 1 ? partial + (b * blocks + block) * p.kept + column : local;
      if (p.kept == 1)
        to[0] = reduce_run<Op>(from, stop - begin);
      else if (p.kept < kNarrow)
        reduce_narrow<Op>(from, stop - begin, p.kept, to);
      else
        reduce_columns<Op>(from, stop - begin, p.kept, columns, to);
      if (blocks == 1)
        for (int64_t j = 0; j < columns; ++j) y[b * p.kept + column + j] = R(Op::value(local[j]) / divisor);
    }
  });
  if (blocks == 1) return;
  constexpr int64_t kTile = 64;                      // columns merged together
  const int64_t tiles = ceil_div(p.kept, kTile);
  parallel_range(c, p.batch * tiles, ceil_div(kBlock, blocks * kTile), [&](int64_t i, int64_t end) {
    for (; i < end; ++i) {
      const int64_t b = i / tiles, column = i % tiles * kTile;
      const int64_t n = p.kept - column < kTile ? p.kept - column : kTile;
      const Total<Op>* from = partial + b * blocks * p.kept + column;
      Total<Op> total[kTile];
      for (int64_t j = 0; j < n; ++j) total[j] = from[j];
      for (int64_t k = 1; k < blocks; ++k)
        for (int64_t j = 0; j < n; ++j) Op::merge(total[j], from[k * p.kept + j]);
      for (int64_t j = 0; j < n; ++j) y[b * p.kept + column + j] = R(Op::value(total[j]) / divisor);
    }
  });
}

inline int64_t partials_of(const Passes& p) {
  int64_t most = 0;
  for (const Pass* q = p.pass; q < p.pass + p.n; ++q) {
    const int64_t n = blocks_of(*q) > 1 ? q->batch * blocks_of(*q) * q->kept : 0;
    most = n > most ? n : most;
  }
  return most;
}

template <class Op> inline int64_t bytes_of(const Passes& p) {
  return partials_of(p) * int64_t(sizeof(Total<Op>)) + 2 * p.between() * int64_t(sizeof(double));
}

// The passes see `Op<T>` on the input and `Op<double>` on what the earlier ones left.
template <template <class> class Op, class T>
inline void reduce(const Call& c, const bool* reduced, bool mean) {
  const Passes p(c.in[0], reduced);
  if (size(c.out[0]) == 0) return;
  double* between[2];
  between[0] = static_cast<double*>(c.scratch);
  between[1] = between[0] + p.between();
  void* partial = between[1] + p.between();
  const double divisor = mean ? double(p.count) : 1.0;
  for (int i = 0; i < p.n; ++i) {
    const bool end = i + 1 == p.n;
    auto go = [&](auto op, const auto* x) {
      using O = decltype(op);
      auto* totals = static_cast<Total<O>*>(partial);
      if (end) run_pass<O>(c, p.pass[i], x, out<T>(c), totals, divisor);
      else run_pass<O>(c, p.pass[i], x, between[i % 2], totals, 1.0);
    };
    if (i == 0) go(Op<T>{}, in<T>(c, 0));
    else go(Op<double>{}, static_cast<const double*>(between[(i + 1) % 2]));
  }
}

template <class T> int64_t axis_bytes(const Call& c) {
  bool reduced[generant::kMaxDims];
  axes_of_attr(c, reduced);
  return bytes_of<SumOf<double>>(Passes(c.in[0], reduced));   // the largest state
}

template <class T> int64_t sum_to_bytes(const Call& c) {
  bool reduced[generant::kMaxDims];
  axes_of_shape(c, reduced);
  return bytes_of<SumOf<double>>(Passes(c.in[0], reduced));   // the largest state
}

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

KERNEL(expand) {
  const T* x = in<T>(c, 0);
  T* y = out<T>(c);
  const int64_t n = size(c.out[0]);
  if (n == 0) return;
  const Broadcast w(c.in[0], c.in[0], c.out[0]);
  parallel_range(c, n, kBlock, [&](int64_t begin, int64_t end) { w.spread(0, x, begin, end - begin, y + begin); });
}
