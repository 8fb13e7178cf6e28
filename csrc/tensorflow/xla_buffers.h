// What the handlers of every platform share: XLA's buffers as the core's pointers and shapes, and
// their registration. The only header of XLA here is that of its C interface for such calls.
#pragma once

#include <string>

#include "host/arguments.h"
#include "lstm.h"
#include "tensorflow/xla_call.h"
#include "xla/ffi/api/ffi.h"

namespace xla::ffi {
const XLA_FFI_Api* GetXlaFfiApi();  // TensorFlow's; its own header would bring all of XLA
}

namespace masked_lstm {

namespace ffi = xla::ffi;

inline ffi::Error ToFfi(const Status& status) {
  switch (status.code) {
    case StatusCode::kOk:
      return ffi::Error::Success();
    case StatusCode::kInvalidArgument:
      return ffi::Error(ffi::ErrorCode::kInvalidArgument, status.message);
    case StatusCode::kUnsupported:
      return ffi::Error(ffi::ErrorCode::kUnimplemented, status.message);
    case StatusCode::kOutOfMemory:
      return ffi::Error(ffi::ErrorCode::kResourceExhausted, status.message);
    case StatusCode::kDeviceError:
      break;
  }
  return ffi::Error(ffi::ErrorCode::kInternal, status.message);
}

#define RETURN_IF_FFI_ERROR(expression)    \
  do {                                     \
    const ffi::Error error = (expression); \
    if (!error.success()) return error;    \
  } while (false)

inline ArgumentShape ShapeOf(const ffi::AnyBuffer& buffer) {
  ArgumentShape shape;
  shape.rank = static_cast<int>(buffer.dimensions().size());
  for (int i = 0; i < shape.rank && i < 3; ++i) shape.dims[i] = buffer.dimensions()[i];
  return shape;
}

inline void* Data(const ffi::AnyBuffer& buffer) { return buffer.untyped_data(); }

inline DType DTypeOf(const ffi::AnyBuffer& buffer) {
  switch (buffer.element_type()) {
    case ffi::DataType::F64:
      return DType::kFloat64;
    case ffi::DataType::F16:
      return DType::kFloat16;
    case ffi::DataType::BF16:
      return DType::kBFloat16;
    default:
      return DType::kFloat32;
  }
}

// The buffers of a call. Their number was set by xla_kernels.cc, and XLA has compared it.
struct Buffers {
  ffi::RemainingArgs arguments;
  ffi::RemainingRets results;

