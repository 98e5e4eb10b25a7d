// kernel_matvec_dx_bwd: the gradients of sum_i <h_i, kernel_matvec_dx_i>, with respect to x, y, g and v.
//
// With q = |x - y|^2, delta = x_i - y_j, A = <h_i, delta>, w = <g_i, v_j> exp(logs) and the kernel phi(q),
//   dx_i = sum_j w (4 phi'' A delta + 2 phi' h_i)     dg_i = sum_j v_j exp(logs) 2 phi' A
//   dy_j = -sum_i of the same                          dv_j = sum_i g_i exp(logs) 2 phi' A.
// q = |x - y|_1: sign(delta) for delta, phi'' for 4 phi'', phi' for 2 phi', and no term in h.
// q = <x, y>: A = <h_i, y_j>; dx_i = sum_j w phi'' A y_j, dy_j = sum_i w (phi'' A x_i + phi' h_i), dg and dv with phi'.
//
// One walk with rows of x in the lanes gives (dx, dg), a second one with rows of y there (dy, dv): sums stay lane by
// lane. Coordinates are subtracted before anything else and all arithmetic is float64, whatever the arrays are: where
// rows are near each other phi'' is large and the two terms of dx nearly cancel. A second derivative is rarely called;
// here digits matter more than time.
#pragma once
#include "kernel_function.h"
#include "row_tile.h"

