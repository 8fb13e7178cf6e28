// What csrc/cuda/launch.cu and hopper/launch_hopper.cu use of CUDA's runtime, for tests without a
// GPU: launches run on the executor, errors come when a test asks for them. Only what may be called
// while a stream is being captured is here (but for the two calls of ReadCudaFlag, which fail
// while a test captures): an allocation or a wait for the device would not compile.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <set>

#include "cuda_host.h"

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInsufficientDriver = 35,
  cudaErrorInvalidDeviceFunction = 98,
  cudaErrorNoDevice = 100,
  cudaErrorNoKernelImageForDevice = 209,
  cudaErrorUnsupportedPtxVersion = 222,
  cudaErrorIllegalAddress = 700,
  cudaErrorCooperativeLaunchTooLarge = 720,
  cudaErrorStreamCaptureUnsupported = 900,
};
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrComputeCapabilityMinor = 76,
  cudaDevAttrCooperativeLaunch = 95,
};
enum cudaLaunchAttributeID {
  cudaLaunchAttributeCooperative = 2,
  cudaLaunchAttributeClusterDimension = 4
};
enum cudaFuncAttribute {
  cudaFuncAttributeMaxDynamicSharedMemorySize = 8,
  cudaFuncAttributeNonPortableClusterSizeAllowed = 12
};
enum cudaMemcpyKind { cudaMemcpyDeviceToHost = 2 };

