// Sums, means and maxima over any axes, and expand (broadcasting as a copy).
//
// Neighbouring axes of the same kind are merged, so an array is a chain of kept and reduced groups. The innermost
// reduced group is removed by one pass over (batch, reduced, kept) and leaves doubles; then the next, and so on: one
// pass in all common cases (everything, last axis, leading axes). Within a pass the reduced axis is cut into blocks by
// shape alone, and partial results are merged in block order.
//
// Everything is accumulated in double. Sums of doubles carry their rounding errors along (Knuth's two-sum), so that in
// either precision the result is the rounded exact sum but for contrived inputs; memory is the limit all the same.
#include "../broadcast.h"
#include "../parallel.h"

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

// ---- the monoids: V is a vector of doubles or one double ------------------------------------------------------------

template <class Source> struct Sum;

// Sums of floats are exact enough in double.
template <> struct Sum<float> {
  template <class V> struct State { V s; };
  template <class V> static State<V> zero() { return {V{}}; }
  template <class V> static void add(State<V>& a, V x) { a.s += x; }
  template <class V> static void merge(State<V>& a, const State<V>& b) { a.s += b.s; }
  static double value(const State<double>& a) { return a.s; }
  static State<double> lane(const State<vd>& a, int i) { return {a.s[i]}; }
};

// A sum s with the rounding errors e it has left behind.
template <> struct Sum<double> {
  template <class V> struct State { V s, e; };
  template <class V> static State<V> zero() { return {V{}, V{}}; }
  template <class V> static void add(State<V>& a, V x) {
    const V t = a.s + x, z = t - a.s;
    a.e += (a.s - (t - z)) + (x - z);
    a.s = t;
  }
  template <class V> static void merge(State<V>& a, const State<V>& b) {
    add(a, b.s);
    a.e += b.e;
  }
  static double value(const State<double>& a) { return __builtin_isfinite(a.s) ? a.s + a.e : a.s; }
  static State<double> lane(const State<vd>& a, int i) { return {a.s[i], a.e[i]}; }
};

template <class Source> struct Max {
  template <class V> struct State { V m; };
  template <class V> static State<V> zero() { return {V{} - __builtin_inf()}; }
  template <class V> static void add(State<V>& a, V x) { a.m = (x > a.m) | (x != x) ? x : a.m; }
  template <class V> static void merge(State<V>& a, const State<V>& b) { add(a, b.m); }
  static double value(const State<double>& a) { return a.m; }
  static State<double> lane(const State<vd>& a, int i) { return {a.m[i]}; }
};

// ---- blocks ---------------------------------------------------------------------------------------------------------

template <class Op> using Total = typename Op::template State<double>;
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

struct Pass {
  int64_t batch, reduced, kept;
  int64_t block() const {                    // of the reduced axis
    const int64_t width = kept < kColumns ? kept : kColumns, n = kBlock / width;
    const int64_t few = ceil_div(reduced, 64);       // at most so many blocks: merging them costs too
    return n > few ? n : few;
  }
  int64_t blocks() const { return reduced > block() ? ceil_div(reduced, block()) : 1; }
  int64_t partials() const { return blocks() > 1 ? batch * blocks() * kept : 0; }
};

