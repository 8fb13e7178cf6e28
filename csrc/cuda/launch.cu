// The calls of cuda_lstm.h: CUDA's launches for run.cuh, and its errors as Status.
#include <cuda_runtime.h>

#include "cuda/cuda_lstm.h"
#include "cuda/run.cuh"

namespace masked_lstm {
namespace {

// Launches on a stream; keeps the first error.
class StreamLauncher {
 public:
  explicit StreamLauncher(cudaStream_t stream) : stream_(stream) {}

  template <typename... Parameters, typename... Arguments>
  void operator()(void (*kernel)(Parameters...), int blocks, int blocks_y, int threads,
                  size_t shared_bytes, bool cooperative, Arguments... arguments) {
    if (error_ != cudaSuccess) return;
    if (shared_bytes > 48 << 10) {  // more must be asked for
      Keep(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                static_cast<int>(shared_bytes)));
    }
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
    Keep(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...));
  }

  void Clear(void* memory, size_t bytes) {
    if (bytes > 0) Keep(cudaMemsetAsync(memory, 0, bytes, stream_));
  }

  Status status() const {
    if (error_ == cudaSuccess) return OkStatus();
    return Error(StatusCode::kUnsupported, "CUDA: %s", cudaGetErrorString(error_));
  }

 private:
  void Keep(cudaError_t error) {
    if (error_ == cudaSuccess) error_ = error;
  }

  cudaStream_t stream_;
  cudaError_t error_ = cudaSuccess;
};

// Blocks of a cooperative kernel that run at once on the current device.
template <typename Kernel>
Status ResidentBlocks(Kernel kernel, size_t shared_bytes, int* blocks) {
  int device = 0, processors = 0, per_processor = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  }
  if (error == cudaSuccess) {
    error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_processor, kernel,
                                                          cuda::kGroupThreads, shared_bytes);
  }
  if (error != cudaSuccess) {
    return Error(StatusCode::kUnsupported, "CUDA: %s", cudaGetErrorString(error));
  }
  *blocks = processors * per_processor;
  return OkStatus();
}

template <typename Stored>
Status ForwardLimits(int64_t max_steps, int32_t* bad_length, cuda::DeviceLimits* limits) {
  *limits = {max_steps, 0, bad_length};
  return ResidentBlocks(cuda::ForwardKernel<Stored>, cuda::kForwardShared<Compute<Stored>>,
                        &limits->resident_blocks);
}

template <typename Stored>
Status BackwardLimits(int64_t max_steps, int32_t* bad_length, cuda::DeviceLimits* limits) {
  *limits = {max_steps, 0, bad_length};
  return ResidentBlocks(cuda::BackwardKernel<Stored>, cuda::kBackwardShared<Compute<Stored>>,
                        &limits->resident_blocks);
}

Status CheckCall(const LstmProblem& p, int64_t max_steps) {
  if (p.batch < 0 || p.timesteps < 0 || p.input_dim < 0 || p.units < 1 || max_steps < 0) {
    return Error(StatusCode::kInvalidArgument,
                 "batch, timesteps, input_dim, units, max_steps: expected sizes >= 0 and units >= "
                 "1, got %lld, %lld, %lld, %lld, %lld",
                 static_cast<long long>(p.batch), static_cast<long long>(p.timesteps),
                 static_cast<long long>(p.input_dim), static_cast<long long>(p.units),
                 static_cast<long long>(max_steps));
  }
  if (p.input_factors != nullptr || p.recurrent_factors != nullptr) {
    return Error(StatusCode::kUnsupported,
                 "input_factors, recurrent_factors: the CUDA kernels do not take them yet");
  }
  return OkStatus();
}

Status CheckWorkspace(const void* workspace, size_t have, size_t need) {
  if (workspace != nullptr && have >= need) return OkStatus();
  return Error(StatusCode::kInvalidArgument, "workspace: expected %zu bytes, got %zu", need,
               workspace == nullptr ? size_t{0} : have);
}

// f(Stored()) for the dtype.
template <typename F>
Status WithStored(DType dtype, F f) {
  switch (dtype) {
    case DType::kFloat64:
      return f(double());
    case DType::kFloat16:
      return f(Float16());
    case DType::kBFloat16:
      return f(BFloat16());
    default:
      return f(float());
  }
}

}  // namespace

Status CudaForwardWorkspaceBytes(const LstmForward& call, int64_t max_steps,
                                 size_t* bytes) noexcept {
  MASKED_LSTM_RETURN_IF_ERROR(CheckCall(call.problem, max_steps));
  return WithStored(call.problem.dtype, [&](auto stored) {
    using Stored = decltype(stored);
    cuda::DeviceLimits limits;
    MASKED_LSTM_RETURN_IF_ERROR(ForwardLimits<Stored>(max_steps, nullptr, &limits));
    *bytes = cuda::ForwardWorkspaceBytes<Stored>(call, limits);
    return OkStatus();
  });
}

Status CudaBackwardWorkspaceBytes(const LstmBackward& call, int64_t max_steps,
                                  size_t* bytes) noexcept {
  MASKED_LSTM_RETURN_IF_ERROR(CheckCall(call.problem, max_steps));
  return WithStored(call.problem.dtype, [&](auto stored) {
    using Stored = decltype(stored);
    cuda::DeviceLimits limits;
    MASKED_LSTM_RETURN_IF_ERROR(BackwardLimits<Stored>(max_steps, nullptr, &limits));
    *bytes = cuda::BackwardWorkspaceBytes<Stored>(call, limits);
    return OkStatus();
  });
}

Status RunCudaForward(const LstmForward& call, int64_t max_steps, int32_t* bad_length,
                      CUstream_st* stream) noexcept {
  MASKED_LSTM_RETURN_IF_ERROR(CheckCall(call.problem, max_steps));
  return WithStored(call.problem.dtype, [&](auto stored) {
    using Stored = decltype(stored);
    cuda::DeviceLimits limits;
    MASKED_LSTM_RETURN_IF_ERROR(ForwardLimits<Stored>(max_steps, bad_length, &limits));
    MASKED_LSTM_RETURN_IF_ERROR(CheckWorkspace(call.workspace, call.workspace_bytes,
                                               cuda::ForwardWorkspaceBytes<Stored>(call, limits)));
    StreamLauncher launch(stream);
    cuda::RunForward<Stored>(call, limits, launch);
    return launch.status();
  });
}

Status RunCudaBackward(const LstmBackward& call, int64_t max_steps, int32_t* bad_length,
                       CUstream_st* stream) noexcept {
  MASKED_LSTM_RETURN_IF_ERROR(CheckCall(call.problem, max_steps));
  if (call.reserve == nullptr && max_steps > 0) {
    return Error(StatusCode::kInvalidArgument, "reserve: expected that of the forward call");
  }
  return WithStored(call.problem.dtype, [&](auto stored) {
    using Stored = decltype(stored);
    cuda::DeviceLimits limits;
    MASKED_LSTM_RETURN_IF_ERROR(BackwardLimits<Stored>(max_steps, bad_length, &limits));
    MASKED_LSTM_RETURN_IF_ERROR(CheckWorkspace(call.workspace, call.workspace_bytes,
                                               cuda::BackwardWorkspaceBytes<Stored>(call, limits)));
    StreamLauncher launch(stream);
    cuda::RunBackward<Stored>(call, limits, launch);
    return launch.status();
  });
}

}  // namespace masked_lstm
