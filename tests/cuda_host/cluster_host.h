// Thread block clusters on the host, for tests: what csrc/cuda/hopper/ptx.cuh names. All threads of
// a cluster are fibers on one thread; clusters run one after another, in a random order.
//
// What it finds, beside what cuda_host.h finds: stores to other blocks (st.async) land late and in
// any order, each adding its bytes to its barrier only then, so data that is not waited for is old
// or NaN; some blocks sleep for a while, so a buffer that is written again too early shows; a byte
// count that is wrong, a barrier that is overtaken or a warp operation that a lane misses leaves
// threads that wait for ever, which ends the program; so do a barrier nobody initialised, a store
// outside the shared memory of its block and one into a block that has ended.
//
// Copies into shared memory land when they are waited for, no sooner.
//
// A cooperative launch is one cluster of all blocks. Stores that its blocks exchange through global
// memory land late too, unless the block that made them releases a flag.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

namespace cuda_host {

// Runs clusters x cluster_size blocks of `threads` threads, a multiple of 32.
void LaunchClusters(int clusters, int cluster_size, int threads, size_t shared_bytes, unsigned seed,
                    const std::function<void()>& kernel);

// What to leave out, to see that a test notices.
enum class Broken {
  kNothing,
  kBarrierWait,
  kSyncBlock,
  kSyncCluster,
  kByteCount,
  kRelease,
  kCopyWait
};
extern Broken broken;

// Of the fiber that runs now.
int ClusterRank();
int ClusterSize();

void SyncBlock();
void SyncCluster();

// All 32 lanes of a warp meet, each with a pointer of its own; the last one runs `all` for them.
void Collective(void* mine, void (*all)(void* const* lanes));

// An address in this block's shared memory, in that of block `rank`.
uintptr_t MapToBlock(uintptr_t address, int rank);

// mbarriers in shared memory.
void BarrierInit(uint64_t* barrier, int arrivals);
void BarrierArriveExpect(uint64_t* barrier, int bytes);
void BarrierWait(uint64_t* barrier, int parity);
void StoreAsync(uintptr_t address, const void* data, int bytes, uintptr_t barrier);

// From global into this block's shared memory, or zeros: lands as late as the waits allow.
void CopyAsync(void* shared, const void* from, int bytes);
void CommitCopies();
void WaitForCopies(int left);

// Ends the program unless these bytes, so aligned, are in this block's shared memory.
void CheckShared(const void* at, int bytes);

// Global memory.
void GridStore(void* to, const void* data, int bytes);
void ReleaseFlag(unsigned* flag, unsigned value);
void WaitForFlag(const unsigned* flag, unsigned value);

}  // namespace cuda_host
