// Searches over all pairs of rows: k nearest, nearest, and which rows lie in which balls. In O(n m d) time and O((n + m) k)
// memory; exact as the CPU's, see search.h. The work is in candidates.h, exact_rows.h and ball_tiles.h.
#include "ball_tiles.h"
#include "exact_rows.h"

namespace {

template <class T> KnnPlan<T> knn_plan(const Call& c) { return KnnPlan<T>(c, int64_t(c.attr[0]), nullptr); }
template <class T> KnnPlan<T> nearest_plan(const Call& c) { return KnnPlan<T>(c, 1, in<T>(c, 2)); }

inline Call without_scratch(Call c) {
  c.scratch = nullptr;
  return c;
}
template <class T> int64_t knn_scratch(const Call& c) { return knn_plan<T>(without_scratch(c)).scratch.used; }
template <class T> int64_t nearest_scratch(const Call& c) { return nearest_plan<T>(without_scratch(c)).scratch.used; }
template <class T> int64_t radius_count_scratch(const Call& c) { return BallPlan<T>(without_scratch(c), true).scratch.used; }
template <class T> int64_t radius_min_scratch(const Call& c) { return BallPlan<T>(without_scratch(c), false).scratch.used; }

}  // namespace

KERNEL_SCRATCH(knn, knn_scratch) { knn_plan<T>(c).run(c); }
KERNEL_SCRATCH(nearest, nearest_scratch) { nearest_plan<T>(c).run(c); }
KERNEL_SCRATCH(radius_count, radius_count_scratch) { BallPlan<T>(c, true).count(c); }
KERNEL_SCRATCH(radius_min, radius_min_scratch) { BallPlan<T>(c, false).least(c); }
