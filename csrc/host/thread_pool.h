// The library's own threads, shared by all calls of a binding: grown on demand, started anew in a
// forked child. Not a framework's pool: its threads may run anywhere, and Linux in a virtual
// machine wakes them on the CPU of the caller (ThreadPool::AvoidCallersCpu).
#pragma once

#include "lstm.h"

namespace masked_lstm {

// Threads for one call; `workers` >= 1. The pool lives as long as the process.
Threads PoolThreads(int workers);

}  // namespace masked_lstm
