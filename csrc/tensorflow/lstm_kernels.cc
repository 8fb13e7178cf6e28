// CPU OpKernels: TensorFlow's tensors and threads handed to the core.
#include <algorithm>
#include <memory>

#include "cpu/isa.h"
#include "host/environment.h"
#include "host/kernel_calls.h"
#include "host/thread_pool.h"
#include "lstm.h"
#include "tensorflow/lstm_op_base.h"
#include "tensorflow/pooled_allocator.h"

namespace masked_lstm {
namespace {

using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::TensorShape;

// As many as the device's intra-op pool has; the calling thread is one of the workers.
Threads ThreadsOf(OpKernelContext* context) {
  return PoolThreads(std::max(1, context->device()->tensorflow_cpu_worker_threads()->num_threads));
}

// An op on the CPU: the instruction set, the valid steps, working memory.
class CpuLstmOp : public LstmOpBase {
 public:
  using LstmOpBase::LstmOpBase;

 protected:
  absl::Status ReadCpuProblem(OpKernelContext* context, LstmProblem* p, int64_t* steps) const {
    TF_RETURN_IF_ERROR(ReadProblem(context, /*on_host=*/true, p));
    TF_RETURN_IF_ERROR(ToAbsl(IsaFromEnvironment(&p->isa)));
    return ToAbsl(CountValidSteps(*p, steps));
  }

  static absl::Status AllocateBytes(int64_t bytes, Tensor* tensor) {
    return AllocatePooled(tensorflow::DT_UINT8, TensorShape({bytes}), tensor);
  }
};

class LstmOp : public CpuLstmOp {
 public:
  explicit LstmOp(OpKernelConstruction* construction) : CpuLstmOp(construction) {
    OP_REQUIRES_OK(construction, construction->GetAttr("save_reserve", &save_reserve_));
  }

  void Compute(OpKernelContext* context) override {
    LstmForward call;
    LstmProblem& p = call.problem;
    int64_t steps = 0;
    OP_REQUIRES_OK(context, ReadCpuProblem(context, &p, &steps));

    // In a graph the executor knows whether a gradient or anybody else reads an output.
    const bool save = save_reserve_ && context->output_required(3);
    const bool write_outputs = context->output_required(0);
    Tensor *outputs = nullptr, *h = nullptr, *c = nullptr, *reserve = nullptr, workspace;
    if (write_outputs) {
      OP_REQUIRES_OK(
          context,
          AllocatePooledOutput(
              context, 0, p.return_sequences ? SequencesShape(context, p, p.units) : StateShape(p),
              &outputs));
      call.outputs = MutableData(outputs);
    }
    OP_REQUIRES_OK(context, context->allocate_output(1, StateShape(p), &h));
    OP_REQUIRES_OK(context, context->allocate_output(2, StateShape(p), &c));
    OP_REQUIRES_OK(
        context,
        AllocatePooledOutput(context, 3, TensorShape({save ? ReserveBytes(p, steps) : int64_t{0}}),
                             &reserve));
    call.h = MutableData(h);
    call.c = MutableData(c);
    if (save) call.reserve = MutableData(reserve);

    const Threads threads = ThreadsOf(context);
    OP_REQUIRES_OK(context,
                   ToAbsl(LstmForwardWorkspaceBytes(p, threads.workers, &call.workspace_bytes)));
    OP_REQUIRES_OK(context, AllocateBytes(call.workspace_bytes, &workspace));
    call.workspace = MutableData(&workspace);
    OP_REQUIRES_OK(context, ToAbsl(RunLstmForward(call, threads)));
    CountCpuCall(ForwardIsa(p), p.dtype, Pass::kForward);
  }

 private:
  bool save_reserve_;
};

class LstmGradOp : public CpuLstmOp {
 public:
  explicit LstmGradOp(OpKernelConstruction* construction) : CpuLstmOp(construction) {
    OP_REQUIRES_OK(construction, ReadSkip(construction, &skip_));
  }

  void Compute(OpKernelContext* context) override {
    LstmBackward call;
    LstmProblem& p = call.problem;
    int64_t steps = 0;
    OP_REQUIRES_OK(context, ReadCpuProblem(context, &p, &steps));
    const int64_t needed = ReserveBytes(p, steps);
    OP_REQUIRES_OK(context,
                   ReadUpstream(context, PaddedSteps(context, p), needed, /*exact=*/false, &call));
    const TensorShape scratch_shape(
        {std::max(needed, context->input(kReserveInput).NumElements())});

    const struct {
      TensorShape shape;
      void** data;
    } results[] = {{SequencesShape(context, p, p.input_dim), &call.dx},
                   {TensorShape({p.input_dim, 4 * p.units}), &call.d_kernel},
                   {TensorShape({p.units, 4 * p.units}), &call.d_recurrent_kernel},
                   {TensorShape({4 * p.units}), &call.d_bias},
                   {StateShape(p), &call.dh0},
                   {StateShape(p), &call.dc0}};
    for (int i = 0; i < 6; ++i) {
      if (!context->output_required(i)) continue;
      Tensor* result = nullptr;
      const TensorShape shape = skip_[i] ? TensorShape({0}) : results[i].shape;
      OP_REQUIRES_OK(context, AllocatePooledOutput(context, i, shape, &result));
      if (!skip_[i]) *results[i].data = MutableData(result);
    }

    // The reserve itself is the scratch memory when nobody else holds it.
    Tensor scratch;
    std::unique_ptr<Tensor> reused = context->forward_input(
        kReserveInput, OpKernelContext::Params::kNoReservation, tensorflow::DT_UINT8, scratch_shape,
        tensorflow::DEVICE_MEMORY, tensorflow::AllocatorAttributes());
    if (reused != nullptr) {
      scratch = *reused;
    } else {
      OP_REQUIRES_OK(context, AllocatePooled(tensorflow::DT_UINT8, scratch_shape, &scratch));
    }
    call.scratch = MutableData(&scratch);

    const Threads threads = ThreadsOf(context);
    Tensor workspace;
    OP_REQUIRES_OK(context,
                   ToAbsl(LstmBackwardWorkspaceBytes(p, call.reserve != nullptr, threads.workers,
                                                     &call.workspace_bytes)));
    OP_REQUIRES_OK(context, AllocateBytes(call.workspace_bytes, &workspace));
    call.workspace = MutableData(&workspace);
    OP_REQUIRES_OK(context, ToAbsl(RunLstmBackward(call, threads)));
    CountCpuCall(BackwardIsa(p), p.dtype, Pass::kBackward);
  }

 private:
  SkippedGradients skip_;
};

#define REGISTER_CPU(T)                                                                  \
  REGISTER_KERNEL_BUILDER(                                                               \
      Name("MaskedLstm").Device(tensorflow::DEVICE_CPU).TypeConstraint<T>("T"), LstmOp); \
  REGISTER_KERNEL_BUILDER(                                                               \
      Name("MaskedLstmGrad").Device(tensorflow::DEVICE_CPU).TypeConstraint<T>("T"), LstmGradOp)
REGISTER_CPU(float);
REGISTER_CPU(double);
REGISTER_CPU(Eigen::half);
REGISTER_CPU(Eigen::bfloat16);
#undef REGISTER_CPU

}  // namespace
}  // namespace masked_lstm
