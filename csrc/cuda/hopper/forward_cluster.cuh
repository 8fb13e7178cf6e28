// The forward recurrence: a cluster of blocks holds all of recurrent_kernel, in
// registers and, what does not fit, in shared memory, and steps its slots until its rows are done.
//
// A tile is 4 units: its 16 rows are their i, f, c, o, its columns 8 slots, so after one exchange
// between lanes every lane has the four gates of one unit of one slot: the cell is updated in
// registers and c stays there. h_t goes to all blocks as it is made: stores that add their bytes to
// the receiver's barrier, into one of two buffers in turn. A slot whose row ends sends the initial
// h of its next row in place of the last h of the old one, so a step never asks what is new.
//
// Why two buffers are enough: a warp sends h_t only after it has read all of h_{t-1}, and it waits
// for all of h_t before it sends h_{t+1}, which goes where h_{t-1} was; by then every warp of the
// cluster has sent h_t, so nobody reads h_{t-1} any more.
#pragma once

#include "cuda/hopper/cells.cuh"

namespace masked_lstm {
namespace cuda {
namespace hopper {

constexpr int kTileUnits = 4;

// A variant: what must be known when it is compiled.
template <int kTiles_, int kChunks_, int kThreads_, int kMaxSlotTiles_>
struct ForwardVariant {
  static constexpr int kTiles = kTiles_;      // of each warp
  static constexpr int kChunks = kChunks_;    // of each tile in registers; even
  static constexpr int kThreads = kThreads_;  // at most
  // 8 slots each; more would not fit the registers.
  static constexpr int kMaxSlotTiles = kMaxSlotTiles_;
  // Independent chains of multiplications, which hide their latency; added up in order.
  static constexpr int kChains = kTiles >= 4 ? 1 : 4 / kTiles;
};

typedef ForwardVariant<1, 16, 256, 4> MediumForward;
typedef ForwardVariant<1, 10, 384, 2> LargeForward;

// The rest.
struct ForwardShape {
  int cluster, clusters;  // blocks of each, how many for each call
  int warps;              // of each block
  int chunks;             // of the sum over all units
  int row_bytes;          // of h of one slot
};

// recurrent_kernel as the fragments of tile 0, 1, ...: chunk by chunk, 2 Words for each lane. One
// warp for each chunk of each tile.
template <typename Stored>
static __global__ void PackForwardKernel(LstmProblem p, int chunks, Words* packed) {
  const int64_t U = p.units, first = int64_t{BlockIndexY()} * kTileUnits;
  const int chunk = BlockIndex();
  const Stored* const r = static_cast<const Stored*>(p.recurrent_kernel);
  uint32_t fragment[2][4];
  LoadFragment<Stored>(
      chunk,
      [&](int row, int k) {
        const int64_t unit = first + row % kTileUnits;
        if (k >= U || unit >= U) return 0u;
        return Operand<Stored>::Bits(r[(int64_t{k} * 4 + row / kTileUnits) * U + unit]);
      },
      fragment);
  const int64_t at = (int64_t{BlockIndexY()} * chunks + chunk) * kFragmentBytes;
  StoreFragment(reinterpret_cast<unsigned char*>(packed) + at, fragment);
}

// A lane's h together with that of three others: 4 units that stand side by side in the slot's row,
// number lane / kStride % 4 of them this lane's own.
template <typename Stored, int kStride>
struct UnitWords {
  static constexpr int kWords = kTileUnits / Operand<Stored>::kPerWord;
  uint32_t word[kWords];

