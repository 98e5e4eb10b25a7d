// The nearest row of y (nearest), by the scores of score_block.h: what the best score of a chunk leaves open is
// measured.
#pragma once
#include "score_block.h"

namespace {

template <class T> struct NearestPlan {
  Carve scratch;
  Scores<T> s;
  uint64_t* keys;
  int64_t* index;
  const T* scale;
  T* weight;                                         // of the packed columns: 1 / scale^2, rounded down
  explicit NearestPlan(const Call& c)
      : scratch{static_cast<char*>(c.scratch)}, s(c, c.in[1], false, scratch), keys(scratch.take<uint64_t>(s.n)),
        index(out<int64_t>(c, 1)), scale(in<T>(c, 2)), weight(scratch.take<T>(scale ? s.phase : 0)) {}

  void measure(int64_t i, int64_t j) const {
    double t = square_distance(s.x + i * s.d, s.y + j * s.d, s.d);
    if (scale) t /= double(scale[j]) * double(scale[j]);
    const uint64_t key = to_key(t);
    if (key < keys[i] || (key == keys[i] && j < index[i])) keys[i] = key, index[i] = j;
  }
  // What a `low`, or with scales a `low` times its weight, may be for its pair to matter.
  T reach(int64_t i) const { return keys[i] < kInfinity ? s.bound.reach(from_key(keys[i])) : T(__builtin_inf()); }
};
template <class T> int64_t nearest_scratch(const Call& c) {
  Call counting = c;
  counting.scratch = nullptr;
  return NearestPlan<T>(counting).scratch.used;
}

// One row of x against a chunk: v its scores, weight (if kScaled) of the columns.
template <class T, bool kGemm, bool kScaled>
void scan_nearest(const NearestPlan<T>& plan, int64_t i, T low_x, const T* v, const T* weight, int64_t j0,
                  int64_t columns) {
  constexpr int lanes = kLanes<T>;
  const vec<T> own = broadcast(low_x);
  auto low_of = [&](int64_t j) {
    const vec<T> low = kGemm ? own - load(v + j) : own + load(v + j);
    if constexpr (kScaled) return low * load(weight + j);
    return low;
  };
  vec<T> best;
  if constexpr (kScaled) {
    best = broadcast(T(__builtin_inf()));
    for (int64_t j = 0; j < columns; j += lanes) best = vmin(best, low_of(j));
  } else {
    vec<T> even = load(v), odd = load(v + lanes);
    for (int64_t j = 2 * lanes; j < columns; j += 2 * lanes)
      even = better<kGemm>(load(v + j), even), odd = better<kGemm>(load(v + j + lanes), odd);
    best = better<kGemm>(even, odd);
    best = kGemm ? own - best : own + best;
  }
  T reach = plan.reach(i);
  if (__builtin_expect(lanes_not_above(best, broadcast(reach)) == 0, 1)) return;
  if constexpr (!kScaled) {                          // nothing beyond what the best score may turn out to be
    T lowest = best[0];
    for (int l = 1; l < lanes; ++l) lowest = best[l] < lowest ? best[l] : lowest;
    if (lowest > -Limits<T>::huge && lowest < Limits<T>::huge) {
      const T r = plan.s.bound.follow(lowest, plan.s.slack[i]);
      if (r < reach) reach = r;
    }
  }
  for (int64_t j = 0; j < columns; j += lanes) {
    const vec<T> low = low_of(j);
    uint32_t mask = lanes_not_above(low, broadcast(reach));
    if (__builtin_expect(mask == 0, 1)) continue;
    if (columns - j < lanes) mask &= (1u << (columns - j)) - 1;
    while (mask) {
      plan.measure(i, j0 + j + __builtin_ctz(mask));
      mask &= mask - 1;
      const T r = plan.reach(i);
      if (r < reach) reach = r, mask &= lanes_not_above(low, broadcast(reach));
    }
  }
}

template <class T, bool kGemm, bool kScaled> void find_nearest(const Call& c, const NearestPlan<T>& plan) {
  const Scores<T>& s = plan.s;
  s.find_centre(c);
  parallel_range(c, s.n, 16384, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) plan.keys[i] = kEmpty, plan.index[i] = -1;
  });
  for (int64_t first = 0; first < s.m; first += s.phase) {
    const int64_t end = s.phase_end(first);
    s.pack_columns(c, s.y, first, end, [&](int64_t j, double, bool usable) {
      if (!kScaled) return;
      const double scale = j < end && usable ? double(plan.scale[j]) : 1, w = 1 / (scale * scale);
      const double most = double(Limits<T>::huge);
      plan.weight[j - first] = T(w < most ? w * (1 - 4 * double(Limits<T>::unit)) : most);
    });
    parallel(c, s.blocks, [&](int64_t block, int worker) {
      s.pack_rows(block, worker, true);
      s.template each_chunk<kGemm>(block, worker, first, end, [&](const ScoreBlock<T>& b) {
        for (int64_t r = 0; r < b.rows; ++r)
          scan_nearest<T, kGemm, kScaled>(plan, b.i + r, b.low_x[r], b.scores + r * s.chunk,
                                          plan.weight + (b.j - first), b.j, b.columns);
      });
    });
  }
  T* distance = out<T>(c, 0);
  parallel_range(c, s.n, 16384, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) distance[i] = T(__builtin_sqrt(from_key(plan.keys[i])));
  });
}

}  // namespace
