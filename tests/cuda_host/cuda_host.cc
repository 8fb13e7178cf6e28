#include "cuda_host.h"

#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <memory>
#include <random>
#include <vector>

namespace cuda_host {

Place place;

namespace {

constexpr size_t kStackBytes = 64 << 10;

enum class State { kReady, kAtBarrier, kDone };

// Where a fiber, or the scheduler, goes on. The first time a fiber is entered by a context of the C
// library; from then on by the compiler's jumps, which make no system call.
typedef void* Point[5];

struct Fiber {
  ucontext_t context;
  Point point;
  bool begun = false;
  std::vector<unsigned char> stack;
  Place place;
  State state = State::kReady;
};

struct Block {
  std::vector<unsigned char> shared;
  int waiting = 0, done = 0;
};

Point scheduler;
Fiber* current;
const std::function<void()>* body;

// __builtin_longjmp may not stand in the function that called __builtin_setjmp.
[[noreturn]] __attribute__((noinline)) void Jump(Point& to) { __builtin_longjmp(to, 1); }

__attribute__((noinline)) void Leave() {
  if (__builtin_setjmp(current->point) == 0) Jump(scheduler);
}

void Enter() {
  (*body)();
  current->state = State::kDone;
  Jump(scheduler);
}

__attribute__((noinline)) void Resume(Fiber* fiber) {
  current = fiber;
  place = fiber->place;
  if (__builtin_setjmp(scheduler) != 0) return;
  if (current->begun) Jump(current->point);
  current->begun = true;
  setcontext(&current->context);
}

void Run(std::vector<std::unique_ptr<Fiber>>& fibers, int first_block, int blocks, int threads,
         size_t shared_bytes, int blocks_x, std::mt19937& random) {
  std::vector<Block> memory(blocks);
  for (Block& block : memory) {
    block.shared.assign(shared_bytes + 16, 0xff);  // NaN, in every type
  }
  fibers.resize(static_cast<size_t>(blocks) * threads);
  for (size_t i = 0; i < fibers.size(); ++i) {
    if (fibers[i] == nullptr) fibers[i] = std::make_unique<Fiber>();
    Fiber& fiber = *fibers[i];
    fiber.stack.resize(kStackBytes);
    fiber.state = State::kReady;
    const int block = static_cast<int>(i) / threads;
    unsigned char* shared = memory[block].shared.data();
    shared += (16 - reinterpret_cast<uintptr_t>(shared) % 16) % 16;
    fiber.place = {static_cast<int>(i) % threads, (first_block + block) % blocks_x,
                   (first_block + block) / blocks_x, threads, shared};
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.data();
    fiber.context.uc_stack.ss_size = fiber.stack.size();
    fiber.context.uc_link = nullptr;  // Enter never returns
    fiber.begun = false;
    makecontext(&fiber.context, Enter, 0);
  }
  std::vector<int> order(fibers.size()), asleep(blocks);
  for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int>(i);
  int idle = 0;  // sweeps since a thread last reached a barrier or its end
  for (size_t left = fibers.size(); left > 0; ++idle) {
    std::shuffle(order.begin(), order.end(), random);
    // Some blocks sleep for some sweeps: those that do not wait for them get far ahead.
    for (int& sweeps : asleep) {
      if (sweeps > 0) {
        --sweeps;
      } else if (blocks > 1 && random() % 4 == 0) {
        sweeps = static_cast<int>(random() % 40);
      }
    }
    for (int i : order) {
      Fiber& fiber = *fibers[i];
      if (fiber.state != State::kReady || asleep[i / threads] > 0) continue;
      Resume(&fiber);
      Block& block = memory[i / threads];
      if (fiber.state != State::kReady) idle = 0;
      if (fiber.state == State::kDone) {
        ++block.done;
        --left;
      } else if (fiber.state == State::kAtBarrier) {
        ++block.waiting;
      }
      if (block.waiting == threads) {
        block.waiting = 0;
        for (int t = 0; t < threads; ++t) fibers[i / threads * threads + t]->state = State::kReady;
      } else if (block.waiting > 0 && block.waiting + block.done == threads) {
        std::fprintf(stderr, "a barrier that %d of %d threads never reach\n", block.done, threads);
        std::abort();
      }
    }
    if (idle > 10000) {
      std::fprintf(stderr, "all threads wait for each other\n");
      std::abort();
    }
  }
}

}  // namespace

void Launch(int blocks, int blocks_y, int threads, size_t shared_bytes, bool cooperative,
            unsigned seed, const std::function<void()>& kernel) {
  static std::vector<std::unique_ptr<Fiber>> fibers;
  std::mt19937 random(seed);
  body = &kernel;
  const int all = blocks * blocks_y;
  if (cooperative) return Run(fibers, 0, all, threads, shared_bytes, blocks, random);
  std::vector<int> order(all);
  for (int i = 0; i < all; ++i) order[i] = i;
  std::shuffle(order.begin(), order.end(), random);
  for (int block : order) Run(fibers, block, 1, threads, shared_bytes, blocks, random);
}

void BlockBarrier() {
  current->state = State::kAtBarrier;
  Leave();
}

void Yield() { Leave(); }

}  // namespace cuda_host
