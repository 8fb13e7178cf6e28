// The backward recurrence over the grid (grid_product.cuh): the blocks exchange dG, and each block
// multiplies all of it by its units' rows of recurrent_kernel. A tile is 16 units of dh; the depth
// is all units with their four gates side by side.
#pragma once

#include "cuda/hopper/backward_cluster.cuh"
#include "cuda/hopper/grid_product.cuh"

namespace masked_lstm {
namespace cuda {
namespace hopper {

typedef GridVariant<1, 16, 256, 4> GridBackward;
typedef Work<LstmBackward, BackwardMemory> BackwardWork;

// Grid: groups * blocks blocks, cooperative. kSlotTiles: 8 slots each. The exchange starts as
// zeros.
template <typename Stored, typename Variant, int kSlotTiles>
static __global__ void __launch_bounds__(Variant::kThreads, 1)
    GridBackwardKernel(const MASKED_LSTM_GRID_CONSTANT BackwardWork work, GridShape shape) {
  constexpr int kUnits = Variant::kTiles * kTileRows;
  typedef GridCells<Variant, kUnits, kSlotTiles> Cells;
  constexpr int kCells = Cells::kCells;
  const LstmProblem& p = work.call.problem;
  const int U = shape.all_units, column = BackwardLanes::ColumnOf(ThreadIndex() % kLanes);
  const int first_unit = BlockIndex() % shape.blocks * kUnits;
  const GridProduct<Stored, Variant, kSlotTiles> product(work.memory.packed, shape,
                                                         work.memory.exchange);
  SlotWalk<BackwardLanes, kSlotTiles, true> walk(work.schedule, static_cast<int>(p.batch),
                                                 BlockIndex() / shape.blocks, shape.groups);

  BackwardCell cells[kCells];
  int32_t ended[kCells] = {};       // 1 + the row whose first step was the step before; or 0
  const auto UnitOf = [&](int i) {  // of all; U when there is no such unit
    const int unit = first_unit + Cells::UnitOf(i);
    return unit < U ? unit : U;
  };
  // Of the step that `walk` stands at.
  const auto Read = [&](int i) {
    cells[i].template Read<Stored>(p, work.memory, PickSlot(walk.slots(), Cells::SlotTileOf(i)), U,
                                   UnitOf(i));
  };

  bool active = walk.Active();
  if (!active) return;
#pragma unroll
  for (int i = 0; i < kCells; ++i) {
    if (Cells::Exists(i)) Read(i);
  }
  for (unsigned step = 0;; ++step) {
    Slot now[kCells];
#pragma unroll
    for (int i = 0; i < kCells; ++i) now[i] = PickSlot(walk.slots(), Cells::SlotTileOf(i));
    walk.Advance();
    const bool next_active = walk.Active();
    if (step > 0) {
      product.Multiply(step - 1);
      SyncBlock();
    }
#pragma unroll
    for (int i = 0; i < kCells; ++i) {
      if (!Cells::Exists(i)) continue;
      const int j = Cells::SlotTileOf(i), unit = Cells::UnitOf(i);
      const float dh = step > 0 ? product.Sum(j, unit / kTileRows, unit % kTileRows, column) : 0.0f;
      float d[4];
      cells[i].template Step<Stored>(work.call, work.memory, now[i], ended[i], U, UnitOf(i), dh, d);
      ended[i] = now[i].left == 1 ? static_cast<int32_t>(now[i].row) + 1 : 0;
      if (active) {
        const GateWords<Stored> words(d);
        GridStore(product.RowOf(step, j * kColumns + column) + unit * 4 * kOperandBytes<Stored>,
                  words.word);
      }
      Read(i);
    }
    if (!active) return;  // only gradients of rows that had ended were left to write
    product.Publish(step);
    active = next_active;
  }
}

}  // namespace hopper
}  // namespace cuda
}  // namespace masked_lstm