  explicit MASKED_LSTM_DEVICE UnitWords(float value) {
    const int lane = ThreadIndex() % kLanes;
    const bool odd = lane & kStride, upper = lane & 2 * kStride;
    const uint32_t own = Operand<Stored>::Round(value), other = ShuffleXor(own, kStride);
    const uint32_t low = odd ? other : own, high = odd ? own : other;
    if constexpr (kWords == 2) {
      const uint32_t mine = low | high << 16, theirs = ShuffleXor(mine, 2 * kStride);
      word[0] = upper ? theirs : mine;
      word[1] = upper ? mine : theirs;
    } else {
      const uint32_t their_low = ShuffleXor(low, 2 * kStride);
      const uint32_t their_high = ShuffleXor(high, 2 * kStride);
      word[0] = upper ? their_low : low;
      word[1] = upper ? their_high : high;
      word[2] = upper ? low : their_low;
      word[3] = upper ? high : their_high;
    }
  }
};

// Grid: for each call clusters * cluster blocks of 32 * warps threads, in clusters. kSlotTiles: 8
// slots each.
template <typename Stored, typename Variant, int kSlotTiles>
static __global__ void __launch_bounds__(Variant::kThreads, 1)
    ClusterForwardKernel(const MASKED_LSTM_GRID_CONSTANT ForwardWorks works, ForwardShape shape) {
  constexpr int kTiles = Variant::kTiles, kChunks = Variant::kChunks, kChains = Variant::kChains;
  constexpr int kSlots = kSlotTiles * kColumns;
  const auto& work = works.of[BlockIndex() / shape.cluster / shape.clusters];
  const LstmForward& call = work.call;
  const DeviceSchedule& schedule = work.schedule;
  const ForwardMemory& memory = work.memory;
  const LstmProblem& p = call.problem;
  const int64_t U = p.units;
  const int lane = ThreadIndex() % kLanes, warp = ThreadIndex() / kLanes;
  const int rank = ClusterRank();
  const int cluster = BlockIndex() / shape.cluster % shape.clusters;
  const int column = ForwardLanes::ColumnOf(lane);
  const bool lower = lane < 16;
  const int first_tile = (rank * shape.warps + warp) * kTiles;
  const int first_unit = first_tile * kTileUnits + lane / 4 % 4;  // this lane's of the first tile

  unsigned char* const shared = SharedMemory<unsigned char>();
  uint64_t* const barriers = reinterpret_cast<uint64_t*>(shared);  // of the two buffers
  unsigned char* const h = shared + 2 * sizeof(uint64_t);          // (2, kSlots, row_bytes)
  unsigned char* const stored = h + 2 * kSlots * shape.row_bytes;  // the rest of the weights
  const int stored_chunks = shape.chunks > kChunks ? shape.chunks - kChunks : 0;
  const int message = shape.cluster * shape.warps * kTiles * kTileUnits * kSlots *
                      kOperandBytes<Stored>;  // bytes of h of all units and slots

  // The weights.
  uint32_t weights[kTiles][kChunks][2][4];
#pragma unroll
  for (int m = 0; m < kTiles; ++m) {
    const Words* const from = memory.packed + int64_t{first_tile + m} * shape.chunks * 2 * kLanes;
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
#pragma unroll
      for (int step = 0; step < 2; ++step) {
        Words words = {{0, 0, 0, 0}};
        if (c < shape.chunks) words = from[(2 * c + step) * kLanes + lane];
#pragma unroll
        for (int i = 0; i < 4; ++i) weights[m][c][step][i] = words.word[i];
      }
    }
    Words* const to =
        reinterpret_cast<Words*>(stored + (warp * kTiles + m) * stored_chunks * kFragmentBytes);
    for (int i = lane; i < stored_chunks * 2 * kLanes; i += kLanes) {
      to[i] = from[kChunks * 2 * kLanes + i];
    }
  }
  // Units past U are never sent but multiplied, by zeros.
  ClearRows(h, 2 * kSlots * shape.row_bytes);
  OpenBarriers(barriers, message);

  // What a lane holds of each slot and unit it updates.
  ForwardCell cells[kSlotTiles][kTiles];
  float next_h[kTiles];
  int32_t x_row[kSlotTiles];
  SlotWalk<ForwardLanes, kSlotTiles, false> walk(schedule, static_cast<int>(p.batch), cluster,
                                                 shape.clusters);
  // Of the step that `walk` stands at.
  const auto Read = [&](int j, int m) {
    cells[j][m].template Read<Stored>(p, memory, walk[j], U, first_unit + m * kTileUnits);
  };
  const auto ReadState = [&](int j, int m) {
    next_h[m] = FirstState<Stored>(p, walk[j], U, first_unit + m * kTileUnits);
  };
  // h of this lane's unit of tile m and slot of tile j, for step `step`, to every block.
  const auto Send = [&](int j, int m, float value, unsigned step) {
    const UnitWords<Stored, 4> words(value);
    const unsigned buffer = step % 2;
    const int slot = static_cast<int>(buffer) * kSlots + j * kColumns + column;
    const int at = static_cast<int>(h - shared) + slot * shape.row_bytes +
                   (first_tile + m) * kTileUnits * kOperandBytes<Stored>;
    // Each of the four lanes that have these words, to every fourth block.
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int block = lane / 4 % 4 + 4 * i;
      if (block < shape.cluster) {
        const SharedAddress there = MapToBlock(AddressOf(shared), block);
        StoreAsync(there + at, words.word, there + buffer * sizeof(uint64_t));
      }
    }
  };

