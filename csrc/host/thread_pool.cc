#include "host/thread_pool.h"

#include <pthread.h>
#include <sched.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <exception>
#include <functional>
#include <limits>
#include <mutex>
#include <thread>
#include <vector>

#include "host/parallel_region.h"

namespace masked_lstm {
namespace {

class ThreadPool {
  using Clock = std::chrono::steady_clock;

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

  // Threads that look for work; all of them where calls follow each other so closely that one which
  // is woken now will still look when the next call comes.
  int Awake() const {
    const Clock::rep since = Clock::now().time_since_epoch().count() - last_end_;
    return Clock::duration(since) < kLook ? std::numeric_limits<int>::max() - 1 : looking_.load();
  }

  void CallEnds() { last_end_ = Clock::now().time_since_epoch().count(); }

  // Wakes nobody where enough threads look: one that gives up looks once more before it sleeps.
  void Schedule(std::function<void()> closure) {
    bool wake = false;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      queue_.push_back(std::move(closure));
      wake = ++queued_ > looking_;
    }
    if (wake) wake_.notify_one();
  }

 private:
  void Loop() {
    while (true) {
      ++looking_;
      SpinUntil([this] { return queued_ > 0; });  // calls often follow each other closely
      --looking_;
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
  std::atomic<int> queued_{0};           // its size, for a look without the mutex
  std::atomic<int> running_{0};          // closures
  std::atomic<int> looking_{0};          // threads that will find a closure without being woken
  std::atomic<Clock::rep> last_end_{0};  // of a call
  std::vector<pthread_t> threads_;
  int avoided_cpu_ = -1;
};

void Run(void* context, int workers, void (*body)(void*, int), void* argument) {
  ThreadPool* pool = static_cast<ThreadPool*>(context);
  if (workers > 1) {
    pool->AvoidCallersCpu();
    ParallelRegion::Run(workers, body, argument,
                        [pool](auto closure) { pool->Schedule(std::move(closure)); });
  } else {
    body(argument, 0);
  }
  pool->CallEnds();
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
    threads.awake = [](void* context) { return 1 + static_cast<ThreadPool*>(context)->Awake(); };
  }
  return threads;
}

}  // namespace masked_lstm
