// Sums of a kernel over all pairs of two point sets: kernel_sum and kernel_row_sums, in O(n m d) time and O(n + m)
// memory. Tasks are blocks of rows of x; what they sum is merged in block order.
#include "../kernel_sum.h"

namespace {

// Float64 sums of a task: pairs off the diagonal (the upper triangle of x with itself), and on it.
struct TaskSum { double off, on; };

constexpr int64_t kGroups = 128;                     // tasks of kernel_row_sums, each with column sums of its own
constexpr int64_t kColumnBytes = int64_t(8) << 20;   // of all those together

// Where the work is small it is not worth waking another thread.
Call enough_threads(const Call& c) {
  Call call = c;
  const double m = double(c.in[c.in[1].data ? 1 : 0].shape[0]);
  if (double(c.in[0].shape[0]) * m * double(c.in[0].shape[1] + 16) < 2e6) call.threads = 1;
  return call;
}

bool of_distances(const Call& c) {
  const int k = int(c.attr[kKernel]);
  return k != kPolynomial && k != kExpDot && k != kLaplacian;
}

// What both ops need: points, packed and centred, and room for tiles whose d is long.
template <class T> struct SumPlan {
  Call call;
  Carve scratch;
  Pairs<T> pairs;
  Tile<T>* tiles;
  int64_t parts, groups;                             // of a phase's panels, for kernel_sum; of blocks, for row sums
  TaskSum* partial;
  double *columns;
  T *ones;                                           // weights for the side that has none, where the other has some

  SumPlan(const Call& c, bool rows)
      : call(enough_threads(c)), scratch{static_cast<char*>(c.scratch)}, pairs(points(call, rows, scratch)) {
    const Pairs<T>& p = pairs;
    const int64_t workers = call.threads > 1 ? call.threads : 1;
    tiles = scratch.take<Tile<T>>(p.d > kSlab ? workers * kSlabPanels * kBlockTiles : 0);
    parts = rows || p.blocks == 0 ? 1 : ceil_div(20, p.blocks);
    if (parts > p.phase_panels / kSlabPanels) parts = p.phase_panels / kSlabPanels;
    if (parts < 1) parts = 1;
    groups = rows ? (p.blocks < kGroups ? p.blocks : kGroups) : 0;
    partial = scratch.take<TaskSum>(rows ? groups : p.blocks * parts);
    columns = scratch.take<double>(groups * p.phase_panels * kTileColumns<T>);
    ones = nullptr;
    if (rows) return;
    const T *u = in<T>(c, 2), *v = p.self ? u : in<T>(c, 3);
    const int64_t count = !u && v ? p.n : u && !v ? p.m : 0;
    ones = scratch.take<T>(count);
    if (ones)
      for (int64_t i = 0; i < count; ++i) ones[i] = 1;
  }
  Tile<T>* tiles_of(int worker) const { return tiles + worker * kSlabPanels * kBlockTiles; }

 private:
  // L1 distances are differences whatever d is: no inner products, no centre.
  static Pairs<T> points(const Call& c, bool rows, Carve& scratch) {
    const int64_t blocks = ceil_div(c.in[0].shape[0], kBlockRows), groups = blocks < kGroups ? blocks : kGroups;
    const int64_t most = rows && groups ? kColumnBytes / 8 / groups : int64_t(1) << 40;
    const bool centred = c.attr[kKernel] != kLaplacian && c.attr[kKernel] != kExpDot;
    return Pairs<T>(c, of_distances(c), scratch, most, centred);
  }
};

template <class T> int64_t kernel_sum_scratch(const Call& c) {
  Call counting = c;
  counting.scratch = nullptr;
  return SumPlan<T>(counting, false).scratch.used;
}
template <class T> int64_t kernel_row_sums_scratch(const Call& c) {
  Call counting = c;
  counting.scratch = nullptr;
  return SumPlan<T>(counting, true).scratch.used;
}

// Calls f(K) with the class that serves this kernel.
template <class T, class F> void with_kernel(const SumPlan<T>& plan, F&& f) {
  const Call& c = plan.call;
  const Pairs<T>& p = plan.pairs;
  if (p.centre) p.find_centre(c);
  const bool one_rbf = c.attr[kKernel] == kRbf && c.attr[kBandwidth] == 1;
  if (c.attr[kKernel] == kPolynomial)
    c.attr[kDegree] == 3 ? f(Polynomial<T, 3>(c, p)) : f(Polynomial<T, 0>(c, p));
  else if (c.attr[kKernel] == kLaplacian) f(AnyKernel<T, kManhattan, false>(c, p));
  else if (c.attr[kKernel] == kExpDot) f(AnyKernel<T, kInner, false>(c, p));
  else if (p.gemm) one_rbf ? f(Rbf<T, true>(c, p)) : f(AnyKernel<T, kInner, true>(c, p));
  else one_rbf ? f(Rbf<T, false>(c, p)) : f(AnyKernel<T, kSquare, false>(c, p));
}

// sum_ij u_i v_j over the pairs that count.
template <class T> double sum_weights(const Call& c, const Pairs<T>& p) {
  auto sum = [](const T* w, int64_t n, bool square) {
    double s = 0;
    for (int64_t i = 0; i < n; ++i) s += square ? double(w[i]) * double(w[i]) : double(w[i]);
    return s;
  };
  const T *u = in<T>(c, 2), *v = p.self ? u : in<T>(c, 3);
  const double all = (u ? sum(u, p.n, false) : double(p.n)) * (v ? sum(v, p.m, false) : double(p.m));
  return c.attr[kExcludeDiagonal] == 0 ? all : all - (u ? sum(u, p.n, true) : double(p.n));
}

}  // namespace

