// The calls of cuda_lstm.h: run.cuh over CUDA's runtime.
#include <cuda_runtime.h>

#include <algorithm>
#include <atomic>
#include <climits>

#include "cuda/cuda_lstm.h"
#include "cuda/hopper/hopper_lstm.h"
#include "cuda/run.cuh"
#include "cuda/stream_launcher.h"

namespace masked_lstm {
namespace {

// Blocks of a cooperative kernel that run at once on the current device: a fact of the device and
// the kernel, asked for once (kernel: as a template argument, so that each has its own memory).
template <auto kKernel>
Status ResidentBlocks(size_t shared_bytes, int* blocks) {
  constexpr int kDevices = 64;
  static std::atomic<int> known[kDevices];  // 0: not yet
  int device = 0;
  MASKED_LSTM_RETURN_IF_ERROR(CudaError(cudaGetDevice(&device)));
  *blocks = device < kDevices ? known[device].load(std::memory_order_relaxed) : 0;
  if (*blocks > 0) return OkStatus();
  int processors = 0, per_processor = 0, cooperative = 0;
  MASKED_LSTM_RETURN_IF_ERROR(
      CudaError(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device)));
  MASKED_LSTM_RETURN_IF_ERROR(
      CudaError(cudaDeviceGetAttribute(&cooperative, cudaDevAttrCooperativeLaunch, device)));
  MASKED_LSTM_RETURN_IF_ERROR(CudaError(cudaOccupancyMaxActiveBlocksPerMultiprocessor(
      &per_processor, kKernel, cuda::kGroupThreads, shared_bytes)));
  if (cooperative == 0 || processors * per_processor < 1) {
    return Error(StatusCode::kUnsupported,
                 "CUDA: this device cannot run the kernels: expected cooperative launches and %zu "
                 "bytes of shared memory",
                 shared_bytes);
  }
  *blocks = processors * per_processor;
  if (device < kDevices) known[device].store(*blocks, std::memory_order_relaxed);
  return OkStatus();
}

template <typename Stored, typename T = Compute<Stored>>
Status ForwardResident(const LstmProblem& p, int* blocks) {
  if (p.recurrent_factors == nullptr) {
    return ResidentBlocks<cuda::ForwardKernel<Stored, false, T>>(cuda::kForwardShared<T>, blocks);
  }
  return ResidentBlocks<cuda::ForwardKernel<Stored, true, T>>(cuda::kForwardShared<T>, blocks);
}

template <typename Stored, typename T = Compute<Stored>>
Status BackwardResident(const LstmProblem& p, int* blocks) {
  if (p.recurrent_factors == nullptr) {
    return ResidentBlocks<cuda::BackwardKernel<Stored, false, T>>(cuda::kBackwardShared<T>, blocks);
  }
  return ResidentBlocks<cuda::BackwardKernel<Stored, true, T>>(cuda::kBackwardShared<T>, blocks);
}

template <typename Stored>
Status Limits(const LstmForward& call, int64_t max_steps, int32_t* bad_length,
              cuda::DeviceLimits* limits) {
  *limits = {max_steps, 0, 0, bad_length};
  return ForwardResident<Stored>(call.problem, &limits->forward_resident);
}

template <typename Stored>
Status Limits(const LstmBackward& call, int64_t max_steps, int32_t* bad_length,
              cuda::DeviceLimits* limits) {
  *limits = {max_steps, 0, 0, bad_length};
  MASKED_LSTM_RETURN_IF_ERROR(BackwardResident<Stored>(call.problem, &limits->backward_resident));
  if (call.reserve != nullptr) return OkStatus();
  return ForwardResident<Stored>(call.problem, &limits->forward_resident);
}

template <typename Stored>
int64_t WorkspaceBytes(const LstmForward& call, const cuda::DeviceLimits& limits) {
  return cuda::ForwardWorkspaceBytes<Stored>(call, limits);
}
template <typename Stored>
int64_t WorkspaceBytes(const LstmBackward& call, const cuda::DeviceLimits& limits) {
  return cuda::BackwardWorkspaceBytes<Stored>(call, limits);
}

template <typename Stored>
void Launch(const LstmForward& call, const cuda::DeviceLimits& limits, StreamLauncher& launch) {
  cuda::RunForward<Stored>(call, limits, launch);
}
template <typename Stored>
void Launch(const LstmBackward& call, const cuda::DeviceLimits& limits, StreamLauncher& launch) {
  cuda::RunBackward<Stored>(call, limits, launch);
}

// Sizes whose products fit, as CountValidSteps checks them for a CPU; steps of a row that 32 bits
// count; grids that CUDA takes.
Status CheckCall(const LstmProblem& p, int64_t max_steps) {
  constexpr int64_t kMost = int64_t{1} << 31, kMostValues = int64_t{1} << 56, kMostBlocks = 65535;
  const bool sizes = p.batch >= 0 && p.batch < kMost && p.timesteps >= 0 && p.timesteps < kMost &&
                     p.input_dim >= 0 && p.input_dim < kMostBlocks * cuda::kMatmulTile &&
                     p.units >= 1 && 4 * p.units <= kMostBlocks * cuda::kMatmulTile &&
                     max_steps >= 0 && (p.row_splits == nullptr || max_steps < kMost);
  if (!sizes || max_steps / 64 >= kMost || max_steps > kMostValues / (5 * p.units) ||
      max_steps > kMostValues / (p.input_dim + 1)) {
    return Error(StatusCode::kInvalidArgument,
                 "batch, timesteps, input_dim, units, steps: expected sizes >= 0, batch, timesteps "
                 "and a ragged batch's steps below 2^31, input_dim below 2^22, units from 1 to "
                 "2^20, a reserve below 2^56 values, got %lld, %lld, %lld, %lld, %lld",
                 static_cast<long long>(p.batch), static_cast<long long>(p.timesteps),
                 static_cast<long long>(p.input_dim), static_cast<long long>(p.units),
                 static_cast<long long>(max_steps));
  }
  return OkStatus();
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

template <typename Call>
Status CallWorkspaceBytes(const Call& call, int64_t max_steps, size_t* bytes) {
  MASKED_LSTM_RETURN_IF_ERROR(CheckCall(call.problem, max_steps));
  return WithStored(call.problem.dtype, [&](auto stored) {
    using Stored = decltype(stored);
    cuda::DeviceLimits limits;
    MASKED_LSTM_RETURN_IF_ERROR(Limits<Stored>(call, max_steps, nullptr, &limits));
    *bytes = WorkspaceBytes<Stored>(call, limits);
    return OkStatus();
  });
}

template <typename Call>
Status Run(const Call& call, int64_t max_steps, int32_t* bad_length, CUstream_st* stream) {
  MASKED_LSTM_RETURN_IF_ERROR(CheckCall(call.problem, max_steps));
  return WithStored(call.problem.dtype, [&](auto stored) {
    using Stored = decltype(stored);
    cuda::DeviceLimits limits;
    MASKED_LSTM_RETURN_IF_ERROR(Limits<Stored>(call, max_steps, bad_length, &limits));
    MASKED_LSTM_RETURN_IF_ERROR(
        CheckWorkspace(call.workspace, call.workspace_bytes, WorkspaceBytes<Stored>(call, limits)));
    StreamLauncher launch(stream);
    Launch<Stored>(call, limits, launch);
    return launch.status();
  });
}

bool OnHopper(const LstmProblem& p, int64_t max_steps) {
  return HopperKernel(p, max_steps) != CudaKernel::kGroups;
}

// Where the Hopper kernels take both calls their recurrences are one launch, else two.
template <typename Call, typename Both, typename One>
Status RunPair(const Call (&calls)[2], int64_t max_steps, Both both, One one, int32_t* bad_length,
               CUstream_st* stream) {
  for (const Call& call : calls) MASKED_LSTM_RETURN_IF_ERROR(CheckCall(call.problem, max_steps));
  if (OnHopper(calls[0].problem, max_steps) && OnHopper(calls[1].problem, max_steps)) {
    return both(calls, 2, max_steps, bad_length, stream);
  }
  MASKED_LSTM_RETURN_IF_ERROR(one(calls[0], max_steps, bad_length, stream));
  return one(calls[1], max_steps, bad_length, stream);
}

}  // namespace

#if !defined(MASKED_LSTM_HOPPER)  // not compiled for 90a: nothing is handed over
CudaKernel HopperKernel(const LstmProblem&, int64_t) noexcept { return CudaKernel::kGroups; }
Status HopperForwardWorkspaceBytes(const LstmForward&, int64_t, size_t*) noexcept {
  return OkStatus();
}
Status HopperBackwardWorkspaceBytes(const LstmBackward&, int64_t, size_t*) noexcept {
  return OkStatus();
}
Status RunHopperForward(const LstmForward*, int, int64_t, int32_t*, CUstream_st*) noexcept {
  return OkStatus();
}
Status RunHopperBackward(const LstmBackward*, int, int64_t, int32_t*, CUstream_st*) noexcept {
  return OkStatus();
}
#endif

Status CheckCudaSizes(const LstmProblem& problem, int64_t max_steps) noexcept {
  return CheckCall(problem, max_steps);
}

CudaKernel ForwardCudaKernel(const LstmForward& call) noexcept {
  return HopperKernel(call.problem, 1);
}
CudaKernel BackwardCudaKernel(const LstmBackward& call) noexcept {
  return HopperKernel(call.problem, 1);
}

Status CudaForwardWorkspaceBytes(const LstmForward& call, int64_t max_steps,
                                 size_t* bytes) noexcept {
  MASKED_LSTM_RETURN_IF_ERROR(CheckCall(call.problem, max_steps));
  if (OnHopper(call.problem, max_steps)) {
    return HopperForwardWorkspaceBytes(call, max_steps, bytes);
  }
  return CallWorkspaceBytes(call, max_steps, bytes);
}

Status CudaBackwardWorkspaceBytes(const LstmBackward& call, int64_t max_steps,
                                  size_t* bytes) noexcept {
  MASKED_LSTM_RETURN_IF_ERROR(CheckCall(call.problem, max_steps));
  if (OnHopper(call.problem, max_steps)) {
    return HopperBackwardWorkspaceBytes(call, max_steps, bytes);
  }
  return CallWorkspaceBytes(call, max_steps, bytes);
}

Status RunCudaForward(const LstmForward& call, int64_t max_steps, int32_t* bad_length,
                      CUstream_st* stream) noexcept {
  MASKED_LSTM_RETURN_IF_ERROR(CheckCall(call.problem, max_steps));
  if (OnHopper(call.problem, max_steps)) {
    return RunHopperForward(&call, 1, max_steps, bad_length, stream);
  }
  return Run(call, max_steps, bad_length, stream);
}

Status RunCudaBackward(const LstmBackward& call, int64_t max_steps, int32_t* bad_length,
                       CUstream_st* stream) noexcept {
  MASKED_LSTM_RETURN_IF_ERROR(CheckCall(call.problem, max_steps));
  if (OnHopper(call.problem, max_steps)) {
    return RunHopperBackward(&call, 1, max_steps, bad_length, stream);
  }
  return Run(call, max_steps, bad_length, stream);
}

Status RunCudaForwardPair(const LstmForward (&calls)[2], int64_t max_steps, int32_t* bad_length,
                          CUstream_st* stream) noexcept {
  return RunPair(calls, max_steps, RunHopperForward, RunCudaForward, bad_length, stream);
}

Status RunCudaBackwardPair(const LstmBackward (&calls)[2], int64_t max_steps, int32_t* bad_length,
                           CUstream_st* stream) noexcept {
  return RunPair(calls, max_steps, RunHopperBackward, RunCudaBackward, bad_length, stream);
}

Status ClearCudaFlag(int32_t* flag, CUstream_st* stream) noexcept {
  return CudaError(cudaMemsetAsync(flag, 0, sizeof(*flag), stream));
}

Status ReadCudaFlag(const int32_t* flag, CUstream_st* stream, int32_t* value) noexcept {
  MASKED_LSTM_RETURN_IF_ERROR(
      CudaError(cudaMemcpyAsync(value, flag, sizeof(*value), cudaMemcpyDeviceToHost, stream)));
  return CudaError(cudaStreamSynchronize(stream));
}

#if !defined(MASKED_LSTM_HOPPER)
Status HopperForwardWorkspaceBound(const LstmForward&, int64_t, size_t* bytes) noexcept {
  *bytes = 0;
  return OkStatus();
}
Status HopperBackwardWorkspaceBound(const LstmBackward&, int64_t, size_t* bytes) noexcept {
  *bytes = 0;
  return OkStatus();
}
#endif

namespace {

// The kernels of run.cuh: of the device only the number of groups makes a difference, and a device
// that runs any number of blocks at once has the most.
template <typename Call>
Status WorkspaceBound(const Call& call, int64_t max_steps,
                      Status (*hopper_bound)(const Call&, int64_t, size_t*), size_t* bytes) {
  MASKED_LSTM_RETURN_IF_ERROR(CheckCall(call.problem, max_steps));
  size_t hopper = 0;
  MASKED_LSTM_RETURN_IF_ERROR(hopper_bound(call, max_steps, &hopper));
  return WithStored(call.problem.dtype, [&](auto stored) {
    const cuda::DeviceLimits limits = {max_steps, INT_MAX, INT_MAX, nullptr};
    *bytes = std::max<size_t>(hopper, WorkspaceBytes<decltype(stored)>(call, limits));
    return OkStatus();
  });
}

}  // namespace

Status CudaForwardWorkspaceBound(const LstmForward& call, int64_t max_steps,
                                 size_t* bytes) noexcept {
  return WorkspaceBound<LstmForward>(call, max_steps, HopperForwardWorkspaceBound, bytes);
}

Status CudaBackwardWorkspaceBound(const LstmBackward& call, int64_t max_steps,
                                  size_t* bytes) noexcept {
  return WorkspaceBound<LstmBackward>(call, max_steps, HopperBackwardWorkspaceBound, bytes);
}

}  // namespace masked_lstm
