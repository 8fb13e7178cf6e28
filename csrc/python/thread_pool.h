// The Python module's own threads: grown on demand, started anew in a forked child.
#pragma once

#include "lstm.h"

namespace masked_lstm {

// Threads for one call; `workers` >= 1. The pool lives as long as the process.
Threads PoolThreads(int workers);

}  // namespace masked_lstm
