// The calls of hopper_lstm.h: CUDA's launches for run_hopper.cuh.
#include <cuda_runtime.h>

#include "cuda/hopper/hopper_lstm.h"
#include "cuda/hopper/run_hopper.cuh"
#include "cuda/stream_launcher.h"

namespace masked_lstm {
namespace {

// Launches of clusters too.
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

  // `fits`: what the call said.
  Status status(bool fits) const {
    if (fits || error_ != cudaSuccess) return StreamLauncher::status();
    return Error(StatusCode::kUnsupported,
                 "MASKED_LSTM_CUDA_KERNEL=hopper: expected a GPU that runs a cluster of the size "
                 "planned for these units, got one that cannot");
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
    config.numAttrs = cluster > 1 ? 1 : 0;
    return config;
  }
  template <typename Kernel>
  void Prepare(Kernel kernel, int cluster, int64_t shared_bytes) {
    if (error_ == cudaSuccess && shared_bytes > 48 << 10) {
      error_ = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    static_cast<int>(shared_bytes));
    }
    if (error_ == cudaSuccess && cluster > 8) {
      error_ = cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
    }
  }
};

cuda::hopper::Plan PlanOf(const LstmProblem& p) {
  return cuda::hopper::ChoosePlan(p.units, p.dtype, cuda::hopper::kHopper);
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

template <typename Call>
Status WorkspaceBytes(const Call& call, int64_t max_steps, size_t* bytes) {
  return WithOperand(call.problem.dtype, [&](auto stored) {
    *bytes = cuda::hopper::HopperBytes<decltype(stored)>(call, max_steps, PlanOf(call.problem));
    return OkStatus();
  });
}

template <typename Call>
Status Run(const Call& call, int64_t max_steps, int32_t* bad_length, CUstream_st* stream) {
  size_t need = 0;
  MASKED_LSTM_RETURN_IF_ERROR(WorkspaceBytes(call, max_steps, &need));
  MASKED_LSTM_RETURN_IF_ERROR(CheckWorkspace(call.workspace, call.workspace_bytes, need));
  return WithOperand(call.problem.dtype, [&](auto stored) {
    HopperLauncher launch(stream);
    const bool fits =
        cuda::hopper::RunHopper<decltype(stored)>(call, max_steps, bad_length, PlanOf(call.problem),
                                                  cuda::hopper::kHopper.shared_bytes, launch);
    return launch.status(fits);
  });
}

}  // namespace

bool HopperServes(const LstmProblem& problem, int64_t max_steps) noexcept {
  if (problem.cuda_choice == CudaChoice::kGroups) return false;
  const bool allow_tf32 = problem.cuda_choice == CudaChoice::kHopperTf32;
  if (!cuda::hopper::HopperTakes(problem, max_steps, allow_tf32) ||
      PlanOf(problem).variant == cuda::hopper::Variant::kNone) {
    return false;
  }
  int device = 0, major = 0;
  return cudaGetDevice(&device) == cudaSuccess &&
         cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
         major == 9;
}

Status HopperForwardWorkspaceBytes(const LstmForward& call, int64_t max_steps,
                                   size_t* bytes) noexcept {
  return WorkspaceBytes(call, max_steps, bytes);
}
Status HopperBackwardWorkspaceBytes(const LstmBackward& call, int64_t max_steps,
                                    size_t* bytes) noexcept {
  return WorkspaceBytes(call, max_steps, bytes);
}
Status RunHopperForward(const LstmForward& call, int64_t max_steps, int32_t* bad_length,
                        CUstream_st* stream) noexcept {
  return Run(call, max_steps, bad_length, stream);
}
Status RunHopperBackward(const LstmBackward& call, int64_t max_steps, int32_t* bad_length,
                         CUstream_st* stream) noexcept {
  return Run(call, max_steps, bad_length, stream);
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
