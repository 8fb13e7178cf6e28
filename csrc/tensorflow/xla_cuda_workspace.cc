// XlaCudaWorkspace of xla_call.h: enough for any device.
#include "cuda/cuda_lstm.h"
#include "host/environment.h"
#include "tensorflow/xla_call.h"

namespace masked_lstm {
namespace {

Status Bound(const LstmForward& call, int64_t max_steps, size_t* bytes) {
  return CudaForwardWorkspaceBound(call, max_steps, bytes);
}
Status Bound(const LstmBackward& call, int64_t max_steps, size_t* bytes) {
  return CudaBackwardWorkspaceBound(call, max_steps, bytes);
}

template <typename Call>
Status Workspace(int64_t max_steps, Call* call, size_t* bytes) {
  MASKED_LSTM_RETURN_IF_ERROR(CudaChoiceFromEnvironment(&call->problem.cuda_choice));
  MASKED_LSTM_RETURN_IF_ERROR(Bound(*call, max_steps, bytes));
  *bytes = (*bytes + kXlaFlagBytes - 1) / kXlaFlagBytes * kXlaFlagBytes + kXlaFlagBytes;
  return OkStatus();
}

}  // namespace

Status XlaCudaWorkspace(int64_t max_steps, LstmForward* call, size_t* bytes) {
  return Workspace(max_steps, call, bytes);
}
Status XlaCudaWorkspace(int64_t max_steps, LstmBackward* call, size_t* bytes) {
  return Workspace(max_steps, call, bytes);
}

}  // namespace masked_lstm
