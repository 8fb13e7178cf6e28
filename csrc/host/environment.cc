#include "host/environment.h"

#include <cstdlib>
#include <cstring>

#include "cpu/isa.h"

namespace masked_lstm {

Status IsaFromEnvironment(Isa* isa) noexcept {
  *isa = BestIsa();
  const char* name = std::getenv("MASKED_LSTM_ISA");
  if (name == nullptr || *name == '\0') return OkStatus();
  const Status status = ParseIsa(name, isa);
  if (!status.ok()) return status;
  const CpuKernels* kernels = nullptr;
  return FindCpuKernels(*isa, &kernels);
}

Status CudaChoiceFromEnvironment(CudaChoice* choice) noexcept {
  const char* name = std::getenv("MASKED_LSTM_CUDA_KERNEL");
  *choice = CudaChoice::kHopper;
  if (name == nullptr || *name == '\0' || std::strcmp(name, "hopper") == 0) return OkStatus();
  *choice = CudaChoice::kGroups;
  if (std::strcmp(name, "groups") == 0) return OkStatus();
  *choice = CudaChoice::kHopperTf32;
  if (std::strcmp(name, "hopper-tf32") == 0) return OkStatus();
  *choice = CudaChoice::kHopperGrid;
  if (std::strcmp(name, "hopper-grid") == 0) return OkStatus();
  return Error(StatusCode::kInvalidArgument,
               "MASKED_LSTM_CUDA_KERNEL: expected groups, hopper, hopper-tf32 or hopper-grid, "
               "got '%.40s'",
               name);
}

bool CheckLengthsFromEnvironment() noexcept {
  const char* value = std::getenv("MASKED_LSTM_CHECK_LENGTHS");
  return value != nullptr && *value != '\0' && std::strcmp(value, "0") != 0;
}

}  // namespace masked_lstm
