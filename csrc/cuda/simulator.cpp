// See simulator.h: fibres, barriers and warp exchanges.
#include "simulator.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#include <mutex>
#include <vector>

namespace generant::simulator {

uint3 thread_index, block_index;
dim3 block_size, grid_size;

namespace {

constexpr size_t kStack = 256 << 10, kShared = 64 << 10;
constexpr unsigned kMaxThreads = 1024;

[[noreturn]] void stop(const char* what) {
  fprintf(stderr, "CUDA simulator: %s (block %u %u %u of %u %u %u, thread %u %u %u of %u %u %u)\n", what, block_index.x, block_index.y,
          block_index.z, grid_size.x, grid_size.y, grid_size.z, thread_index.x, thread_index.y, thread_index.z, block_size.x, block_size.y,
          block_size.z);
  abort();
}

// ---- switching stacks ----

#if defined(__x86_64__)
extern "C" void generant_switch(void** save, void* load);
asm(R"(
.text
.type generant_switch, @function
generant_switch:
  push %rbp
  push %rbx
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rsp
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbx
  pop %rbp
  ret
.size generant_switch, .-generant_switch
)");
using Context = void*;
void switch_to(Context& from, Context& to) { generant_switch(&from, to); }
void prepare(Context& c, char* stack, int number, void (*entry)()) {
  // below the top by a number of cache lines of its own, so that the stacks do not all meet in one cache set
  auto* top = reinterpret_cast<void**>(stack + kStack - 64 * (1 + number % 97));
  *--top = nullptr;                                  // where entry would return to
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  c = top;
}
#else
using Context = ucontext_t;
void switch_to(Context& from, Context& to) { swapcontext(&from, &to); }
void prepare(Context& c, char* stack, int, void (*entry)()) {
  getcontext(&c);
  c.uc_stack.ss_sp = stack, c.uc_stack.ss_size = kStack, c.uc_link = nullptr;
  makecontext(&c, entry, 0);
}
#endif

// ---- a block ----

enum class State : char { kNew, kReady, kWaiting, kDone };

struct Thread {
  Context context;
  char* stack;
  State state;
};

struct Warp {
  uint32_t arrived;
  unsigned turn;
  alignas(64) char slots[2][32][64];
};

Thread threads[kMaxThreads];
Warp warps[kMaxThreads / 32];
Context scheduler;
std::vector<char*> free_stacks;
alignas(64) char shared_memory[kShared];
unsigned count, current, alive, at_barrier;
void (*body)(void*);
void* body_argument;
bool reversed = [] {
  const char* order = getenv("GENERANT_SIMULATOR");
  return order && strcmp(order, "reverse") == 0;
}();
std::mutex one_grid;

char* take_stack() {
  if (free_stacks.empty()) {
    void* p = mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) stop("no memory for a stack");
    return static_cast<char*>(p);
  }
  char* stack = free_stacks.back();
  free_stacks.pop_back();
  return stack;
}

void thread_main() {
  body(body_argument);
  threads[current].state = State::kDone;
  switch_to(threads[current].context, scheduler);
}

void wait() {
  threads[current].state = State::kWaiting;
  switch_to(threads[current].context, scheduler);
}

void resume(unsigned t) {
  current = t;
  thread_index = {t % block_size.x, t / block_size.x % block_size.y, t / block_size.x / block_size.y};
  Thread& thread = threads[t];
  if (thread.state == State::kNew) {
    thread.stack = take_stack();
    prepare(thread.context, thread.stack, int(t), thread_main);
  }
  thread.state = State::kReady;
  switch_to(scheduler, thread.context);
  if (thread.state == State::kDone) {
    free_stacks.push_back(thread.stack);
    --alive;
  }
}

void run_block() {
  alive = count, at_barrier = 0;
  for (unsigned t = 0; t < count; ++t) threads[t].state = State::kNew;
  for (unsigned w = 0; w < count / 32; ++w) warps[w].arrived = 0;
  while (alive > 0) {
    bool moved = false;
    for (unsigned i = 0; i < count; ++i) {
      const unsigned t = reversed ? count - 1 - i : i;
      if (threads[t].state == State::kNew || threads[t].state == State::kReady) resume(t), moved = true;
    }
    if (!moved) stop(at_barrier ? "a barrier that only part of the block reaches" : "a warp operation that not all 32 lanes reach");
  }
}

}  // namespace

void* dynamic_shared() { return shared_memory; }

void set_reverse(bool reverse) { reversed = reverse; }

int lane() { return int(current % 32); }

void check_aligned(const void* p, size_t bytes) {
  if (reinterpret_cast<uintptr_t>(p) % bytes) stop("an access that is not aligned");
}

void barrier() {
  if (alive != count) stop("a barrier after some threads have ended");
  if (++at_barrier == count) {
    at_barrier = 0;
    for (unsigned t = 0; t < count; ++t)
      if (t != current) threads[t].state = State::kReady;
    return;                            // this thread goes on at once
  }
  wait();
}

const char* exchange(const void* mine, size_t bytes) {
  if (bytes > 64) stop("a warp operation on more than 64 bytes");
  Warp& warp = warps[current / 32];
  const unsigned turn = warp.turn & 1, first = current & ~31u;
  memcpy(warp.slots[turn][current % 32], mine, bytes);
  warp.arrived |= 1u << (current % 32);
  if (warp.arrived == 0xffffffffu) {
    warp.arrived = 0, ++warp.turn;
    for (unsigned t = first; t < first + 32; ++t)
      if (t != current) threads[t].state = State::kReady;
  } else {
    wait();
  }
  return warp.slots[turn][0];
}

void run_grid(dim3 grid, dim3 block, size_t shared, void (*f)(void*), void* argument) {
  const std::lock_guard<std::mutex> lock(one_grid);
  grid_size = grid, block_size = block, block_index = {0, 0, 0}, thread_index = {0, 0, 0};
  count = block.x * block.y * block.z;
  if (count == 0 || count > kMaxThreads) stop("a block has 1 to 1024 threads");
  if (count % 32) stop("a block is a multiple of 32 threads");
  if (block.z > 64) stop("a block's z is at most 64");
  if (shared > kShared) stop("more than 64 kB of shared memory");
  if (grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535) stop("a grid has at most 2^31 - 1, 65535 and 65535 blocks");
  body = f, body_argument = argument;
  const uint64_t blocks = uint64_t(grid.x) * grid.y * grid.z;
  for (uint64_t i = 0; i < blocks; ++i) {
    const uint64_t b = reversed ? blocks - 1 - i : i;
    block_index = {unsigned(b % grid.x), unsigned(b / grid.x % grid.y), unsigned(b / grid.x / grid.y)};
    memset(shared_memory, 0xff, shared);
    run_block();
  }
}

}  // namespace generant::simulator
