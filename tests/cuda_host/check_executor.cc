// Kernels with the faults that the executor is there to find; the first argument names one.
#include <cmath>
#include <cstdio>
#include <cstring>

#include "cuda/device.cuh"

namespace {

using masked_lstm::cuda::BlockBarrier;
using masked_lstm::cuda::GroupBarrier;
using masked_lstm::cuda::SharedMemory;
using masked_lstm::cuda::ThreadIndex;

constexpr int kThreads = 32;

// to = from in reverse, through shared memory.
void Reverse(bool barrier, const float* from, float* to) {
  float* const shared = SharedMemory<float>();
  shared[ThreadIndex()] = from[ThreadIndex()];
  if (barrier) BlockBarrier();
  to[ThreadIndex()] = shared[kThreads - 1 - ThreadIndex()];
}

// Whether some order of the threads changes the result.
const char* Orders(bool barrier) {
  float from[kThreads], to[kThreads];
  for (int i = 0; i < kThreads; ++i) from[i] = static_cast<float>(i);
  for (unsigned seed = 0; seed < 4; ++seed) {
    cuda_host::Launch(1, 1, kThreads, sizeof(from), false, seed,
                      [&] { Reverse(barrier, from, to); });
    for (int i = 0; i < kThreads; ++i) {
      if (to[i] != from[kThreads - 1 - i]) return "different";
    }
  }
  return "same";
}

}  // namespace

int main(int, char** arguments) {
  const char* const name = arguments[1];
  if (std::strcmp(name, "right") == 0) std::puts(Orders(true));
  if (std::strcmp(name, "missing-barrier") == 0) std::puts(Orders(false));
  if (std::strcmp(name, "unwritten") == 0) {
    float value = 0;
    cuda_host::Launch(1, 1, 1, 64, false, 1, [&] { value = SharedMemory<float>()[3]; });
    std::puts(std::isnan(value) ? "nan" : "a number");
  }
  if (std::strcmp(name, "not-all") == 0) {
    cuda_host::Launch(1, 1, kThreads, 64, false, 1, [] {
      if (ThreadIndex() > 3) BlockBarrier();
    });
  }
  if (std::strcmp(name, "deadlock") == 0) {  // one block waits for a second that is not there
    unsigned counter = 0;
    cuda_host::Launch(1, 1, kThreads, 64, true, 1, [&] { GroupBarrier(&counter, 2, 1); });
  }
  return 0;
}
