#include "python/thread_pool.h"

#include <pthread.h>

#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <system_error>
#include <thread>

#include "host/parallel_region.h"

namespace masked_lstm {
namespace {

class ThreadPool {
 public:
  // A forked child has none of its parent's threads: it gets a pool of its own. Pools are never
  // destroyed, so no thread outlives what it uses.
  static ThreadPool& Get() {
    static std::atomic<ThreadPool*> current{nullptr};
    static const int registered = pthread_atfork(nullptr, nullptr, [] { current = nullptr; });
    (void)registered;
    ThreadPool* pool = current;
    if (pool == nullptr) {
      ThreadPool* fresh = new ThreadPool;
      if (current.compare_exchange_strong(pool, fresh)) return *fresh;
      delete fresh;  // another thread was faster; this one has no threads yet
    }
    return *pool;
  }

  // Where the system refuses a thread, fewer must do: any number computes the same.
  void GrowTo(int threads) {
    std::lock_guard<std::mutex> lock(mutex_);
    try {
      for (; threads_ < threads; ++threads_) std::thread([this] { Loop(); }).detach();
    } catch (const std::system_error&) {
    }
  }

  void Schedule(std::function<void()> closure) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      queue_.push_back(std::move(closure));
      ++queued_;
    }
    wake_.notify_one();
  }

 private:
  void Loop() {
    while (true) {
      SpinUntil([this] { return queued_ > 0; });  // calls often follow each other closely
      std::unique_lock<std::mutex> lock(mutex_);
      wake_.wait(lock, [this] { return !queue_.empty(); });
      std::function<void()> closure = std::move(queue_.front());
      queue_.pop_front();
      --queued_;
      lock.unlock();
      closure();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::function<void()>> queue_;
  std::atomic<int> queued_{0};  // its size, for a look without the mutex
  int threads_ = 0;
};

void Run(void* context, int workers, void (*body)(void*, int), void* argument) {
  ThreadPool* pool = static_cast<ThreadPool*>(context);
  ParallelRegion::Run(workers, body, argument,
                      [pool](auto closure) { pool->Schedule(std::move(closure)); });
}

}  // namespace

Threads PoolThreads(int workers) {
  Threads threads;
  threads.workers = workers;
  if (workers > 1) {
    ThreadPool& pool = ThreadPool::Get();
    pool.GrowTo(workers - 1);
    threads.context = &pool;
    threads.run = Run;
  }
  return threads;
}

}  // namespace masked_lstm
