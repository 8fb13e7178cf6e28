// Slots as every thread follows them by itself, in registers: all warps of all blocks of a cluster
// see the same rows end and take the same next ones, so nobody has to be told.
#pragma once

#include "cuda/hopper/operand.cuh"
#include "cuda/schedule.cuh"

namespace masked_lstm {
namespace cuda {
namespace hopper {

// All threads of a block: zeros in shared memory, a multiple of 16 bytes.
MASKED_LSTM_DEVICE void ClearRows(void* rows, int bytes) {
  for (int i = ThreadIndex(); i < bytes / 16; i += BlockSize()) {
    static_cast<Words*>(rows)[i] = {{0, 0, 0, 0}};
  }
}

// All threads: the two barriers of a double buffer, each awaiting a message of so many bytes; what
// the block has written to its shared memory is ready when this returns.
MASKED_LSTM_DEVICE void OpenBarriers(uint64_t* barriers, int message) {
  if (ThreadIndex() == 0) {
    BarrierInit(&barriers[0], 1);
    BarrierInit(&barriers[1], 1);
    BarrierInitFence();
  }
  SyncBlock();  // compute-sanitizer sees a race otherwise, though one thread does both
  if (ThreadIndex() == 0) {
    BarrierArriveExpect(&barriers[0], message);
    BarrierArriveExpect(&barriers[1], message);
  }
  SyncCluster();
}

// One slot in one step.
struct Slot {
  uint32_t row : 31;   // of the batch; undefined when empty
  uint32_t fresh : 1;  // begins with this step
  int32_t left;        // steps to go, this one included; 0: empty
  int32_t n;           // compact row of this step; there are fewer than 2^31
};

// Where a lane's slots are: lane `lane` follows slots ColumnOf(lane), + 8, ...
struct ForwardLanes {
  static constexpr uint32_t kSpeakers = 0x000f000fu;  // one lane for each column
  static MASKED_LSTM_DEVICE int Speaker(int lane) { return lane & 0x13; }
  static MASKED_LSTM_DEVICE int ColumnOf(int lane) { return lane % 4 * 2 + lane / 16; }
};
struct BackwardLanes {
  static constexpr uint32_t kSpeakers = 0x000000ffu;
  static MASKED_LSTM_DEVICE int Speaker(int lane) { return lane % 8; }
  static MASKED_LSTM_DEVICE int ColumnOf(int lane) { return lane % 8; }
};

// Follows kTiles x 8 slots. The cluster's rows are order[cluster], order[cluster + clusters], ...
// The next 32 of them wait in the registers of the warp's lanes.
template <typename Lanes, int kTiles, bool kLastFirst>
class SlotWalk {
 public:
  MASKED_LSTM_DEVICE SlotWalk(const DeviceSchedule& schedule, int batch, int cluster, int clusters)
      : schedule_(schedule), batch_(batch), clusters_(clusters), first_(cluster) {
    Fetch();
#pragma unroll
    for (int j = 0; j < kTiles; ++j) slots_[j] = {0, 0, 0, 0};
    Refill();
  }

  MASKED_LSTM_DEVICE const Slot& operator[](int j) const { return slots_[j]; }
  MASKED_LSTM_DEVICE const Slot (&slots() const)[kTiles] { return slots_; }

  // Whether any slot of the cluster has a step to do.
  MASKED_LSTM_DEVICE bool Active() const {
    bool active = false;
#pragma unroll
    for (int j = 0; j < kTiles; ++j) active |= slots_[j].left > 0;
    return Ballot(active) != 0;
  }

  MASKED_LSTM_DEVICE void Advance() {
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
      slots_[j].fresh = 0;
      slots_[j].n += kLastFirst ? -1 : 1;
      if (slots_[j].left > 0) --slots_[j].left;
    }
    Refill();
  }

 private:
  // The cluster's next 32 rows, one for each lane.
  MASKED_LSTM_DEVICE void Fetch() {
    first_ += used_ * clusters_;
    used_ = 0;
    const int index = first_ + ThreadIndex() % kLanes * clusters_;
    next_ = {0, 1, 0, 0};
    if (index < batch_) {
      next_.row = schedule_.order[index];
      next_.left = schedule_.counts[next_.row];
      next_.n =
          static_cast<int32_t>(schedule_.first[next_.row]) + (kLastFirst ? next_.left - 1 : 0);
    }
  }

  MASKED_LSTM_DEVICE void Refill() {
    const int lane = ThreadIndex() % kLanes;
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
      const uint32_t empty = Ballot(slots_[j].left == 0) & Lanes::kSpeakers;
      if (empty == 0 || exhausted_) continue;
      const int wanted = CountBits(empty);
      if (used_ + wanted > kLanes) Fetch();
      const int rank = CountBits(empty & ((1u << Lanes::Speaker(lane)) - 1));
      const int from = used_ + rank;
      const uint32_t row = ShuffleFrom(next_.row, from);
      const int32_t left = static_cast<int32_t>(ShuffleFrom(next_.left, from));
      const int32_t n = static_cast<int32_t>(ShuffleFrom(next_.n, from));
      const bool takes = slots_[j].left == 0;
      // Longest first: a row without steps has only such rows after it.
      exhausted_ = Ballot(takes && left == 0) != 0;
      used_ += wanted;
      if (takes && left > 0) slots_[j] = {row, 1, left, n};
    }
  }

  const DeviceSchedule& schedule_;
  const int batch_, clusters_;
  int first_, used_ = 0;  // place in the order of lane 0's row; rows of the lanes that were taken
  bool exhausted_ = false;
  Slot next_;
  Slot slots_[kTiles];
};

}  // namespace hopper
}  // namespace cuda
}  // namespace masked_lstm
