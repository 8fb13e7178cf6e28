// What Python asks a library of TensorFlow kernels through ctypes.
#include <cstdint>

#include "host/kernel_calls.h"

// For masked_lstm.kernel_calls(): see KernelCalls.
extern "C" __attribute__((visibility("default"))) int64_t masked_lstm_kernel_calls(int index,
                                                                                   char* name,
                                                                                   int name_bytes) {
  return masked_lstm::KernelCalls(index, name, name_bytes);
}
