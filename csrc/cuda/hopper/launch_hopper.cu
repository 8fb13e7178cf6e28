// The calls of hopper_lstm.h: CUDA's launches for run_hopper.cuh.
#include <cuda_runtime.h>

#include <algorithm>
#include <atomic>

#include "cuda/hopper/hopper_lstm.h"
#include "cuda/hopper/run_hopper.cuh"
#include "cuda/stream_launcher.h"

namespace masked_lstm {
namespace {

// Launches of clusters too, and cooperative ones of much shared memory.
class HopperLauncher : public StreamLauncher {
 public:
  using StreamLauncher::StreamLauncher;

  template <typename... Parameters, typename... Arguments>
  void Clusters(void (*kernel)(Parameters...), int clusters, int cluster, int threads,
                size_t shared_bytes, Arguments... arguments) {
    Prepare(kernel, cluster, shared_bytes);
    static_assert(sizeof...(Parameters) == sizeof...(Arguments), "one argument for each parameter");
    if (error_ != cudaSuccess) return;
    cudaLaunchAttribute attribute;
    const cudaLaunchConfig_t config =
        Config(dim3(clusters * cluster), cluster, threads, shared_bytes, &attribute);
    error_ = cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
  }
  template <typename Kernel>
  int ResidentClusters(Kernel kernel, int cluster, int threads, int64_t shared_bytes) {
    Prepare(kernel, cluster, shared_bytes);
    cudaLaunchAttribute attribute;
    cudaLaunchConfig_t config =
        Config(dim3(cluster), cluster, threads, static_cast<size_t>(shared_bytes), &attribute);
    int clusters = 0;
    if (error_ == cudaSuccess) error_ = cudaOccupancyMaxActiveClusters(&clusters, kernel, &config);
    return error_ == cudaSuccess ? clusters : 0;
  }

  template <typename Kernel>
  int ResidentBlocks(Kernel kernel, int threads, int64_t shared_bytes) {
    Prepare(kernel, 1, shared_bytes);
    int device = 0, processors = 0, per_processor = 0;
    if (error_ == cudaSuccess) error_ = cudaGetDevice(&device);
    if (error_ == cudaSuccess) {
      error_ = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
    }
    if (error_ == cudaSuccess) {
      error_ = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_processor, kernel, threads,
                                                             static_cast<size_t>(shared_bytes));
    }
    return error_ == cudaSuccess ? processors * per_processor : 0;
  }
  template <typename... Parameters, typename... Arguments>
  void Cooperative(void (*kernel)(Parameters...), int blocks, int threads, size_t shared_bytes,
                   Arguments... arguments) {
    Prepare(kernel, 1, static_cast<int64_t>(shared_bytes));
    (*this)(kernel, blocks, 1, threads, shared_bytes, true, arguments...);
  }

  // `fits`: what the call said.
  Status status(bool fits) const {
    if (fits || error_ != cudaSuccess) return StreamLauncher::status();
    return Error(StatusCode::kUnsupported,
                 "MASKED_LSTM_CUDA_KERNEL: expected a GPU that runs a cluster or group of the size "
                 "planned for these units, got one that cannot; groups runs on any");
  }

 private:
  cudaLaunchConfig_t Config(dim3 grid, int cluster, int threads, size_t shared_bytes,
                            cudaLaunchAttribute* attribute) const {
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = dim3(threads);
    config.dynamicSmemBytes = shared_bytes;
    config.stream = stream_;
    attribute->id = cudaLaunchAttributeClusterDimension;
    attribute->val.clusterDim.x = cluster;
    attribute->val.clusterDim.y = attribute->val.clusterDim.z = 1;
    config.attrs = attribute;
    config.numAttrs = 1;
    return config;
  }
  template <typename Kernel>
  void Prepare(Kernel kernel, int cluster, int64_t shared_bytes) {
    // Always the same limit, since it is the kernel's, not the launch's: a smaller one could make
    // another thread's launch fail.
    if (error_ == cudaSuccess && shared_bytes > 48 << 10) {
      error_ = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    static_cast<int>(cuda::hopper::HopperSizes(0).shared_bytes));
    }
    if (error_ == cudaSuccess && cluster > 8) {
      error_ = cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
    }
  }
};

// kNone where no variant takes these units on a device of so many multiprocessors.
cuda::hopper::Plan PlanFor(const LstmProblem& p, int processors) {
  const auto choose = p.cuda_choice == CudaChoice::kHopperGrid ? cuda::hopper::ChooseGrid
                                                               : cuda::hopper::ChoosePlan;
  return choose(p.units, p.dtype, cuda::hopper::HopperSizes(processors));
}

// On the largest device: what the layout of a workspace follows from.
cuda::hopper::Plan PlanOf(const LstmProblem& p) {
  return PlanFor(p, cuda::hopper::kMostProcessors);
}

// On the current device. Errors: CUDA's own.
Status CurrentPlan(const LstmProblem& p, cuda::hopper::Plan* plan) {
  int device = 0, processors = 0;
  MASKED_LSTM_RETURN_IF_ERROR(CudaError(cudaGetDevice(&device)));
  MASKED_LSTM_RETURN_IF_ERROR(
      CudaError(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device)));
  // No more than workspaces are laid out for.
  *plan = PlanFor(p, std::min(processors, cuda::hopper::kMostProcessors));
  return OkStatus();
}

// f(Stored()) for the dtype.
template <typename F>
Status WithOperand(DType dtype, F f) {
  switch (dtype) {
    case DType::kFloat16:
      return f(Float16());
    case DType::kBFloat16:
      return f(BFloat16());
    default:
      return f(float());
  }
}

