// A whole call on the CPU: lays out the workspace and lends the threads to the workers. The problem
// has been validated (lstm.cc).
#pragma once

#include "cpu/isa.h"
#include "lstm.h"

namespace masked_lstm {

size_t CpuForwardWorkspaceBytes(const LstmProblem& problem, const CpuKernels& kernels, int workers);
size_t CpuBackwardWorkspaceBytes(const LstmProblem& problem, int64_t steps,
                                 const CpuKernels& kernels, int workers);

// steps: N.
void CpuForward(const LstmForward& call, int64_t steps, const CpuKernels& kernels,
                const Threads& threads);

// call.reserve is not null, unless steps is 0.
void CpuBackward(const LstmBackward& call, int64_t steps, const CpuKernels& kernels,
                 const Threads& threads);

}  // namespace masked_lstm
