#include "schedule.h"

#include <cstring>

namespace masked_lstm {

int64_t CountRow(const LstmProblem& p, int64_t row) {
  const RowSteps steps = StepsOfRow(p, row);
  if (steps.mask == nullptr) return steps.limit;
  int64_t count = 0;
  for (int64_t t = 0; t < steps.limit; ++t) count += steps.mask[t] != 0;
  return count;
}

int64_t ScheduleBytes(const LstmProblem& p) {
  // first, counts, order, and the counting sort's bins.
  return p.batch * (8 + 4 + 4) + (p.timesteps + 2) * 4 + 64;
}

Schedule BuildSchedule(const LstmProblem& p, void* memory) {
  const int64_t batch = p.batch;
  int64_t* first = static_cast<int64_t*>(memory);
  int32_t* counts = reinterpret_cast<int32_t*>(first + batch);
  int32_t* order = counts + batch;
  int32_t* bins = order + batch;  // bins[n]: where the next row with T - n steps goes

  std::memset(bins, 0, (p.timesteps + 2) * sizeof(int32_t));
  Schedule schedule{0, counts, first, order};
  for (int64_t row = 0; row < batch; ++row) {
    counts[row] = static_cast<int32_t>(CountRow(p, row));
    first[row] = schedule.total;
    schedule.total += counts[row];
    ++bins[p.timesteps - counts[row] + 1];
  }
  for (int64_t n = 0; n <= p.timesteps; ++n) bins[n + 1] += bins[n];
  for (int64_t row = 0; row < batch; ++row) {
    order[bins[p.timesteps - counts[row]]++] = static_cast<int32_t>(row);
  }
  return schedule;
}

}  // namespace masked_lstm
