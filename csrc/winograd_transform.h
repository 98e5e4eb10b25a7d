// The one-dimensional transforms of Winograd's minimal filtering F(M, R): M outputs of a filter of R taps by
// N = M + R - 1 products.
//
// Toom-Cook: outputs and filter are polynomials, multiplied by their values at N - 1 points and at infinity. With p the
// points and f_i = prod over j != i of (p_i - p_j):
//   filter    u = G w      G_ij = p_i^j / f_i,      last row (0, ..., 1)
//   input     v = B' d     row i: the coefficients of prod over j != i of (x - p_j), last row: of the whole product
//   output    y = A' m     A_ij = p_i^j,            last row (0, ..., 1)
// and the adjoints of filter and output for the gradient in w: dw = G' [sum (B' d) (A dy)]. In two dimensions each is
// applied along columns and then rows. Points 0, +-5/8, +-3/2 amplify rounding errors least among all pairs of
// sixteenths (a factor 2.2 per dimension; 3.3 for the usual 0, +-1, +-2), and products with them are cheap and exact; for
// filters of two taps the best are +-3/8, +-5/4 without 0 (1.7).
// Lavin and Gray (2016), arXiv 1509.09308; Barabasz et al. (2020), arXiv 1803.10986, on points and errors.
//
// vf, broadcast and fma come from simd.h (SIMD vectors) or from cuda/winograd_scalar.h (one number), whichever the unit has included
// before.
#pragma once
#include "host_device.h"

