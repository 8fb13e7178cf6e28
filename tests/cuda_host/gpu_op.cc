// The GPU's OpKernels registered for the CPU, under the label "executor", with RunCudaForward and
// RunCudaBackward linked to the executor: the op's own code runs without a GPU.
#include "tensorflow/lstm_gpu_op.h"

namespace masked_lstm {
namespace {

struct Executor {
  static CUstream_st* Stream(tensorflow::OpKernelContext*) { return nullptr; }
};

#define REGISTER(T)                                                                               \
  REGISTER_KERNEL_BUILDER(                                                                        \
      Name("MaskedLstm").Device(tensorflow::DEVICE_CPU).TypeConstraint<T>("T").Label("executor"), \
      GpuLstmOp<Executor>);                                                                       \
  REGISTER_KERNEL_BUILDER(Name("MaskedLstmGrad")                                                  \
                              .Device(tensorflow::DEVICE_CPU)                                     \
                              .TypeConstraint<T>("T")                                             \
                              .Label("executor"),                                                 \
                          GpuLstmGradOp<Executor>)
REGISTER(float);
REGISTER(Eigen::half);
#undef REGISTER

}  // namespace
}  // namespace masked_lstm
