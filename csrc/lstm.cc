// Validation, and the choice of the path that computes.
#include "lstm.h"

#include <initializer_list>

#include "cpu/cpu_lstm.h"
#include "schedule.h"

namespace masked_lstm {
namespace {

// Bytes of every buffer of a call must be countable in 63 bits.
bool ProductFits(std::initializer_list<int64_t> factors) {
  int64_t product = 1;
  for (int64_t factor : factors) {
    if (factor == 0) return true;
  }
  for (int64_t factor : factors) {
    if (__builtin_mul_overflow(product, factor, &product)) return false;
  }
  return true;
}

Status CheckSizes(const LstmProblem& p) {
  const struct {
    const char* name;
    int64_t value, lowest, highest;
  } sizes[] = {{"batch", p.batch, 0, INT32_MAX - 1},
               {"timesteps", p.timesteps, 0, INT32_MAX - 2},
               {"input_dim", p.input_dim, 0, INT64_MAX / 8},
               {"units", p.units, 1, INT64_MAX / 64}};
  for (const auto& size : sizes) {
    if (size.value < size.lowest || size.value > size.highest) {
      return Error(StatusCode::kInvalidArgument, "%s: expected a size from %lld to %lld, got %lld",
                   size.name, static_cast<long long>(size.lowest),
                   static_cast<long long>(size.highest), static_cast<long long>(size.value));
    }
  }
  // 128 covers bytes per value, the reserve's factor 5 and the rounding up to panels.
  if (!ProductFits({p.batch, p.timesteps, p.input_dim, 16}) ||
      !ProductFits({p.batch, p.timesteps, p.units, 128}) ||
      !ProductFits({p.input_dim, p.units, 128}) || !ProductFits({p.units, p.units, 1024})) {
    return Error(StatusCode::kInvalidArgument,
                 "batch %lld, timesteps %lld, input_dim %lld, units %lld: the product of the sizes "
                 "overflows",
                 static_cast<long long>(p.batch), static_cast<long long>(p.timesteps),
                 static_cast<long long>(p.input_dim), static_cast<long long>(p.units));
  }
  return OkStatus();
}

Status CheckWorkspace(const void* workspace, size_t have, size_t need) {
  if (workspace == nullptr) have = 0;
  if (have >= need) return OkStatus();
  return Error(StatusCode::kInvalidArgument, "workspace: expected %zu bytes, got %zu", need, have);
}

Status CheckPointer(const char* name, const void* pointer, int64_t values) {
  if (pointer != nullptr || values == 0) return OkStatus();
  return Error(StatusCode::kInvalidArgument, "%s: expected a buffer of %lld values, got none", name,
               static_cast<long long>(values));
}

Status CheckInputs(const LstmProblem& p, int64_t steps) {
  MASKED_LSTM_RETURN_IF_ERROR(CheckPointer("x", p.x, steps * p.input_dim));
  MASKED_LSTM_RETURN_IF_ERROR(CheckPointer("kernel", p.kernel, p.input_dim * 4 * p.units));
  return CheckPointer("recurrent_kernel", p.recurrent_kernel, p.units * 4 * p.units);
}

}  // namespace

Status CountValidSteps(const LstmProblem& p, int64_t* steps) noexcept {
  MASKED_LSTM_RETURN_IF_ERROR(CheckSizes(p));
  if ((p.mask != nullptr) + (p.sequence_lengths != nullptr) + (p.row_splits != nullptr) > 1) {
    return Error(StatusCode::kInvalidArgument,
                 p.row_splits == nullptr
                     ? "mask, sequence_lengths: expected at most one of them, got both"
                     : "row_splits: expected neither mask nor sequence_lengths with it");
  }
  if (p.row_splits != nullptr && p.row_splits[0] != 0) {
    return Error(StatusCode::kInvalidArgument, "row_splits[0]: expected 0, got %lld",
                 static_cast<long long>(p.row_splits[0]));
  }
  *steps = 0;
  for (int64_t row = 0; row < p.batch; ++row) {
    if (p.sequence_lengths != nullptr) {
      const int32_t length = p.sequence_lengths[row];
      if (length < 0 || length > p.timesteps) {
        return Error(StatusCode::kInvalidArgument,
                     "sequence_lengths[%lld]: expected a length from 0 to timesteps = %lld, got %d",
                     static_cast<long long>(row), static_cast<long long>(p.timesteps), length);
      }
    }
    const int64_t count = CountRow(p, row);
    if (count < 0 || count > p.timesteps) {
      return Error(StatusCode::kInvalidArgument,
                   "row_splits: expected rows of 0 to timesteps = %lld steps, row %lld has %lld",
                   static_cast<long long>(p.timesteps), static_cast<long long>(row),
                   static_cast<long long>(count));
    }
    *steps += count;
  }
  return OkStatus();
}

Status LstmForwardWorkspaceBytes(const LstmProblem& p, int workers, size_t* bytes) noexcept {
  const CpuKernels* kernels = nullptr;
  MASKED_LSTM_RETURN_IF_ERROR(CheckSizes(p));
  MASKED_LSTM_RETURN_IF_ERROR(FindCpuKernels(ForwardIsa(p), &kernels));
  *bytes = CpuForwardWorkspaceBytes(p, *kernels, workers);
  return OkStatus();
}

Status LstmBackwardWorkspaceBytes(const LstmProblem& p, bool have_reserve, int workers,
                                  size_t* bytes) noexcept {
  const CpuKernels* kernels = nullptr;
  int64_t steps = 0;
  MASKED_LSTM_RETURN_IF_ERROR(CountValidSteps(p, &steps));
  MASKED_LSTM_RETURN_IF_ERROR(FindCpuKernels(BackwardIsa(p), &kernels));
  *bytes = CpuBackwardWorkspaceBytes(p, steps, *kernels, workers);
  if (!have_reserve) {
    // The forward pass runs first, in the same memory.
    size_t forward = 0;
    MASKED_LSTM_RETURN_IF_ERROR(LstmForwardWorkspaceBytes(p, workers, &forward));
    if (forward > *bytes) *bytes = forward;
  }
  return OkStatus();
}

Status RunLstmForward(const LstmForward& call, const Threads& threads) noexcept {
  const LstmProblem& p = call.problem;
  int64_t steps = 0;
  size_t need = 0;
  const CpuKernels* kernels = nullptr;
  MASKED_LSTM_RETURN_IF_ERROR(CountValidSteps(p, &steps));
  MASKED_LSTM_RETURN_IF_ERROR(FindCpuKernels(ForwardIsa(p), &kernels));
  MASKED_LSTM_RETURN_IF_ERROR(CheckInputs(p, steps));
  MASKED_LSTM_RETURN_IF_ERROR(LstmForwardWorkspaceBytes(p, threads.workers, &need));
  MASKED_LSTM_RETURN_IF_ERROR(CheckWorkspace(call.workspace, call.workspace_bytes, need));
  CpuForward(call, steps, *kernels, threads);
  return OkStatus();
}

Status RunLstmBackward(const LstmBackward& call, const Threads& threads) noexcept {
  const LstmProblem& p = call.problem;
  int64_t steps = 0;
  size_t need = 0;
  const CpuKernels* kernels = nullptr;
  MASKED_LSTM_RETURN_IF_ERROR(CountValidSteps(p, &steps));
  MASKED_LSTM_RETURN_IF_ERROR(FindCpuKernels(BackwardIsa(p), &kernels));
  MASKED_LSTM_RETURN_IF_ERROR(CheckInputs(p, steps));
  MASKED_LSTM_RETURN_IF_ERROR(CheckPointer("scratch", call.scratch, steps * 5 * p.units));
  // Without steps there is nothing to compute again, whatever an empty reserve's pointer is.
  const bool recompute = call.reserve == nullptr && steps > 0;
  MASKED_LSTM_RETURN_IF_ERROR(LstmBackwardWorkspaceBytes(p, !recompute, threads.workers, &need));
  MASKED_LSTM_RETURN_IF_ERROR(CheckWorkspace(call.workspace, call.workspace_bytes, need));
  LstmBackward with_reserve = call;
  if (recompute) {
    LstmForward forward;
    forward.problem = p;
    forward.reserve = call.scratch;
    forward.workspace = call.workspace;
    forward.workspace_bytes = call.workspace_bytes;
    MASKED_LSTM_RETURN_IF_ERROR(RunLstmForward(forward, threads));
    with_reserve.reserve = call.scratch;
  }
  CpuBackward(with_reserve, steps, *kernels, threads);
  return OkStatus();
}

}  // namespace masked_lstm