  bool active = walk.Active();
  if (!active) return;
#pragma unroll
  for (int j = 0; j < kSlotTiles; ++j) {
    x_row[j] = PositionOf(p, schedule, walk[j]);
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
      Read(j, m);
      ReadState(j, m);
      Send(j, m, next_h[m], 0);
    }
  }

  for (unsigned step = 0; active; ++step) {
    Slot now[kSlotTiles];
#pragma unroll
    for (int j = 0; j < kSlotTiles; ++j) now[j] = walk[j];
    walk.Advance();
    active = walk.Active();
    BarrierWait(&barriers[step % 2], step / 2 % 2);
    // For the step after the next: nobody can send that before this thread sends the next.
    if (ThreadIndex() == 0) BarrierArriveExpect(&barriers[step % 2], message);
    SyncWarp();  // the lanes leave the wait one by one, and multiply together
#pragma unroll
    for (int j = 0; j < kSlotTiles; ++j) {
      const unsigned char* const rows =
          h + (static_cast<int>(step % 2) * kSlots + j * kColumns) * shape.row_bytes;
#pragma unroll
      for (int m = 0; m < kTiles; ++m) ReadState(j, m);
      float sums[kTiles][kChains][4] = {};
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
        if (c < shape.chunks) {
          const Words chunk = LoadChunk(rows, shape.row_bytes, c);
#pragma unroll
          for (int part = 0; part < 2; ++part) {
#pragma unroll
            for (int m = 0; m < kTiles; ++m) {
              MultiplyStep<Stored>(sums[m][(2 * c + part) % kChains], weights[m][c][part], chunk,
                                   part);
            }
          }
        }
      }
      for (int begin = 0; begin < stored_chunks; begin += 2) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          if (begin + i < stored_chunks) {
            const Words chunk = LoadChunk(rows, shape.row_bytes, kChunks + begin + i);
#pragma unroll
            for (int part = 0; part < 2; ++part) {
#pragma unroll
              for (int m = 0; m < kTiles; ++m) {
                const int at = (warp * kTiles + m) * stored_chunks + begin + i;
                MultiplyStored<Stored>(sums[m][(2 * i + part) % kChains],
                                       stored + at * kFragmentBytes, chunk, part);
              }
            }
          }
        }
      }
      const Slot slot = now[j];
#pragma unroll
      for (int m = 0; m < kTiles; ++m) {
        float sum[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          sum[i] = sums[m][0][i];
#pragma unroll
          for (int chain = 1; chain < kChains; ++chain) sum[i] += sums[m][chain][i];
        }
        // Lower lanes have i and c, upper ones f and o, of the same two slots: one slot each.
        const float got_if = ShuffleXorFloat(lower ? sum[1] : sum[0], 16);
        const float got_co = ShuffleXorFloat(lower ? sum[3] : sum[2], 16);
        float gates[4] = {lower ? sum[0] : got_if, lower ? got_if : sum[1], lower ? sum[2] : got_co,
                          lower ? got_co : sum[3]};
        const float new_h = cells[j][m].Step(gates), c = cells[j][m].c;
        Read(j, m);
        if (active) {
          Send(j, m, walk[j].left == 0 ? 0.0f : walk[j].fresh ? next_h[m] : new_h, step + 1);
        }
        WriteForwardStep<Stored>(call, memory, slot, x_row[j], U, first_unit + m * kTileUnits,
                                 gates, c, new_h);
      }
      x_row[j] = PositionOf(p, schedule, walk[j]);
    }
  }
}

template <typename Stored, typename Variant>
int64_t ForwardSharedBytes(const ForwardShape& shape, int slot_tiles) {
  const int64_t stored = shape.chunks > Variant::kChunks ? shape.chunks - Variant::kChunks : 0;
  return 2 * 8 + int64_t{2} * slot_tiles * kColumns * shape.row_bytes +
         stored * shape.warps * Variant::kTiles * kFragmentBytes;
}

}  // namespace hopper
}  // namespace cuda
}  // namespace masked_lstm
