// Threads (lstm.h) on top of any pool that can schedule a closure. Shared by the bindings.
#pragma once

#include <condition_variable>
#include <exception>
#include <memory>
#include <mutex>
#include <utility>

#include "lstm.h"

namespace masked_lstm {

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
    int inside = 0;

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
      std::unique_lock<std::mutex> lock(mutex);
      closed = true;
      empty.wait(lock, [this] { return inside == 0; });
    }
  };
};

}  // namespace masked_lstm
