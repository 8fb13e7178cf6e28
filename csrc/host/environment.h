// What the environment of the process asks for.
#pragma once

#include "lstm.h"

namespace masked_lstm {

// The instruction set that MASKED_LSTM_ISA names, else the best one; never kAuto. Read at every
// call. Errors: a name that is unknown, or a set this CPU lacks.
Status IsaFromEnvironment(Isa* isa) noexcept;

}  // namespace masked_lstm