namespace {

constexpr int kBwdBlock = 32;                          // rows of the other side whose values wait in L1
constexpr int kBwdGroup = 4;                           // of them in registers at once
constexpr int kBwdLanes = kLanes<double>, kBwdWidth = kTileColumns<double>;

template <class T> struct BwdProblem {
  const T *h, *x, *y, *g, *v;
  int64_t n, m, d, e;
  T *dx, *dy, *dg, *dv;
  double *x_log, *y_log;                               // in base 2, the larger part of their sum on x's side
  bool exclude_diagonal, logs;
  KernelFunction<double> kernel;
  Carve scratch;
  double *panels, *blocks, *sums;                      // per worker: see BwdSide; sums are [d + e][lanes]

  explicit BwdProblem(const Call& c)
      : h(in<T>(c, 0)), x(in<T>(c, 1)), y(in<T>(c, 2)), g(in<T>(c, 3)), v(in<T>(c, 4)), n(c.in[1].shape[0]),
        m(c.in[2].shape[0]), d(c.in[1].shape[1]), e(c.in[3].shape[1]), dx(out<T>(c, 0)), dy(out<T>(c, 1)),
        dg(out<T>(c, 2)), dv(out<T>(c, 3)), exclude_diagonal(c.attr[kExcludeDiagonal] != 0),
        logs(c.in[5].data || c.in[6].data), kernel(c.attr, c.attr + kExcludeDiagonal + 1, c.in[1].shape[1]),
        scratch{static_cast<char*>(c.scratch)} {
    const int64_t workers = c.threads > 1 ? c.threads : 1;
    x_log = scratch.take<double>(logs ? n : 0);
    y_log = scratch.take<double>(logs ? m : 0);
    panels = scratch.take<double>(workers * (2 * d + e) * kBwdWidth);
    blocks = scratch.take<double>(workers * (2 * d + e) * kBwdBlock);
    sums = scratch.take<double>(workers * (d + e) * kBwdWidth);
  }

  // Only the sums of both logarithms go into an exponent; each may be far beyond what an exponent resolves.
  void reduce_logs(const Call& c) const {
    if (!logs) return;
    const double *a = in<double>(c, 5), *b = in<double>(c, 6);
    double most = -__builtin_inf();
    for (int64_t j = 0; b && j < m; ++j)
      if (b[j] > most && b[j] < __builtin_inf()) most = b[j];
    if (!(most > -__builtin_inf())) most = 0;
    const long double log2e = 1.44269504088896340735992L, moved = most;       // rounded once
    for (int64_t j = 0; j < m; ++j) y_log[j] = b ? double(log2e * (b[j] - moved)) : 0;
    for (int64_t i = 0; i < n; ++i) x_log[i] = double(log2e * ((a ? a[i] : 0) + moved));
  }
};

// Points, h (of x only) and g or v of one side: [row][column] in a block, [column][lane] in a panel.
struct BwdSide { const double *points, *h, *weights; };

struct BwdBlock {                                      // [row of the other side][half of the lanes]
  vd q[kBwdBlock][2], a[kBwdBlock][2], w[kBwdBlock][2];
  vd first[kBwdBlock][2], second[kBwdBlock][2];        // phi', phi''
};

// sign(s) a: NaNs of s are in the kernel's value already.
inline vd with_sign(vd s, vd a) {
  const vmask<double> sign = (vmask<double>)broadcast(-0.0);
  return s == 0 ? vd{} : (vd)((vmask<double>)a ^ ((vmask<double>)s & sign));
}

// q, A and w of the pairs of a block; rows beyond count up to a whole group are read as well.
template <int kForm, bool kLanesAreX>
__attribute__((noinline)) void bwd_values(BwdBlock& block, const BwdSide& own, const BwdSide& other, int count,
                                          int64_t d, int64_t e) {
  for (int j = 0; j < count; j += kBwdGroup) {
    vd q[kBwdGroup][2] = {}, a[kBwdGroup][2] = {}, w[kBwdGroup][2] = {};
    for (int64_t k = 0; k < d; ++k) {
#pragma GCC unroll 4
      for (int r = 0; r < kBwdGroup; ++r) {
        const vd o = broadcast(other.points[(j + r) * d + k]);
        const vd oh = kLanesAreX ? vd{} : broadcast(other.h[(j + r) * d + k]);
#pragma GCC unroll 2
        for (int half = 0; half < 2; ++half) {
          const vd p = load(own.points + k * kBwdWidth + half * kBwdLanes);
          const vd h = kLanesAreX ? load(own.h + k * kBwdWidth + half * kBwdLanes) : oh;
          if constexpr (kForm == kInner) {
            q[r][half] = fma(p, o, q[r][half]);
            a[r][half] = fma(h, kLanesAreX ? o : p, a[r][half]);
          } else {
            const vd delta = kLanesAreX ? p - o : o - p;
            if constexpr (kForm == kSquare) {
              q[r][half] = fma(delta, delta, q[r][half]);
              a[r][half] = fma(h, delta, a[r][half]);
            } else {
              q[r][half] += vabs(delta);
              a[r][half] += with_sign(delta, h);
            }
          }
        }
      }
    }
    for (int64_t k = 0; k < e; ++k) {
#pragma GCC unroll 4
      for (int r = 0; r < kBwdGroup; ++r)
#pragma GCC unroll 2
        for (int half = 0; half < 2; ++half) {
          const vd own_w = load(own.weights + k * kBwdWidth + half * kBwdLanes);
          w[r][half] = fma(own_w, broadcast(other.weights[(j + r) * e + k]), w[r][half]);
        }
    }
    for (int r = 0; r < kBwdGroup; ++r)
      for (int half = 0; half < 2; ++half)
        block.q[j + r][half] = q[r][half], block.a[j + r][half] = a[r][half], block.w[j + r][half] = w[r][half];
  }
}

// sums[k][..] += sum_j term(j, k) for k < columns; term(s, j, k) adds to both halves s.
template <class Term>
__attribute__((always_inline)) inline void bwd_add(double* sums, int64_t columns, int count, Term&& term) {
  for (int64_t k0 = 0; k0 < columns; k0 += 4) {
    const int some = columns - k0 < 4 ? int(columns - k0) : 4;
    vd s[4][2] = {};
    if (some == 4) {
      for (int j = 0; j < count; ++j) {
#pragma GCC unroll 4
        for (int r = 0; r < 4; ++r) term(s[r], j, k0 + r);
      }
    } else {
      for (int r = 0; r < some; ++r)
        for (int j = 0; j < count; ++j) term(s[r], j, k0 + r);
    }
    for (int r = 0; r < some; ++r) add_panel<double>(sums + (k0 + r) * kBwdWidth, s[r][0], s[r][1]);
  }
}

// Add what a block gives to the gradient of the lanes' points, [d][lanes]. For distances the two terms of a pair nearly
// cancel where phi'' is large, so they are added up before anything else multiplies them.
template <int kForm, bool kLanesAreX>
__attribute__((noinline)) void bwd_points(const BwdBlock& block, const BwdSide& own, const BwdSide& other, int count,
                                          int64_t d, double* sums) {
  bwd_add(sums, d, count, [&](vd* s, int j, int64_t k) __attribute__((always_inline)) {
    const vd o = broadcast(other.points[j * d + k]);
    const vd oh = kLanesAreX || kForm == kManhattan ? vd{} : broadcast(other.h[j * d + k]);
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const vd first = block.first[j][half], second = block.second[j][half];
      if constexpr (kForm == kInner) {
        s[half] = fma(second, o, s[half]);
        if constexpr (!kLanesAreX) s[half] = fma(first, oh, s[half]);
      } else {
        const vd delta = load(own.points + k * kBwdWidth + half * kBwdLanes) - o;    // minus that of x: so is dy
        if constexpr (kForm == kManhattan) {
          s[half] += with_sign(delta, second);
        } else {
          const vd h = kLanesAreX ? load(own.h + k * kBwdWidth + half * kBwdLanes) : -oh;
          s[half] = fma(first, fma(second, delta, h), s[half]);
        }
      }
    }
  });
}

