#include "host/environment.h"

#include <cstdlib>

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

}  // namespace masked_lstm
