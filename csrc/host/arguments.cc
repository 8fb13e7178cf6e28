#include "host/arguments.h"

#include <cstdio>
#include <cstring>

namespace masked_lstm {
namespace {

// "(2, 3, 4)"; ranks above 3 end in "...".
void Print(int rank, const int64_t* dims, char (&text)[96]) {
  int at = std::snprintf(text, sizeof(text), "(");
  for (int i = 0; i < rank && i < 3; ++i) {
    at += std::snprintf(text + at, sizeof(text) - at, "%s%lld", i == 0 ? "" : ", ",
                        static_cast<long long>(dims[i]));
  }
  std::snprintf(text + at, sizeof(text) - at, rank > 3 ? ", ...)" : rank == 1 ? ",)" : ")");
}

}  // namespace

Status CheckShape(const char* name, const ArgumentShape& shape, int rank, const int64_t (&dims)[3],
                  const char* letters) noexcept {
  bool same = shape.rank == rank;
  for (int i = 0; same && i < rank; ++i) same = shape.dims[i] == dims[i];
  if (same) return OkStatus();
  char expected[96], got[96];
  Print(rank, dims, expected);
  Print(shape.rank, shape.dims, got);
  return Error(StatusCode::kInvalidArgument, "%s: expected shape %s = %s, got %s", name, letters,
               expected, got);
}

static Status CheckRowSplits(const ArgumentShapes& s, const int64_t* row_splits, int64_t* batch,
                             int64_t* timesteps) {
  char got[96];
  if (s.x.rank != 2) {
    Print(s.x.rank, s.x.dims, got);
    return Error(StatusCode::kInvalidArgument,
                 "inputs: expected shape (values, input_dim) with row_splits, got %s", got);
  }
  if (s.row_splits.rank != 1 || s.row_splits.dims[0] < 1) {
    Print(s.row_splits.rank, s.row_splits.dims, got);
    return Error(StatusCode::kInvalidArgument, "row_splits: expected shape (batch + 1,), got %s",
                 got);
  }
  *batch = s.row_splits.dims[0] - 1;
  *timesteps = 0;
  const int64_t values = s.x.dims[0];
  if (!s.row_splits_on_host) {
    if (*batch > 0 || values == 0) return OkStatus();
    return Error(StatusCode::kInvalidArgument,
                 "row_splits: expected at least one row for %lld values, got none",
                 static_cast<long long>(values));
  }
  for (int64_t i = 0; i <= *batch; ++i) {
    const int64_t low = i == 0 ? 0 : row_splits[i - 1];
    if (row_splits[i] < low || row_splits[i] > values || (i == 0 && row_splits[i] > 0) ||
        (i == *batch && row_splits[i] != values)) {
      return Error(StatusCode::kInvalidArgument,
                   "row_splits[%lld]: expected numbers that rise from 0 to values = %lld, got %lld",
                   static_cast<long long>(i), static_cast<long long>(values),
                   static_cast<long long>(row_splits[i]));
    }
    if (row_splits[i] - low > *timesteps) *timesteps = row_splits[i] - low;
  }
  return OkStatus();
}

Status CheckArguments(const ArgumentShapes& s, LstmProblem* problem) noexcept {
  char got[96];
  const bool ragged = problem->row_splits != nullptr;
  int64_t batch = s.x.dims[0], timesteps = s.x.dims[1];
  if (ragged && (s.mask.rank >= 0 || s.sequence_lengths.rank >= 0)) {
    return Error(StatusCode::kInvalidArgument,
                 "row_splits: expected neither mask nor sequence_lengths with it");
  }
  if (ragged) {
    MASKED_LSTM_RETURN_IF_ERROR(CheckRowSplits(s, problem->row_splits, &batch, &timesteps));
  } else if (s.x.rank != 3) {
    Print(s.x.rank, s.x.dims, got);
    return Error(StatusCode::kInvalidArgument,
                 "inputs: expected shape (batch, timesteps, input_dim), got %s", got);
  }
  if (s.recurrent_kernel.rank != 2 || s.recurrent_kernel.dims[0] < 1 ||
      s.recurrent_kernel.dims[1] / 4 != s.recurrent_kernel.dims[0] ||
      s.recurrent_kernel.dims[1] % 4 != 0) {
    Print(s.recurrent_kernel.rank, s.recurrent_kernel.dims, got);
    return Error(StatusCode::kInvalidArgument,
                 "recurrent_kernel: expected shape (units, 4*units) with units >= 1, got %s", got);
  }
  const int64_t input_dim = s.x.dims[ragged ? 1 : 2];
  const int64_t units = s.recurrent_kernel.dims[0], columns = s.recurrent_kernel.dims[1];
  MASKED_LSTM_RETURN_IF_ERROR(
      CheckShape("kernel", s.kernel, 2, {input_dim, columns, 0}, "(input_dim, 4*units)"));
  if (s.bias.rank >= 0) {
    MASKED_LSTM_RETURN_IF_ERROR(CheckShape("bias", s.bias, 1, {columns, 0, 0}, "(4*units,)"));
  }
  if (s.h0.rank >= 0) {
    MASKED_LSTM_RETURN_IF_ERROR(
        CheckShape("initial_state[0] (h)", s.h0, 2, {batch, units, 0}, "(batch, units)"));
  }
  if (s.c0.rank >= 0) {
    MASKED_LSTM_RETURN_IF_ERROR(
        CheckShape("initial_state[1] (c)", s.c0, 2, {batch, units, 0}, "(batch, units)"));
  }
  if (s.mask.rank >= 0) {
    MASKED_LSTM_RETURN_IF_ERROR(
        CheckShape("mask", s.mask, 2, {batch, timesteps, 0}, "(batch, timesteps)"));
  }
  if (s.sequence_lengths.rank >= 0) {
    MASKED_LSTM_RETURN_IF_ERROR(
        CheckShape("sequence_lengths", s.sequence_lengths, 1, {batch, 0, 0}, "(batch,)"));
  }
  if (s.input_factors.rank >= 0) {
    MASKED_LSTM_RETURN_IF_ERROR(CheckShape("input_factors", s.input_factors, 3,
                                           {4, batch, input_dim}, "(4, batch, input_dim)"));
  }
  if (s.recurrent_factors.rank >= 0) {
    MASKED_LSTM_RETURN_IF_ERROR(CheckShape("recurrent_factors", s.recurrent_factors, 3,
                                           {4, batch, units}, "(4, batch, units)"));
  }
  problem->batch = batch;
  problem->timesteps = timesteps;
  problem->input_dim = input_dim;
  problem->units = units;
  return OkStatus();
}

Status ParseActivation(const char* argument, const char* name, Activation* activation) noexcept {
  static const char* const kNames[kActivations] = {"tanh",         "sigmoid", "relu",
                                                   "hard_sigmoid", "linear",  "softsign"};
  for (int i = 0; i < kActivations; ++i) {
    if (std::strcmp(name, kNames[i]) != 0) continue;
    *activation = static_cast<Activation>(i);
    return OkStatus();
  }
  return Error(StatusCode::kInvalidArgument,
               "%s: expected tanh, sigmoid, relu, hard_sigmoid, linear or softsign, got '%.40s'",
               argument, name);
}

Status ParseSkip(const int32_t* numbers, size_t count, SkippedGradients* skip) noexcept {
  skip->fill(false);
  for (size_t i = 0; i < count; ++i) {
    if (numbers[i] < 0 || numbers[i] >= kGradients) {
      return Error(StatusCode::kInvalidArgument, "skip: expected numbers from 0 to %d, got %d",
                   kGradients - 1, numbers[i]);
    }
    (*skip)[numbers[i]] = true;
  }
  return OkStatus();
}

Status CheckResultGradients(const LstmProblem& p, int64_t padded_steps,
                            const ArgumentShape& d_outputs, const ArgumentShape& d_h,
                            const ArgumentShape& d_c) noexcept {
  if (d_outputs.rank >= 0) {
    if (p.return_sequences && p.row_splits != nullptr) {
      MASKED_LSTM_RETURN_IF_ERROR(
          CheckShape("d_outputs", d_outputs, 2, {padded_steps, p.units, 0}, "(values, units)"));
    } else if (p.return_sequences) {
      MASKED_LSTM_RETURN_IF_ERROR(CheckShape(
          "d_outputs", d_outputs, 3, {p.batch, p.timesteps, p.units}, "(batch, timesteps, units)"));
    } else {
      MASKED_LSTM_RETURN_IF_ERROR(
          CheckShape("d_outputs", d_outputs, 2, {p.batch, p.units, 0}, "(batch, units)"));
    }
  }
  if (d_h.rank >= 0) {
    MASKED_LSTM_RETURN_IF_ERROR(CheckShape("d_h", d_h, 2, {p.batch, p.units, 0}, "(batch, units)"));
  }
  if (d_c.rank >= 0) {
    MASKED_LSTM_RETURN_IF_ERROR(CheckShape("d_c", d_c, 2, {p.batch, p.units, 0}, "(batch, units)"));
  }
  return OkStatus();
}

}  // namespace masked_lstm
