#pragma once

// For functions in headers that files compiled for one instruction set include. Left to the
// compiler they could become weak symbols, of which the linker keeps any copy: an AVX-512 one, on a
// machine without AVX-512. A test looks for such symbols.
#if defined(__CUDACC__)
#define MASKED_LSTM_INLINE __host__ __device__ inline __attribute__((always_inline))
#else
#define MASKED_LSTM_INLINE inline __attribute__((always_inline))
#endif

// For the register tiles: one symbol each, so that a profile and the disassembly can be read, and
// no caller's variables compete for the registers.
#define MASKED_LSTM_NOINLINE __attribute__((noinline))
