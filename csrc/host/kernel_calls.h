// How many calls each kernel has served in this process: so that nobody has to guess which path
// ran. One set of counters per library (the TensorFlow ops, the Python module).
#pragma once

#include <cstdint>

#include "lstm.h"

namespace masked_lstm {

enum class Pass { kForward = 0, kBackward = 1 };

// Counts a call served by the CPU kernels of `isa` (not kAuto). Thread-safe.
void CountCpuCall(Isa isa, DType dtype, Pass pass) noexcept;

// Counts a call that was given to a CUDA stream. Thread-safe.
void CountCudaCall(CudaKernel kernel, DType dtype, Pass pass) noexcept;

// Counter `index`: writes its name ("cpu-avx2-float32-forward", "cuda-groups-...") and returns its
// value; -1 past the last one.
int64_t KernelCalls(int index, char* name, int name_bytes) noexcept;

}  // namespace masked_lstm
