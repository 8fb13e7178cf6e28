// The CUDA handlers registered for XLA's CPU, with RunCudaForward and RunCudaBackward linked to the
// executor, and programs for the CPU that call them: what XLA compiles for a GPU runs without one.
// Linked with the kernels of the built library (xla_kernels.cc), it takes that library's place.
#include <mutex>

#include "cuda_runtime.h"
#include "tensorflow/xla_cuda_handlers.h"

// What stands for a stream: it is null, and while a call holds it no other call runs, because the
// executor has one thread.
struct ExecutorStream {
  std::unique_lock<std::mutex> lock;
  operator CUstream_st*() const { return nullptr; }
};

template <>
struct xla::ffi::CtxDecoding<ExecutorStream> {
  using Type = ExecutorStream;
  static std::optional<Type> Decode(const XLA_FFI_Api*, XLA_FFI_ExecutionContext*,
                                    DiagnosticEngine&) {
    static std::mutex mutex;
    return ExecutorStream{std::unique_lock<std::mutex>(mutex)};
  }
};

namespace masked_lstm {

bool XlaCallsCuda(const std::string&) { return true; }

namespace {
const std::string error = CudaHandlers<ExecutorStream>::Register("Host");
}  // namespace

}  // namespace masked_lstm

extern "C" __attribute__((visibility("default"))) const char* masked_lstm_xla_error() {
  return masked_lstm::error.c_str();
}
extern "C" __attribute__((visibility("default"))) const char* masked_lstm_xla_gpu_error() {
  return masked_lstm::error.c_str();
}

// From the next call of CUDA's runtime on it fails so; 0: it does not.
extern "C" __attribute__((visibility("default"))) void executor_fails(int error) {
  cuda_host::runtime.calls = 0;
  cuda_host::runtime.error = static_cast<cudaError_t>(error);
}
// The simulated device in use: see kResident.
extern "C" __attribute__((visibility("default"))) void executor_device(int device) {
  cuda_host::runtime.device = device;
}
