// mask -> schedule, on the device: nothing of it is ever known to the host. Three launches (four
// for a ragged batch), each with one job; afterwards no kernel knows about masks.
#pragma once

#include "cuda/device.cuh"
#include "schedule.h"

namespace masked_lstm {
namespace cuda {

// Compact rows n = first[b] + k stand for the k-th step of row b in processing order.
struct DeviceSchedule {
  int32_t* counts;      // (B) valid steps of each row
  int64_t* first;       // (B+1); first[B] = N
  int32_t* order;       // (B) rows, longest first
  int64_t* x_rows;      // (N) which row of x, b*T+t; as many as B*T are allocated
  int32_t* batch_rows;  // (N) b
  int64_t* splits;      // (B+1) row_splits made safe; null unless the batch is ragged
  int32_t* bad_length;  // 1 if a length outside [0,T] or a split had to be clamped; or null
};

constexpr int kScheduleThreads = 128;

MASKED_LSTM_DEVICE bool IsValid(const LstmProblem& p, int64_t row, int64_t t, int64_t limit) {
  return t < limit && (p.mask == nullptr || p.mask[row * p.timesteps + t] != 0);
}

// The end of what can be valid in a row, whatever its length says: never out of bounds.
MASKED_LSTM_DEVICE int64_t RowLimit(const LstmProblem& p, int64_t row, int32_t* bad_length) {
  const int64_t timesteps = TimestepsOfRow(p, row);
  if (p.sequence_lengths == nullptr) return timesteps;
  const int64_t length = p.sequence_lengths[row];
  if (length >= 0 && length <= timesteps) return length;
  if (bad_length != nullptr) *bad_length = 1;
  return length < 0 ? 0 : timesteps;
}

// One thread for each split: rising from 0 to x_rows whatever the caller's are, so that every row
// of x belongs to one row of the batch. Everything after this reads these.
static __global__ void CheckSplitsKernel(LstmProblem p, DeviceSchedule schedule, int64_t x_rows) {
  const int64_t row = int64_t{BlockIndex()} * kScheduleThreads + ThreadIndex();
  if (row > p.batch) return;
  int64_t split = 0;
  for (int64_t i = 1; i <= row; ++i) {
    const int64_t other = p.row_splits[i] < x_rows ? p.row_splits[i] : x_rows;
    if (other > split) split = other;
  }
  if (row == p.batch) split = x_rows;
  if (row == 0) split = 0;
  schedule.splits[row] = split;
  if (split != p.row_splits[row] && schedule.bad_length != nullptr) *schedule.bad_length = 1;
}

// One block for each row: how many steps are valid.
static __global__ void CountStepsKernel(LstmProblem p, DeviceSchedule schedule) {
  int32_t* sums = SharedMemory<int32_t>();  // (kScheduleThreads)
  const int64_t row = BlockIndex(), limit = RowLimit(p, row, schedule.bad_length);
  int32_t count = 0;
  for (int64_t t = ThreadIndex(); t < limit; t += kScheduleThreads) {
    count += IsValid(p, row, t, limit);
  }
  sums[ThreadIndex()] = count;
  for (int width = kScheduleThreads / 2; width > 0; width /= 2) {
    BlockBarrier();
    if (ThreadIndex() < width) sums[ThreadIndex()] += sums[ThreadIndex() + width];
  }
  if (ThreadIndex() == 0) schedule.counts[row] = sums[0];
}

// One thread for each row: where its compact rows begin, and its place in the order.
static __global__ void OrderRowsKernel(LstmProblem p, DeviceSchedule schedule) {
  const int64_t row = int64_t{BlockIndex()} * kScheduleThreads + ThreadIndex();
  if (row >= p.batch) return;
  const int32_t count = schedule.counts[row];
  int64_t first = 0, rank = 0;
  for (int64_t other = 0; other < p.batch; ++other) {
    const int32_t others = schedule.counts[other];
    if (other < row) first += others;
    rank += others > count || (others == count && other < row);
  }
  schedule.first[row] = first;
  schedule.order[rank] = static_cast<int32_t>(row);
  if (row == p.batch - 1) schedule.first[p.batch] = first + count;
}

// One block for each row: its valid steps in processing order.
static __global__ void ListStepsKernel(LstmProblem p, DeviceSchedule schedule) {
  int32_t* sums = SharedMemory<int32_t>();  // (kScheduleThreads)
  const int64_t row = BlockIndex(), limit = RowLimit(p, row, nullptr);
  const int64_t start = StartOfRow(p, row), first = schedule.first[row];
  int64_t before = 0;  // valid steps before this piece of the row
  for (int64_t begin = 0; begin < limit; begin += kScheduleThreads) {
    const int64_t i = begin + ThreadIndex();
    const int64_t t = p.go_backwards ? limit - 1 - i : i;
    const bool valid = i < limit && IsValid(p, row, t, limit);
    sums[ThreadIndex()] = valid;
    for (int width = 1; width < kScheduleThreads; width *= 2) {  // inclusive sums
      BlockBarrier();
      const int32_t left = ThreadIndex() >= width ? sums[ThreadIndex() - width] : 0;
      BlockBarrier();
      sums[ThreadIndex()] += left;
    }
    if (valid) {
      const int64_t n = first + before + sums[ThreadIndex()] - 1;
      schedule.x_rows[n] = start + t;
      schedule.batch_rows[n] = static_cast<int32_t>(row);
    }
    BlockBarrier();
    before += sums[kScheduleThreads - 1];
    BlockBarrier();
  }
}

// Where in outputs the step stands that reads row x_row of x: outputs are in processing order.
MASKED_LSTM_DEVICE int64_t OutputRow(const LstmProblem& p, int64_t row, int64_t x_row) {
  const int64_t start = StartOfRow(p, row);
  return start + OutputPosition(p, row, x_row - start);
}

}  // namespace cuda
}  // namespace masked_lstm
