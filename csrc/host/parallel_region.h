// Threads (lstm.h) on top of any pool that can schedule a closure.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <memory>
#include <mutex>
#include <utility>

#include "lstm.h"

namespace masked_lstm {

// Threads look so long for work before they sleep: a wake-up costs as much.
constexpr std::chrono::microseconds kLook(20);

// Looks whether `done` holds, for as long.
template <typename Condition>
bool SpinUntil(Condition done, std::chrono::steady_clock::duration for_time = kLook) {
  using Clock = std::chrono::steady_clock;
  for (const Clock::time_point end = Clock::now() + for_time; Clock::now() < end;) {
    for (int spins = 0; spins < 10; ++spins) {
      if (done()) return true;
#if defined(__x86_64__)
      __builtin_ia32_pause();
#endif
    }
  }
  return false;
}

// One fork-join region in which a thread that comes too late finds the door closed: the caller
// never waits for a closure that has not begun, so a busy pool cannot hang it (and callers inside
// the pool's own threads cannot deadlock).
class ParallelRegion {
 public:
  // schedule(closure) hands a std::function<void()>-like closure to the pool.
  template <typename Schedule>
  static void Run(int workers, void (*body)(void*, int), void* argument, Schedule&& schedule) {
    std::shared_ptr<State> state;
    try {
      state = std::make_shared<State>();
      for (int worker = 1; worker < workers; ++worker) {
        schedule([state, body, argument, worker] {
          if (!state->Enter()) return;
          body(argument, worker);
          state->Leave();
        });
      }
    } catch (const std::exception&) {
      // Out of memory, say: the workers scheduled so far are enough, and so are none.
    }
    body(argument, 0);
    if (state != nullptr) state->CloseAndWait();
  }

 private:
  struct State {
    std::mutex mutex;
    std::condition_variable empty;
    bool closed = false;
    std::atomic<int> inside{0};  // written under the mutex

    bool Enter() {
      std::lock_guard<std::mutex> lock(mutex);
      if (closed) return false;
      ++inside;
      return true;
    }
    void Leave() {
      std::lock_guard<std::mutex> lock(mutex);
      if (--inside == 0) empty.notify_all();
    }
    void CloseAndWait() {
      {
        std::lock_guard<std::mutex> lock(mutex);
        closed = true;
      }
      // Workers run out of work at nearly the same time, or, where they were woken, as much later
      // as they began: mostly cheaper than going to sleep.
      if (SpinUntil([this] { return inside == 0; }, 5 * kLook)) return;
      std::unique_lock<std::mutex> lock(mutex);
      empty.wait(lock, [this] { return inside == 0; });
    }
  };
};

}  // namespace masked_lstm
