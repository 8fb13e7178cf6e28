// The LSTM by the kernels for Hopper GPUs (compute capability 9.0), where they are asked for. Calls
// as those of cuda_lstm.h, which hands over to these; only compiled where nvcc compiles for 90a.
//
// They have not run on a GPU yet, so nothing chooses them but LstmProblem::cuda_choice.
#pragma once

#include "lstm.h"

struct CUstream_st;

namespace masked_lstm {

// Which of them takes this call on the current device, if they are asked for: else kGroups. What
// the device does not decide follows from choice, units, dtype and options, not from the batch.
CudaKernel HopperKernel(const LstmProblem& problem, int64_t max_steps) noexcept;

// Only for calls that one of them takes; workspaces are enough for any device. Reserves are those
// of the other kernels, either way. To run: one call or two, whose recurrences are one launch where
// their sizes agree.
Status HopperForwardWorkspaceBytes(const LstmForward& call, int64_t max_steps,
                                   size_t* bytes) noexcept;
Status HopperBackwardWorkspaceBytes(const LstmBackward& call, int64_t max_steps,
                                    size_t* bytes) noexcept;
Status RunHopperForward(const LstmForward* calls, int count, int64_t max_steps, int32_t* bad_length,
                        CUstream_st* stream) noexcept;
Status RunHopperBackward(const LstmBackward* calls, int count, int64_t max_steps,
                         int32_t* bad_length, CUstream_st* stream) noexcept;

// Enough for the call on any device, which is not asked; 0 where none takes it.
Status HopperForwardWorkspaceBound(const LstmForward& call, int64_t max_steps,
                                   size_t* bytes) noexcept;
Status HopperBackwardWorkspaceBound(const LstmBackward& call, int64_t max_steps,
                                    size_t* bytes) noexcept;

}  // namespace masked_lstm