KERNEL_SCRATCH(kernel_sum, kernel_sum_scratch) {
  const SumPlan<T> plan(c, false);
  const Pairs<T>& p = plan.pairs;
  const T *u = in<T>(c, 2), *v = p.self ? u : in<T>(c, 3);
  if (u || v) u = u ? u : plan.ones, v = v ? v : plan.ones;
  const int64_t tasks = p.blocks * plan.parts;
  for (int64_t t = 0; t < tasks; ++t) plan.partial[t] = {0, 0};
  double* to = out<double>(c);
  with_kernel(plan, [&](const auto& kernel) {
    for (int64_t phase = 0; phase < p.phases(); ++phase) {
      pack_phase(plan.call, p, phase, kernel);
      parallel(plan.call, tasks, [&](int64_t task, int worker) {
        const int64_t block = task / plan.parts, part = task % plan.parts;
        const int64_t first = p.first_panel(phase), count = p.last_panel(phase) - first;
        const int64_t begin = first + count * part / plan.parts, end = first + count * (part + 1) / plan.parts;
        if (p.self && end * kTileColumns<T> <= block * kBlockRows) return;
        Total<T> sum{u, v, p.m};
        pack_block(p, block, worker, kernel);
        sweep(p, kernel, sum, block, begin, end, phase, worker, plan.tiles_of(worker));
        plan.partial[task].off += lane_sum<double>(sum.off[0] + sum.off[1]);
        plan.partial[task].on += lane_sum<double>(sum.on[0] + sum.on[1]);
      });
    }
    double off = 0, on = 0;
    for (int64_t t = 0; t < tasks; ++t) off += plan.partial[t].off, on += plan.partial[t].on;
    if (c.attr[kExcludeDiagonal] != 0) on = 0;
    const double sum = p.self ? 2 * off + on : off;
    *to = kernel.constant == 0 ? sum : sum + kernel.constant * sum_weights(c, p);
  });
}

KERNEL_SCRATCH(kernel_row_sums, kernel_row_sums_scratch) {
  const SumPlan<T> plan(c, true);
  const Pairs<T>& p = plan.pairs;
  double *rows = out<double>(c, 0), *columns = out<double>(c, 1), *squares = out<double>(c, 2);
  const bool diagonal = p.self && c.attr[kExcludeDiagonal] == 0;
  const int64_t width = p.phase_panels * kTileColumns<T>;
  for (int64_t i = 0; i < p.n; ++i) rows[i] = 0;
  for (int64_t j = 0; j < p.m; ++j) columns[j] = 0;
  for (int64_t g = 0; g < plan.groups; ++g) plan.partial[g] = {0, 0};
  with_kernel(plan, [&](const auto& kernel) {
    for (int64_t phase = 0; phase < p.phases(); ++phase) {
      pack_phase(plan.call, p, phase, kernel);
      const int64_t first = p.first_panel(phase), last = p.last_panel(phase), j0 = first * kTileColumns<T>;
      parallel(plan.call, plan.groups, [&](int64_t group, int worker) {
        double* part = plan.columns + group * width;
        for (int64_t j = 0; j < width; ++j) part[j] = 0;
        const int64_t end = p.blocks * (group + 1) / plan.groups;
        for (int64_t block = p.blocks * group / plan.groups; block < end; ++block) {
          if (p.self && last * kTileColumns<T> <= block * kBlockRows) break;
          RowTotals<T> sum{block * kBlockRows, j0, part, diagonal ? rows : nullptr};
          pack_block(p, block, worker, kernel);
          sweep(p, kernel, sum, block, first, last, phase, worker, plan.tiles_of(worker));
          for (int64_t i = sum.i0; i < sum.i0 + kBlockRows && i < p.n; ++i)
            rows[i] += lane_sum<double>(sum.rows[i - sum.i0][0] + sum.rows[i - sum.i0][1]);
          plan.partial[group].off += lane_sum<double>(sum.off[0] + sum.off[1]);
          plan.partial[group].on += lane_sum<double>(sum.on[0] + sum.on[1]);
        }
      });
      const int64_t count = p.m - j0 < width ? p.m - j0 : width;
      parallel_range(plan.call, count, 4096, [&](int64_t begin, int64_t end) {
        for (int64_t g = 0; g < plan.groups; ++g)
          for (int64_t j = begin; j < end; ++j) columns[j0 + j] += plan.columns[g * width + j];
      });
    }
    double off = 0, on = 0, total = 0;
    for (int64_t g = 0; g < plan.groups; ++g) off += plan.partial[g].off, on += plan.partial[g].on;
    if (p.self)
      for (int64_t i = 0; i < p.n; ++i) rows[i] += columns[i];
    for (int64_t i = 0; i < p.n; ++i) total += rows[i];
    const double k = kernel.constant, own = p.self && !diagonal ? 1 : 0;
    *squares = (p.self ? 2 * off + on : off) + k * (2 * total + k * double(p.n) * (double(p.m) - own));
    for (int64_t i = 0; i < p.n; ++i) rows[i] += k * (double(p.m) - own);
    for (int64_t j = 0; j < p.m; ++j) columns[j] = p.self ? rows[j] : columns[j] + k * double(p.n);
  });
}
