// The forward recurrence over the grid (grid_product.cuh): as that of a cluster, with h exchanged
// through global memory. A tile is 4 units with their four gates.
#pragma once

#include "cuda/hopper/forward_cluster.cuh"
#include "cuda/hopper/grid_product.cuh"

namespace masked_lstm {
namespace cuda {
namespace hopper {

typedef GridVariant<4, 4, 256, 4> GridForward;
typedef Work<LstmForward, ForwardMemory> ForwardWork;

// Grid: groups * blocks blocks, cooperative. kSlotTiles: 8 slots each. The exchange starts as
// zeros.
template <typename Stored, typename Variant, int kSlotTiles>
static __global__ void __launch_bounds__(Variant::kThreads, 1)
    GridForwardKernel(const MASKED_LSTM_GRID_CONSTANT ForwardWork work, GridShape shape) {
  constexpr int kUnits = Variant::kTiles * kTileUnits;
  typedef GridCells<Variant, kUnits, kSlotTiles> Cells;
  constexpr int kCells = Cells::kCells;
  const LstmProblem& p = work.call.problem;
  const int U = shape.all_units, column = BackwardLanes::ColumnOf(ThreadIndex() % kLanes);
  const int first_unit = BlockIndex() % shape.blocks * kUnits;
  const GridProduct<Stored, Variant, kSlotTiles> product(work.memory.packed, shape,
                                                         work.memory.exchange);
  SlotWalk<BackwardLanes, kSlotTiles, false> walk(work.schedule, static_cast<int>(p.batch),
                                                  BlockIndex() / shape.blocks, shape.groups);

  ForwardCell cells[kCells];
  float gates[kCells][4] = {};
  const auto FirstStateOf = [&](int i, const Slot& slot) {
    return FirstState<Stored>(p, slot, U, first_unit + Cells::UnitOf(i));
  };
  const auto Read = [&](int i, const Slot& slot) {
    cells[i].template Read<Stored>(p, work.memory, slot, U, first_unit + Cells::UnitOf(i));
  };
  // h of four lanes' units, side by side; units past U are zeros.
  const auto Send = [&](int i, float value, unsigned step) {
    const UnitWords<Stored, kColumns> words(value);
    if (ThreadIndex() % kLanes >= kColumns) return;
    GridStore(product.RowOf(step, Cells::SlotTileOf(i) * kColumns + column) +
                  Cells::UnitOf(i) * kOperandBytes<Stored>,
              words.word);
  };

  bool active = walk.Active();
  if (!active) return;
#pragma unroll
  for (int i = 0; i < kCells; ++i) {
    if (!Cells::Exists(i)) continue;
    const Slot slot = PickSlot(walk.slots(), Cells::SlotTileOf(i));
    Read(i, slot);
    Send(i, FirstStateOf(i, slot), 0);
  }
  product.Publish(0);

  for (unsigned step = 0; active; ++step) {
    Slot now[kCells];
#pragma unroll
    for (int i = 0; i < kCells; ++i) now[i] = PickSlot(walk.slots(), Cells::SlotTileOf(i));
    walk.Advance();
    active = walk.Active();
    product.Multiply(step);
    SyncBlock();
#pragma unroll
    for (int i = 0; i < kCells; ++i) {
      if (!Cells::Exists(i)) continue;
      const int unit = Cells::UnitOf(i);
#pragma unroll
      for (int v = 0; v < 4; ++v) {
        gates[i][v] = product.Sum(Cells::SlotTileOf(i), unit / kTileUnits,
                                  v * kTileUnits + unit % kTileUnits, column);
      }
      const float h = cells[i].Step(gates[i]);
      if (active) {
        const Slot next = PickSlot(walk.slots(), Cells::SlotTileOf(i));
        const bool exists = next.left > 0 && first_unit + unit < U;
        Send(i, !exists ? 0.0f : next.fresh ? FirstStateOf(i, next) : h, step + 1);
      }
    }
    if (active) product.Publish(step + 1);
    // Nobody waits for the rest; h again rather than two registers more.
#pragma unroll
    for (int i = 0; i < kCells; ++i) {
      if (!Cells::Exists(i)) continue;
      WriteForwardStep<Stored>(work.call, work.memory, now[i], PositionOf(p, work.schedule, now[i]),
                               U, first_unit + Cells::UnitOf(i), gates[i], cells[i].c,
                               cells[i].Output(gates[i]));
      Read(i, PickSlot(walk.slots(), Cells::SlotTileOf(i)));
    }
  }
}

}  // namespace hopper
}  // namespace cuda
}  // namespace masked_lstm
