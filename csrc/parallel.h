// parallel(c, tasks, body): run body(task, worker) for every task in [0, tasks), on at most c.threads workers.
//
// Tasks are handed out one by one, so what a task computes must not depend on who runs it: split the work into blocks
// whose size depends on the shapes only, and merge partial results in block order. That is what makes every result
// the same for any number of threads. `worker` < c.threads is for picking a slice of scratch memory and nothing else.
#pragma once
#include "kernel.h"

// Defined once, in threads.cpp. Nested and contended calls run serially in the caller, as worker 0.
extern "C" void generant_parallel(int64_t tasks, int threads, void (*body)(void*, int64_t, int), void* context);

namespace {

template <class F> inline void parallel(const Call& c, int64_t tasks, F&& body) {
  if (tasks <= 1 || c.threads <= 1) {
    for (int64_t t = 0; t < tasks; ++t) body(t, 0);
    return;
  }
  generant_parallel(tasks, c.threads, [](void* f, int64_t task, int worker) {
    (*static_cast<__typeof__(&body)>(f))(task, worker);
  }, const_cast<void*>(static_cast<const void*>(&body)));
}

// Elementwise work: body(begin, end) over [0, n) in blocks of `grain` elements.
template <class F> inline void parallel_range(const Call& c, int64_t n, int64_t grain, F&& body) {
  if (n <= grain) {
    if (n > 0) body(int64_t(0), n);
    return;
  }
  parallel(c, ceil_div(n, grain), [&](int64_t t, int) {
    const int64_t begin = t * grain, end = begin + grain < n ? begin + grain : n;
    body(begin, end);
  });
}

}  // namespace
