// A fork-join thread pool: lazy workers, the caller takes part, a short spin and then a futex.
//
// Why not OpenMP: libgomp hangs in a child forked after a parallel region, wheels bundle several runtimes that crash or
// oversubscribe each other, and its spinning threads ruin everybody else's timing. Here nested calls run serially
// (a thread-local flag), a second caller who finds the pool busy runs serially too (no deadlock, no oversubscription),
// and a forked child starts with no workers and creates its own when it first needs them.
//
// A parallel call opens a gate: gate_ = generation (high) | open bit | number of workers that entered. Workers enter
// by compare-and-swap while the gate is open, take tasks from one counter, and report when they leave. The caller
// closes the gate when the tasks have run out and waits only for those who did enter, so a sleeping worker costs nothing.
#include "threads.h"

#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <new>
#include <thread>

#include "parallel.h"

namespace {

constexpr int kMaxThreads = 256;
constexpr int kSpinMicroseconds = 20;
constexpr uint64_t kOpen = 1ull << 31, kEntered = kOpen - 1;

thread_local bool in_parallel = false;
std::atomic<int> awake{0};             // programs that run: workers do not sleep between their kernels

inline void pause_cpu() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#else
  std::this_thread::yield();
#endif
}

// Wait until `ready()` holds: spin for a while, then let the caller sleep.
template <class F> bool spin_until(F&& ready) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::microseconds(kSpinMicroseconds);
  do {
    for (int i = 0; i < 64; ++i) {
      if (ready()) return true;
      pause_cpu();
    }
  } while (std::chrono::steady_clock::now() < end);
  return ready();
}

void futex_wait(std::atomic<uint32_t>& word, uint32_t seen) {
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAIT_PRIVATE, seen, nullptr, nullptr, 0);
}
void futex_wake_all(std::atomic<uint32_t>& word) {
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAKE_PRIVATE, INT32_MAX, nullptr, nullptr, 0);
}

class Pool {
 public:
  void run(int64_t tasks, int threads, void (*body)(void*, int64_t, int), void* context) {
    std::unique_lock<std::mutex> lock(busy_, std::defer_lock);
    if (in_parallel || !lock.try_lock()) {
      serial(tasks, body, context);
      return;
    }
    if (threads > tasks) threads = int(tasks);
    ensure_workers(threads - 1);
    body_ = body, context_ = context, tasks_ = tasks, limit_ = threads;
    next_.store(0, std::memory_order_relaxed);
    left_.store(0, std::memory_order_relaxed);
    const uint64_t generation = (gate_.load(std::memory_order_relaxed) >> 32) + 1;
    gate_.store(generation << 32 | kOpen, std::memory_order_seq_cst);
    call_.store(uint32_t(generation), std::memory_order_seq_cst);
    if (sleepers_.load(std::memory_order_seq_cst) > 0) futex_wake_all(call_);

    in_parallel = true;
    work(0);
    in_parallel = false;
    const uint32_t entered = uint32_t(gate_.fetch_and(~kOpen, std::memory_order_acq_rel) & kEntered);
    auto all_left = [&] { return left_.load(std::memory_order_acquire) == entered; };
    while (!spin_until(all_left)) sched_yield();
  }

  void forget_workers() {              // in a forked child: the threads are gone, whatever the state says
    new (this) Pool;
  }

 private:
  static void serial(int64_t tasks, void (*body)(void*, int64_t, int), void* context) {
    for (int64_t t = 0; t < tasks; ++t) body(context, t, 0);
  }

  void work(int worker) {
    for (;;) {
      const int64_t t = next_.fetch_add(1, std::memory_order_relaxed);
      if (t >= tasks_) return;
      body_(context_, t, worker);
    }
  }

  void ensure_workers(int n) {
    for (; workers_ < n; ++workers_) {
      try {
        std::thread([this] { loop(); }).detach();
      } catch (...) {                  // no more threads to be had: the caller does the work
        return;
      }
    }
  }

