#include "cpu/isa.h"

#include <cstring>
#include <initializer_list>
#if defined(MASKED_LSTM_X86)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace masked_lstm {

namespace generic {
extern const CpuKernels kKernels;
}
#if defined(MASKED_LSTM_X86)
namespace avx2 {
extern const CpuKernels kKernels;
}
#endif
#if defined(MASKED_LSTM_AVX512)
namespace avx512 {
extern const CpuKernels kKernels;
}
#endif
#if defined(MASKED_LSTM_AVX512_BF16)
namespace avx512_bf16 {
extern const ForwardFunction kBf16Forward;
}
namespace amx_bf16 {
extern const ForwardFunction kBf16Forward;
}
#endif

#if defined(MASKED_LSTM_X86)
// Not every compiler's __builtin_cpu_supports knows this name.
static bool HasF16c() {
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
#endif

#if defined(MASKED_LSTM_AVX512_BF16)
static bool HasAvx512Bf16() {
  unsigned a, b, c, d;
  return IsaSupported(Isa::kAvx512) && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & 1 << 5);
}

// Tiles of bfloat16, and the operating system's leave to use them, which a process has to ask for.
static bool HasAmxBf16() {
  constexpr unsigned kAmxBf16 = 1 << 22, kAmxTile = 1 << 24;
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM
  unsigned a, b, c, d;
  return HasAvx512Bf16() && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & kAmxBf16) &&
         (d & kAmxTile) && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

// AMD's cores do these dot products at the rate of multiply-adds, Intel's (which have AMX, or leave
// it to a virtual machine's host to hide) at a quarter of it: slower than widened.
static bool FastAvx512Bf16() {
  unsigned a, b, c, d;
  return __get_cpuid(0, &a, &b, &c, &d) && b == signature_AMD_ebx;
}
#endif

// cpuid is asked once: in a virtual machine it takes longer than a small call.
bool IsaSupported(Isa isa) noexcept {
  switch (isa) {
    case Isa::kAuto:
    case Isa::kGeneric:
      return true;
#if defined(MASKED_LSTM_X86)
    // The compiler's run-time check covers the operating system's part (saved registers) too.
    case Isa::kAvx2: {
      static const bool has =
          __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && HasF16c();
      return has;
    }
#endif
#if defined(MASKED_LSTM_AVX512)
    case Isa::kAvx512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
             __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
             __builtin_cpu_supports("fma");
#endif
#if defined(MASKED_LSTM_AVX512_BF16)
    case Isa::kAvx512Bf16: {
      static const bool has = HasAvx512Bf16();
      return has;
    }
    case Isa::kAmxBf16: {
      static const bool has = HasAmxBf16();
      return has;
    }
#endif
    default:
      return false;
  }
}

static Isa FindBestIsa() noexcept {
  if (IsaSupported(Isa::kAmxBf16)) return Isa::kAmxBf16;
#if defined(MASKED_LSTM_AVX512_BF16)
  if (IsaSupported(Isa::kAvx512Bf16) && FastAvx512Bf16()) return Isa::kAvx512Bf16;
#endif
  if (IsaSupported(Isa::kAvx512)) return Isa::kAvx512;
  if (IsaSupported(Isa::kAvx2)) return Isa::kAvx2;
  return Isa::kGeneric;
}

Isa BestIsa() noexcept {
  static const Isa best = FindBestIsa();
  return best;
}

const char* IsaName(Isa isa) noexcept {
  switch (isa) {
    case Isa::kGeneric:
      return "generic";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAvx512Bf16:
      return "avx512_bf16";
    case Isa::kAmxBf16:
      return "amx_bf16";
    default:
      return "auto";
  }
}

Status ParseIsa(const char* name, Isa* isa) noexcept {
  for (int candidate = 0; candidate < kIsas; ++candidate) {
    if (std::strcmp(name, IsaName(static_cast<Isa>(candidate))) == 0) {
      *isa = static_cast<Isa>(candidate);
      return OkStatus();
    }
  }
  return Error(StatusCode::kInvalidArgument,
               "instruction set: expected generic, avx2, avx512, avx512_bf16 or amx_bf16, got "
               "'%.40s'",
               name);
}

#if defined(MASKED_LSTM_AVX512_BF16)
static CpuKernels WithBf16Products(const char* name, ForwardFunction forward, int tile_rows,
                                   int slots) {
  CpuKernels kernels = avx512::kKernels;
  kernels.name = name;
  kernels.forward[static_cast<int>(DType::kBFloat16)] = forward;
  kernels.bf16_tile_rows = tile_rows;
  kernels.bf16_slots = slots;
  return kernels;
}
#endif

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
#endif
#if defined(MASKED_LSTM_AVX512)
  if (isa == Isa::kAvx512) *kernels = &avx512::kKernels;
#endif
#if defined(MASKED_LSTM_AVX512_BF16)
  static const CpuKernels dot = WithBf16Products("avx512_bf16", avx512_bf16::kBf16Forward, 6, 24);
  static const CpuKernels amx = WithBf16Products("amx_bf16", amx_bf16::kBf16Forward, 16, 32);
  if (isa == Isa::kAvx512Bf16) *kernels = &dot;
  if (isa == Isa::kAmxBf16) *kernels = &amx;
#endif
  return OkStatus();
}

Isa ForwardIsa(const LstmProblem& p) noexcept {
  const Isa isa = p.isa == Isa::kAuto ? BestIsa() : p.isa;
  if (isa <= Isa::kAvx512) return isa;
  const bool products =
      p.dtype == DType::kBFloat16 && p.input_factors == nullptr && p.recurrent_factors == nullptr;
  return products ? isa : Isa::kAvx512;
}

Isa BackwardIsa(const LstmProblem& p) noexcept {
  const Isa isa = p.isa == Isa::kAuto ? BestIsa() : p.isa;
  return isa <= Isa::kAvx512 ? isa : Isa::kAvx512;
}

}  // namespace masked_lstm
