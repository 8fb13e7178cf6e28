// The features of CUDA that csrc/cuda/device.cuh names, on the host, for tests. The threads of a
// launch are fibers on one thread: all of a cooperative launch, or one block after another.
//
// What it finds: threads between two barriers run in a random order, so a missing barrier changes
// results; shared memory starts as NaN, so a read of what nobody wrote shows; a barrier that not
// all threads of a block reach ends the program. Under AddressSanitizer every access is checked.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>

#define __global__
#define __launch_bounds__(threads, blocks)
#define MASKED_LSTM_DEVICE inline

namespace cuda_host {

struct Place {
  int thread, block, block_y, block_size;
  unsigned char* shared;
};

// Of the fiber that runs now.
extern Place place;

// Runs `blocks` x `blocks_y` blocks of `threads` threads, in an order given by `seed`.
// `cooperative`: all blocks at once, so that they may wait for each other.
void Launch(int blocks, int blocks_y, int threads, size_t shared_bytes, bool cooperative,
            unsigned seed, const std::function<void()>& kernel);

void BlockBarrier();
void Yield();

}  // namespace cuda_host

namespace masked_lstm {
namespace cuda {

inline int ThreadIndex() { return cuda_host::place.thread; }
inline int BlockIndex() { return cuda_host::place.block; }
inline int BlockIndexY() { return cuda_host::place.block_y; }
inline int BlockSize() { return cuda_host::place.block_size; }
inline void BlockBarrier() { cuda_host::BlockBarrier(); }

template <typename T>
T* SharedMemory() {
  return reinterpret_cast<T*>(cuda_host::place.shared);
}

inline void GroupBarrier(unsigned* counter, int blocks, unsigned round) {
  BlockBarrier();
  if (ThreadIndex() == 0) {
    ++*counter;
    while (*counter < round * static_cast<unsigned>(blocks)) cuda_host::Yield();
  }
  BlockBarrier();
}

inline float HalfToFloat(uint16_t bits) {
  _Float16 half;
  std::memcpy(&half, &bits, sizeof(half));
  return static_cast<float>(half);
}
inline uint16_t FloatToHalf(float value) {
  const _Float16 half = static_cast<_Float16>(value);
  uint16_t bits;
  std::memcpy(&bits, &half, sizeof(bits));
  return bits;
}
inline uint32_t FloatBits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}
inline float FloatFromBits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}
inline float MulAdd(float a, float b, float c) { return std::fma(a, b, c); }
inline double MulAdd(double a, double b, double c) { return std::fma(a, b, c); }

}  // namespace cuda
}  // namespace masked_lstm
