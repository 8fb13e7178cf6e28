// The LSTM on a CUDA device. Everything is asynchronous on the caller's stream: nothing is
// allocated, nothing waits for the device (but ReadCudaFlag), no state is kept but facts of the
// device once asked for; calls may be captured into a CUDA graph, and run on several streams.
//
// The structs are those of lstm.h, every pointer in them device memory of the current device. What
// is different there: how many steps are valid (N) is never known to the host. `max_steps` stands
// for it: B*T, or the rows of x of a ragged batch; reserve and scratch hold max_steps*5U values.
// T of a ragged batch is not read. Lengths outside [0,T] and row_splits that do not rise from 0 to
// max_steps are made safe on the device, never followed out of bounds.
//
// None of this has run on a GPU yet: tests/cuda_host runs the kernels on the CPU.
#pragma once

#include "lstm.h"

struct CUstream_st;

namespace masked_lstm {

// Whether sizes are what the calls below take; they check it too. Errors: kInvalidArgument.
Status CheckCudaSizes(const LstmProblem& problem, int64_t max_steps) noexcept;

// Which kernel would serve the call on the current device.
CudaKernel ForwardCudaKernel(const LstmForward& call) noexcept;
CudaKernel BackwardCudaKernel(const LstmBackward& call) noexcept;

// Of the call's pointers only whether there is a reserve and row_splits counts. Errors: sizes below
// 0, units below 1, products that overflow; kUnsupported when no kernel was compiled for the
// device; kDeviceError with CUDA's own words.
Status CudaForwardWorkspaceBytes(const LstmForward& call, int64_t max_steps,
                                 size_t* bytes) noexcept;
Status CudaBackwardWorkspaceBytes(const LstmBackward& call, int64_t max_steps,
                                  size_t* bytes) noexcept;

// As RunLstmForward and RunLstmBackward; without a reserve the backward call computes it again.
// bad_length: int32 on the device, set to 1 if a length or a split had to be clamped; or null.
// Errors: as above; kInvalidArgument for too small a workspace or one not aligned to 64 bytes.
Status RunCudaForward(const LstmForward& call, int64_t max_steps, int32_t* bad_length,
                      CUstream_st* stream) noexcept;
Status RunCudaBackward(const LstmBackward& call, int64_t max_steps, int32_t* bad_length,
                       CUstream_st* stream) noexcept;

// Two calls, each with its own workspace: the directions of a bidirectional LSTM. Their results
// have the bits of the calls by themselves; where the device and their sizes allow it (the Hopper
// kernels, equal dtype, batch and units) both recurrences are one launch, side by side.
Status RunCudaForwardPair(const LstmForward (&calls)[2], int64_t max_steps, int32_t* bad_length,
                          CUstream_st* stream) noexcept;
Status RunCudaBackwardPair(const LstmBackward (&calls)[2], int64_t max_steps, int32_t* bad_length,
                           CUstream_st* stream) noexcept;

// For debugging: *flag = 0 on the stream; and, waiting for the stream, *value = *flag.
// flag: int32 on the device.
Status ClearCudaFlag(int32_t* flag, CUstream_st* stream) noexcept;
Status ReadCudaFlag(const int32_t* flag, CUstream_st* stream, int32_t* value) noexcept;

// Enough for the call on any device, whichever kernel would serve it there; no device is asked. For
// a caller that must know before there is one. Errors: of the sizes, as above.
Status CudaForwardWorkspaceBound(const LstmForward& call, int64_t max_steps,
                                 size_t* bytes) noexcept;
Status CudaBackwardWorkspaceBound(const LstmBackward& call, int64_t max_steps,
                                  size_t* bytes) noexcept;

}  // namespace masked_lstm
