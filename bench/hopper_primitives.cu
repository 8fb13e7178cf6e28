// What the design of csrc/cuda/hopper rests on, measured: barriers, the hand-off of h between the
// blocks of a cluster, its bandwidth, the rate of multiplications with few columns.
//
//   nvcc -std=c++17 -gencode=arch=compute_90a,code=sm_90a -O3 -Icsrc bench/hopper_primitives.cu \
//     -o hopper_primitives && ./hopper_primitives > hopper_primitives.csv
//
// A line for each: what, its parameters, nanoseconds and clock cycles of one round. Medians of 7
// launches of kRounds rounds each; the clock is the multiprocessor's, read in the kernel.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "cuda/hopper/operand.cuh"

using namespace masked_lstm;
using namespace masked_lstm::cuda;
using namespace masked_lstm::cuda::hopper;

constexpr int kRounds = 2000, kThreads = 256;
constexpr int kRow = RowBytes<BFloat16>(512);

void Check(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "CUDA: %s\n", cudaGetErrorString(error));
  std::exit(1);
}

__device__ void Report(long long begin, long long* cycles) {
  if (BlockIndex() == 0 && ThreadIndex() == 0) *cycles = clock64() - begin;
}

__global__ void ClusterBarrierKernel(int, long long* cycles, float*) {
  const long long begin = clock64();
  for (int i = 0; i < kRounds; ++i) SyncCluster();
  Report(begin, cycles);
}

__global__ void BlockBarrierKernel(int, long long* cycles, float*) {
  const long long begin = clock64();
  for (int i = 0; i < kRounds; ++i) SyncBlock();
  Report(begin, cycles);
}

__device__ unsigned grid_counter;

__global__ void GridBarrierKernel(int blocks, long long* cycles, float*) {
  const long long begin = clock64();
  for (unsigned i = 1; i <= kRounds; ++i) GroupBarrier(&grid_counter, blocks, i);
  Report(begin, cycles);
}

// A step of the forward recurrence without its arithmetic: every warp sends 4 units of kSlots slots
// (16 bits each) to all blocks, everyone waits for everything.
template <int kSlots>
__global__ void HandOffKernel(int cluster, long long* cycles, float* out) {
  unsigned char* const shared = SharedMemory<unsigned char>();
  uint64_t* const barriers = reinterpret_cast<uint64_t*>(shared);
  const int lane = ThreadIndex() % kLanes, warp = ThreadIndex() / kLanes, rank = ClusterRank();
  const int warps = kThreads / kLanes, row = cluster * warps * 8 + 64;
  const int message = cluster * warps * 8 * kSlots;
  if (ThreadIndex() == 0) {
    for (int i = 0; i < 2; ++i) BarrierInit(&barriers[i], 1);
    BarrierInitFence();
    for (int i = 0; i < 2; ++i) BarrierArriveExpect(&barriers[i], message);
  }
  SyncCluster();
  const long long begin = clock64();
  uint32_t words[2] = {static_cast<uint32_t>(lane), 1};
  for (unsigned step = 0; step < kRounds; ++step) {
    const unsigned buffer = step % 2;
    for (int tile = 0; tile < kSlots / 8; ++tile) {
      const int slot = tile * 8 + lane % 8;
      const int at =
          16 + static_cast<int>(buffer) * kSlots * row + slot * row + (rank * warps + warp) * 8;
      for (int block = lane / 8; block < cluster; block += 4) {
        const SharedAddress there = MapToBlock(AddressOf(shared), block);
        StoreAsync(there + at, words, there + buffer * 8);
      }
    }
    BarrierWait(&barriers[buffer], step / 2 % 2);
    if (ThreadIndex() == 0) BarrierArriveExpect(&barriers[buffer], message);
    words[1] = shared[16 + buffer * kSlots * row + lane * 8];  // as the product would read it
  }
  Report(begin, cycles);
  if (words[1] == 12345) *out = 1;
  SyncCluster();  // nobody leaves while others send
}

__device__ __align__(16) unsigned char grid_rows[2 * 8 * 4096];
__device__ unsigned grid_flags[256];

