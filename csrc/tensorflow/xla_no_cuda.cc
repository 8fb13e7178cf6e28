// In place of xla_cuda_handlers.cc where the CUDA kernels are not built.
#include "tensorflow/xla_call.h"

namespace masked_lstm {

constexpr char kNotBuilt[] =
    "masked_lstm was built without CUDA kernels, so XLA compiles it for the CPU only";

Status XlaCudaWorkspace(int64_t, LstmForward*, size_t*) {
  return Error(StatusCode::kUnsupported, kNotBuilt);
}
Status XlaCudaWorkspace(int64_t, LstmBackward*, size_t*) {
  return Error(StatusCode::kUnsupported, kNotBuilt);
}

}  // namespace masked_lstm

// As in xla_cuda_handlers.cc.
extern "C" __attribute__((visibility("default"))) const char* masked_lstm_xla_gpu_error() {
  return masked_lstm::kNotBuilt;
}
