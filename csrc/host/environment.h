// What the environment of the process asks for.
#pragma once

#include "lstm.h"

namespace masked_lstm {

// The instruction set that MASKED_LSTM_ISA names, else the best one; never kAuto. Read at every
// call. Errors: a name that is unknown, or a set this CPU lacks.
Status IsaFromEnvironment(Isa* isa) noexcept;

// The kernel that MASKED_LSTM_CUDA_KERNEL asks for (groups, hopper, hopper-tf32, hopper-grid), or
// hopper: where the GPU is one. Read at every call. Errors: kInvalidArgument, another name.
Status CudaChoiceFromEnvironment(CudaChoice* choice) noexcept;

// Whether MASKED_LSTM_CHECK_LENGTHS asks the CUDA calls to wait for the device and to refuse
// lengths out of range, which are otherwise clamped there. Read at every call.
bool CheckLengthsFromEnvironment() noexcept;

}  // namespace masked_lstm
