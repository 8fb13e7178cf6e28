// Shapes of a call's arguments, checked once for both bindings.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "lstm.h"

namespace masked_lstm {

struct ArgumentShape {
  int rank = -1;                // -1: not given
  int64_t dims[3] = {0, 0, 0};  // the first three
};

struct ArgumentShapes {
  ArgumentShape x, kernel, recurrent_kernel, bias, h0, c0, mask, sequence_lengths, input_factors,
      recurrent_factors, row_splits;
  bool row_splits_on_host = true;  // else only their shape is looked at, and T is taken as unknown
};

// Sets batch, timesteps, input_dim and units of *problem; where problem->row_splits is set it is
// checked and x has the shape (values, input_dim). Errors: kInvalidArgument naming the
// argument, the shape expected and the one that came.
Status CheckArguments(const ArgumentShapes& shapes, LstmProblem* problem) noexcept;

// One argument against its expected shape, e.g. ("d_h", shape, 2, {batch, units}, "(batch,
// units)").
Status CheckShape(const char* name, const ArgumentShape& shape, int rank, const int64_t (&dims)[3],
                  const char* letters) noexcept;

// "tanh", "sigmoid", "relu", "hard_sigmoid", "linear" or "softsign"; `argument` is named in the
// error.
Status ParseActivation(const char* argument, const char* name, Activation* activation) noexcept;

// Which of the gradients x, kernel, recurrent_kernel, bias, h0, c0 nobody wants.
constexpr int kGradients = 6;
using SkippedGradients = std::array<bool, kGradients>;

// From their numbers. Errors: kInvalidArgument, a number outside [0, kGradients).
Status ParseSkip(const int32_t* numbers, size_t count, SkippedGradients* skip) noexcept;

// The gradients that arrive at the results of `problem`. padded_steps: B*T, or the rows of x of a
// ragged batch.
Status CheckResultGradients(const LstmProblem& problem, int64_t padded_steps,
                            const ArgumentShape& d_outputs, const ArgumentShape& d_h,
                            const ArgumentShape& d_c) noexcept;

}  // namespace masked_lstm
