// GPU OpKernels, compiled by the host's compiler where the CUDA kernels are built. A machine
// without a GPU, or without its driver, loads them all the same.
#define EIGEN_USE_GPU
#include "tensorflow/lstm_gpu_op.h"
#include "unsupported/Eigen/CXX11/Tensor"

namespace masked_lstm {
namespace {

struct Gpu {
  static CUstream_st* Stream(tensorflow::OpKernelContext* context) {
    return context->eigen_device<Eigen::GpuDevice>().stream();
  }
};

#define REGISTER_GPU(T)                                                                          \
  REGISTER_KERNEL_BUILDER(                                                                       \
      Name("MaskedLstm").Device(tensorflow::DEVICE_GPU).TypeConstraint<T>("T"), GpuLstmOp<Gpu>); \
  REGISTER_KERNEL_BUILDER(                                                                       \
      Name("MaskedLstmGrad").Device(tensorflow::DEVICE_GPU).TypeConstraint<T>("T"),              \
      GpuLstmGradOp<Gpu>)
REGISTER_GPU(float);
REGISTER_GPU(double);
REGISTER_GPU(Eigen::half);
REGISTER_GPU(Eigen::bfloat16);
#undef REGISTER_GPU

}  // namespace
}  // namespace masked_lstm
