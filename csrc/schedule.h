// mask -> schedule. After this no arithmetic knows about masks: it sees a row, its k-th valid step,
// and the position to read and write.
#pragma once

#include <cstdint>

#include "force_inline.h"
#include "lstm.h"

namespace masked_lstm {

// One row of the batch. The mask itself is the list of positions: walking costs a byte per step.
struct RowSteps {
  const uint8_t* mask;  // (T) or null: every position below `limit` is valid
  int64_t limit;        // T, or the row's sequence length

  // The next valid position after `position` in direction +1 or -1; outside [0, limit) at the end.
  // Start from -1 (forwards) or from T (backwards).
  MASKED_LSTM_INLINE int64_t Next(int64_t position, int direction) const {
    position += direction;
    if (direction < 0 && position >= limit) position = limit - 1;
    if (mask != nullptr) {
      while (position >= 0 && position < limit && mask[position] == 0) position += direction;
    }
    return position;
  }
};

struct Schedule {
  int64_t total = 0;      // N
  const int32_t* counts;  // (B) valid steps of each row
  const int64_t* first;   // (B) row b's steps are the compact rows first[b] ... + counts[b]
  const int32_t* order;   // (B) rows, longest first
};

MASKED_LSTM_INLINE RowSteps StepsOfRow(const LstmProblem& p, int64_t row) {
  if (p.row_splits != nullptr) return {nullptr, p.row_splits[row + 1] - p.row_splits[row]};
  if (p.sequence_lengths != nullptr) return {nullptr, p.sequence_lengths[row]};
  return {p.mask == nullptr ? nullptr : p.mask + row * p.timesteps, p.timesteps};
}

// Timesteps of one row, the masked ones included, and where they begin in x and outputs.
MASKED_LSTM_INLINE int64_t TimestepsOfRow(const LstmProblem& p, int64_t row) {
  return p.row_splits == nullptr ? p.timesteps : p.row_splits[row + 1] - p.row_splits[row];
}
MASKED_LSTM_INLINE int64_t StartOfRow(const LstmProblem& p, int64_t row) {
  return p.row_splits == nullptr ? row * p.timesteps : p.row_splits[row];
}

// Where in its row the output of `position` stands: outputs are in processing order.
MASKED_LSTM_INLINE int64_t OutputPosition(const LstmProblem& p, int64_t row, int64_t position) {
  return p.go_backwards ? TimestepsOfRow(p, row) - 1 - position : position;
}

// Whether any of the steps is masked, when N are not.
inline bool HasMaskedSteps(const LstmProblem& p, int64_t valid_steps) {
  return p.row_splits == nullptr && valid_steps < p.batch * p.timesteps;
}

// Bytes BuildSchedule needs (8-byte aligned).
int64_t ScheduleBytes(const LstmProblem& problem);

// The problem must have passed CountValidSteps.
Schedule BuildSchedule(const LstmProblem& problem, void* memory);

// Valid steps of one row.
int64_t CountRow(const LstmProblem& problem, int64_t row);

}  // namespace masked_lstm
