#include "host/kernel_calls.h"

#include <atomic>
#include <cstdio>

#include "cpu/isa.h"

namespace masked_lstm {
namespace {

constexpr int kPasses = 2;
// Of the CPU's instruction sets, then of the CUDA kernels.
constexpr int kCounters = (kIsas + kCudaKernels) * kDTypes * kPasses;
std::atomic<int64_t> calls[kCounters];

void Count(int kernel, DType dtype, Pass pass) {
  const int index = (kernel * kDTypes + static_cast<int>(dtype)) * kPasses + static_cast<int>(pass);
  calls[index].fetch_add(1, std::memory_order_relaxed);
}

}  // namespace

void CountCpuCall(Isa isa, DType dtype, Pass pass) noexcept {
  Count(static_cast<int>(isa), dtype, pass);
}

void CountCudaCall(CudaKernel kernel, DType dtype, Pass pass) noexcept {
  Count(kIsas + static_cast<int>(kernel), dtype, pass);
}

int64_t KernelCalls(int index, char* name, int name_bytes) noexcept {
  if (index < 0 || index >= kCounters) return -1;
  const int kernel = index / (kDTypes * kPasses);
  const bool cuda = kernel >= kIsas;
  std::snprintf(name, name_bytes, "%s-%s-%s-%s", cuda ? "cuda" : "cpu",
                cuda ? CudaKernelName(static_cast<CudaKernel>(kernel - kIsas))
                     : IsaName(static_cast<Isa>(kernel)),
                DTypeName(static_cast<DType>(index / kPasses % kDTypes)),
                index % kPasses == 0 ? "forward" : "backward");
  return calls[index].load(std::memory_order_relaxed);
}

}  // namespace masked_lstm
