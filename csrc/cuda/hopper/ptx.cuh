// All that the Hopper kernels use beyond cuda/device.cuh, in one place: warp operations, tensor
// cores, and stores and barriers within a thread block cluster. In the tests: an executor on the
// host. Nothing here runs before sm_90.
#pragma once

#include "cuda/device.cuh"

#if !defined(__CUDACC__)
#include "hopper_host.h"
#endif

namespace masked_lstm {
namespace cuda {
namespace hopper {

#if defined(__CUDACC__)
#define MASKED_LSTM_GRID_CONSTANT __grid_constant__

constexpr unsigned kAllLanes = 0xffffffffu;

// This block's number within its cluster.
MASKED_LSTM_DEVICE int ClusterRank() {
  unsigned rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return static_cast<int>(rank);
}
MASKED_LSTM_DEVICE void SyncBlock() { __syncthreads(); }
// All threads of all blocks of the cluster; orders shared memory of all of them.
MASKED_LSTM_DEVICE void SyncCluster() {
  asm volatile(
      "barrier.cluster.arrive.release;\n\t"
      "barrier.cluster.wait.acquire;" ::
          : "memory");
}

MASKED_LSTM_DEVICE uint32_t ShuffleFrom(uint32_t value, int source) {
  return __shfl_sync(kAllLanes, value, source);
}
MASKED_LSTM_DEVICE uint32_t ShuffleXor(uint32_t value, int mask) {
  return __shfl_xor_sync(kAllLanes, value, mask);
}
MASKED_LSTM_DEVICE uint32_t Ballot(bool vote) { return __ballot_sync(kAllLanes, vote); }
MASKED_LSTM_DEVICE void SyncWarp() { __syncwarp(); }
MASKED_LSTM_DEVICE int CountBits(uint32_t bits) { return __popc(bits); }

// The same value, of which the compiler knows nothing.
MASKED_LSTM_DEVICE int Forget(int value) {
  asm volatile("" : "+r"(value));
  return value;
}

// 1 / x within 1 ulp; infinity for results that would be subnormal.
MASKED_LSTM_DEVICE float Reciprocal(float x) {
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

// 2^x within 2 ulp.
MASKED_LSTM_DEVICE float Exp2(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

MASKED_LSTM_DEVICE uint32_t ToTf32(float value) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
  return bits;
}

// sum += a . b for a tile of 16 rows and 8 columns, by all lanes of a warp. Of the lane's
// fragments, with group = lane / 4 and member = lane % 4:
//   sum: (row group, columns 2 member, + 1), then the same of row group + 8
//   a:   rows group, group + 8, group, group + 8; the first two words hold the depth's first half
//   b:   column group; one word of each half of the depth
// where word `member` of a half holds its 1 (tf32) or 2 (16 bits) values.
#define MASKED_LSTM_MMA(NAME, SHAPE)                                                              \
  MASKED_LSTM_DEVICE void NAME(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) { \
    asm("mma.sync.aligned." SHAPE " {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"        \
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])                                  \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));                      \
  }
MASKED_LSTM_MMA(MmaF16, "m16n8k16.row.col.f32.f16.f16.f32")
MASKED_LSTM_MMA(MmaBF16, "m16n8k16.row.col.f32.bf16.bf16.f32")
MASKED_LSTM_MMA(MmaTf32, "m16n8k8.row.col.f32.tf32.tf32.f32")
#undef MASKED_LSTM_MMA

// Shared memory as the cluster addresses it.
typedef uint32_t SharedAddress;

MASKED_LSTM_DEVICE SharedAddress AddressOf(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}
// The same place in block `rank`.
MASKED_LSTM_DEVICE SharedAddress MapToBlock(SharedAddress address, int rank) {
  SharedAddress mapped;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(mapped) : "r"(address), "r"(rank));
  return mapped;
}

