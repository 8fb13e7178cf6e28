// The LSTM on a CUDA device. Everything is asynchronous on the caller's stream: nothing is
// allocated, nothing waits for the device, no state is kept; calls may be captured into a CUDA
// graph.
//
// The structs are those of lstm.h, every pointer in them device memory of the current device. What
// is different there: how many steps are valid (N) is never known to the host. `max_steps` stands
// for it: B*T, or the rows of x of a ragged batch; reserve and scratch hold max_steps*5U values.
// Lengths outside [0,T] are clamped on the device, never followed out of bounds. row_splits must
// have been checked by the caller. Factors (dropout) are not supported yet.
//
// None of this has run on a GPU yet: tests/cuda_host runs the kernels on the CPU.
#pragma once

#include "lstm.h"

struct CUstream_st;

namespace masked_lstm {

// Errors: those of CountValidSteps that show without the device; kUnsupported for factors.
Status CudaForwardWorkspaceBytes(const LstmForward& call, int64_t max_steps,
                                 size_t* bytes) noexcept;
Status CudaBackwardWorkspaceBytes(const LstmBackward& call, int64_t max_steps,
                                  size_t* bytes) noexcept;

// As RunLstmForward and RunLstmBackward. call.reserve may not be null in the backward call.
// bad_length: int32 on the device, set to 1 if a length had to be clamped; or null.
// Errors: as above; kInvalidArgument for too small a workspace; kUnsupported with CUDA's own words
// when a launch fails (no kernel for this device, an earlier asynchronous error).
Status RunCudaForward(const LstmForward& call, int64_t max_steps, int32_t* bad_length,
                      CUstream_st* stream) noexcept;
Status RunCudaBackward(const LstmBackward& call, int64_t max_steps, int32_t* bad_length,
                       CUstream_st* stream) noexcept;

}  // namespace masked_lstm
