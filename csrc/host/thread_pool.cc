#include "host/thread_pool.h"

#include <pthread.h>
#include <sched.h>

#include <atomic>
#include <condition_variable>
#include <deque>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

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

  // Where the system refuses a thread or memory, fewer must do: any number computes the same.
  void GrowTo(int threads) {
    std::lock_guard<std::mutex> lock(mutex_);
    try {
      while (static_cast<int>(threads_.size()) < threads) {
        threads_.reserve(threads);  // before the thread is there, not after
        std::thread thread([this] { Loop(); });
        threads_.push_back(thread.native_handle());
        thread.detach();
        avoided_cpu_ = -1;
      }
    } catch (const std::exception&) {
    }
  }

  // Keeps the threads off the caller's CPU. Left to itself, Linux in a virtual machine may put a
  // thread that wakes up beside its waker, though other CPUs are idle (it takes those that the host
  // has put to sleep for busy ones), and moves it away milliseconds later. Threads at work for
  // another caller stay where they are.
  void AvoidCallersCpu() {
#if defined(__linux__)
    const int cpu = sched_getcpu();
    if (running_ > 0 || queued_ > 0) return;
    std::lock_guard<std::mutex> lock(mutex_);
    if (cpu < 0 || cpu >= CPU_SETSIZE || cpu == avoided_cpu_) return;
    cpu_set_t cpus;
    if (sched_getaffinity(0, sizeof(cpus), &cpus) != 0 || CPU_COUNT(&cpus) < 2) return;
    CPU_CLR(cpu, &cpus);
    for (pthread_t thread : threads_) pthread_setaffinity_np(thread, sizeof(cpus), &cpus);
    avoided_cpu_ = cpu;
#endif
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
      ++running_;
      closure();
      --running_;
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::function<void()>> queue_;
  std::atomic<int> queued_{0};   // its size, for a look without the mutex
  std::atomic<int> running_{0};  // closures
  std::vector<pthread_t> threads_;
  int avoided_cpu_ = -1;
};

void Run(void* context, int workers, void (*body)(void*, int), void* argument) {
  ThreadPool* pool = static_cast<ThreadPool*>(context);
  pool->AvoidCallersCpu();
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
