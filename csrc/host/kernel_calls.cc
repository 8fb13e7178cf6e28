#include "host/kernel_calls.h"

#include <atomic>
#include <cstdio>

#include "cpu/isa.h"

namespace masked_lstm {
namespace {

constexpr int kPasses = 2;
std::atomic<int64_t> cpu_calls[kIsas * kDTypes * kPasses];

}  // namespace

void CountCpuCall(Isa isa, DType dtype, Pass pass) noexcept {
  const int index = (static_cast<int>(isa) * kDTypes + static_cast<int>(dtype)) * kPasses +
                    static_cast<int>(pass);
  cpu_calls[index].fetch_add(1, std::memory_order_relaxed);
}

int64_t KernelCalls(int index, char* name, int name_bytes) noexcept {
  if (index < 0 || index >= kIsas * kDTypes * kPasses) return -1;
  std::snprintf(name, name_bytes, "cpu-%s-%s-%s",
                IsaName(static_cast<Isa>(index / (kDTypes * kPasses))),
                DTypeName(static_cast<DType>(index / kPasses % kDTypes)),
                index % kPasses == 0 ? "forward" : "backward");
  return cpu_calls[index].load(std::memory_order_relaxed);
}

}  // namespace masked_lstm
