// Sums of a kernel over all pairs of two point sets: kernel_sum and kernel_row_sums; see csrc/kernel_sum.h for how digits
// are kept. The table of pairs is cut into squares, a block each: x with itself needs those on and above the diagonal.
#include "kernel_function.h"
#include "pairwise_tile.h"
#include "tile_index.h"

namespace {

constexpr int64_t kMostSquares = 2048;

// (gamma <x, y> + coef0)^degree less its value at the common mean mu, as a polynomial in t = gamma (<x', y'> + <mu, x'> +
// <mu, y'>): see Polynomial of csrc/kernel_sum.h, of which this is the twin that is made on the GPU, where mu is.
template <class T> struct Polynomial {
  static constexpr int kMost = 32;
  T gamma, q, power, factor[kMost + 1], lost[3];
  double scale, rest, constant;

  __device__ T operator()(T s, T sides, int64_t degree) const {
    const T t = fused(s, gamma, sides);
    if (degree == 3) return fused(t, fused(t, t + factor[2], factor[1]), t * lost[1]);
    if (degree <= kMost) {
      T v = factor[degree];
      for (int64_t m = degree - 1; m >= 1; --m) v = fused(v, t, factor[m]);
      return degree < 3 ? v * t : fused(v, t, t * fused(t, lost[2], lost[1]));
    }
    return integer_power(t + q, degree) - power;
  }
};

// Float64 numbers as unevaluated sums of two.
struct Twofold { double high, low; };
__device__ inline Twofold twofold(double a, double b) {          // |a| >= |b|, or a = 0
  const double s = __dadd_rn(a, b);
  return {s, __dadd_rn(b, -__dadd_rn(s, -a))};
}
__device__ inline Twofold operator+(Twofold a, Twofold b) {
  const double s = __dadd_rn(a.high, b.high), back = __dadd_rn(s, -a.high);
  const double e = __dadd_rn(__dadd_rn(a.high, -__dadd_rn(s, -back)), __dadd_rn(b.high, -back));
  return twofold(s, e + (a.low + b.low));
}
__device__ inline Twofold operator*(Twofold a, double b) {
  const double p = __dmul_rn(a.high, b);
  return twofold(p, __fma_rn(a.low, b, __fma_rn(a.high, b, -p)));
}

// One warp.
template <class T>
__global__ void make_polynomial(const T* mu, int64_t d, double scale, double coef0, double center, int64_t degree, Polynomial<T>* to) {
  Twofold base = {0, 0};
  for (int64_t k = threadIdx.x; k < d; k += kWarp) base = base + Twofold{double(mu[k]), 0} * double(mu[k]);
  for (int mask = kWarp / 2; mask > 0; mask /= 2) base = base + Twofold{warp_xor(base.high, mask), warp_xor(base.low, mask)};
  if (threadIdx.x != 0) return;
  base = base * scale + Twofold{coef0, 0};
  Polynomial<T>& p = *to;
  p.scale = scale, p.gamma = T(scale), p.q = T(base.high);
  const T most = fused(T(5), p.q, T(0)), rounded = most - (most - p.q);
  if (rounded - rounded == 0) p.q = rounded;
  p.rest = (base.high - double(p.q)) + base.low;
  const double q = double(p.q);
  double binomial = 1;
  Twofold powers = {1, 0};                           // of degree over m, and of q^(degree - m), from the top down
  for (int64_t m = degree; m >= 0; --m) {
    const Twofold f = powers * binomial;
    if (m <= p.kMost) p.factor[m] = T(f.high);
    if (m < 3) p.lost[m] = T((f.high - double(T(f.high))) + f.low);
    if (m == 0) break;
    binomial = binomial * double(m) / double(degree - m + 1);
    powers = powers * q;
  }
  p.power = T(powers.high);
  p.constant = degree > p.kMost ? double(p.power) - center : (powers.high - center) + powers.low;
}

// side and low of a row: of <row - mu, mu>, half of `rest` on each side.
template <class T> struct SideOfMean {
  const Polynomial<T>* polynomial;
  __device__ double term(double x, T mu) const { return x * double(mu); }
  __device__ void split(double along, T& side, T& low) const {
    const double scale = polynomial->scale, s = scale * along + 0.5 * polynomial->rest;
    side = T(s);
    low = scale == 0 ? T(0) : T((s - double(side)) / scale);
  }
};

template <class T> struct SumPlan {
  Points<T> points;
  DeviceKernel<T> kernel;
  T center;
  double constant;                                   // what kernel - center is more than it is summed as
  bool exclude_diagonal;
  const T *u, *v;
  int64_t side, squares_x, squares_y, tasks;
  Polynomial<T>* polynomial;                         // null for other kernels
  double *off, *on;                                  // [tasks]: off the diagonal (x with itself: above it) and on it
  double *row_parts, *column_parts;                  // [squares_y][n], [squares_x][m]

  SumPlan(const Call& c, bool rows, Carve scratch)
      : points(in<T>(c, 0), c.in[0].shape[0], in<T>(c, 1), c.in[1].shape[0], c.in[0].shape[1], form_of(c),
               int(c.attr[kKernel]) == kPolynomial, scratch),
        kernel(c.attr, c.attr + kBandwidth, c.in[0].shape[1]), center(T(c.attr[kCenter])),
        constant(double(center) - c.attr[kCenter]), exclude_diagonal(c.attr[kExcludeDiagonal] != 0), u(nullptr), v(nullptr) {
    if (!rows) u = in<T>(c, 2), v = points.self ? u : in<T>(c, 3);
    side = square_side(points.n, points.m, kRowPadding, points.self ? 2 * kMostSquares : kMostSquares);
    squares_x = ceil_div(points.n, side), squares_y = ceil_div(points.m, side);
    tasks = points.self ? triangle_size(squares_x) : squares_x * squares_y;
    polynomial = scratch.take<Polynomial<T>>(kernel.kernel == kPolynomial);
    if (kernel.kernel != kPolynomial) polynomial = nullptr;
    off = scratch.take<double>(tasks), on = scratch.take<double>(tasks);
    row_parts = scratch.take<double>(rows ? squares_y * points.n : 0);
    column_parts = scratch.take<double>(rows ? squares_x * points.m : 0);
    used = scratch.used;
  }
  int64_t used;

  static int form_of(const Call& c) { return DeviceKernel<T>(c.attr, c.attr + kBandwidth, c.in[0].shape[1]).form; }

  void prepare(const Call& c) const {
    find_centre(c, points);
    if (!polynomial) return pack(c, points);
    launch(c, make_polynomial<T>, 1, kWarp, 0, points.centre, points.d, kernel.wide_gamma, c.attr[kCoef0], c.attr[kCenter],
           kernel.degree, polynomial);
    pack(c, points, SideOfMean<T>{polynomial});
  }
  __device__ double constant_term() const { return polynomial ? polynomial->constant : constant; }
};

// A square of pairs per block: sums of all values, weighted if there are weights; kRows: of squares, rows and columns.
template <class T, bool kRows> __global__ void __launch_bounds__(kTileThreads<T>, kTileBlocks) sum_squares(SumPlan<T> plan) {
  DYNAMIC_SHARED(T, shared);
  __shared__ double reduced[kWarp], column_sums[kTileThreads<T>];
  const Points<T>& p = plan.points;
  TileIndex square;
  if (p.self) square = triangle_tile(blockIdx.x, plan.squares_x);
  else square = {int64_t(blockIdx.x) / plan.squares_y, int64_t(blockIdx.x) % plan.squares_y};
  const int64_t i_begin = square.row * plan.side, i_end = min(p.n, i_begin + plan.side);
  const int64_t j_begin = square.column * plan.side, j_end = min(p.m, j_begin + plan.side);
  T* own = own_scores(shared);
  Total<T> off, on;
  for (int64_t j0 = j_begin; j0 < j_end; j0 += kTileColumns) {
    double column_sum = 0;
    for (int64_t i0 = i_begin; i0 < i_end; i0 += kTileRows<T>) {
      if (p.self && j0 + kTileColumns <= i0) continue;
      score_tile(p, i0, j0, shared);
      const bool inside = i0 + kTileRows<T> <= p.n && j0 + kTileColumns <= p.m && !(p.self && j0 < i0 + kTileRows<T>);
#pragma unroll 1
      for (int h = 0; h < 2; ++h) {
        const int64_t i = i0 + own_row(h);
        const T side_x = plan.polynomial ? p.side_x[i] : T(0);
        T sum = 0, square_sum = 0, diagonal = 0;
#pragma unroll 1
        for (int strip = 0; strip < kStrips; ++strip) {
          const int64_t j = j0 + own_column(strip);
          Pack<T, 2>& at = *reinterpret_cast<Pack<T, 2>*>(own + own_offset(h, strip));
          Pack<T, 2> pair = at;
          GENERANT_UNROLL
          for (int c = 0; c < 2; ++c) {
            T value = plan.polynomial ? (*plan.polynomial)(pair.v[c], side_x + p.side_y[j + c], plan.kernel.degree)
                                      : plan.kernel.template operator()<0>(pair.v[c], T(0)) - plan.center;
            if (!inside) {
              const bool real = i < p.n && j + c < p.m;
              if (real && p.self && i == j + c) diagonal = value;
              if (!real || (p.self && i >= j + c)) value = 0;
            }
            if constexpr (kRows) pair.v[c] = value, square_sum += value * value;
            sum += plan.v && j + c < p.m ? value * plan.v[j + c] : value;
          }
          if constexpr (kRows) at = pair;
        }
        if constexpr (kRows) {
          off.add(square_sum);
          if (plan.exclude_diagonal) diagonal = 0;
          on.add(diagonal * diagonal);
          const double row_sum = warp_sum(double(sum) + double(diagonal), 4);
          if (threadIdx.x % 4 == 0 && i < p.n) {
            double& part = plan.row_parts[square.column * p.n + i];
            const bool first = j0 == j_begin || (p.self && j0 <= i0);
            part = first ? row_sum : part + row_sum;
          }
        } else {
          const T weight = i < p.n ? plan.u ? plan.u[i] : T(1) : T(0);
          off.add(sum * weight);
          if (!inside && i < p.n) on.add(plan.u ? diagonal * weight * weight : diagonal);
        }
      }
      if constexpr (kRows) {
        __syncthreads();
        const T* column = shared + threadIdx.x / kTileColumns * 32 * kScoreStride + threadIdx.x % kTileColumns;
        T sum = 0;
        for (int r = 0; r < 32; ++r) sum += column[r * kScoreStride];
        column_sum += double(sum);
      }
    }
    if constexpr (kRows) {
      __syncthreads();
      column_sums[threadIdx.x] = column_sum;
      __syncthreads();
      if (threadIdx.x < kTileColumns && j0 + int(threadIdx.x) < p.m) {
        for (int other = threadIdx.x + kTileColumns; other < kTileThreads<T>; other += kTileColumns) column_sum += column_sums[other];
        plan.column_parts[square.row * p.m + j0 + threadIdx.x] = column_sum;
      }
    }
  }
  const double sum_off = block_sum(off.value(), reduced), sum_on = block_sum(on.value(), reduced);
  if (threadIdx.x == 0) plan.off[blockIdx.x] = sum_off, plan.on[blockIdx.x] = sum_on;
}

constexpr int kFinishThreads = 1024;

// In one block: the sum of count values, f(i) each.
template <class F> __device__ inline double sum_of(int64_t count, double* reduced, F&& f) {
  double s = 0;
  for (int64_t i = threadIdx.x; i < count; i += kFinishThreads) s += f(i);
  return block_sum(s, reduced);
}

template <class T> __global__ void __launch_bounds__(kFinishThreads) finish_sum(SumPlan<T> plan, double* out) {
  __shared__ double reduced[kWarp];
  const Points<T>& p = plan.points;
  const double off = sum_of(plan.tasks, reduced, [&](int64_t t) { return plan.off[t]; });
  double on = sum_of(plan.tasks, reduced, [&](int64_t t) { return plan.on[t]; });
  if (plan.exclude_diagonal) on = 0;
  double sum = p.self ? 2 * off + on : off;
  const double constant = p.n > 0 && p.m > 0 ? plan.constant_term() : 0;
  if (constant != 0) {
    const double u = plan.u ? sum_of(p.n, reduced, [&](int64_t i) { return double(plan.u[i]); }) : double(p.n);
    const double v = plan.v ? sum_of(p.m, reduced, [&](int64_t j) { return double(plan.v[j]); }) : double(p.m);
    double pairs = u * v;
    if (plan.exclude_diagonal)
      pairs -= plan.u ? sum_of(p.n, reduced, [&](int64_t i) { return double(plan.u[i]) * double(plan.u[i]); }) : double(p.n);
    sum += constant * pairs;
  }
  if (threadIdx.x == 0) *out = sum;
}

template <class T> __global__ void add_parts(SumPlan<T> plan, double* rows, double* columns) {
  const Points<T>& p = plan.points;
  const int64_t at = global_thread();
  double s = 0;
  if (at < p.n) {
    for (int64_t b = p.self ? at / plan.side : 0; b < plan.squares_y; ++b) s += plan.row_parts[b * p.n + at];
    if (p.self)
      for (int64_t a = 0; a <= at / plan.side; ++a) s += plan.column_parts[a * p.m + at];
    rows[at] = s;
  } else if (at < p.n + p.m && !p.self) {
    for (int64_t a = 0; a < plan.squares_x; ++a) s += plan.column_parts[a * p.m + at - p.n];
    columns[at - p.n] = s;
  }
}

template <class T>
__global__ void __launch_bounds__(kFinishThreads) finish_squares(SumPlan<T> plan, const double* rows, double* squares) {
  __shared__ double reduced[kWarp];
  const Points<T>& p = plan.points;
  const double off = sum_of(plan.tasks, reduced, [&](int64_t t) { return plan.off[t]; });
  const double on = sum_of(plan.tasks, reduced, [&](int64_t t) { return plan.on[t]; });
  const double total = sum_of(p.n, reduced, [&](int64_t i) { return rows[i]; });
  const double k = p.n > 0 && p.m > 0 ? plan.constant_term() : 0, own = plan.exclude_diagonal ? 1 : 0;
  if (threadIdx.x == 0) *squares = (p.self ? 2 * off + on : off) + k * (2 * total + k * double(p.n) * (double(p.m) - own));
}

template <class T> __global__ void add_constants(SumPlan<T> plan, double* rows, double* columns) {
  const Points<T>& p = plan.points;
  const int64_t at = global_thread();
  const double k = plan.constant_term();
  if (at < p.n) {
    rows[at] += k * (double(p.m) - (plan.exclude_diagonal ? 1 : 0));
    if (p.self) columns[at] = rows[at];
  } else if (at < p.n + p.m && !p.self) {
    columns[at - p.n] += k * double(p.n);
  }
}

template <class T> int64_t kernel_sum_scratch(const Call& c) { return SumPlan<T>(c, false, Carve{nullptr}).used; }
template <class T> int64_t kernel_row_sums_scratch(const Call& c) { return SumPlan<T>(c, true, Carve{nullptr}).used; }

}  // namespace

