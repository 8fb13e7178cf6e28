// The ops and their shape functions. The gradient is registered in python/masked_lstm/ops.py.
#include <cstdint>
#include <vector>

#include "tensorflow/core/framework/common_shape_fns.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace masked_lstm {
namespace {

using tensorflow::DataType;
using tensorflow::shape_inference::DimensionHandle;
using tensorflow::shape_inference::InferenceContext;
using tensorflow::shape_inference::ShapeHandle;

struct Dims {
  DimensionHandle batch, timesteps, input_dim, units, columns;
  DimensionHandle values;  // of a ragged batch
  bool ragged;

  // Of x, and of outputs: every step of every row.
  ShapeHandle Sequences(InferenceContext* c, DimensionHandle width) const {
    return ragged ? c->Matrix(values, width) : c->MakeShape({batch, timesteps, width});
  }
};

// Reads and cross-checks the nine inputs both ops begin with.
absl::Status InferDims(InferenceContext* c, Dims* dims) {
  ShapeHandle x, kernel, recurrent_kernel, bias, h0, c0, mask, factors;
  DataType mask_type;
  TF_RETURN_IF_ERROR(c->GetAttr("Tmask", &mask_type));
  dims->ragged = mask_type == tensorflow::DT_INT64;
  TF_RETURN_IF_ERROR(c->WithRank(c->input(0), dims->ragged ? 2 : 3, &x));
  TF_RETURN_IF_ERROR(c->WithRank(c->input(1), 2, &kernel));
  TF_RETURN_IF_ERROR(c->WithRank(c->input(2), 2, &recurrent_kernel));
  TF_RETURN_IF_ERROR(c->WithRank(c->input(3), 1, &bias));
  TF_RETURN_IF_ERROR(c->WithRank(c->input(4), 2, &h0));
  TF_RETURN_IF_ERROR(c->WithRank(c->input(5), 2, &c0));
  TF_RETURN_IF_ERROR(c->Merge(c->Dim(x, -1), c->Dim(kernel, 0), &dims->input_dim));
  TF_RETURN_IF_ERROR(c->Merge(c->Dim(h0, 0), c->Dim(c0, 0), &dims->batch));
  if (dims->ragged) {
    dims->values = c->Dim(x, 0);
  } else {
    dims->timesteps = c->Dim(x, 1);
    TF_RETURN_IF_ERROR(c->Merge(dims->batch, c->Dim(x, 0), &dims->batch));
  }
  TF_RETURN_IF_ERROR(c->Merge(c->Dim(recurrent_kernel, 0), c->Dim(h0, 1), &dims->units));
  TF_RETURN_IF_ERROR(c->Merge(dims->units, c->Dim(c0, 1), &dims->units));
  TF_RETURN_IF_ERROR(c->Multiply(dims->units, 4, &dims->columns));
  TF_RETURN_IF_ERROR(c->Merge(dims->columns, c->Dim(kernel, 1), &dims->columns));
  TF_RETURN_IF_ERROR(c->Merge(dims->columns, c->Dim(recurrent_kernel, 1), &dims->columns));
  TF_RETURN_IF_ERROR(c->Merge(dims->columns, c->Dim(bias, 0), &dims->columns));
  if (dims->ragged) {
    DimensionHandle rows;
    TF_RETURN_IF_ERROR(c->WithRank(c->input(6), 1, &mask));
    TF_RETURN_IF_ERROR(c->Subtract(c->Dim(mask, 0), 1, &rows));
    TF_RETURN_IF_ERROR(c->Merge(dims->batch, rows, &dims->batch));
  } else if (mask_type == tensorflow::DT_BOOL) {
    TF_RETURN_IF_ERROR(c->WithRank(c->input(6), 2, &mask));
    TF_RETURN_IF_ERROR(c->Merge(dims->batch, c->Dim(mask, 0), &dims->batch));
    TF_RETURN_IF_ERROR(c->Merge(dims->timesteps, c->Dim(mask, 1), &dims->timesteps));
  } else {
    TF_RETURN_IF_ERROR(c->WithRankAtMost(c->input(6), 1, &mask));
    if (c->RankKnown(mask) && c->Rank(mask) == 1) {
      TF_RETURN_IF_ERROR(c->Merge(dims->batch, c->Dim(mask, 0), &dims->batch));
    }
  }
  for (int input : {7, 8}) {
    if (!c->RankKnown(c->input(input))) continue;
    DimensionHandle gates, unused;
    if (c->Rank(c->input(input)) == 1) {  // none are given
      TF_RETURN_IF_ERROR(c->WithValue(c->Dim(c->input(input), 0), 0, &unused));
      continue;
    }
    TF_RETURN_IF_ERROR(c->WithRank(c->input(input), 3, &factors));
    TF_RETURN_IF_ERROR(c->WithValue(c->Dim(factors, 0), 4, &gates));
    TF_RETURN_IF_ERROR(c->Merge(dims->batch, c->Dim(factors, 1), &dims->batch));
    TF_RETURN_IF_ERROR(
        c->Merge(input == 7 ? dims->input_dim : dims->units, c->Dim(factors, 2), &unused));
  }
  return absl::OkStatus();
}

absl::Status ForwardShapes(InferenceContext* c) {
  Dims dims;
  TF_RETURN_IF_ERROR(InferDims(c, &dims));
  bool return_sequences;
  TF_RETURN_IF_ERROR(c->GetAttr("return_sequences", &return_sequences));
  const ShapeHandle state = c->Matrix(dims.batch, dims.units);
  c->set_output(0, return_sequences ? dims.Sequences(c, dims.units) : state);
  c->set_output(1, state);
  c->set_output(2, state);
  c->set_output(3, c->Vector(c->UnknownDim()));
  return absl::OkStatus();
}

absl::Status GradientShapes(InferenceContext* c) {
  Dims dims;
  TF_RETURN_IF_ERROR(InferDims(c, &dims));
  const ShapeHandle state = c->Matrix(dims.batch, dims.units);
  c->set_output(0, dims.Sequences(c, dims.input_dim));
  c->set_output(1, c->Matrix(dims.input_dim, dims.columns));
  c->set_output(2, c->Matrix(dims.units, dims.columns));
  c->set_output(3, c->Vector(dims.columns));
  c->set_output(4, state);
  c->set_output(5, state);
  std::vector<int32_t> skip;
  TF_RETURN_IF_ERROR(c->GetAttr("skip", &skip));
  for (int32_t output : skip) {
    if (output >= 0 && output < 6) c->set_output(output, c->Vector(0));
  }
  return absl::OkStatus();
}

}  // namespace

