// What the kernels of the two ops read from a node, on every device and inside XLA.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "host/arguments.h"
#include "lstm.h"
#include "tensorflow/core/framework/op_kernel.h"

namespace masked_lstm {

inline absl::Status ToAbsl(const Status& status) {
  switch (status.code) {
    case StatusCode::kOk:
      return absl::OkStatus();
    case StatusCode::kInvalidArgument:
      return absl::InvalidArgumentError(status.message);
    case StatusCode::kUnsupported:
      return absl::UnimplementedError(status.message);
    case StatusCode::kOutOfMemory:
      return absl::ResourceExhaustedError(status.message);
    case StatusCode::kDeviceError:
      break;
  }
  return absl::InternalError(status.message);
}

// Attributes that MaskedLstm and MaskedLstmGrad share.
struct LstmAttributes {
  bool go_backwards, zero_output_for_mask, return_sequences;
  Activation activation, recurrent_activation;

  absl::Status Read(tensorflow::OpKernelConstruction* construction) {
    TF_RETURN_IF_ERROR(construction->GetAttr("go_backwards", &go_backwards));
    TF_RETURN_IF_ERROR(construction->GetAttr("zero_output_for_mask", &zero_output_for_mask));
    TF_RETURN_IF_ERROR(construction->GetAttr("return_sequences", &return_sequences));
    std::string name;
    TF_RETURN_IF_ERROR(construction->GetAttr("activation", &name));
    TF_RETURN_IF_ERROR(ToAbsl(ParseActivation("activation", name.c_str(), &activation)));
    TF_RETURN_IF_ERROR(construction->GetAttr("recurrent_activation", &name));
    return ToAbsl(ParseActivation("recurrent_activation", name.c_str(), &recurrent_activation));
  }

  void WriteTo(LstmProblem* p) const {
    p->go_backwards = go_backwards;
    p->zero_output_for_mask = zero_output_for_mask;
    p->return_sequences = return_sequences;
    p->activation = activation;
    p->recurrent_activation = recurrent_activation;
  }
};

// MaskedLstmGrad's own attribute.
inline absl::Status ReadSkip(tensorflow::OpKernelConstruction* construction,
                             SkippedGradients* skip) {
  std::vector<int32_t> numbers;
  TF_RETURN_IF_ERROR(construction->GetAttr("skip", &numbers));
  return ToAbsl(ParseSkip(numbers.data(), numbers.size(), skip));
}

}  // namespace masked_lstm
