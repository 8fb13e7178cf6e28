// What the OpKernels of every device share: attributes, the first nine inputs, TensorFlow's tensors
// as the core's pointers and shapes.
#pragma once

#include "host/arguments.h"
#include "lstm.h"
#include "tensorflow/attributes.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/tensor.h"

namespace masked_lstm {

inline ArgumentShape ShapeOf(const tensorflow::Tensor& tensor) {
  ArgumentShape shape;
  shape.rank = tensor.dims();
  for (int i = 0; i < shape.rank && i < 3; ++i) shape.dims[i] = tensor.dim_size(i);
  return shape;
}

inline DType DTypeOf(const tensorflow::Tensor& tensor) {
  switch (tensor.dtype()) {
    case tensorflow::DT_DOUBLE:
      return DType::kFloat64;
    case tensorflow::DT_HALF:
      return DType::kFloat16;
    case tensorflow::DT_BFLOAT16:
      return DType::kBFloat16;
    default:
      return DType::kFloat32;
  }
}

inline const void* Data(const tensorflow::Tensor& tensor) { return tensor.data(); }
inline void* MutableData(tensorflow::Tensor* tensor) { return tensor->data(); }

class LstmOpBase : public tensorflow::OpKernel {
 public:
  explicit LstmOpBase(tensorflow::OpKernelConstruction* construction) : OpKernel(construction) {
    OP_REQUIRES_OK(construction, attributes_.Read(construction));
  }

 protected:
  // Everything that shapes and attributes tell, and all pointers. on_host: row_splits may be read.
  absl::Status ReadProblem(tensorflow::OpKernelContext* context, bool on_host,
                           LstmProblem* p) const {
    using tensorflow::Tensor;
    const Tensor& mask = context->input(6);
    ArgumentShapes shapes{ShapeOf(context->input(0)),
                          ShapeOf(context->input(1)),
                          ShapeOf(context->input(2)),
                          ShapeOf(context->input(3)),
                          ShapeOf(context->input(4)),
                          ShapeOf(context->input(5)),
                          {},
                          {},
                          {},
                          {},
                          {}};
    shapes.row_splits_on_host = on_host;
    if (mask.dtype() == tensorflow::DT_BOOL) {
      shapes.mask = ShapeOf(mask);
      p->mask = static_cast<const uint8_t*>(Data(mask));
    } else if (mask.dtype() == tensorflow::DT_INT64) {
      shapes.row_splits = ShapeOf(mask);
      p->row_splits = static_cast<const int64_t*>(Data(mask));
    } else if (mask.dims() > 0) {
      shapes.sequence_lengths = ShapeOf(mask);
      p->sequence_lengths = static_cast<const int32_t*>(Data(mask));
    }
    const Tensor &input_factors = context->input(7), &recurrent_factors = context->input(8);
    const bool scale_x = input_factors.shape() != tensorflow::TensorShape({0});
    const bool scale_h = recurrent_factors.shape() != tensorflow::TensorShape({0});
    if (scale_x) shapes.input_factors = ShapeOf(input_factors);
    if (scale_h) shapes.recurrent_factors = ShapeOf(recurrent_factors);
    TF_RETURN_IF_ERROR(ToAbsl(CheckArguments(shapes, p)));
    p->dtype = DTypeOf(context->input(0));
    attributes_.WriteTo(p);
    if (scale_x) p->input_factors = Data(input_factors);
    if (scale_h) p->recurrent_factors = Data(recurrent_factors);
    p->x = Data(context->input(0));
    p->kernel = Data(context->input(1));
    p->recurrent_kernel = Data(context->input(2));
    p->bias = Data(context->input(3));
    p->h0 = Data(context->input(4));
    p->c0 = Data(context->input(5));
    return absl::OkStatus();
  }

  // Steps of all rows, the masked ones included.
  static int64_t PaddedSteps(tensorflow::OpKernelContext* context, const LstmProblem& p) {
    return p.row_splits != nullptr ? context->input(0).dim_size(0) : p.batch * p.timesteps;
  }

  static int64_t ReserveBytes(const LstmProblem& p, int64_t steps) {
    return steps * 5 * p.units * ComputeBytes(p.dtype);
  }

  // Of x, and of outputs: every step of every row.
  static tensorflow::TensorShape SequencesShape(tensorflow::OpKernelContext* context,
                                                const LstmProblem& p, int64_t width) {
    if (p.row_splits != nullptr) return {context->input(0).dim_size(0), width};
    return {p.batch, p.timesteps, width};
  }

  static tensorflow::TensorShape StateShape(const LstmProblem& p) { return {p.batch, p.units}; }

 private:
  LstmAttributes attributes_;
};

// Inputs of MaskedLstmGrad after the nine.
constexpr int kReserveInput = 9, kDOutputsInput = 10, kDHInput = 11, kDCInput = 12;

// The gradients that arrive, and the reserve (empty: none), into *call; its problem has been read.
// padded_steps: PaddedSteps; reserve_bytes: what a reserve must have, at least or
// exactly: on GPUs its parts stand where its size says, not the number of valid steps.
inline absl::Status ReadUpstream(tensorflow::OpKernelContext* context, int64_t padded_steps,
                                 int64_t reserve_bytes, bool exact, LstmBackward* call) {
  TF_RETURN_IF_ERROR(ToAbsl(
      CheckResultGradients(call->problem, padded_steps, ShapeOf(context->input(kDOutputsInput)),
                           ShapeOf(context->input(kDHInput)), ShapeOf(context->input(kDCInput)))));
  const tensorflow::Tensor& reserve = context->input(kReserveInput);
  if (reserve.NumElements() > 0) {
    if (reserve.NumElements() < reserve_bytes ||
        (exact && reserve.NumElements() != reserve_bytes)) {
      return absl::InvalidArgumentError(absl::StrCat(
          "reserve: expected ", reserve_bytes, " bytes as MaskedLstm gave for the same inputs, got",
          " shape ", reserve.shape().DebugString()));
    }
    call->reserve = Data(reserve);
  }
  call->d_outputs = Data(context->input(kDOutputsInput));
  call->d_h = Data(context->input(kDHInput));
  call->d_c = Data(context->input(kDCInput));
  return absl::OkStatus();
}

}  // namespace masked_lstm