#define ACTIVATIONS "{'tanh', 'sigmoid', 'relu', 'hard_sigmoid', 'linear', 'softsign'}"

// mask: bool (batch, timesteps), true = use the step; or int32 (batch,) sequence lengths; or an
// int32 scalar, not read: every step is valid; or int64 (batch + 1,) row splits of a ragged batch,
// whose inputs are (values, input_dim) and outputs (values, units). reserve: what the gradient
// needs, opaque bytes; empty unless save_reserve is set and something reads it. input_factors (4,
// batch, input_dim) and recurrent_factors (4, batch, units), or (0,): factors of x and h for each
// gate's product; they get no gradient.
REGISTER_OP("MaskedLstm")
    .Input("inputs: T")
    .Input("kernel: T")
    .Input("recurrent_kernel: T")
    .Input("bias: T")
    .Input("h0: T")
    .Input("c0: T")
    .Input("mask: Tmask")
    .Input("input_factors: T")
    .Input("recurrent_factors: T")
    .Output("outputs: T")
    .Output("h: T")
    .Output("c: T")
    .Output("reserve: uint8")
    .Attr("T: {half, bfloat16, float, double}")
    .Attr("Tmask: {bool, int32, int64}")
    .Attr("go_backwards: bool = false")
    .Attr("zero_output_for_mask: bool = false")
    .Attr("return_sequences: bool = true")
    .Attr("activation: " ACTIVATIONS " = 'tanh'")
    .Attr("recurrent_activation: " ACTIVATIONS " = 'sigmoid'")
    .Attr("save_reserve: bool = true")
    .SetShapeFn(ForwardShapes);

// reserve: from MaskedLstm, or empty: the forward pass is computed again. It may be longer than
// what is needed, as XLA's is (its size cannot depend on the mask). skip: numbers of outputs that
// nobody wants; they are empty, (0,).
REGISTER_OP("MaskedLstmGrad")
    .Input("inputs: T")
    .Input("kernel: T")
    .Input("recurrent_kernel: T")
    .Input("bias: T")
    .Input("h0: T")
    .Input("c0: T")
    .Input("mask: Tmask")
    .Input("input_factors: T")
    .Input("recurrent_factors: T")
    .Input("reserve: uint8")
    .Input("d_outputs: T")
    .Input("d_h: T")
    .Input("d_c: T")
    .Output("d_inputs: T")
    .Output("d_kernel: T")
    .Output("d_recurrent_kernel: T")
    .Output("d_bias: T")
    .Output("d_h0: T")
    .Output("d_c0: T")
    .Attr("T: {half, bfloat16, float, double}")
    .Attr("Tmask: {bool, int32, int64}")
    .Attr("go_backwards: bool = false")
    .Attr("zero_output_for_mask: bool = false")
    .Attr("return_sequences: bool = true")
    .Attr("activation: " ACTIVATIONS " = 'tanh'")
    .Attr("recurrent_activation: " ACTIVATIONS " = 'sigmoid'")
    .Attr("skip: list(int) = []")
    .SetShapeFn(GradientShapes);

}  // namespace masked_lstm