// The gradients of one panel's points and weights: of (x, g), or of (y, v).
template <class T, int kForm, bool kLanesAreX>
void bwd_panel(const BwdProblem<T>& p, int64_t begin, int worker) {
  constexpr double kFirst = kForm == kSquare ? 2 : 1;
  const int64_t d = p.d, e = p.e, own_rows = kLanesAreX ? p.n : p.m, other_rows = kLanesAreX ? p.m : p.n;
  const int64_t here = own_rows - begin < kBwdWidth ? own_rows - begin : kBwdWidth;
  T *d_points = kLanesAreX ? p.dx : p.dy, *d_weights = kLanesAreX ? p.dg : p.dv;
  const double *own_log = kLanesAreX ? p.x_log : p.y_log, *other_log = kLanesAreX ? p.y_log : p.x_log;

  double* panel = p.panels + worker * (2 * d + e) * kBwdWidth;
  double* rows = p.blocks + worker * (2 * d + e) * kBwdBlock;
  double* sums = p.sums + worker * (d + e) * kBwdWidth;
  const BwdSide own = {panel, panel + d * kBwdWidth, panel + 2 * d * kBwdWidth};
  const BwdSide other = {rows, rows + d * kBwdBlock, rows + 2 * d * kBwdBlock};
  auto pack_own = [&](const T* from, int64_t columns, double* to) {
    for (int64_t k = 0; k < columns * kBwdWidth; ++k) to[k] = 0;
    for (int64_t l = 0; l < here; ++l)
      for (int64_t k = 0; k < columns; ++k) to[k * kBwdWidth + l] = double(from[(begin + l) * columns + k]);
  };
  pack_own(kLanesAreX ? p.x : p.y, d, panel);
  if (kLanesAreX) pack_own(p.h, d, panel + d * kBwdWidth);
  pack_own(kLanesAreX ? p.g : p.v, e, panel + 2 * d * kBwdWidth);
  vd own_logs[2] = {};
  for (int64_t l = 0; p.logs && l < here; ++l) own_logs[l / kBwdLanes][l % kBwdLanes] = own_log[begin + l];
  for (int64_t t = 0; t < (d + e) * kBwdWidth; ++t) sums[t] = 0;

  BwdBlock block;
  for (int64_t j0 = 0; j0 < other_rows; j0 += kBwdBlock) {
    const int count = other_rows - j0 < kBwdBlock ? int(other_rows - j0) : kBwdBlock;
    const int packed = (count + kBwdGroup - 1) / kBwdGroup * kBwdGroup;
    auto pack_other = [&](const T* from, int64_t columns, double* to) {
      for (int64_t k = 0; k < count * columns; ++k) to[k] = double(from[j0 * columns + k]);
      for (int64_t k = count * columns; k < packed * columns; ++k) to[k] = 0;
    };
    pack_other(kLanesAreX ? p.y : p.x, d, rows);
    if (!kLanesAreX) pack_other(p.h, d, rows + d * kBwdBlock);
    pack_other(kLanesAreX ? p.v : p.g, e, rows + 2 * d * kBwdBlock);

    bwd_values<kForm, kLanesAreX>(block, own, other, count, d, e);
    memcpy(block.first, block.q, sizeof block.q);
    memcpy(block.second, block.q, sizeof block.q);
    const double* row_logs = p.logs ? other_log + j0 : nullptr;
    p.kernel.template apply<1>(block.first[0], 2 * count, row_logs, p.logs ? own_logs : nullptr);
    p.kernel.template apply<2>(block.second[0], 2 * count, row_logs, p.logs ? own_logs : nullptr);

    // From here on `a` multiplies v (or g). Distances: `first` multiplies h + `second` delta; else each multiplies one.
    for (int j = 0; j < count; ++j)
      for (int half = 0; half < 2; ++half) {
        const vd w = block.w[j][half], a = block.a[j][half], one = block.first[j][half], two = block.second[j][half];
        block.a[j][half] = one * kFirst * a;
        block.first[j][half] = w * (one * kFirst);
        if constexpr (kForm == kSquare) block.second[j][half] = (one == 0 ? vd{} : two / one) * 2 * a;
        else block.second[j][half] = w * (two * a);
      }
    if (p.exclude_diagonal)
      for (int64_t j = j0 > begin ? j0 : begin; j < j0 + count && j < begin + here; ++j) {
        const int64_t row = j - j0, half = (j - begin) / kBwdLanes, l = (j - begin) % kBwdLanes;
        block.a[row][half][l] = block.first[row][half][l] = block.second[row][half][l] = 0;
      }

    if (d_points) bwd_points<kForm, kLanesAreX>(block, own, other, count, d, sums);
    if (d_weights)
      bwd_add(sums + d * kBwdWidth, e, count, [&](vd* s, int j, int64_t k) __attribute__((always_inline)) {
        const vd o = broadcast(other.weights[j * e + k]);
        s[0] = fma(block.a[j][0], o, s[0]);
        s[1] = fma(block.a[j][1], o, s[1]);
      });
  }
  for (int64_t l = 0; l < here; ++l) {
    for (int64_t k = 0; d_points && k < d; ++k) d_points[(begin + l) * d + k] = T(sums[k * kBwdWidth + l]);
    for (int64_t k = 0; d_weights && k < e; ++k) d_weights[(begin + l) * e + k] = T(sums[(d + k) * kBwdWidth + l]);
  }
}

template <class T, int kForm> void bwd_all(const Call& c, const BwdProblem<T>& p) {
  const int64_t of_x = p.dx || p.dg ? ceil_div(p.n, kBwdWidth) : 0, of_y = p.dy || p.dv ? ceil_div(p.m, kBwdWidth) : 0;
  parallel(c, of_x + of_y, [&](int64_t t, int worker) {
    if (t < of_x) bwd_panel<T, kForm, true>(p, t * kBwdWidth, worker);
    else bwd_panel<T, kForm, false>(p, (t - of_x) * kBwdWidth, worker);
  });
}

template <class T> int64_t kernel_matvec_dx_bwd_scratch(const Call& c) {
  Call counting = c;
  counting.scratch = nullptr;
  return BwdProblem<T>(counting).scratch.used;
}

}  // namespace

KERNEL_SCRATCH(kernel_matvec_dx_bwd, kernel_matvec_dx_bwd_scratch) {
  const BwdProblem<T> p(c);
  p.reduce_logs(c);
  if (p.kernel.form == kSquare) bwd_all<T, kSquare>(c, p);
  else if (p.kernel.form == kManhattan) bwd_all<T, kManhattan>(c, p);
  else bwd_all<T, kInner>(c, p);
}
