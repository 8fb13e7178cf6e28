// A group of blocks that runs sequences in slots: each block owns some units of all slots (one
// tile, or several where they are more than blocks that can run at once), and once per step the
// group meets. When a sequence ends the next one moves into its slot; every block takes the same
// decision by itself, so no message is needed.
#pragma once

#include "cuda/scalar.cuh"
#include "cuda/schedule.cuh"

namespace masked_lstm {
namespace cuda {

constexpr int kGroupThreads = 256;
constexpr int kGroupUnits = 16;  // of one tile
constexpr int kGroupSlots = 8;
constexpr int kChunk = 256;  // values of h or dG staged at once, for every slot

// Group g of `groups` takes rows order[g], order[g + groups], ...
struct Groups {
  int groups, blocks;  // blocks of each group, which share its tiles
  int tiles;           // ceil(U / kGroupUnits)
  unsigned* counters;  // (groups) of their barriers, 0 at first
};

// What every thread of a block knows of its slots; in shared memory.
struct Slots {
  int32_t row[kGroupSlots];    // -1: empty
  int32_t left[kGroupSlots];   // steps to go, this one included
  int64_t n[kGroupSlots];      // compact row of this step
  int32_t fresh[kGroupSlots];  // begins with this step
  int32_t active;
  int64_t taken;  // rows this group has taken so far
};

MASKED_LSTM_DEVICE void ClearSlots(Slots* slots) {
  for (int s = 0; s < kGroupSlots; ++s) slots->row[s] = -1;
  slots->taken = 0;
}

// By one thread: gives empty slots the group's next rows with steps. `last_first`: begin with the
// last step.
MASKED_LSTM_DEVICE void RefillSlots(const LstmProblem& p, const DeviceSchedule& schedule,
                                    const Groups& groups, int group, bool last_first,
                                    Slots* slots) {
  slots->active = 0;
  for (int s = 0; s < kGroupSlots; ++s) {
    slots->fresh[s] = 0;
    if (slots->row[s] < 0) {
      const int64_t index = group + slots->taken * groups.groups;
      // Longest first: a row without steps has only such rows after it.
      if (index < p.batch && schedule.counts[schedule.order[index]] > 0) {
        const int32_t row = schedule.order[index];
        ++slots->taken;
        slots->row[s] = row;
        slots->left[s] = schedule.counts[row];
        slots->n[s] = schedule.first[row] + (last_first ? slots->left[s] - 1 : 0);
        slots->fresh[s] = 1;
      }
    }
    slots->active += slots->row[s] >= 0;
  }
}

// sums[s][column] = sum over k of values(v, s, k) * weight(k, column) for kColumns columns, into
// shared memory: kSlices threads share a column, each with a fixed part of every chunk, and their
// chains are added in order. The columns are kVariants blocks of equal width, each with its own
// values v (factors of dropout); without factors there is one.
template <typename T, int kColumns>
constexpr size_t kProductShared =
    (kGroupSlots * kChunk + kGroupThreads / kColumns * kGroupSlots * kColumns) * sizeof(T);

template <typename T, int kColumns, int kVariants, typename Values, typename Weight>
MASKED_LSTM_DEVICE const T* SlotProduct(T* shared, const Slots& slots, int64_t depth, Values values,
                                        Weight weight) {
  constexpr int kSlices = kGroupThreads / kColumns, kDepth = kChunk / kVariants;
  constexpr int kPart = kDepth / kSlices;
  T* const staged = shared;
  T* const partial = shared + kGroupSlots * kChunk;
  const int column = ThreadIndex() % kColumns, slice = ThreadIndex() / kColumns;
  const T* const own = staged + column / (kColumns / kVariants) * kGroupSlots * kDepth;
  T sums[kGroupSlots] = {};
  for (int64_t begin = 0; begin < depth; begin += kDepth) {
    BlockBarrier();  // whoever reads the chunk before
    for (int i = ThreadIndex(); i < kGroupSlots * kChunk; i += kGroupThreads) {
      const int s = i / kDepth % kGroupSlots;
      const int64_t k = begin + i % kDepth;
      staged[i] = slots.row[s] >= 0 && k < depth ? values(i / (kDepth * kGroupSlots), s, k) : T(0);
    }
    BlockBarrier();
    const int64_t from = begin + slice * kPart;
    const int64_t end = from + kPart < depth ? from + kPart : depth;
#pragma unroll 2
    for (int64_t k = from; k < end; ++k) {
      const T w = weight(k, column);
#pragma unroll
      for (int s = 0; s < kGroupSlots; ++s) {
        sums[s] = MulAdd(own[s * kDepth + (k - begin)], w, sums[s]);
      }
    }
  }
#pragma unroll
  for (int s = 0; s < kGroupSlots; ++s) {
    partial[(slice * kGroupSlots + s) * kColumns + column] = sums[s];
  }
  BlockBarrier();
  for (int i = ThreadIndex(); i < kGroupSlots * kColumns; i += kGroupThreads) {
    T sum = partial[i];
    for (int other = 1; other < kSlices; ++other)
      sum += partial[other * kGroupSlots * kColumns + i];
    partial[i] = sum;
  }
  BlockBarrier();
  return partial;
}

}  // namespace cuda
}  // namespace masked_lstm