struct CUstream_st;
typedef CUstream_st* cudaStream_t;

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  union {
    int cooperative;
    struct {
      unsigned x, y, z;
    } clusterDim;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

namespace cuda_host {

// The simulated machine: device d runs kResident[d] blocks at once; the last two are Hopper GPUs.
constexpr int kResident[] = {64, 1, 3, 0, 40, 3};
constexpr int kFirstHopper = 4;

// LaunchClusters of cluster_host.h, where it is linked: runs launches of clusters, and cooperative
// ones of kernels that work by warps.
using ClusterLaunch = void (*)(int clusters, int cluster_size, int threads, size_t shared_bytes,
                               unsigned seed, const std::function<void()>& kernel);
inline ClusterLaunch launch_clusters = nullptr;

// What was allowed for a kernel by cudaFuncSetAttribute.
struct Allowed {
  size_t shared_bytes = 48 << 10;
  unsigned cluster = 8;
};
inline std::map<const void*, Allowed> allowed;

struct Runtime {
  int device = 0;
  unsigned seed = 1;                // of the next launch's order of threads
  cudaError_t error = cudaSuccess;  // comes from call `fails_at` of the runtime on
  int fails_at = 0;
  int calls = 0;  // of the runtime so far
  int occupancy_calls = 0;
  bool capturing = false;  // into a graph: nothing may wait, only the stream given may be used
  cudaError_t last = cudaSuccess;  // as cudaGetLastError knows it
  std::set<const void*> launched;  // kernels
  std::set<cudaStream_t> streams;  // that anything ran on

  // A call that waits for the device.
  cudaError_t Wait() { return Call(capturing ? cudaErrorStreamCaptureUnsupported : cudaSuccess); }
  // Work for a stream; the default one cannot be captured.
  cudaError_t Work(cudaStream_t stream, cudaError_t result = cudaSuccess) {
    streams.insert(stream);
    const bool captured = !capturing || stream != nullptr;
    return Call(captured ? result : cudaErrorStreamCaptureUnsupported);
  }
  cudaError_t Call(cudaError_t result = cudaSuccess) {
    ++calls;
    if (error != cudaSuccess && calls >= fails_at) result = error;
    if (result != cudaSuccess) last = result;
    return result;
  }
};
inline Runtime runtime;

}  // namespace cuda_host

inline const char* cudaGetErrorName(cudaError_t error) {
  return error == cudaErrorIllegalAddress ? "cudaErrorIllegalAddress" : "cudaError";
}
inline const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorNoDevice:
      return "no CUDA-capable device is detected";
    case cudaErrorNoKernelImageForDevice:
      return "no kernel image is available for execution on the device";
    case cudaErrorIllegalAddress:
      return "an illegal memory access was encountered";
    default:
      return "another error";
  }
}
inline cudaError_t cudaGetLastError() {
  const cudaError_t last = cuda_host::runtime.last;
  cuda_host::runtime.last = cudaSuccess;
  return last;
}
inline cudaError_t cudaGetDevice(int* device) {
  *device = cuda_host::runtime.device;
  return cuda_host::runtime.Call();
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  *value = attribute == cudaDevAttrMultiProcessorCount      ? cuda_host::kResident[device]
           : attribute != cudaDevAttrComputeCapabilityMajor ? 1
           : device < cuda_host::kFirstHopper               ? 6
                                                            : 9;
  return cuda_host::runtime.Call();
}
template <typename Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel, int, size_t) {
  ++cuda_host::runtime.occupancy_calls;
  *blocks = 1;
  return cuda_host::runtime.Call();
}
template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel kernel, cudaFuncAttribute attribute, int value) {
  cuda_host::Allowed& allowed = cuda_host::allowed[reinterpret_cast<const void*>(kernel)];
  if (attribute == cudaFuncAttributeNonPortableClusterSizeAllowed) {
    allowed.cluster = value != 0 ? 16 : 8;
  } else {
    allowed.shared_bytes = value;
  }
  return cuda_host::runtime.Call(value > 227 << 10 ? cudaErrorInvalidValue : cudaSuccess);
}
template <typename Kernel>
cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, Kernel kernel,
                                           const cudaLaunchConfig_t* config) {
  const cuda_host::Allowed& allowed = cuda_host::allowed[reinterpret_cast<const void*>(kernel)];
  const unsigned cluster = config->attrs->val.clusterDim.x;
  *clusters = static_cast<int>(cuda_host::kResident[cuda_host::runtime.device] / cluster);
  const bool fits = cluster <= allowed.cluster && config->dynamicSmemBytes <= allowed.shared_bytes;
  return cuda_host::runtime.Call(fits ? cudaSuccess : cudaErrorInvalidValue);
}
inline cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t stream) {
  const cudaError_t error = cuda_host::runtime.Work(stream);
  if (error == cudaSuccess) std::memset(memory, value, bytes);
  return error;
}
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind,
                                   cudaStream_t) {
  std::memcpy(to, from, bytes);  // to memory of the host that is not pinned: waits
  return cuda_host::runtime.Wait();
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cuda_host::runtime.Wait(); }

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments... arguments) {
  cuda_host::Runtime& runtime = cuda_host::runtime;
  const dim3 grid = config->gridDim;
  const void* const which = reinterpret_cast<const void*>(kernel);
  const bool clusters =
      config->numAttrs > 0 && config->attrs->id == cudaLaunchAttributeClusterDimension;
  const bool cooperative = config->numAttrs > 0 && !clusters && config->attrs->val.cooperative != 0;
  const cuda_host::Allowed& allowed = cuda_host::allowed[which];
  const unsigned cluster = clusters ? config->attrs->val.clusterDim.x : 1;
  cudaError_t error = cudaSuccess;
  if (grid.x < 1 || grid.x > 0x7fffffff || grid.y < 1 || grid.y > 65535 ||
      config->blockDim.x > 1024 || config->dynamicSmemBytes > allowed.shared_bytes ||
      cluster > allowed.cluster || grid.x % cluster != 0) {
    error = cudaErrorInvalidValue;
  }
  if (cooperative &&
      grid.x * grid.y > static_cast<unsigned>(cuda_host::kResident[runtime.device])) {
    error = cudaErrorCooperativeLaunchTooLarge;
  }
  error = runtime.Work(config->stream, error);
  if (error != cudaSuccess) return error;
  runtime.launched.insert(which);
  if (clusters || (cooperative && cuda_host::launch_clusters != nullptr)) {
    const unsigned size = clusters ? cluster : grid.x;
    cuda_host::launch_clusters(static_cast<int>(grid.x / size), static_cast<int>(size),
                               static_cast<int>(config->blockDim.x), config->dynamicSmemBytes,
                               ++runtime.seed, [&] { kernel(arguments...); });
    return cudaSuccess;
  }
  cuda_host::Launch(static_cast<int>(grid.x), static_cast<int>(grid.y),
                    static_cast<int>(config->blockDim.x), config->dynamicSmemBytes, cooperative,
                    ++runtime.seed, [&] { kernel(arguments...); });
  return cudaSuccess;
}