  void loop() {
    in_parallel = true;
    uint32_t seen = 0;
    for (;;) {
      auto called = [&] { return call_.load(std::memory_order_acquire) != seen; };
      while (awake.load(std::memory_order_relaxed) > 0 && !called()) pause_cpu();
      if (!spin_until(called)) {
        sleepers_.fetch_add(1, std::memory_order_seq_cst);
        while (!called()) futex_wait(call_, seen);
        sleepers_.fetch_sub(1, std::memory_order_relaxed);
      }
      seen = call_.load(std::memory_order_acquire);
      uint64_t gate = gate_.load(std::memory_order_acquire);
      while ((gate & kOpen) && int(gate & kEntered) + 1 < limit_.load(std::memory_order_relaxed)) {
        if (gate_.compare_exchange_weak(gate, gate + 1, std::memory_order_acq_rel)) {
          work(int(gate & kEntered) + 1);
          left_.fetch_add(1, std::memory_order_release);
          break;
        }
      }
    }
  }

  std::mutex busy_;
  int workers_ = 0;
  void (*body_)(void*, int64_t, int) = nullptr;
  void* context_ = nullptr;
  int64_t tasks_ = 0;
  std::atomic<int> limit_{0};
  alignas(64) std::atomic<uint64_t> gate_{0};
  alignas(64) std::atomic<uint32_t> call_{0};
  std::atomic<int> sleepers_{0};
  alignas(64) std::atomic<int64_t> next_{0};
  alignas(64) std::atomic<uint32_t> left_{0};
};

// Never destroyed: workers may still look at it while the process exits.
Pool& pool() {
  static Pool* p = [] {
    Pool* made = new Pool;
    pthread_atfork(nullptr, nullptr, [] {
      pool().forget_workers();
      in_parallel = false;
      awake.store(0, std::memory_order_relaxed);
    });
    return made;
  }();
  return *p;
}

int positive_from_environment(const char* name) {
  const char* text = getenv(name);
  return text ? atoi(text) : 0;
}

int cgroup_quota() {                   // cores this container may use, rounded up; 0 = no limit found
  long quota = 0, period = 0;
  if (FILE* f = fopen("/sys/fs/cgroup/cpu.max", "r")) {
    if (fscanf(f, "%ld %ld", &quota, &period) != 2) quota = 0;
    fclose(f);
  } else {
    if (FILE* q = fopen("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "r")) {
      if (fscanf(q, "%ld", &quota) != 1) quota = 0;
      fclose(q);
    }
    if (FILE* p = fopen("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "r")) {
      if (fscanf(p, "%ld", &period) != 1) period = 0;
      fclose(p);
    }
  }
  return quota > 0 && period > 0 ? int((quota + period - 1) / period) : 0;
}

std::atomic<int> num_threads{0};
thread_local int thread_limit = 0;     // of calls made by this thread; 0: none of its own

int clamp(int n) { return n < 1 ? 1 : n > kMaxThreads ? kMaxThreads : n; }

}  // namespace

int generant_default_num_threads() {
  for (const char* name : {"GENERANT_NUM_THREADS", "OMP_NUM_THREADS"})
    if (const int n = positive_from_environment(name); n > 0) return clamp(n);
  int n = int(std::thread::hardware_concurrency());
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) n = CPU_COUNT(&set);
  if (const int quota = cgroup_quota(); quota > 0 && quota < n) n = quota;
  return clamp(n);
}

extern "C" int generant_get_num_threads() {
  int n = num_threads.load(std::memory_order_relaxed);
  if (n == 0) num_threads.store(n = generant_default_num_threads(), std::memory_order_relaxed);
  return thread_limit > 0 && thread_limit < n ? thread_limit : n;
}

int generant_limit_threads(int n) {
  const int before = thread_limit;
  thread_limit = n > 0 ? clamp(n) : 0;
  return before;
}

extern "C" void generant_set_num_threads(int n) { num_threads.store(clamp(n), std::memory_order_relaxed); }

void generant_keep_awake(bool on) { awake.fetch_add(on ? 1 : -1, std::memory_order_relaxed); }

extern "C" void generant_parallel(int64_t tasks, int threads, void (*body)(void*, int64_t, int), void* context) {
  pool().run(tasks, threads, body, context);
}
