// Which rows lie in which balls (radius_count, radius_min), by the scores of score_block.h: a score says that a pair is
// out, that it is surely in, or that it has to be measured.
#pragma once
#include "score_block.h"

namespace {

// A row is in a ball if its distance, rounded to T, is below the radius.
template <class T> struct Inside {
  const Scores<T>& s;
  bool closed;
  T distance(int64_t i, int64_t j) const {
    return T(__builtin_sqrt(square_distance(s.x + i * s.d, s.y + j * s.d, s.d)));
  }
  bool operator()(T distance, T radius) const { return closed ? distance <= radius : distance < radius; }
};

// Scores of balls: `low` above `far` is out, `low` below `near` (less an allowance of the row) is in.
template <class T> inline void ball_bounds(const Bound<T>& bound, T radius, bool usable, T* far, T* near) {
  const double r = double(radius);
  *far = r >= 0 ? bound.reach(r * r) : -T(__builtin_inf());
  *near = usable && r > 0 ? bound.surely(r * r) : -T(__builtin_inf());
}

template <class T> struct CountPlan {
  Carve scratch;
  Scores<T> s;
  const T *radius, *x_radius;
  T *far, *near;                                     // of the packed columns
  vmask<T>* counts;                                  // per worker: members of a chunk's balls; balls around it
  explicit CountPlan(const Call& c)
      : scratch{static_cast<char*>(c.scratch)}, s(c, c.in[1], false, scratch), radius(in<T>(c, 2)),
        x_radius(in<T>(c, 3)), far(scratch.take<T>(s.phase)), near(scratch.take<T>(s.phase)),
        counts(scratch.take<vmask<T>>(s.workers * 2 * (s.chunk / kLanes<T>))) {}
};
template <class T> int64_t radius_count_scratch(const Call& c) {
  Call counting = c;
  counting.scratch = nullptr;
  return CountPlan<T>(counting).scratch.used;
}

// Lanes whose score is within `far`, and of those the ones surely inside.
template <class T> struct Verdict {
  uint32_t within;
  vmask<T> in;
  Verdict(vec<T> low, vec<T> far, vec<T> near) {
    within = lanes_not_above(low, far);
    in = (low < near) & (low > broadcast(-Limits<T>::huge));
  }
};
template <class T> inline uint32_t bits(vmask<T> m) {
  constexpr uint32_t all = (1u << kLanes<T>) - 1;
  return all & ~lanes_not_above((vec<T>)(m & (vmask<T>)broadcast(T(1))), vec<T>{});
}

template <class T, bool kGemm, bool kBoth>
void count_row(const CountPlan<T>& plan, const Inside<T>& inside, int64_t i, T low_x, const T* v, int64_t first,
               int64_t j0, int64_t columns, vmask<T>* members, vmask<T>* x_balls, int64_t* balls, int64_t* x_members) {
  constexpr int lanes = kLanes<T>;
  const T *far = plan.far + (j0 - first), *near = plan.near + (j0 - first);
  T own_far{}, own_near{};
  if constexpr (kBoth) ball_bounds(plan.s.bound, plan.x_radius[i], true, &own_far, &own_near);
  const T slack = plan.s.slack[i];
  const vec<T> reach = broadcast(kBoth ? own_far : -T(__builtin_inf()));
  for (int64_t j = 0; j < columns; j += lanes) {
    const vec<T> low = kGemm ? low_x - load(v + j) : low_x + load(v + j), ball = load(far + j);
    if (__builtin_expect(lanes_not_above(low, kBoth ? vmax(ball, reach) : ball) == 0, 1)) continue;
    const uint32_t real = columns - j < lanes ? (1u << (columns - j)) - 1 : ~0u;
    Verdict<T> y(low, ball, load(near + j) - slack);
    uint32_t sure = bits<T>(y.in) & real, open = y.within & ~sure & real;
    *balls += __builtin_popcount(sure);
    members[j / lanes] -= y.in;
    uint32_t x_open = 0;
    if constexpr (kBoth) {
      Verdict<T> own(low, reach, broadcast(own_near - slack));
      sure = bits<T>(own.in) & real, x_open = own.within & ~sure & real;
      *x_members += __builtin_popcount(sure);
      x_balls[j / lanes] -= own.in;
    }
    for (uint32_t rest = open | x_open; rest; rest &= rest - 1) {
      const int l = __builtin_ctz(rest);
      const T distance = inside.distance(i, j0 + j + l);
      if ((open >> l & 1) && inside(distance, plan.radius[j0 + j + l])) ++*balls, ++members[j / lanes][l];
      if (kBoth && (x_open >> l & 1) && inside(distance, plan.x_radius[i])) ++*x_members, ++x_balls[j / lanes][l];
    }
  }
}

template <class T, bool kGemm, bool kBoth> void count_balls(const Call& c, const CountPlan<T>& plan) {
  constexpr int lanes = kLanes<T>;
  const Scores<T>& s = plan.s;
  const Inside<T> inside{s, c.attr[0] != 0};
  int64_t *balls = out<int64_t>(c, 0), *members = out<int64_t>(c, 1), *x_balls = out<int64_t>(c, 2),
          *x_members = out<int64_t>(c, 3);
  s.find_centre(c);
  for (int64_t j = 0; j < s.m; ++j) members[j] = x_balls[j] = 0;
  for (int64_t i = 0; i < s.n; ++i) balls[i] = x_members[i] = 0;
  for (int64_t first = 0; first < s.m; first += s.phase) {
    const int64_t end = s.phase_end(first);
    s.pack_columns(c, s.y, first, end, [&](int64_t j, double, bool usable) {
      ball_bounds(s.bound, j < end ? plan.radius[j] : -T(1), usable, plan.far + (j - first), plan.near + (j - first));
    });
    parallel(c, s.blocks, [&](int64_t block, int worker) {
      vmask<T>*held = plan.counts + worker * 2 * (s.chunk / lanes), *holding = held + s.chunk / lanes;
      s.pack_rows(block, worker, true);
      int64_t before = -1, count = 0;                // the chunk that is being counted
      auto flush = [&] {
        for (int64_t t = 0; before >= 0 && t < count; ++t) {
          const int64_t a = held[t / lanes][t % lanes], b = kBoth ? int64_t(holding[t / lanes][t % lanes]) : 0;
          if (a) __atomic_fetch_add(members + before + t, a, __ATOMIC_RELAXED);
          if (b) __atomic_fetch_add(x_balls + before + t, b, __ATOMIC_RELAXED);
        }
      };
      s.template each_chunk<kGemm>(block, worker, first, end, [&](const ScoreBlock<T>& b) {
        if (b.j != before) {
          flush();
          before = b.j, count = b.columns;
          for (int64_t t = 0; t < s.chunk / lanes; ++t) held[t] = holding[t] = vmask<T>{};
        }
        for (int64_t r = 0; r < b.rows; ++r)
          count_row<T, kGemm, kBoth>(plan, inside, b.i + r, b.low_x[r], b.scores + r * s.chunk, first, b.j, b.columns,
                                     held, holding, balls + b.i + r, x_members + b.i + r);
      });
      flush();
    });
  }
}
template <class T, bool kGemm> void count_balls(const Call& c, const CountPlan<T>& plan) {
  plan.x_radius ? count_balls<T, kGemm, true>(c, plan) : count_balls<T, kGemm, false>(c, plan);
}

// ---- radius_min --------------------------------------------------------------------------------------------------

template <class T> struct SmallestPlan {
  Carve scratch;
  Scores<T> s;
  const T* radius;
  T *far, *near;
  explicit SmallestPlan(const Call& c)
      : scratch{static_cast<char*>(c.scratch)}, s(c, c.in[1], false, scratch), radius(in<T>(c, 2)),
        far(scratch.take<T>(s.phase)), near(scratch.take<T>(s.phase)) {}
};
template <class T> int64_t radius_min_scratch(const Call& c) {
  Call counting = c;
  counting.scratch = nullptr;
  return SmallestPlan<T>(counting).scratch.used;
}

template <class T, bool kGemm>
void smallest_row(const SmallestPlan<T>& plan, const Inside<T>& inside, int64_t i, T low_x, const T* v, int64_t first,
                  int64_t j0, int64_t columns, T* smallest) {
  constexpr int lanes = kLanes<T>;
  const T *far = plan.far + (j0 - first), *near = plan.near + (j0 - first), slack = plan.s.slack[i];
  for (int64_t j = 0; j < columns; j += lanes) {
    const vec<T> low = kGemm ? low_x - load(v + j) : low_x + load(v + j);
    uint32_t mask = lanes_not_above(low, load(far + j));
    if (__builtin_expect(mask == 0, 1)) continue;
    if (columns - j < lanes) mask &= (1u << (columns - j)) - 1;
    const uint32_t sure = bits<T>(Verdict<T>(low, load(far + j), load(near + j) - slack).in);
    for (; mask; mask &= mask - 1) {
      const int l = __builtin_ctz(mask);
      const T radius = plan.radius[j0 + j + l];
      if (!(radius < *smallest)) continue;
      if ((sure >> l & 1) || inside(inside.distance(i, j0 + j + l), radius)) *smallest = radius;
    }
  }
}

template <class T, bool kGemm> void smallest_balls(const Call& c, const SmallestPlan<T>& plan) {
  const Scores<T>& s = plan.s;
  const Inside<T> inside{s, c.attr[0] != 0};
  T* smallest = out<T>(c, 0);
  s.find_centre(c);
  for (int64_t i = 0; i < s.n; ++i) smallest[i] = T(__builtin_inf());
  for (int64_t first = 0; first < s.m; first += s.phase) {
    const int64_t end = s.phase_end(first);
    s.pack_columns(c, s.y, first, end, [&](int64_t j, double, bool usable) {
      ball_bounds(s.bound, j < end ? plan.radius[j] : -T(1), usable, plan.far + (j - first), plan.near + (j - first));
    });
    parallel(c, s.blocks, [&](int64_t block, int worker) {
      s.pack_rows(block, worker, true);
      s.template each_chunk<kGemm>(block, worker, first, end, [&](const ScoreBlock<T>& b) {
        for (int64_t r = 0; r < b.rows; ++r)
          smallest_row<T, kGemm>(plan, inside, b.i + r, b.low_x[r], b.scores + r * s.chunk, first, b.j, b.columns,
                                 smallest + b.i + r);
      });
    });
  }
}

}  // namespace
