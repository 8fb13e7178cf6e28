// The ops on a CUDA device. All inputs are device memory, nothing waits for the device, workspace
// comes from TensorFlow's allocator for the device. Apart from the registration, so that tests run
// the same code on the executor of tests/cuda_host.
#pragma once

#include <memory>

#include "cuda/cuda_lstm.h"
#include "host/environment.h"
#include "host/kernel_calls.h"
#include "tensorflow/cuda_length_check.h"
#include "tensorflow/lstm_op_base.h"

namespace masked_lstm {

// The device's flag for lengths that had to be clamped, where somebody asks for it.
class LengthCheck {
 public:
  absl::Status Begin(tensorflow::OpKernelContext* context, const LstmProblem& p,
                     CUstream_st* stream) {
    const bool any = p.sequence_lengths != nullptr || p.row_splits != nullptr;
    if (!any || !CheckLengthsFromEnvironment()) return absl::OkStatus();
    TF_RETURN_IF_ERROR(context->allocate_temp(tensorflow::DT_INT32, {1}, &tensor_));
    flag_ = static_cast<int32_t*>(MutableData(&tensor_));
    return ToAbsl(ClearCudaFlag(flag_, stream));
  }

  int32_t* flag() const { return flag_; }

  // Waits for the stream.
  absl::Status End(const LstmProblem& p, CUstream_st* stream) const {
    if (flag_ == nullptr) return absl::OkStatus();
    return ToAbsl(CheckLengths(p, flag_, stream));
  }

 private:
  tensorflow::Tensor tensor_;
  int32_t* flag_ = nullptr;
};

// An op on a GPU: row_splits stay there, and the environment chooses the kernel.
class GpuLstmOpBase : public LstmOpBase {
 public:
  using LstmOpBase::LstmOpBase;

 protected:
  // *steps: how many there are, the masked ones included. Shapes of results made of these sizes
  // fit.
  absl::Status ReadGpuProblem(tensorflow::OpKernelContext* context, LstmProblem* p,
                              int64_t* steps) const {
    TF_RETURN_IF_ERROR(ReadProblem(context, /*on_host=*/false, p));
    TF_RETURN_IF_ERROR(ToAbsl(CheckCudaSizes(*p, 0)));
    *steps = PaddedSteps(context, *p);
    TF_RETURN_IF_ERROR(ToAbsl(CheckCudaSizes(*p, *steps)));
    return ToAbsl(CudaChoiceFromEnvironment(&p->cuda_choice));
  }
};

// Device::Stream(context): the stream that TensorFlow gives.
template <typename Device>
class GpuLstmOp : public GpuLstmOpBase {
 public:
  explicit GpuLstmOp(tensorflow::OpKernelConstruction* construction) : GpuLstmOpBase(construction) {
    OP_REQUIRES_OK(construction, construction->GetAttr("save_reserve", &save_reserve_));
  }

  void Compute(tensorflow::OpKernelContext* context) override {
    LstmForward call;
    LstmProblem& p = call.problem;
    int64_t steps = 0;
    OP_REQUIRES_OK(context, ReadGpuProblem(context, &p, &steps));
    // How many steps are valid is not known here: the reserve has room for all of them.
    const bool save = save_reserve_ && context->output_required(3);
    tensorflow::Tensor *outputs = nullptr, *h = nullptr, *c = nullptr, *reserve = nullptr;
    if (context->output_required(0)) {
      OP_REQUIRES_OK(
          context, context->allocate_output(
                       0, p.return_sequences ? SequencesShape(context, p, p.units) : StateShape(p),
                       &outputs));
      call.outputs = MutableData(outputs);
    }
    OP_REQUIRES_OK(context, context->allocate_output(1, StateShape(p), &h));
    OP_REQUIRES_OK(context, context->allocate_output(2, StateShape(p), &c));
    OP_REQUIRES_OK(context, context->allocate_output(
                                3, {save ? ReserveBytes(p, steps) : int64_t{0}}, &reserve));
    call.h = MutableData(h);
    call.c = MutableData(c);
    if (save) call.reserve = MutableData(reserve);

    CUstream_st* const stream = Device::Stream(context);
    LengthCheck check;
    OP_REQUIRES_OK(context, check.Begin(context, p, stream));
    OP_REQUIRES_OK(context, ToAbsl(CudaForwardWorkspaceBytes(call, steps, &call.workspace_bytes)));
    tensorflow::Tensor workspace;
    OP_REQUIRES_OK(
        context, context->allocate_temp(tensorflow::DT_UINT8,
                                        {static_cast<int64_t>(call.workspace_bytes)}, &workspace));
    call.workspace = MutableData(&workspace);
    OP_REQUIRES_OK(context, ToAbsl(RunCudaForward(call, steps, check.flag(), stream)));
    OP_REQUIRES_OK(context, check.End(p, stream));
    CountCudaCall(ForwardCudaKernel(call), p.dtype, Pass::kForward);
  }