template <class Op, class S, class R>
inline void run_pass(const Call& c, const Pass& p, const S* x, R* y, Total<Op>* partial, double divisor) {
  const int64_t blocks = p.blocks(), rows = p.block(), groups = p.kept >= kNarrow ? ceil_div(p.kept, kColumns) : 1;
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

// ---- the chain of passes --------------------------------------------------------------------------------------------

struct Passes {
  int n = 0;
  Pass pass[generant::kMaxDims];
  int64_t count = 1;                         // elements that go into one output

  Passes(const Array& x, const bool* reduced) {
    int64_t length[generant::kMaxDims];
    bool kind[generant::kMaxDims];
    int groups = 0;
    for (int i = 0; i < x.ndim; ++i) {
      if (reduced[i]) count *= x.shape[i];
      if (x.shape[i] == 1) continue;
      if (groups > 0 && kind[groups - 1] == reduced[i]) {
        length[groups - 1] *= x.shape[i];
      } else {
        length[groups] = x.shape[i], kind[groups] = reduced[i];
        ++groups;
      }
    }
    int64_t kept = 1;
    for (int i = groups - 1; i >= 0; --i) {
      if (!kind[i]) {
        kept *= length[i];
        continue;
      }
      int64_t batch = 1;
      for (int j = 0; j < i; ++j) batch *= length[j];
      pass[n++] = {batch, length[i], kept};
    }
    if (n == 0) pass[n++] = {1, 1, kept};    // nothing to reduce: a copy
  }

  int64_t partials() const {
    int64_t most = 0;
    for (int i = 0; i < n; ++i) most = pass[i].partials() > most ? pass[i].partials() : most;
    return most;
  }
  // Results of all passes but the last, two of which are alive at a time.
  int64_t between() const {
    int64_t most = 0;
    for (int i = 0; i + 1 < n; ++i) most = pass[i].batch * pass[i].kept > most ? pass[i].batch * pass[i].kept : most;
    return most;
  }
};

template <class Op> inline int64_t bytes_of(const Passes& p) {
  return p.partials() * int64_t(sizeof(Total<Op>)) + 2 * p.between() * int64_t(sizeof(double));
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

// Which axes the attributes (keepdims, axis) reduce: axis is a count and that many axes, not negative.
inline void axes_of_attr(const Call& c, bool* reduced) {
  for (int i = 0; i < generant::kMaxDims; ++i) reduced[i] = false;
  for (int i = 0; i < int(c.attr[1]); ++i) reduced[int(c.attr[2 + i])] = true;
}

// Which axes an array of out's shape would be broadcast along.
inline void axes_of_shape(const Call& c, bool* reduced) {
  const int lead = c.in[0].ndim - c.out[0].ndim;
  for (int i = 0; i < c.in[0].ndim; ++i) reduced[i] = i < lead || c.out[0].shape[i - lead] == 1;
}

template <class T> int64_t axis_bytes(const Call& c) {
  bool reduced[generant::kMaxDims];
  axes_of_attr(c, reduced);
  return bytes_of<Sum<double>>(Passes(c.in[0], reduced));   // the largest state
}

template <class T> int64_t sum_to_bytes(const Call& c) {
  bool reduced[generant::kMaxDims];
  axes_of_shape(c, reduced);
  return bytes_of<Sum<double>>(Passes(c.in[0], reduced));   // the largest state
}

}  // namespace

KERNEL_SCRATCH(sum, axis_bytes) {
  bool reduced[generant::kMaxDims];
  axes_of_attr(c, reduced);
  reduce<Sum, T>(c, reduced, false);
}

KERNEL_SCRATCH(mean, axis_bytes) {
  bool reduced[generant::kMaxDims];
  axes_of_attr(c, reduced);
  reduce<Sum, T>(c, reduced, true);
}

KERNEL_SCRATCH(max, axis_bytes) {
  bool reduced[generant::kMaxDims];
  axes_of_attr(c, reduced);
  reduce<Max, T>(c, reduced, false);
}

KERNEL_SCRATCH(sum_to, sum_to_bytes) {
  bool reduced[generant::kMaxDims];
  axes_of_shape(c, reduced);
  reduce<Sum, T>(c, reduced, false);
}

KERNEL(expand) {
  const T* x = in<T>(c, 0);
  T* y = out<T>(c);
  const int64_t n = size(c.out[0]);
  if (n == 0) return;
  const Broadcast w(c.in[0], c.in[0], c.out[0]);
  parallel_range(c, n, kBlock, [&](int64_t begin, int64_t end) { w.spread(0, x, begin, end - begin, y + begin); });
}
