// The LSTM by the kernels for Hopper GPUs (compute capability 9.0), where LstmProblem::cuda_choice
// has them. Calls as those of cuda_lstm.h, which hands over to these; only compiled where nvcc
// compiles for 90a.
#pragma once

#include "lstm.h"

struct CUstream_st;

namespace masked_lstm {

// Which of them takes this call on the current device, or kGroups: of Hopper GPUs, and parts of
// them, those take none that cannot run a cluster of 16 blocks, which is asked until each has
// answered. What the device does not decide follows from choice, units, dtype and options, not from
// the batch.
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
