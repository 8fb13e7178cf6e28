// Which handlers a device's programs call. Apart, because tests have another answer: there the CUDA
// handlers run on the CPU (tests/cuda_host/xla_executor.cc).
#include "tensorflow/xla_call.h"

namespace masked_lstm {

bool XlaCallsCuda(const std::string& device) { return device == "XLA_GPU_JIT"; }

}  // namespace masked_lstm