 private:
  bool save_reserve_;
};

template <typename Device>
class GpuLstmGradOp : public GpuLstmOpBase {
 public:
  explicit GpuLstmGradOp(tensorflow::OpKernelConstruction* construction)
      : GpuLstmOpBase(construction) {
    OP_REQUIRES_OK(construction, ReadSkip(construction, &skip_));
  }

  void Compute(tensorflow::OpKernelContext* context) override {
    LstmBackward call;
    LstmProblem& p = call.problem;
    int64_t steps = 0;
    OP_REQUIRES_OK(context, ReadGpuProblem(context, &p, &steps));
    const tensorflow::TensorShape scratch_shape({ReserveBytes(p, steps)});
    OP_REQUIRES_OK(context,
                   ReadUpstream(context, steps, ReserveBytes(p, steps), /*exact=*/true, &call));
    const struct {
      tensorflow::TensorShape shape;
      void** data;
    } results[] = {{SequencesShape(context, p, p.input_dim), &call.dx},
                   {{p.input_dim, 4 * p.units}, &call.d_kernel},
                   {{p.units, 4 * p.units}, &call.d_recurrent_kernel},
                   {{4 * p.units}, &call.d_bias},
                   {StateShape(p), &call.dh0},
                   {StateShape(p), &call.dc0}};
    for (int i = 0; i < 6; ++i) {
      if (!context->output_required(i)) continue;
      tensorflow::Tensor* result = nullptr;
      const tensorflow::TensorShape shape =
          skip_[i] ? tensorflow::TensorShape({0}) : results[i].shape;
      OP_REQUIRES_OK(context, context->allocate_output(i, shape, &result));
      if (!skip_[i]) *results[i].data = MutableData(result);
    }
    // The reserve itself is the scratch memory when nobody else holds it.
    tensorflow::Tensor scratch;
    const std::unique_ptr<tensorflow::Tensor> reused = context->forward_input(
        kReserveInput, tensorflow::OpKernelContext::Params::kNoReservation, tensorflow::DT_UINT8,
        scratch_shape, tensorflow::DEVICE_MEMORY, tensorflow::AllocatorAttributes());
    if (reused != nullptr) {
      scratch = *reused;
    } else {
      OP_REQUIRES_OK(context,
                     context->allocate_temp(tensorflow::DT_UINT8, scratch_shape, &scratch));
    }
    call.scratch = MutableData(&scratch);

    CUstream_st* const stream = Device::Stream(context);
    OP_REQUIRES_OK(context, ToAbsl(CudaBackwardWorkspaceBytes(call, steps, &call.workspace_bytes)));
    tensorflow::Tensor workspace;
    OP_REQUIRES_OK(
        context, context->allocate_temp(tensorflow::DT_UINT8,
                                        {static_cast<int64_t>(call.workspace_bytes)}, &workspace));
    call.workspace = MutableData(&workspace);
    OP_REQUIRES_OK(context, ToAbsl(RunCudaBackward(call, steps, nullptr, stream)));
    CountCudaCall(BackwardCudaKernel(call), p.dtype, Pass::kBackward);
  }

 private:
  SkippedGradients skip_;
};

}  // namespace masked_lstm
