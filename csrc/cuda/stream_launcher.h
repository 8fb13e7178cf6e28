// CUDA's launches on a stream, and its errors as Status: what both launch.cu and hopper/ stand on.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "status.h"

// The compute capabilities compiled for, as CMake was told.
#ifndef MASKED_LSTM_CUDA_ARCHITECTURES
#define MASKED_LSTM_CUDA_ARCHITECTURES "unknown"
#endif

namespace masked_lstm {

// One sentence for CUDA's error. Takes it away from CUDA: the next caller of the runtime would take
// it for his own.
inline Status CudaError(cudaError_t error) {
  if (error == cudaSuccess) return OkStatus();
  (void)cudaGetLastError();
  const char* text = cudaGetErrorString(error);
  switch (error) {
    case cudaErrorMemoryAllocation:
      return Error(StatusCode::kOutOfMemory, "CUDA: %s", text);
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorInvalidDeviceFunction:
    case cudaErrorUnsupportedPtxVersion: {
      int device = 0, major = 0, minor = 0;
      if (cudaGetDevice(&device) == cudaSuccess) {
        (void)cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
        (void)cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
      }
      (void)cudaGetLastError();
      return Error(StatusCode::kUnsupported,
                   "CUDA: %s: the kernels were compiled for %s, the device has compute capability "
                   "%d.%d; build with MASKED_LSTM_CUDA_ARCHITECTURES=%d%d",
                   text, MASKED_LSTM_CUDA_ARCHITECTURES, major, minor, major, minor);
    }
    case cudaErrorNoDevice:
    case cudaErrorInsufficientDriver:
      return Error(StatusCode::kDeviceError, "CUDA: %s", text);
    default:
      return Error(StatusCode::kDeviceError,
                   "CUDA: %s (%s; perhaps of an earlier asynchronous call)", text,
                   cudaGetErrorName(error));
  }
}

// Launches on a stream; keeps the first error, after which it does nothing.
class StreamLauncher {
 public:
  explicit StreamLauncher(cudaStream_t stream) : stream_(stream) {}

  template <typename... Parameters, typename... Arguments>
  void operator()(void (*kernel)(Parameters...), int blocks, int blocks_y, int threads,
                  size_t shared_bytes, bool cooperative, Arguments... arguments) {
    static_assert(sizeof...(Parameters) == sizeof...(Arguments), "one argument for each parameter");
    if (error_ != cudaSuccess) return;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(blocks, blocks_y);
    config.blockDim = dim3(threads);
    config.dynamicSmemBytes = shared_bytes;
    config.stream = stream_;
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeCooperative;
    attribute.val.cooperative = 1;
    config.attrs = &attribute;
    config.numAttrs = cooperative ? 1 : 0;
    error_ = cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
  }

  void Clear(void* memory, size_t bytes) {
    if (bytes > 0 && error_ == cudaSuccess) error_ = cudaMemsetAsync(memory, 0, bytes, stream_);
  }

  Status status() const { return CudaError(error_); }

 protected:
  cudaStream_t stream_;
  cudaError_t error_ = cudaSuccess;
};

inline Status CheckWorkspace(const void* workspace, size_t have, size_t need) {
  if (workspace == nullptr) have = 0;
  if (have < need) {
    return Error(StatusCode::kInvalidArgument, "workspace: expected %zu bytes, got %zu", need,
                 have);
  }
  if (reinterpret_cast<uintptr_t>(workspace) % 64 != 0) {
    return Error(StatusCode::kInvalidArgument,
                 "workspace: expected memory aligned to 64 bytes, got a misaligned address");
  }
  return OkStatus();
}

}  // namespace masked_lstm
