#include "cluster_host.h"

#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <random>
#include <set>
#include <vector>

#include "cuda_host.h"

namespace cuda_host {

Broken broken = Broken::kNothing;

namespace {

constexpr size_t kStackBytes = 64 << 10;
constexpr int kWarp = 32;

struct Copy {
  void* to;
  const void* from;  // null: zeros
  int bytes;
};

// ucontext starts a fiber; the compiler's own jumps switch between them without a system call.
struct Fiber {
  void* jump[5];
  ucontext_t start;
  std::vector<unsigned char> stack;
  Place place;
  int rank = 0;
  bool started = false, done = false;
  const void* waits_for = nullptr;       // a barrier or a flag
  std::deque<std::vector<Copy>> copies;  // groups; the last one is open
};

struct Warp {
  void* lanes[kWarp];
  int arrived = 0;
};

struct Block {
  std::vector<unsigned char> memory;
  unsigned char* shared = nullptr;
  int at_barrier = 0, done = 0;
  long asleep_until = 0;
  std::vector<Warp> warps;
};

// The 8 bytes of an mbarrier.
struct Barrier {
  int32_t bytes;  // still to come; below 0 when they came before they were expected
  int16_t pending;
  uint8_t arrivals, phase;
};
static_assert(sizeof(Barrier) == sizeof(uint64_t), "as in shared memory");

struct Store {
  unsigned char data[16];
  int bytes, rank;  // of the block stored into; through global memory: of that which stores
  unsigned char* to;
  uint64_t* barrier;  // null: global memory
};

struct Cluster {
  std::vector<std::unique_ptr<Fiber>> fibers;
  std::vector<Block> blocks;
  std::vector<int> ready;
  std::vector<Store> flying;
  std::set<uint64_t*> barriers;
  int threads = 0, size = 0, at_barrier = 0, left = 0;
  size_t shared_bytes = 0;
  long tick = 0;
  std::mt19937 random;
};

Cluster cluster;
Fiber* running;
int running_index;
void* scheduler[5];
ucontext_t first_scheduler;
const std::function<void()>* entry;

[[noreturn]] void Die(const char* what) {
  std::fprintf(stderr, "cluster executor: %s\n", what);
  std::abort();
}

__attribute__((noinline)) void JumpToScheduler() { __builtin_longjmp(scheduler, 1); }

// Leaves the running fiber; it goes on when it is ready again.
__attribute__((noinline)) void Pause() {
  if (__builtin_setjmp(running->jump) == 0) JumpToScheduler();
}

void Begin() {
  (*entry)();
  running->done = true;
  JumpToScheduler();
}

__attribute__((noinline)) void JumpToFiber() {
  if (!running->started) {
    running->started = true;
    setcontext(&running->start);
  }
  __builtin_longjmp(running->jump, 1);
}

__attribute__((noinline)) void Resume() {
  if (__builtin_setjmp(scheduler) == 0) JumpToFiber();
}

unsigned Random(unsigned below) { return static_cast<unsigned>(cluster.random()) % below; }

void Wake(int index) { cluster.ready.push_back(index); }

void WakeWaiting(const void* at) {
  for (size_t i = 0; i < cluster.fibers.size(); ++i) {
    if (cluster.fibers[i]->waits_for == at) {
      cluster.fibers[i]->waits_for = nullptr;
      Wake(static_cast<int>(i));
    }
  }
}

Barrier Load(uint64_t* at) {
  if (cluster.barriers.count(at) == 0) Die("a barrier that nobody initialised");
  Barrier barrier;
  std::memcpy(&barrier, at, sizeof(barrier));
  return barrier;
}

void Update(uint64_t* at, Barrier barrier) {
  const bool complete = barrier.pending == 0 && barrier.bytes == 0;
  if (barrier.pending < 0) Die("more arrivals than the barrier counts");
  if (complete) {
    barrier.phase ^= 1;
    barrier.pending = barrier.arrivals;
  }
  std::memcpy(at, &barrier, sizeof(barrier));
  if (complete) WakeWaiting(at);
}

void Land(size_t which) {
  const Store store = cluster.flying[which];
  cluster.flying[which] = cluster.flying.back();
  cluster.flying.pop_back();
  if (store.barrier == nullptr) {
    std::memcpy(store.to, store.data, store.bytes);
    return;
  }
  if (cluster.blocks[store.rank].done == cluster.threads) {
    Die("a store into a block that has ended");
  }
  std::memcpy(store.to, store.data, store.bytes);
  Barrier barrier = Load(store.barrier);
  barrier.bytes -= store.bytes;
  Update(store.barrier, barrier);
}

void RunCluster(int first_block) {
  const int all = cluster.size * cluster.threads;
  cluster.blocks.assign(cluster.size, Block());
  cluster.ready.clear();
  cluster.flying.clear();
  cluster.barriers.clear();
  cluster.at_barrier = 0;
  cluster.left = all;
  for (Block& block : cluster.blocks) {
    if (Random(2) == 0) block.asleep_until = cluster.tick + 20000;  // begins late
    block.memory.assign(cluster.shared_bytes + 16, 0xff);           // NaN, in every type
    block.shared = block.memory.data();
    block.shared += (16 - reinterpret_cast<uintptr_t>(block.shared) % 16) % 16;
    block.warps.assign(cluster.threads / kWarp, Warp());
  }
  cluster.fibers.resize(all);
  for (int i = 0; i < all; ++i) {
    if (cluster.fibers[i] == nullptr) cluster.fibers[i] = std::make_unique<Fiber>();
    Fiber& fiber = *cluster.fibers[i];
    fiber.stack.resize(kStackBytes);
    fiber.started = fiber.done = false;
    fiber.waits_for = nullptr;
    fiber.copies.assign(1, {});
    fiber.rank = i / cluster.threads;
    fiber.place = {i % cluster.threads, first_block + fiber.rank, 0, cluster.threads,
                   cluster.blocks[fiber.rank].shared};
    getcontext(&fiber.start);
    fiber.start.uc_stack.ss_sp = fiber.stack.data();
    fiber.start.uc_stack.ss_size = fiber.stack.size();
    fiber.start.uc_link = &first_scheduler;
    makecontext(&fiber.start, Begin, 0);
    Wake(i);
  }
  while (cluster.left > 0) {
    ++cluster.tick;
    if (cluster.size > 1 && Random(64) == 0) {
      Block& block = cluster.blocks[Random(cluster.size)];
      block.asleep_until = std::max(block.asleep_until, cluster.tick + Random(3000));
    }
    if (!cluster.flying.empty() && (cluster.ready.empty() || Random(4) == 0)) {
      Land(Random(static_cast<unsigned>(cluster.flying.size())));
    }
    if (cluster.ready.empty()) {
      if (cluster.flying.empty()) Die("all threads wait for each other");
      continue;
    }
    // At random among those awake; time passes until somebody is.
    const size_t first = Random(static_cast<unsigned>(cluster.ready.size()));
    size_t pick = first;
    long wakes = -1;
    for (size_t i = 0; i < cluster.ready.size(); ++i) {
      const size_t other = (first + i) % cluster.ready.size();
      const long until = cluster.blocks[cluster.fibers[cluster.ready[other]]->rank].asleep_until;
      if (wakes < 0 || until < wakes) {
        pick = other;
        wakes = until;
      }
      if (until <= cluster.tick) break;
    }
    cluster.tick = std::max(cluster.tick, wakes);
    running_index = cluster.ready[pick];
    cluster.ready[pick] = cluster.ready.back();
    cluster.ready.pop_back();
    running = cluster.fibers[running_index].get();
    place = running->place;
    Resume();
    if (running->done) {
      --cluster.left;
      ++cluster.blocks[running->rank].done;
    }
  }
  while (!cluster.flying.empty()) Land(cluster.flying.size() - 1);
}

}  // namespace

void LaunchClusters(int clusters, int cluster_size, int threads, size_t shared_bytes, unsigned seed,
                    const std::function<void()>& kernel) {
  if (threads % kWarp != 0) Die("threads: not a multiple of a warp");
  entry = &kernel;
  cluster.random.seed(seed);
  cluster.size = cluster_size;
  cluster.threads = threads;
  cluster.shared_bytes = shared_bytes;
  std::vector<int> order(clusters);
  for (int i = 0; i < clusters; ++i) order[i] = i;
  std::shuffle(order.begin(), order.end(), cluster.random);
  for (int i : order) RunCluster(i * cluster_size);
}

int ClusterRank() { return running->rank; }
int ClusterSize() { return cluster.size; }

void SyncBlock() {
  if (broken == Broken::kSyncBlock) return;
  Block& block = cluster.blocks[running->rank];
  if (++block.at_barrier < cluster.threads) return Pause();
  block.at_barrier = 0;
  for (int i = 0; i < cluster.threads; ++i) {
    const int other = running->rank * cluster.threads + i;
    if (other != running_index) Wake(other);
  }
}

void SyncCluster() {
  if (broken == Broken::kSyncCluster) return;
  if (++cluster.at_barrier < cluster.size * cluster.threads) return Pause();
  cluster.at_barrier = 0;
  for (int i = 0; i < cluster.size * cluster.threads; ++i) {
    if (i != running_index) Wake(i);
  }
}

void Collective(void* mine, void (*all)(void* const* lanes)) {
  Warp& warp = cluster.blocks[running->rank].warps[place.thread / kWarp];
  warp.lanes[place.thread % kWarp] = mine;
  if (++warp.arrived < kWarp) return Pause();
  warp.arrived = 0;
  all(warp.lanes);
  const int first = running_index - place.thread % kWarp;
  for (int i = first; i < first + kWarp; ++i) {
    if (i != running_index) Wake(i);
  }
}

uintptr_t MapToBlock(uintptr_t address, int rank) {
  const uintptr_t own = reinterpret_cast<uintptr_t>(place.shared);
  if (rank < 0 || rank >= cluster.size || address - own >= cluster.shared_bytes) {
    Die("an address outside the shared memory of the cluster");
  }
  return address - own + reinterpret_cast<uintptr_t>(cluster.blocks[rank].shared);
}

void BarrierInit(uint64_t* barrier, int arrivals) {
  cluster.barriers.insert(barrier);
  const Barrier fresh = {0, static_cast<int16_t>(arrivals), static_cast<uint8_t>(arrivals), 0};
  std::memcpy(barrier, &fresh, sizeof(fresh));
}

void BarrierArriveExpect(uint64_t* at, int bytes) {
  Barrier barrier = Load(at);
  barrier.bytes += broken == Broken::kByteCount ? bytes - 8 : bytes;
  --barrier.pending;
  Update(at, barrier);
}

void BarrierWait(uint64_t* at, int parity) {
  if (broken == Broken::kBarrierWait) return;
  while (Load(at).phase == parity) {
    running->waits_for = at;
    Pause();
  }
}

void StoreAsync(uintptr_t address, const void* data, int bytes, uintptr_t barrier) {
  Store store = {};
  store.rank = -1;
  for (int rank = 0; rank < cluster.size; ++rank) {
    const uintptr_t begin = reinterpret_cast<uintptr_t>(cluster.blocks[rank].shared);
    if (address - begin < cluster.shared_bytes) {
      if (address - begin + bytes <= cluster.shared_bytes &&
          barrier - begin < cluster.shared_bytes) {
        store.rank = rank;
      }
    }
  }
  if (store.rank < 0 || address % bytes != 0) Die("a store outside its block, or not aligned");
  std::memcpy(store.data, data, bytes);
  store.bytes = bytes;
  store.to = reinterpret_cast<unsigned char*>(address);
  store.barrier = reinterpret_cast<uint64_t*>(barrier);
  cluster.flying.push_back(store);
}

void CheckShared(const void* at, int bytes) {
  const uintptr_t place_in =
      reinterpret_cast<uintptr_t>(at) - reinterpret_cast<uintptr_t>(place.shared);
  if (place_in + bytes > cluster.shared_bytes || place_in % bytes != 0) {
    Die("outside the shared memory of the block, or not aligned");
  }
}

void CopyAsync(void* shared, const void* from, int bytes) {
  CheckShared(shared, bytes);
  if (reinterpret_cast<uintptr_t>(from) % bytes != 0) Die("a copy that is not aligned");
  running->copies.back().push_back({shared, from, bytes});
}

void CommitCopies() { running->copies.push_back({}); }

void WaitForCopies(int left) {
  if (broken == Broken::kCopyWait) ++left;
  while (static_cast<int>(running->copies.size()) - 1 > left) {
    for (const Copy& copy : running->copies.front()) {
      if (copy.from == nullptr) {
        std::memset(copy.to, 0, copy.bytes);
      } else {
        std::memcpy(copy.to, copy.from, copy.bytes);
      }
    }
    running->copies.pop_front();
  }
}

void GridStore(void* to, const void* data, int bytes) {
  if (reinterpret_cast<uintptr_t>(to) % bytes != 0) Die("a store that is not aligned");
  Store store = {};
  store.rank = running->rank;
  std::memcpy(store.data, data, bytes);
  store.bytes = bytes;
  store.to = static_cast<unsigned char*>(to);
  cluster.flying.push_back(store);
}

void ReleaseFlag(unsigned* flag, unsigned value) {
  for (size_t i = cluster.flying.size(); i-- > 0 && broken != Broken::kRelease;) {
    if (cluster.flying[i].barrier == nullptr && cluster.flying[i].rank == running->rank) Land(i);
  }
  *flag = value;
  WakeWaiting(flag);
}

void WaitForFlag(const unsigned* flag, unsigned value) {
  if (broken == Broken::kBarrierWait) return;
  while (*flag < value) {
    running->waits_for = flag;
    Pause();
  }
}

}  // namespace cuda_host