// A step of the recurrence over the grid without its arithmetic: every block writes 16 units of 8
// slots (16 bits each) to global memory and releases its flag; every warp waits for the blocks of
// its part of the rows and reads it.
__global__ void GridHandOffKernel(int blocks, long long* cycles, float* out) {
  const int lane = ThreadIndex() % kLanes, warp = ThreadIndex() / kLanes, row = blocks * 32;
  const int part = row / (kThreads / kLanes), block = BlockIndex();  // bytes of a row for a warp
  const long long begin = clock64();
  uint32_t words[4] = {static_cast<uint32_t>(lane), 1, 2, 3};
  for (unsigned step = 0; step < kRounds; ++step) {
    unsigned char* const rows = grid_rows + step % 2 * 8 * row;
    if (ThreadIndex() < 16) {
      GridStore(rows + ThreadIndex() / 2 * row + block * 32 + ThreadIndex() % 2 * 16, words);
    }
    SyncBlock();
    if (ThreadIndex() == 0) ReleaseFlag(&grid_flags[block], step + 1);
    for (int other = warp * part / 32 + lane; other * 32 < (warp + 1) * part; other += kLanes) {
      WaitForFlag(&grid_flags[other], step + 1);
    }
    SyncWarp();
    for (int at = warp * part; at < (warp + 1) * part; at += 64) {
      uint32_t read[4];
      GridLoad(rows + lane / 4 * row + at + lane % 4 * 16, read);
      words[3] += read[1] + read[2];
    }
    SyncBlock();
  }
  Report(begin, cycles);
  if (words[3] == 12345) *out = 1;
}

// 16-byte stores of all threads into the next block, as fast as they go: 64 of each in a round.
__global__ void BandwidthKernel(int cluster, long long* cycles, float*) {
  unsigned char* const shared = SharedMemory<unsigned char>();
  uint64_t* const barrier = reinterpret_cast<uint64_t*>(shared);
  constexpr int kStores = 64, kMessage = kStores * kThreads * 16;
  if (ThreadIndex() == 0) {
    BarrierInit(barrier, 1);
    BarrierInitFence();
    BarrierArriveExpect(barrier, kMessage);
  }
  SyncCluster();
  const SharedAddress there = MapToBlock(AddressOf(shared), (ClusterRank() + 1) % cluster);
  const uint32_t words[4] = {1, 2, 3, 4};
  const long long begin = clock64();
  for (unsigned round = 0; round < kRounds / 20; ++round) {
#pragma unroll 8
    for (int i = 0; i < kStores; ++i) {
      StoreAsync(there + 16 + (i % 4 * kThreads + ThreadIndex()) * 16, words, there);
    }
    BarrierWait(barrier, round % 2);
    if (ThreadIndex() == 0) BarrierArriveExpect(barrier, kMessage);
    SyncCluster();
  }
  Report(begin, cycles);
}

// 32 multiplications deep (512 units of 16 bits) for kTiles times 8 slots, weights in registers, h
// from shared memory, 4 independent chains: the product of a step of U = 512 in 16 blocks.
template <int kTiles>
__global__ void __launch_bounds__(kThreads, 1) MultiplyKernel(int, long long* cycles, float* out) {
  unsigned char* const rows = SharedMemory<unsigned char>();
  for (int i = ThreadIndex(); i < kTiles * 8 * kRow / 4; i += kThreads) {
    reinterpret_cast<uint32_t*>(rows)[i] = 0x3c003c00u + i;
  }
  uint32_t weights[16][2][4];
#pragma unroll
  for (int i = 0; i < 128; ++i) {
    weights[i / 8][i / 4 % 2][i % 4] = __float_as_uint(out[i * kThreads + ThreadIndex()]);
  }
  SyncBlock();
  float total = 0;
  const long long begin = clock64();
  for (int round = 0; round < kRounds; ++round) {
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
      float sums[4][4] = {};
#pragma unroll
      for (int c = 0; c < 16; ++c) {
        const Words chunk = LoadChunk(rows + j * 8 * kRow, kRow, c);
#pragma unroll
        for (int part = 0; part < 2; ++part) {
          MultiplyStep<BFloat16>(sums[(2 * c + part) % 4], weights[c][part], chunk, part);
        }
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) total += sums[i][0] + sums[i][1] + sums[i][2] + sums[i][3];
    }
    SyncBlock();
  }
  Report(begin, cycles);
  out[ThreadIndex()] = total;
}

