// What a compiled program calls on a CUDA device: XLA's buffers and stream handed to the core.
// Nothing is allocated, nothing waits for the device (but when MASKED_LSTM_CHECK_LENGTHS asks for
// it), no value in a buffer is read by the host. Apart from the registration, so that tests run the
// same code on the executor of tests/cuda_host.
#pragma once

#include <cstdint>
#include <string>

#include "cuda/cuda_lstm.h"
#include "host/environment.h"
#include "host/kernel_calls.h"
#include "tensorflow/cuda_length_check.h"
#include "tensorflow/xla_buffers.h"

namespace masked_lstm {

// Gives the call its workspace, result `index`; returns the flag behind it.
template <typename Call>
int32_t* TakeWorkspace(const Buffers& buffers, int index, Call* call) {
  const ffi::AnyBuffer workspace = buffers.Result(index);
  call->workspace = Data(workspace);
  call->workspace_bytes = workspace.size_bytes() - kXlaFlagBytes;
  return reinterpret_cast<int32_t*>(static_cast<char*>(call->workspace) + call->workspace_bytes);
}

inline Status ReadCudaProblem(const Buffers& buffers, const Attributes& attributes,
                              int32_t cuda_choice, LstmProblem* p) {
  MASKED_LSTM_RETURN_IF_ERROR(ReadProblem(buffers, attributes, /*on_host=*/false, p));
  p->cuda_choice = static_cast<CudaChoice>(cuda_choice);
  return OkStatus();
}

inline Status CudaForward(const Buffers& buffers, const Attributes& attributes, int32_t cuda_choice,
                          CUstream_st* stream) {
  LstmForward call;
  const LstmProblem& p = call.problem;
  MASKED_LSTM_RETURN_IF_ERROR(ReadCudaProblem(buffers, attributes, cuda_choice, &call.problem));
  const int64_t steps = PaddedSteps(buffers, p);
  MASKED_LSTM_RETURN_IF_ERROR(ReadForward(buffers, steps, &call));
  int32_t* flag = TakeWorkspace(buffers, 4, &call);
  const bool any = p.sequence_lengths != nullptr || p.row_splits != nullptr;
  const bool check = (attributes.flags & kCheckLengths) != 0 || CheckLengthsFromEnvironment();
  if (!any || !check) flag = nullptr;
  if (flag != nullptr) MASKED_LSTM_RETURN_IF_ERROR(ClearCudaFlag(flag, stream));
  MASKED_LSTM_RETURN_IF_ERROR(RunCudaForward(call, steps, flag, stream));
  if (flag != nullptr) MASKED_LSTM_RETURN_IF_ERROR(CheckLengths(p, flag, stream));
  CountCudaCall(ForwardCudaKernel(call), p.dtype, Pass::kForward);
  return OkStatus();
}

inline Status CudaBackward(const Buffers& buffers, const Attributes& attributes,
                           int32_t cuda_choice, int32_t skip, CUstream_st* stream) {
  LstmBackward call;
  const LstmProblem& p = call.problem;
  MASKED_LSTM_RETURN_IF_ERROR(ReadCudaProblem(buffers, attributes, cuda_choice, &call.problem));
  const int64_t steps = PaddedSteps(buffers, p);
  MASKED_LSTM_RETURN_IF_ERROR(ReadBackward(buffers, skip, steps, /*exact_reserve=*/true, &call));
  TakeWorkspace(buffers, kGradients + 1, &call);
  MASKED_LSTM_RETURN_IF_ERROR(RunCudaBackward(call, steps, nullptr, stream));
  CountCudaCall(BackwardCudaKernel(call), p.dtype, Pass::kBackward);
  return OkStatus();
}

// The handlers. Stream: XLA's PlatformStream<CUstream_st*>, or what stands for it in tests.
template <typename Stream>
struct CudaHandlers {
  using StreamArgument = typename ffi::CtxDecoding<Stream>::Type;

  static ffi::Error Forward(const StreamArgument& stream, int32_t flags, int32_t activation,
                            int32_t recurrent_activation, int32_t cuda_choice,
                            ffi::RemainingArgs arguments, ffi::RemainingRets results) {
    return ToFfi(CudaForward({arguments, results}, {flags, activation, recurrent_activation},
                             cuda_choice, stream));
  }

  static ffi::Error Backward(const StreamArgument& stream, int32_t flags, int32_t activation,
                             int32_t recurrent_activation, int32_t cuda_choice, int32_t skip,
                             ffi::RemainingArgs arguments, ffi::RemainingRets results) {
    return ToFfi(CudaBackward({arguments, results}, {flags, activation, recurrent_activation},
                              cuda_choice, skip, stream));
  }

  // Not declared fit for command buffers, in which XLA would record and replay them: they launch
  // kernels on the stream and nothing else, but have not been recorded on a GPU yet, and there the
  // check of lengths could not wait and calls would not be counted.
  static std::string Register(const char* platform) {
    XLA_FFI_DEFINE_HANDLER(forward, Forward,
                           ffi::Ffi::Bind()
                               .Ctx<Stream>()
                               .template Attr<int32_t>("flags")
                               .template Attr<int32_t>("activation")
                               .template Attr<int32_t>("recurrent_activation")
                               .template Attr<int32_t>("cuda_choice")
                               .RemainingArgs()
                               .RemainingRets());
    XLA_FFI_DEFINE_HANDLER(backward, Backward,
                           ffi::Ffi::Bind()
                               .Ctx<Stream>()
                               .template Attr<int32_t>("flags")
                               .template Attr<int32_t>("activation")
                               .template Attr<int32_t>("recurrent_activation")
                               .template Attr<int32_t>("cuda_choice")
                               .template Attr<int32_t>("skip")
                               .RemainingArgs()
                               .RemainingRets());
    return RegisterHandlers(platform, nullptr, forward, backward);
  }
};

}  // namespace masked_lstm
