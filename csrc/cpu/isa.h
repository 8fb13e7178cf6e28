// The instruction sets the CPU kernels are compiled for, and which one a call gets.
#pragma once

#include "cpu/job.h"
#include "lstm.h"

namespace masked_lstm {

// Whether this machine runs the set (and this build has it). kAuto: always.
bool IsaSupported(Isa isa) noexcept;

// Widest supported set.
Isa BestIsa() noexcept;

// "generic" | "avx2" | "avx512" | "avx512_bf16" | "amx_bf16"; "auto" for kAuto.
const char* IsaName(Isa isa) noexcept;

// The set named by `name`. Errors: kInvalidArgument for another name.
Status ParseIsa(const char* name, Isa* isa) noexcept;

// The set whose kernels a pass of this problem runs: where bfloat16 has no products in it, kAvx512
// in place of the sets that only add those. Never kAuto.
Isa ForwardIsa(const LstmProblem& problem) noexcept;
Isa BackwardIsa(const LstmProblem& problem) noexcept;

// Kernels for `isa` (kAuto: the best). Errors: kUnsupported.
Status FindCpuKernels(Isa isa, const CpuKernels** kernels) noexcept;

}  // namespace masked_lstm
