// Searches over all pairs of rows: k nearest, nearest, and which rows lie in which balls. In O(n m d) time and
// O(n + m) memory; the work is in knn.h, nearest.h and balls.h.
#include "../balls.h"
#include "../knn.h"

KERNEL_SCRATCH(knn, knn_scratch) {
  const KnnPlan<T> plan(c);
  const Scores<T>& s = plan.knn.s;
  if (s.n == 0 || plan.knn.lists.k == 0) return;
  const Call call = few_threads(c, s.n, s.m, s.d);
  s.gemm ? find_neighbours<T, true>(call, plan) : find_neighbours<T, false>(call, plan);
}

KERNEL_SCRATCH(nearest, nearest_scratch) {
  const NearestPlan<T> plan(c);
  const Scores<T>& s = plan.s;
  if (s.n == 0) return;
  const Call call = few_threads(c, s.n, s.m, s.d);
  if (plan.scale) s.gemm ? find_nearest<T, true, true>(call, plan) : find_nearest<T, false, true>(call, plan);
  else s.gemm ? find_nearest<T, true, false>(call, plan) : find_nearest<T, false, false>(call, plan);
}

KERNEL_SCRATCH(radius_count, radius_count_scratch) {
  const CountPlan<T> plan(c);
  const Scores<T>& s = plan.s;
  const Call call = few_threads(c, s.n, s.m, s.d);
  s.gemm ? count_balls<T, true>(call, plan) : count_balls<T, false>(call, plan);
}

KERNEL_SCRATCH(radius_min, radius_min_scratch) {
  const SmallestPlan<T> plan(c);
  const Scores<T>& s = plan.s;
  const Call call = few_threads(c, s.n, s.m, s.d);
  s.gemm ? smallest_balls<T, true>(call, plan) : smallest_balls<T, false>(call, plan);
}
