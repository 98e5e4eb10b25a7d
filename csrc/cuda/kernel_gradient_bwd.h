// kernel_matvec_dx_bwd: the gradients of sum_i <h_i, kernel_matvec_dx_i>, with respect to x, y, g and v; the formulas are
// in csrc/kernel_gradient_bwd.h.
//
// One walk with a block per kBwdRows rows of x gives (dx, dg), a second one with rows of y (dy, dv). Coordinates are
// subtracted before anything else and all arithmetic is float64, whatever the arrays are: where rows are near each other
// phi'' is large and the two terms of dx nearly cancel. A second derivative is rarely called; here digits matter more
// than time. A thread has one pair of rows first, then some columns of one row's sums.
#pragma once
#include "kernel_function.h"
#include "block.h"
#include "carve.h"

namespace {

constexpr int kBwdRows = 16, kBwdThreads = kBwdRows * kBwdRows, kLargestThreads = 512;

template <class T> struct BwdProblem {
  const T *h, *x, *y, *g, *v;
  int64_t n, m, d, e;
  T *dx, *dy, *dg, *dv;
  const double *x_log, *y_log;
  bool exclude_diagonal;
  DeviceKernel<double> kernel;
  double *most, *sums;                               // largest finite y_log; [n or m][d + e], of the walk

  BwdProblem(const Call& c, Carve& scratch)
      : h(in<T>(c, 0)), x(in<T>(c, 1)), y(in<T>(c, 2)), g(in<T>(c, 3)), v(in<T>(c, 4)), n(c.in[1].shape[0]),
        m(c.in[2].shape[0]), d(c.in[1].shape[1]), e(c.in[3].shape[1]), dx(out<T>(c, 0)), dy(out<T>(c, 1)),
        dg(out<T>(c, 2)), dv(out<T>(c, 3)), x_log(in<double>(c, 5)), y_log(in<double>(c, 6)),
        exclude_diagonal(c.attr[kExcludeDiagonal] != 0), kernel(c.attr, c.attr + kBandwidthAttr, c.in[1].shape[1]) {
    most = scratch.take<double>(1);
    sums = scratch.take<double>((n > m ? n : m) * (d + e));
  }
};

// Only the sum of both logarithms goes into an exponent; each may be far beyond what an exponent resolves. One block.
__global__ void __launch_bounds__(kLargestThreads) largest_log(const double* logs, int64_t count, double* most) {
  __shared__ double reduced[kWarp];
  double top = -INFINITY;
  for (int64_t j = threadIdx.x; j < count; j += blockDim.x)
    if (logs[j] > top && logs[j] < double(INFINITY)) top = logs[j];
  top = block_reduce(top, Max{}, -double(INFINITY), reduced);
  if (threadIdx.x == 0) *most = top > -double(INFINITY) ? top : 0;
}

__device__ inline double with_sign(double s, double a) { return s > 0 ? a : s < 0 ? -a : s == 0 ? 0 : s; }

template <class T, bool kOfX> __global__ void __launch_bounds__(kBwdThreads, 1) bwd_rows(BwdProblem<T> p) {
  __shared__ double first[kBwdThreads], second[kBwdThreads], along[kBwdThreads];   // [own row][other row]
  const int64_t own_rows = kOfX ? p.n : p.m, other_rows = kOfX ? p.m : p.n, begin = int64_t(blockIdx.x) * kBwdRows;
  const int own = threadIdx.x / kBwdRows, slot = threadIdx.x % kBwdRows, form = p.kernel.form;
  const int64_t row = begin + own, d = p.d, e = p.e;
  const double factor = form == kSquare ? 2 : 1;
  const bool points = kOfX ? p.dx : p.dy, weights = kOfX ? p.dg : p.dv;
  double* sums = p.sums + row * (d + e);
  if (row < own_rows)
    for (int64_t k = slot; k < d + e; k += kBwdRows) sums[k] = 0;
  for (int64_t j0 = 0; j0 < other_rows; j0 += kBwdRows) {
    const int64_t other = j0 + slot, i = kOfX ? row : other, j = kOfX ? other : row;
    double one = 0, two = 0, a = 0;
    if (row < own_rows && other < other_rows && !(p.exclude_diagonal && i == j)) {
      double q = 0, w = 0, log = 0;
      const T *x = p.x + i * d, *y = p.y + j * d, *h = p.h + i * d;
      for (int64_t k = 0; k < d; ++k) {
        const double xk = double(x[k]), yk = double(y[k]), hk = double(h[k]), delta = xk - yk;
        if (form == kInner) q += xk * yk, a += hk * yk;
        else if (form == kSquare) q += delta * delta, a += hk * delta;
        else q += fabs(delta), a += with_sign(delta, hk);
      }
      for (int64_t k = 0; k < e; ++k) w += double(p.g[i * e + k]) * double(p.v[j * e + k]);
      if (p.x_log || p.y_log) {
        const double most = p.y_log ? *p.most : 0;
        log = kLog2E * ((p.x_log ? p.x_log[i] : 0) + most) + (p.y_log ? kLog2E * (p.y_log[j] - most) : 0);
      }
      const double slope = p.kernel.template operator()<1>(q, log), bend = p.kernel.template operator()<2>(q, log);
      one = w * (slope * factor);
      two = form == kSquare ? (slope == 0 ? 0 : bend / slope) * 2 * a : w * (bend * a);
      a = slope * factor * a;
    }
    __syncthreads();                                 // what was there may still be read
    first[threadIdx.x] = one, second[threadIdx.x] = two, along[threadIdx.x] = a;
    __syncthreads();
    if (row >= own_rows) continue;
    const int count = other_rows - j0 < kBwdRows ? int(other_rows - j0) : kBwdRows, at = own * kBwdRows;
    const T *mine = (kOfX ? p.x : p.y) + row * d, *others = (kOfX ? p.y : p.x) + j0 * d, *of_x = p.h + j0 * d;
    for (int64_t k = slot; points && k < d; k += kBwdRows) {
      double s = 0;
      for (int r = 0; r < count; ++r) {
        const double o = double(others[r * d + k]), f = first[at + r], t = second[at + r];
        const double hk = kOfX ? double(p.h[row * d + k]) : double(of_x[r * d + k]);
        if (form == kInner) {
          s += t * o;
          if (!kOfX) s += f * hk;
        } else {
          const double delta = double(mine[k]) - o;  // minus that of x: so is dy
          if (form == kManhattan) s += with_sign(delta, t);
          else if (f != 0) s += f * (t * delta + (kOfX ? hk : -hk));
        }
      }
      sums[k] += s;
    }
    const T* beside = (kOfX ? p.v : p.g) + j0 * e;
    for (int64_t k = slot; weights && k < e; k += kBwdRows) {
      double s = 0;
      for (int r = 0; r < count; ++r) s += along[at + r] * double(beside[r * e + k]);
      sums[d + k] += s;
    }
  }
  if (row >= own_rows) return;
  T *to = kOfX ? p.dx : p.dy, *to_weights = kOfX ? p.dg : p.dv;
  for (int64_t k = slot; points && k < d; k += kBwdRows) to[row * d + k] = T(sums[k]);
  for (int64_t k = slot; weights && k < e; k += kBwdRows) to_weights[row * e + k] = T(sums[d + k]);
}

template <class T> int64_t kernel_matvec_dx_bwd_scratch(const Call& c) {
  Carve scratch{nullptr};
  BwdProblem<T>(c, scratch);
  return scratch.used;
}

}  // namespace

KERNEL_SCRATCH(kernel_matvec_dx_bwd, kernel_matvec_dx_bwd_scratch) {
  Carve scratch{static_cast<char*>(c.scratch)};
  const BwdProblem<T> p(c, scratch);
  if (p.y_log) launch(c, largest_log, 1, kLargestThreads, 0, p.y_log, p.m, p.most);
  if (p.dx || p.dg) launch(c, bwd_rows<T, true>, grid_of(ceil_div(p.n, kBwdRows)), kBwdThreads, 0, p);
  if (p.dy || p.dv) launch(c, bwd_rows<T, false>, grid_of(ceil_div(p.m, kBwdRows)), kBwdThreads, 0, p);
}