  ffi::AnyBuffer Argument(int index) const { return arguments.get<ffi::AnyBuffer>(index).value(); }
  ffi::AnyBuffer Result(int index) const { return *results.get<ffi::AnyBuffer>(index).value(); }
};

struct Attributes {
  int32_t flags, activation, recurrent_activation;
};

// Fills in *p from the inputs that both passes begin with. on_host: row_splits may be read.
inline Status ReadProblem(const Buffers& buffers, const Attributes& attributes, bool on_host,
                          LstmProblem* p) {
  ArgumentShapes shapes;
  shapes.row_splits_on_host = on_host;
  ArgumentShape* const in_order[] = {&shapes.x,    &shapes.kernel, &shapes.recurrent_kernel,
                                     &shapes.bias, &shapes.h0,     &shapes.c0};
  for (int i = kX; i <= kC0; ++i) *in_order[i] = ShapeOf(buffers.Argument(i));
  const ffi::AnyBuffer mask = buffers.Argument(kMask);
  if (mask.element_type() == ffi::DataType::PRED) {
    shapes.mask = ShapeOf(mask);
    p->mask = static_cast<const uint8_t*>(Data(mask));
  } else if (mask.element_type() == ffi::DataType::S64) {
    shapes.row_splits = ShapeOf(mask);
    p->row_splits = static_cast<const int64_t*>(Data(mask));
  } else if (mask.dimensions().size() > 0) {
    shapes.sequence_lengths = ShapeOf(mask);
    p->sequence_lengths = static_cast<const int32_t*>(Data(mask));
  }
  const struct {
    int input;
    ArgumentShape* shape;
    const void** data;
  } factors[] = {{kInputFactors, &shapes.input_factors, &p->input_factors},
                 {kRecurrentFactors, &shapes.recurrent_factors, &p->recurrent_factors}};
  for (const auto& factor : factors) {
    const ffi::AnyBuffer buffer = buffers.Argument(factor.input);
    if (buffer.dimensions().size() == 1) continue;  // (0,): none are given
    *factor.shape = ShapeOf(buffer);
    *factor.data = Data(buffer);
  }
  MASKED_LSTM_RETURN_IF_ERROR(CheckArguments(shapes, p));
  p->dtype = DTypeOf(buffers.Argument(kX));
  p->go_backwards = (attributes.flags & kGoBackwards) != 0;
  p->zero_output_for_mask = (attributes.flags & kZeroOutputForMask) != 0;
  p->return_sequences = (attributes.flags & kReturnSequences) != 0;
  p->activation = static_cast<Activation>(attributes.activation);
  p->recurrent_activation = static_cast<Activation>(attributes.recurrent_activation);
  p->x = Data(buffers.Argument(kX));
  p->kernel = Data(buffers.Argument(kKernel));
  p->recurrent_kernel = Data(buffers.Argument(kRecurrentKernel));
  p->bias = Data(buffers.Argument(kBias));
  p->h0 = Data(buffers.Argument(kH0));
  p->c0 = Data(buffers.Argument(kC0));
  return OkStatus();
}

// Steps of all rows, the masked ones included.
inline int64_t PaddedSteps(const Buffers& buffers, const LstmProblem& p) {
  return p.row_splits != nullptr ? buffers.Argument(kX).dimensions()[0] : p.batch * p.timesteps;
}

// exact: where its parts stand follows from the steps there is room for (on CUDA), not from the
// valid ones.
inline Status CheckReserve(const LstmProblem& p, int64_t steps, size_t bytes, bool exact) {
  const size_t need = static_cast<size_t>(steps * 5 * p.units * ComputeBytes(p.dtype));
  if (exact ? bytes == need : bytes >= need) return OkStatus();
  return Error(StatusCode::kInvalidArgument,
               "reserve: expected %zu bytes as MaskedLstm gave for the same inputs, got %zu", need,
               bytes);
}

// The rest of *call, whose problem has been read. steps: that a reserve must have room for.
inline Status ReadForward(const Buffers& buffers, int64_t steps, LstmForward* call) {
  call->outputs = Data(buffers.Result(0));
  call->h = Data(buffers.Result(1));
  call->c = Data(buffers.Result(2));
  const ffi::AnyBuffer reserve = buffers.Result(3);
  if (reserve.size_bytes() == 0) return OkStatus();
  call->reserve = Data(reserve);
  return CheckReserve(call->problem, steps, reserve.size_bytes(), /*exact=*/false);
}

inline Status ReadBackward(const Buffers& buffers, int32_t skip, int64_t steps, bool exact_reserve,
                           LstmBackward* call) {
  const LstmProblem& p = call->problem;
  MASKED_LSTM_RETURN_IF_ERROR(
      CheckResultGradients(p, PaddedSteps(buffers, p), ShapeOf(buffers.Argument(kDOutputs)),
                           ShapeOf(buffers.Argument(kDH)), ShapeOf(buffers.Argument(kDC))));
  const ffi::AnyBuffer reserve = buffers.Argument(kReserve);
  if (reserve.size_bytes() > 0) {
    MASKED_LSTM_RETURN_IF_ERROR(CheckReserve(p, steps, reserve.size_bytes(), exact_reserve));
    call->reserve = Data(reserve);
  }
  call->d_outputs = Data(buffers.Argument(kDOutputs));
  call->d_h = Data(buffers.Argument(kDH));
  call->d_c = Data(buffers.Argument(kDC));
  void** const gradients[kGradients] = {&call->dx,     &call->d_kernel, &call->d_recurrent_kernel,
                                        &call->d_bias, &call->dh0,      &call->dc0};
  for (int i = 0; i < kGradients; ++i) {
    if ((skip >> i & 1) == 0) *gradients[i] = Data(buffers.Result(i));
  }
  const ffi::AnyBuffer scratch = buffers.Result(kGradients);
  call->scratch = Data(scratch);
  return CheckReserve(p, steps, scratch.size_bytes(), exact_reserve);
}

// Takes over XLA's error: its words, or none.
inline std::string Words(XLA_FFI_Error* error) {
  if (error == nullptr) return "";
  const XLA_FFI_Api* api = ffi::GetXlaFfiApi();
  std::string words = ffi::internal::GetErrorMessage(api, error);
  ffi::internal::DestroyError(api, error);
  return words;
}

// What both platforms' handlers are registered by; what went wrong, else empty. XLA's own macro
// would swallow it. instantiate: or null.
inline std::string RegisterHandlers(const char* platform, XLA_FFI_Handler* instantiate,
                                    XLA_FFI_Handler* forward, XLA_FFI_Handler* backward) {
  const struct {
    const char* target;
    XLA_FFI_Handler* execute;
  } handlers[] = {{kXlaForward, forward}, {kXlaBackward, backward}};
  for (const auto& handler : handlers) {
    const XLA_FFI_Handler_Bundle bundle{instantiate, nullptr, nullptr, handler.execute};
    const std::string error = Words(
        ffi::Ffi::RegisterStaticHandler(ffi::GetXlaFfiApi(), handler.target, platform, bundle));
    if (!error.empty()) return error;
  }
  return "";
}

}  // namespace masked_lstm
