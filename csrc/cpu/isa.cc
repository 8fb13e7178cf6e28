#include "cpu/isa.h"

#include <cstring>
#include <initializer_list>
#if defined(MASKED_LSTM_X86)
#include <cpuid.h>
#endif

namespace masked_lstm {

namespace generic {
extern const CpuKernels kKernels;
}
#if defined(MASKED_LSTM_X86)
namespace avx2 {
extern const CpuKernels kKernels;
}
namespace avx512 {
extern const CpuKernels kKernels;
}
#endif

#if defined(MASKED_LSTM_X86)
// Not every compiler's __builtin_cpu_supports knows this name.
static bool HasF16c() {
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
#endif

bool IsaSupported(Isa isa) noexcept {
  switch (isa) {
    case Isa::kAuto:
    case Isa::kGeneric:
      return true;
#if defined(MASKED_LSTM_X86)
    // The compiler's run-time check covers the operating system's part (saved registers) too.
    case Isa::kAvx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && HasF16c();
    case Isa::kAvx512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
             __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
             __builtin_cpu_supports("fma");
#endif
    default:
      return false;
  }
}

Isa BestIsa() noexcept {
  if (IsaSupported(Isa::kAvx512)) return Isa::kAvx512;
  if (IsaSupported(Isa::kAvx2)) return Isa::kAvx2;
  return Isa::kGeneric;
}

const char* IsaName(Isa isa) noexcept {
  switch (isa) {
    case Isa::kGeneric:
      return "generic";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvx512:
      return "avx512";
    default:
      return "auto";
  }
}

Status ParseIsa(const char* name, Isa* isa) noexcept {
  for (Isa candidate : {Isa::kGeneric, Isa::kAvx2, Isa::kAvx512}) {
    if (std::strcmp(name, IsaName(candidate)) == 0) {
      *isa = candidate;
      return OkStatus();
    }
  }
  return Error(StatusCode::kInvalidArgument,
               "instruction set: expected generic, avx2 or avx512, got '%.40s'", name);
}

Status FindCpuKernels(Isa isa, const CpuKernels** kernels) noexcept {
  if (isa == Isa::kAuto) isa = BestIsa();
  if (!IsaSupported(isa)) {
    return Error(StatusCode::kUnsupported,
                 "instruction set: %s was asked for, but this CPU or build only has %s",
                 IsaName(isa), IsaName(BestIsa()));
  }
  *kernels = &generic::kKernels;
#if defined(MASKED_LSTM_X86)
  if (isa == Isa::kAvx2) *kernels = &avx2::kKernels;
  if (isa == Isa::kAvx512) *kernels = &avx512::kKernels;
#endif
  return OkStatus();
}

}  // namespace masked_lstm
