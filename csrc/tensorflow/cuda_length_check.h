// What the CUDA calls say of lengths that they had to clamp, inside XLA and outside.
#pragma once

#include <cstdint>

#include "cuda/cuda_lstm.h"

namespace masked_lstm {

// Waits for the stream. flag: int32 on the device, the bad_length of the call. Errors:
// kInvalidArgument, it was set.
inline Status CheckLengths(const LstmProblem& p, const int32_t* flag, CUstream_st* stream) {
  int32_t bad = 0;
  MASKED_LSTM_RETURN_IF_ERROR(ReadCudaFlag(flag, stream, &bad));
  if (bad == 0) return OkStatus();
  if (p.row_splits != nullptr) {
    return Error(StatusCode::kInvalidArgument,
                 "row_splits: expected them to rise from 0 to the number of values, got others");
  }
  return Error(StatusCode::kInvalidArgument,
               "sequence_lengths: expected values in [0, timesteps = %lld], got others",
               static_cast<long long>(p.timesteps));
}

}  // namespace masked_lstm