// Enough for any Hopper GPU: no device is asked.
template <typename Call>
Status WorkspaceBytes(const Call& call, int64_t max_steps, size_t* bytes) {
  return WithOperand(call.problem.dtype, [&](auto stored) {
    *bytes = cuda::hopper::HopperBytes<decltype(stored)>(call, max_steps, PlanOf(call.problem));
    return OkStatus();
  });
}

template <typename Call>
Status Run(const Call* calls, int count, int64_t max_steps, int32_t* bad_length,
           CUstream_st* stream) {
  if (count == 2 && !cuda::hopper::SameShape(calls[0], calls[1])) {
    MASKED_LSTM_RETURN_IF_ERROR(Run(calls, 1, max_steps, bad_length, stream));
    return Run(calls + 1, 1, max_steps, bad_length, stream);
  }
  for (int i = 0; i < count; ++i) {
    size_t need = 0;
    MASKED_LSTM_RETURN_IF_ERROR(WorkspaceBytes(calls[i], max_steps, &need));
    MASKED_LSTM_RETURN_IF_ERROR(CheckWorkspace(calls[i].workspace, calls[i].workspace_bytes, need));
  }
  cuda::hopper::Plan plan;
  MASKED_LSTM_RETURN_IF_ERROR(CurrentPlan(calls->problem, &plan));
  if (plan.variant == cuda::hopper::Variant::kNone) return HopperLauncher(stream).status(false);
  return WithOperand(calls->problem.dtype, [&](auto stored) {
    HopperLauncher launch(stream);
    const bool fits = cuda::hopper::RunHopper<decltype(stored)>(
        calls, count, max_steps, bad_length, plan, cuda::hopper::HopperSizes(0).shared_bytes,
        launch);
    return launch.status(fits);
  });
}

// Whether the current device runs the largest cluster of any plan: a part of a GPU may not, nor one
// with few multiprocessors. `device`: its number.
bool RunsClusters(int device) {
  enum : char { kUnknown, kNo, kYes };
  constexpr int kDevices = 64;
  static std::atomic<char> known[kDevices];
  std::atomic<char>* const answer = device < kDevices ? &known[device] : nullptr;
  if (answer != nullptr && *answer != kUnknown) return *answer == kYes;
  typedef cuda::hopper::LargeForward Largest;
  const cuda::hopper::DeviceSizes sizes = cuda::hopper::HopperSizes(0);
  HopperLauncher launch(nullptr);
  const bool runs =
      launch.ResidentClusters(cuda::hopper::ClusterForwardKernel<BFloat16, Largest, 1>,
                              sizes.max_cluster, Largest::kThreads, sizes.shared_bytes) > 0;
  const bool answered = launch.status(true).ok();
  if (answer != nullptr && answered) *answer = runs ? kYes : kNo;
  return answered && runs;
}

}  // namespace

CudaKernel HopperKernel(const LstmProblem& problem, int64_t max_steps) noexcept {
  const bool allow_tf32 = problem.cuda_choice != CudaChoice::kHopper;
  int device = 0, major = 0;
  cuda::hopper::Plan plan;
  if (problem.cuda_choice == CudaChoice::kGroups ||
      !cuda::hopper::HopperTakes(problem, max_steps, allow_tf32) ||
      !CudaError(cudaGetDevice(&device)).ok() ||
      !CudaError(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device)).ok() ||
      major != 9 || !CurrentPlan(problem, &plan).ok() ||
      plan.variant == cuda::hopper::Variant::kNone) {
    return CudaKernel::kGroups;
  }
  if (problem.cuda_choice != CudaChoice::kHopperGrid && !RunsClusters(device)) {
    return CudaKernel::kGroups;
  }
  return plan.variant == cuda::hopper::Variant::kGrid ? CudaKernel::kGrid : CudaKernel::kClusters;
}

Status HopperForwardWorkspaceBytes(const LstmForward& call, int64_t max_steps,
                                   size_t* bytes) noexcept {
  return WorkspaceBytes(call, max_steps, bytes);
}
Status HopperBackwardWorkspaceBytes(const LstmBackward& call, int64_t max_steps,
                                    size_t* bytes) noexcept {
  return WorkspaceBytes(call, max_steps, bytes);
}
Status RunHopperForward(const LstmForward* calls, int count, int64_t max_steps, int32_t* bad_length,
                        CUstream_st* stream) noexcept {
  return Run(calls, count, max_steps, bad_length, stream);
}
Status RunHopperBackward(const LstmBackward* calls, int count, int64_t max_steps,
                         int32_t* bad_length, CUstream_st* stream) noexcept {
  return Run(calls, count, max_steps, bad_length, stream);
}

namespace {

// The plan, and with it the layout, follows from the problem alone.
template <typename Call>
Status WorkspaceBound(const Call& call, int64_t max_steps, size_t* bytes) {
  const LstmProblem& p = call.problem;
  *bytes = 0;
  if (p.cuda_choice == CudaChoice::kGroups ||
      !cuda::hopper::HopperTakes(p, max_steps, p.cuda_choice != CudaChoice::kHopper) ||
      PlanOf(p).variant == cuda::hopper::Variant::kNone) {
    return OkStatus();
  }
  return WorkspaceBytes(call, max_steps, bytes);
}

}  // namespace

Status HopperForwardWorkspaceBound(const LstmForward& call, int64_t max_steps,
                                   size_t* bytes) noexcept {
  return WorkspaceBound(call, max_steps, bytes);
}
Status HopperBackwardWorkspaceBound(const LstmBackward& call, int64_t max_steps,
                                    size_t* bytes) noexcept {
  return WorkspaceBound(call, max_steps, bytes);
}

}  // namespace masked_lstm
