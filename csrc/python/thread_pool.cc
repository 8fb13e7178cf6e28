#include "python/thread_pool.h"

#include <unistd.h>

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>

#include "host/parallel_region.h"

namespace masked_lstm {
namespace {

class ThreadPool {
 public:
  // A forked child has none of its parent's threads: it gets a pool of its own. Pools are never
  // destroyed, so no thread outlives what it uses.
  static ThreadPool& Get() {
    static std::mutex mutex;
    static ThreadPool* pool = nullptr;
    static pid_t owner = 0;
    std::lock_guard<std::mutex> lock(mutex);
    if (pool == nullptr || owner != getpid()) {
      pool = new ThreadPool;
      owner = getpid();
    }
    return *pool;
  }

  void GrowTo(int threads) {
    std::lock_guard<std::mutex> lock(mutex_);
    for (; threads_ < threads; ++threads_) std::thread([this] { Loop(); }).detach();
  }

  void Schedule(std::function<void()> closure) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      queue_.push_back(std::move(closure));
    }
    wake_.notify_one();
  }

 private:
  void Loop() {
    while (true) {
      std::unique_lock<std::mutex> lock(mutex_);
      wake_.wait(lock, [this] { return !queue_.empty(); });
      std::function<void()> closure = std::move(queue_.front());
      queue_.pop_front();
      lock.unlock();
      closure();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::function<void()>> queue_;
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