namespace {

template <int M, int R> struct Winograd;

// Every function reads and writes vectors `s` apart.
template <> struct Winograd<4, 3> {
  static constexpr int kM = 4, kR = 3, kN = 6;
  static constexpr double a = 0.625, b = 1.5, a2 = a * a, b2 = b * b, a3 = a * a2, b3 = b * b2;
  static constexpr double fa = 1 / (2 * a2 * (a2 - b2)), fb = 1 / (2 * b2 * (b2 - a2)), f0 = 1 / (a2 * b2);

  HOST_DEVICE static void input(const vf* d, int sd, vf* v, int s) {
    const vf ka = broadcast(float(a)), kb = broadcast(float(b)), na2 = broadcast(float(-a2)), nb2 = broadcast(float(-b2));
    const vf kab = broadcast(float(a2 * b2)), nsum = broadcast(float(-(a2 + b2)));
    const vf t1 = fma(nb2, d[2 * sd], d[4 * sd]), t2 = fma(nb2, d[sd], d[3 * sd]) * ka;
    const vf t3 = fma(na2, d[2 * sd], d[4 * sd]), t4 = fma(na2, d[sd], d[3 * sd]) * kb;
    v[0] = fma(kab, d[0], fma(nsum, d[2 * sd], d[4 * sd]));
    v[s] = t1 + t2;
    v[2 * s] = t1 - t2;
    v[3 * s] = t3 + t4;
    v[4 * s] = t3 - t4;
    v[5 * s] = fma(kab, d[sd], fma(nsum, d[3 * sd], d[5 * sd]));
  }
  HOST_DEVICE static void output(const vf* m, int sm, vf* y, int s) {
    const vf sa = m[sm] + m[2 * sm], da = m[sm] - m[2 * sm], sb = m[3 * sm] + m[4 * sm], db = m[3 * sm] - m[4 * sm];
    y[0] = (m[0] + sa) + sb;
    y[s] = fma(broadcast(float(a)), da, db * float(b));
    y[2 * s] = fma(broadcast(float(a2)), sa, sb * float(b2));
    y[3 * s] = fma(broadcast(float(a3)), da, fma(broadcast(float(b3)), db, m[5 * sm]));
  }
  HOST_DEVICE static void output_adjoint(const vf* y, int sy, vf* m, int s) {
    const vf ea = fma(broadcast(float(a2)), y[2 * sy], y[0]), oa = fma(broadcast(float(a3)), y[3 * sy], y[sy] * float(a));
    const vf eb = fma(broadcast(float(b2)), y[2 * sy], y[0]), ob = fma(broadcast(float(b3)), y[3 * sy], y[sy] * float(b));
    m[0] = y[0];
    m[s] = ea + oa;
    m[2 * s] = ea - oa;
    m[3 * s] = eb + ob;
    m[4 * s] = eb - ob;
    m[5 * s] = y[3 * sy];
  }
  HOST_DEVICE static void filter(const vf* w, int sw, vf* u, int s) {
    const vf ea = (w[0] + w[2 * sw] * float(a2)) * float(fa), oa = w[sw] * float(a * fa);
    const vf eb = (w[0] + w[2 * sw] * float(b2)) * float(fb), ob = w[sw] * float(b * fb);
    u[0] = w[0] * float(f0);
    u[s] = ea + oa;
    u[2 * s] = ea - oa;
    u[3 * s] = eb + ob;
    u[4 * s] = eb - ob;
    u[5 * s] = w[2 * sw];
  }
  HOST_DEVICE static void filter_adjoint(const vf* u, int su, vf* w, int s) {
    const vf sa = u[su] + u[2 * su], da = u[su] - u[2 * su], sb = u[3 * su] + u[4 * su], db = u[3 * su] - u[4 * su];
    w[0] = u[0] * float(f0) + (sa * float(fa) + sb * float(fb));
    w[s] = da * float(a * fa) + db * float(b * fb);
    w[2 * s] = (sa * float(a2 * fa) + sb * float(b2 * fb)) + u[5 * su];
  }
};

template <> struct Winograd<2, 3> {
  static constexpr int kM = 2, kR = 3, kN = 4;

  HOST_DEVICE static void input(const vf* d, int sd, vf* v, int s) {
    v[0] = d[2 * sd] - d[0];
    v[s] = d[sd] + d[2 * sd];
    v[2 * s] = d[2 * sd] - d[sd];
    v[3 * s] = d[3 * sd] - d[sd];
  }
  HOST_DEVICE static void output(const vf* m, int sm, vf* y, int s) {
    y[0] = (m[0] + m[sm]) + m[2 * sm];
    y[s] = (m[sm] - m[2 * sm]) + m[3 * sm];
  }
  HOST_DEVICE static void output_adjoint(const vf* y, int sy, vf* m, int s) {
    m[0] = y[0];
    m[s] = y[0] + y[sy];
    m[2 * s] = y[0] - y[sy];
    m[3 * s] = y[sy];
  }
  HOST_DEVICE static void filter(const vf* w, int sw, vf* u, int s) {
    const vf even = (w[0] + w[2 * sw]) * float(0.5), odd = w[sw] * float(0.5);
    u[0] = -w[0];
    u[s] = even + odd;
    u[2 * s] = even - odd;
    u[3 * s] = w[2 * sw];
  }
  HOST_DEVICE static void filter_adjoint(const vf* u, int su, vf* w, int s) {
    const vf sum = (u[su] + u[2 * su]) * float(0.5);
    w[0] = sum - u[0];
    w[s] = (u[su] - u[2 * su]) * float(0.5);
    w[2 * s] = sum + u[3 * su];
  }
};

// Filters of two taps: what a 3x3 filter becomes after upsampling, or a 4x4 one with stride 2, per phase.
template <> struct Winograd<4, 2> {
  static constexpr int kM = 4, kR = 2, kN = 5;
  static constexpr double a = 0.375, b = 1.25, a2 = a * a, b2 = b * b, a3 = a * a2, b3 = b * b2;
  static constexpr double fa = 1 / (2 * a * (a2 - b2)), fb = 1 / (2 * b * (b2 - a2));

  HOST_DEVICE static void input(const vf* d, int sd, vf* v, int s) {
    const vf na2 = broadcast(float(-a2)), nb2 = broadcast(float(-b2));
    const vf t1 = fma(nb2, d[sd], d[3 * sd]), t2 = fma(nb2, d[0], d[2 * sd]) * float(a);
    const vf t3 = fma(na2, d[sd], d[3 * sd]), t4 = fma(na2, d[0], d[2 * sd]) * float(b);
    v[0] = t1 + t2;
    v[s] = t1 - t2;
    v[2 * s] = t3 + t4;
    v[3 * s] = t3 - t4;
    v[4 * s] = fma(broadcast(float(a2 * b2)), d[0], fma(broadcast(float(-(a2 + b2))), d[2 * sd], d[4 * sd]));
  }
  HOST_DEVICE static void output(const vf* m, int sm, vf* y, int s) {
    const vf sa = m[0] + m[sm], da = m[0] - m[sm], sb = m[2 * sm] + m[3 * sm], db = m[2 * sm] - m[3 * sm];
    y[0] = sa + sb;
    y[s] = fma(broadcast(float(a)), da, db * float(b));
    y[2 * s] = fma(broadcast(float(a2)), sa, sb * float(b2));
    y[3 * s] = fma(broadcast(float(a3)), da, fma(broadcast(float(b3)), db, m[4 * sm]));
  }
  HOST_DEVICE static void output_adjoint(const vf* y, int sy, vf* m, int s) {
    const vf ea = fma(broadcast(float(a2)), y[2 * sy], y[0]), oa = fma(broadcast(float(a3)), y[3 * sy], y[sy] * float(a));
    const vf eb = fma(broadcast(float(b2)), y[2 * sy], y[0]), ob = fma(broadcast(float(b3)), y[3 * sy], y[sy] * float(b));
    m[0] = ea + oa;
    m[s] = ea - oa;
    m[2 * s] = eb + ob;
    m[3 * s] = eb - ob;
    m[4 * s] = y[3 * sy];
  }
  HOST_DEVICE static void filter(const vf* w, int sw, vf* u, int s) {
    const vf wa = w[0] * float(fa), wb = w[0] * float(fb), va = w[sw] * float(a * fa), vb = w[sw] * float(b * fb);
    u[0] = va + wa;
    u[s] = va - wa;
    u[2 * s] = vb + wb;
    u[3 * s] = vb - wb;
    u[4 * s] = w[sw];
  }
  HOST_DEVICE static void filter_adjoint(const vf* u, int su, vf* w, int s) {
    w[0] = (u[0] - u[su]) * float(fa) + (u[2 * su] - u[3 * su]) * float(fb);
    w[s] = ((u[0] + u[su]) * float(a * fa) + (u[2 * su] + u[3 * su]) * float(b * fb)) + u[4 * su];
  }
};

}  // namespace
