// All that the kernels use of CUDA, in one place: nvcc's own, or (in the tests) that of an executor
// on the host, under which the same sources run without a GPU.
#pragma once

#include <cstdint>

#include "lstm.h"

#if defined(__CUDACC__)
#include <cuda_fp16.h>
#else
#include "cuda_host.h"
#endif

namespace masked_lstm {
namespace cuda {

#if defined(__CUDACC__)
#define MASKED_LSTM_DEVICE __device__ __forceinline__

MASKED_LSTM_DEVICE int ThreadIndex() { return static_cast<int>(threadIdx.x); }
MASKED_LSTM_DEVICE int BlockIndex() { return static_cast<int>(blockIdx.x); }
MASKED_LSTM_DEVICE int BlockIndexY() { return static_cast<int>(blockIdx.y); }
MASKED_LSTM_DEVICE int BlockSize() { return static_cast<int>(blockDim.x); }

// All threads of the block.
MASKED_LSTM_DEVICE void BlockBarrier() { __syncthreads(); }

// Memory of the block, as much as the launch asked for; 16-byte aligned.
template <typename T>
MASKED_LSTM_DEVICE T* SharedMemory() {
  extern __shared__ __align__(16) unsigned char masked_lstm_shared[];
  return reinterpret_cast<T*>(masked_lstm_shared);
}

// All threads of `blocks` blocks, which must run at once (a cooperative launch). `round` counts
// from 1; *counter starts at 0.
MASKED_LSTM_DEVICE void GroupBarrier(unsigned* counter, int blocks, unsigned round) {
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    atomicAdd(counter, 1u);
    const unsigned target = round * static_cast<unsigned>(blocks);
    unsigned arrived;
    do {
      asm volatile("ld.acquire.gpu.u32 %0, [%1];" : "=r"(arrived) : "l"(counter) : "memory");
    } while (arrived < target);
    __threadfence();
  }
  __syncthreads();
}

MASKED_LSTM_DEVICE float HalfToFloat(uint16_t bits) { return __half2float(__ushort_as_half(bits)); }
MASKED_LSTM_DEVICE uint16_t FloatToHalf(float value) {
  return __half_as_ushort(__float2half_rn(value));
}
MASKED_LSTM_DEVICE uint32_t FloatBits(float value) { return __float_as_uint(value); }
MASKED_LSTM_DEVICE float FloatFromBits(uint32_t bits) { return __uint_as_float(bits); }
// Rounded once, as the host's fma.
MASKED_LSTM_DEVICE float MulAdd(float a, float b, float c) { return __fmaf_rn(a, b, c); }
MASKED_LSTM_DEVICE double MulAdd(double a, double b, double c) { return __fma_rn(a, b, c); }
#endif

}  // namespace cuda
}  // namespace masked_lstm
