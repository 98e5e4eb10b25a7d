// Which rows lie in which balls (radius_count, radius_min), tile by tile: a low says that a pair is out, that it is surely
// in, or that it has to be measured. See csrc/balls.h; counts are integers, so they may be added in any order.
#pragma once
#include "search.h"

namespace {

// Of a ball: lows above `far` are out, lows below `near` (less the row's slack) are in.
template <class T> struct Borders {
  T *far, *near;
};

template <class T> __global__ void ball_borders(Bound<T> bound, int64_t count, const T* radius, Borders<T> b) {
  const int64_t j = global_thread();
  if (j >= count) return;
  const double r = double(radius[j]);
  b.far[j] = r >= 0 ? bound.reach(r * r) : -T(HUGE_VAL);
  b.near[j] = r > 0 ? bound.surely(r * r) : -T(HUGE_VAL);
}

// A row is in a ball if its distance, rounded to T, is below the radius.
template <class T> __device__ inline bool inside(T distance, T radius, bool closed) {
  return closed ? distance <= radius : distance < radius;
}
template <class T> __device__ inline T rounded_distance(double square) { return T(__dsqrt_rn(square)); }

template <class T> struct Balls {
  Search<T> search;
  const T *radius, *x_radius;
  Borders<T> y, x;                                   // x: null without x_radius
  bool closed;
};

template <class T> __device__ inline bool surely_in(T low, T near) { return low < near && low > -Limits<T>::huge; }

struct BallCounts { int64_t *balls, *members, *x_balls, *x_members; };

// to[column] += how many of the warp's 16 rows have the column's bits set.
__device__ inline void add_columns(uint32_t in, int64_t* to, int64_t columns) {
  if (!__any_sync(0xffffffffu, in != 0)) return;
  const int lane = threadIdx.x % kWarp;
  const unsigned same = 0x11111111u << (lane % 4);   // lanes with these columns
  int count[2] = {};                                 // of columns 2 lane and 2 lane + 1
  GENERANT_UNROLL
  for (int bit = 0; bit < 16; ++bit) {
    const int n = __popc(__ballot_sync(0xffffffffu, in >> bit & 1) & same) + __popc(__ballot_sync(0xffffffffu, in >> (16 + bit) & 1) & same);
    if (bit / 2 == lane / 4) count[bit % 2] = n;
  }
  GENERANT_UNROLL
  for (int c = 0; c < 2; ++c)
    if (count[c] > 0 && 2 * lane + c < columns)
      atomicAdd(reinterpret_cast<unsigned long long*>(to + 2 * lane + c), static_cast<unsigned long long>(count[c]));
}

template <class T> __global__ void count_tiles(Balls<T> b, BallCounts to) {
  DYNAMIC_SHARED(T, shared);
  const Points<T>& p = b.search.points;
  const int64_t i0 = int64_t(blockIdx.x) * kTileRows<T>;
  unsigned balls[2] = {}, x_members[2] = {};
  T slack[2] = {}, far[2], near[2];
  GENERANT_UNROLL
  for (int h = 0; h < 2; ++h) {
    const int64_t i = i0 + own_row(h);
    far[h] = near[h] = -T(HUGE_VAL);
    if (i >= p.n) continue;
    if (p.expanded) slack[h] = p.low_x[i];
    if (b.x_radius) far[h] = b.x.far[i], near[h] = b.x.near[i] - slack[h];
  }
  each_tile(b.search, shared, [&](const Scores<T>& v, int64_t j0) {
    uint32_t in = 0, open = 0, x_in = 0, x_open = 0;
    each_low(v, [&](T low, int h, int bit, int column) {
      const int64_t j = j0 + column;
      if (i0 + own_row(h) >= p.n || j >= p.m) return;
      const bool sure = surely_in(low, b.y.near[j] - slack[h]), x_sure = surely_in(low, near[h]);
      in |= uint32_t(sure) << bit, open |= uint32_t(!sure && !(low > b.y.far[j])) << bit;
      if (b.x_radius) x_in |= uint32_t(x_sure) << bit, x_open |= uint32_t(!x_sure && !(low > far[h])) << bit;
    });
    const int lane = threadIdx.x % kWarp;
    measure_marked(p, i0, j0, open | x_open, [&](int bit, double square) {
      const T distance = rounded_distance<T>(square);
      if (open >> bit & 1) in |= uint32_t(inside(distance, b.radius[j0 + column_of_bit(bit, lane)], b.closed)) << bit;
      if (x_open >> bit & 1) x_in |= uint32_t(inside(distance, b.x_radius[i0 + row_of_bit(bit, lane)], b.closed)) << bit;
    });
    GENERANT_UNROLL
    for (int h = 0; h < 2; ++h) balls[h] += __popc(in >> (16 * h) & 0xffff), x_members[h] += __popc(x_in >> (16 * h) & 0xffff);
    add_columns(in, to.members + j0, p.m - j0);
    add_columns(x_in, to.x_balls + j0, p.m - j0);
  });
  GENERANT_UNROLL
  for (int h = 0; h < 2; ++h) {
    const unsigned held = warp_sum(balls[h], 4), members = warp_sum(x_members[h], 4);
    const int64_t i = i0 + own_row(h);
    if (threadIdx.x % 4 != 0 || i >= p.n) continue;
    if (held) atomicAdd(reinterpret_cast<unsigned long long*>(to.balls + i), static_cast<unsigned long long>(held));
    if (members) atomicAdd(reinterpret_cast<unsigned long long*>(to.x_members + i), static_cast<unsigned long long>(members));
  }
}

// smallest[part][i]: the radius of the smallest ball of the part that holds row i.
template <class T> __global__ void smallest_tiles(Balls<T> b, T* smallest) {
  DYNAMIC_SHARED(T, shared);
  const Points<T>& p = b.search.points;
  const int64_t i0 = int64_t(blockIdx.x) * kTileRows<T>;
  T least[2] = {T(HUGE_VAL), T(HUGE_VAL)}, slack[2] = {};
  if (p.expanded)
    GENERANT_UNROLL
    for (int h = 0; h < 2; ++h)
      if (i0 + own_row(h) < p.n) slack[h] = p.low_x[i0 + own_row(h)];
  each_tile(b.search, shared, [&](const Scores<T>& v, int64_t j0) {
    uint32_t open = 0;
    each_low(v, [&](T low, int h, int bit, int column) {
      const int64_t j = j0 + column;
      if (i0 + own_row(h) >= p.n || j >= p.m || low > b.y.far[j]) return;
      const T r = b.radius[j];
      if (!(r < least[h])) return;
      if (surely_in(low, b.y.near[j] - slack[h])) least[h] = r;
      else open |= 1u << bit;
    });
    const int lane = threadIdx.x % kWarp;
    measure_marked(p, i0, j0, open, [&](int bit, double square) {
      const T r = b.radius[j0 + column_of_bit(bit, lane)];
      if (!inside(rounded_distance<T>(square), r, b.closed)) return;
      if (bit < 16) least[0] = min(least[0], r);
      else least[1] = min(least[1], r);
    });
  });
  GENERANT_UNROLL
  for (int h = 0; h < 2; ++h) {
    const T r = warp_reduce(least[h], Min{}, 4);
    const int64_t i = i0 + own_row(h);
    if (threadIdx.x % 4 == 0 && i < p.n) smallest[blockIdx.y * p.n + i] = r;
  }
}

template <class T> __global__ void smallest_of_parts(int64_t n, int64_t parts, const T* smallest, T* to) {
  const int64_t i = global_thread();
  if (i >= n) return;
  T r = smallest[i];
  for (int64_t part = 1; part < parts; ++part) r = min(r, smallest[part * n + i]);
  to[i] = r;
}

// ---- the two searches ----

template <class T> struct BallPlan {
  Carve scratch;
  Balls<T> balls;
  T* smallest;                                       // [parts][n], if there are several

  BallPlan(const Call& c, bool count)
      : scratch{static_cast<char*>(c.scratch)}, balls{Search<T>(c, c.in[1], scratch), in<T>(c, 2), count ? in<T>(c, 3) : nullptr, {}, {},
                                                      c.attr[0] != 0} {
    const Points<T>& p = balls.search.points;
    balls.y = {scratch.take<T>(p.m), scratch.take<T>(p.m)};
    const int64_t around_x = balls.x_radius ? p.n : 0;
    balls.x = {scratch.take<T>(around_x), scratch.take<T>(around_x)};
    smallest = scratch.take<T>(count || balls.search.parts == 1 ? 0 : balls.search.parts * p.n);
  }
  void prepare(const Call& c) const {
    const Points<T>& p = balls.search.points;
    balls.search.prepare(c);
    launch(c, ball_borders<T>, grid_of(ceil_div(p.m, 256)), 256, 0, balls.search.bound, p.m, balls.radius, balls.y);
    if (balls.x_radius) launch(c, ball_borders<T>, grid_of(ceil_div(p.n, 256)), 256, 0, balls.search.bound, p.n, balls.x_radius, balls.x);
  }
  static constexpr size_t kShared = sizeof(T) * 2 * kSlabSize<T>;

  void count(const Call& c) const {
    const Points<T>& p = balls.search.points;
    for (int k = 0; k < 4; ++k) clear(c, c.out[k].data, size_t(size(c.out[k])) * sizeof(int64_t));
    if (p.n == 0 || p.m == 0) return;
    prepare(c);
    const BallCounts to = {out<int64_t>(c, 0), out<int64_t>(c, 1), out<int64_t>(c, 2), out<int64_t>(c, 3)};
    launch(c, count_tiles<T>, balls.search.grid(), kTileThreads<T>, kShared, balls, to);
  }
  void least(const Call& c) const {
    const Points<T>& p = balls.search.points;
    if (p.n == 0) return;
    const int64_t parts = balls.search.parts;
    T* to = parts == 1 ? out<T>(c) : smallest;
    if (p.m > 0) prepare(c);
    launch(c, smallest_tiles<T>, balls.search.grid(), kTileThreads<T>, kShared, balls, to);
    if (parts > 1) launch(c, smallest_of_parts<T>, grid_of(ceil_div(p.n, 256)), 256, 0, p.n, parts, smallest, out<T>(c));
  }
};

}  // namespace