KERNEL_SCRATCH(kernel_sum, kernel_sum_scratch) {
  const SumPlan<T> plan(c, false, Carve{static_cast<char*>(c.scratch)});
  plan.prepare(c);
  launch(c, sum_squares<T, false>, grid_of(plan.tasks), kTileThreads<T>, kTileBytes<T>, plan);
  launch(c, finish_sum<T>, 1, kFinishThreads, 0, plan, out<double>(c));
}

KERNEL_SCRATCH(kernel_row_sums, kernel_row_sums_scratch) {
  const SumPlan<T> plan(c, true, Carve{static_cast<char*>(c.scratch)});
  const int64_t both = plan.points.n + plan.points.m;
  double *rows = out<double>(c, 0), *columns = out<double>(c, 1);
  plan.prepare(c);
  launch(c, sum_squares<T, true>, grid_of(plan.tasks), kTileThreads<T>, kTileBytes<T>, plan);
  launch(c, add_parts<T>, grid_of(ceil_div(both, 128)), 128, 0, plan, rows, columns);
  launch(c, finish_squares<T>, 1, kFinishThreads, 0, plan, rows, out<double>(c, 2));
  launch(c, add_constants<T>, grid_of(ceil_div(both, 128)), 128, 0, plan, rows, columns);
}