template <typename Kernel>
void Measure(const char* what, int cluster, int parameter, Kernel kernel, int blocks, int rounds,
             int shared_bytes, bool cooperative, double bytes) {
  static long long* cycles = nullptr;
  static float* out = nullptr;
  if (cycles == nullptr) {
    Check(cudaMalloc(&cycles, sizeof(*cycles)));
    Check(cudaMalloc(&out, 128 * kThreads * sizeof(float)));
    Check(cudaMemset(out, 0, 128 * kThreads * sizeof(float)));
  }
  Check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes));
  Check(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
  attributes[1].id = cudaLaunchAttributeCooperative;
  attributes[1].val.cooperative = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = shared_bytes;
  config.attrs = cooperative ? attributes + 1 : attributes;
  config.numAttrs = 1;
  cudaEvent_t begin, end;
  Check(cudaEventCreate(&begin));
  Check(cudaEventCreate(&end));
  std::vector<float> times;
  long long measured = 0;
  for (int i = 0; i < 9; ++i) {
    const unsigned zero = 0;
    Check(cudaMemcpyToSymbol(grid_counter, &zero, sizeof(zero)));
    const unsigned zeros[256] = {};
    Check(cudaMemcpyToSymbol(grid_flags, zeros, sizeof(zeros)));
    Check(cudaEventRecord(begin));
    Check(cudaLaunchKernelEx(&config, kernel, cooperative ? blocks : cluster, cycles, out));
    Check(cudaEventRecord(end));
    Check(cudaEventSynchronize(end));
    float milliseconds = 0;
    Check(cudaEventElapsedTime(&milliseconds, begin, end));
    if (i >= 2) times.push_back(milliseconds);
  }
  Check(cudaMemcpy(&measured, cycles, sizeof(measured), cudaMemcpyDeviceToHost));
  std::sort(times.begin(), times.end());
  const double round = 1e6 * times[times.size() / 2] / rounds;
  std::printf("%s,%d,%d,%d,%.1f,%.1f,%.1f\n", what, blocks, cluster, parameter, round,
              static_cast<double>(measured) / rounds,
              bytes == 0 ? 0.0 : bytes * rounds / static_cast<double>(measured));
}

int main() {
  int processors = 0;
  Check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, 0));
  std::printf("what,blocks,cluster,slots,ns,cycles,bytes_per_cycle_of_a_block\n");
  Measure("block barrier", 1, 0, BlockBarrierKernel, processors, kRounds, 0, false, 0);
  Measure("grid barrier", 1, 0, GridBarrierKernel, processors, kRounds, 0, true, 0);
  for (int blocks : {48, 64, 128}) {  // of U = 768, 1024 and 2048
    Measure("grid hand-off", 1, 8, GridHandOffKernel, blocks, kRounds, 0, true, 0);
  }
  for (int cluster : {2, 4, 8, 16}) {
    // Two clusters at once for each size; nothing else on the device.
    const int blocks = 2 * cluster;
    Measure("cluster barrier", cluster, 0, ClusterBarrierKernel, blocks, kRounds, 0, false, 0);
    const auto shared = [&](int slots) { return 16 + 2 * slots * (cluster * 64 + 64) + 256; };
    Measure("hand-off", cluster, 8, HandOffKernel<8>, blocks, kRounds, shared(8), false, 0);
    Measure("hand-off", cluster, 16, HandOffKernel<16>, blocks, kRounds, shared(16), false, 0);
    Measure("hand-off", cluster, 32, HandOffKernel<32>, blocks, kRounds, shared(32), false, 0);
    Measure("bandwidth", cluster, 0, BandwidthKernel, blocks, kRounds / 20, 16 + 4 * kThreads * 16,
            false, 64.0 * kThreads * 16);
  }
  Measure("multiply", 1, 8, MultiplyKernel<1>, processors, kRounds, 8 * kRow, false, 0);
  Measure("multiply", 1, 16, MultiplyKernel<2>, processors, kRounds, 16 * kRow, false, 0);
  Measure("multiply", 1, 32, MultiplyKernel<4>, processors, kRounds, 32 * kRow, false, 0);
  return 0;
}