// A barrier in this block's shared memory. Each of its phases ends when `arrivals` threads have
// arrived and all bytes that they expect have come; parities of phases alternate, from 0 on.
MASKED_LSTM_DEVICE void BarrierInit(uint64_t* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(AddressOf(barrier)), "r"(arrivals)
               : "memory");
}
// After BarrierInit, before the SyncCluster that lets other blocks use it.
MASKED_LSTM_DEVICE void BarrierInitFence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
MASKED_LSTM_DEVICE void BarrierArriveExpect(uint64_t* barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(AddressOf(barrier)),
               "r"(bytes)
               : "memory");
}
// Until the phase of this parity has ended; what its stores brought is then visible.
MASKED_LSTM_DEVICE void BarrierWait(uint64_t* barrier, unsigned parity) {
  uint32_t done;
  do {
    asm volatile(
        "{\n\t.reg .pred done;\n\t"
        "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%1], %2;\n\t"
        "selp.b32 %0, 1, 0, done;\n\t}"
        : "=r"(done)
        : "r"(AddressOf(barrier)), "r"(parity)
        : "memory");
  } while (done == 0);
}
// Stores into a block of the cluster, and tells the barrier there how many bytes have come.
MASKED_LSTM_DEVICE void StoreAsync(SharedAddress address, const uint32_t (&words)[2],
                                   SharedAddress barrier) {
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.b32 [%0], {%1,%2}, [%3];" ::
          "r"(address),
      "r"(words[0]), "r"(words[1]), "r"(barrier)
      : "memory");
}
MASKED_LSTM_DEVICE void StoreAsync(SharedAddress address, const uint32_t (&words)[4],
                                   SharedAddress barrier) {
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1,%2,%3,%4}, "
      "[%5];" ::"r"(address),
      "r"(words[0]), "r"(words[1]), "r"(words[2]), "r"(words[3]), "r"(barrier)
      : "memory");
}

// From global into shared memory, kBytes (16 or 4) at once, aligned; zeros if not valid. Each
// thread's copies come in groups, and have come when it has waited for them. 2 bytes are copied at
// once: other threads see both after the block's barrier.
template <int kBytes>
MASKED_LSTM_DEVICE void CopyAsync(unsigned char* shared, const void* from, bool valid) {
  const int bytes = valid ? kBytes : 0;
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(AddressOf(shared)),
                 "l"(from), "r"(bytes)
                 : "memory");
  } else if constexpr (kBytes == 4) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(AddressOf(shared)), "l"(from),
                 "r"(bytes)
                 : "memory");
  } else {
    *reinterpret_cast<uint16_t*>(shared) = valid ? *static_cast<const uint16_t*>(from) : 0;
  }
}
MASKED_LSTM_DEVICE void CommitCopies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until at most kLeft of the thread's groups are on their way.
template <int kLeft>
MASKED_LSTM_DEVICE void WaitForCopies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
}

// Four matrices of 8 rows of 16 bytes: lane i says where row i % 8 of matrix i / 8 is, and gets
// word i % 4 of row i / 4 of each.
MASKED_LSTM_DEVICE void LoadMatrices(const unsigned char* row, uint32_t (&words)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(AddressOf(row))
               : "memory");
}
// Likewise of the matrices of 8 x 8 values of 16 bits, transposed.
MASKED_LSTM_DEVICE void LoadMatricesTransposed(const unsigned char* row, uint32_t (&words)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(AddressOf(row))
               : "memory");
}

// Memory that blocks of a cooperative launch exchange rows through. A block stores, meets at its
// barrier, and one of its threads releases a flag; who has waited for the flag, and for its warp,
// may load: from the L2 cache, never an older copy from its own L1.
MASKED_LSTM_DEVICE void GridStore(unsigned char* to, const uint32_t (&words)[2]) {
  *reinterpret_cast<uint2*>(to) = make_uint2(words[0], words[1]);
}
MASKED_LSTM_DEVICE void GridStore(unsigned char* to, const uint32_t (&words)[4]) {
  *reinterpret_cast<uint4*>(to) = make_uint4(words[0], words[1], words[2], words[3]);
}
MASKED_LSTM_DEVICE void GridLoad(const unsigned char* from, uint32_t (&words)[4]) {
  asm volatile("ld.relaxed.gpu.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "l"(from));
}
MASKED_LSTM_DEVICE void ReleaseFlag(unsigned* flag, unsigned value) {
  asm volatile("st.release.gpu.u32 [%0], %1;" ::"l"(flag), "r"(value) : "memory");
}
// Until the flag has at least this value.
MASKED_LSTM_DEVICE void WaitForFlag(const unsigned* flag, unsigned value) {
  unsigned seen;
  do {
    asm volatile("ld.acquire.gpu.u32 %0, [%1];" : "=r"(seen) : "l"(flag) : "memory");
  } while (seen < value);
}
#endif

}  // namespace hopper
}  // namespace cuda
}  // namespace masked_lstm
