// The handlers for CUDA devices, where the CUDA kernels are built. A machine without a GPU, or
// without its driver, loads them all the same.
#include "tensorflow/xla_cuda_handlers.h"

namespace masked_lstm {
namespace {

const std::string& RegistrationError() {
  static const std::string error =
      CudaHandlers<ffi::PlatformStream<CUstream_st*>>::Register("CUDA");
  return error;
}

const bool registered = RegistrationError().empty();  // when the library is loaded

}  // namespace
}  // namespace masked_lstm

// Why a program compiled by XLA cannot call the handlers on a GPU; empty when it can. For Python.
extern "C" __attribute__((visibility("default"))) const char* masked_lstm_xla_gpu_error() {
  return masked_lstm::registered ? "" : masked_lstm::RegistrationError().c_str();
}
