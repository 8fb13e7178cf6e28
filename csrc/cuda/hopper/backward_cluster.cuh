// The backward recurrence: as the forward one, from the last step of each sequence to the first.
//
// Each block owns some units: it turns their dh into their gate gradients dG, multiplies those by
// its columns of recurrent_kernel, and sends every block that block's part of the sum, dh of the
// step before. So a step moves half of what sending dG to all blocks would. The owner adds up the
// parts of all blocks in their order: the same bits whenever they arrive.
//
// A tile is 16 units of dh (rows) by 8 slots; the depth is the block's own units with their four
// gates side by side. Parts are sent into one of two buffers in turn; the reasoning is that of
// forward_cluster.cuh: who sends parts of step t has had all parts of step t - 1, which every warp
// of the cluster sends after its block's barrier, behind which nobody reads the parts of t - 2. The
// rows of dG alternate too: a block may have all of its own parts while one of its warps, whose
// tiles are other blocks', still multiplies; by the barrier of the next step it has finished.
#pragma once

#include "cuda/hopper/cells.cuh"

namespace masked_lstm {
namespace cuda {
namespace hopper {

constexpr int kTileRows = 16;

template <int kTiles_, int kChunks_, int kThreads_, int kCells_, int kMaxSlotTiles_>
struct BackwardVariant {
  static constexpr int kTiles = kTiles_;      // of each warp in registers
  static constexpr int kChunks = kChunks_;    // of the depth, at most
  static constexpr int kThreads = kThreads_;  // at most
  static constexpr int kCells = kCells_;      // units that a thread updates, of each 8 slots
  static constexpr int kMaxSlotTiles = kMaxSlotTiles_;
  static constexpr int kChains = kTiles >= 4 ? 1 : 4 / kTiles;
};

// Of operands of 16 bits, and of tf32.
template <typename Stored>
struct BackwardVariants {
  typedef BackwardVariant<4, 4, 256, 1, 4> Medium;
  typedef BackwardVariant<2, 6, 384, 1, 1> Large;
};
template <>
struct BackwardVariants<float> {
  typedef BackwardVariant<2, 8, 256, 1, 2> Medium;
};

struct BackwardShape {
  int cluster, clusters;  // blocks of each, how many for each call
  int warps;              // of each block
  int all_units;          // as the problem's: the same in both calls, and quicker to read
  int units;              // of each block; a multiple of 8
  int tiles;              // of all units
  int chunks;             // of a block's depth
  int row_bytes;          // of dG of one slot
};

// recurrent_kernel's columns of block 0, 1, ...: tile by tile, chunk by chunk, 2 Words for each
// lane. One warp for each chunk of each tile of each block.
template <typename Stored>
static __global__ void PackBackwardKernel(LstmProblem p, BackwardShape shape, Words* packed) {
  const int64_t U = p.units;
  const int chunk = BlockIndex(), block = BlockIndexY() / shape.tiles;
  const int first = BlockIndexY() % shape.tiles * kTileRows;
  const Stored* const r = static_cast<const Stored*>(p.recurrent_kernel);
  uint32_t fragment[2][4];
  LoadFragment<Stored>(
      chunk,
      [&](int row, int k) {
        const int64_t unit = int64_t{block} * shape.units + k / 4;
        if (first + row >= U || k / 4 >= shape.units || unit >= U) return 0u;
        return Operand<Stored>::Bits(r[(int64_t{first + row} * 4 + k % 4) * U + unit]);
      },
      fragment);
  const int64_t at = (int64_t{BlockIndexY()} * shape.chunks + chunk) * kFragmentBytes;
  StoreFragment(reinterpret_cast<unsigned char*>(packed) + at, fragment);
}

// d_output[n]: what arrives at the output of compact row n, repetitions added up, so that the
// recurrence reads it a step ahead. Grid: any number of blocks in y.
template <typename Stored>
static __global__ void GatherOutputGradientsKernel(LstmBackward call, DeviceSchedule schedule,
                                                   int blocks_y, float* d_output) {
  const LstmProblem& p = call.problem;
  const int64_t unit = int64_t{BlockIndex()} * BlockSize() + ThreadIndex();
  if (unit >= p.units) return;
  for (int64_t n = BlockIndexY(); n < schedule.first[p.batch]; n += blocks_y) {
    const int64_t row = schedule.batch_rows[n];
    const bool last = n + 1 == schedule.first[row] + schedule.counts[row];
    d_output[n * p.units + unit] = OutputGradient<Stored>(
        call, row, schedule.x_rows[n], last ? -1 : schedule.x_rows[n + 1], last, unit);
  }
}

// The four gates' gradients of a unit as operands, side by side.
template <typename Stored>
struct GateWords {
  uint32_t word[4 / Operand<Stored>::kPerWord];

  explicit MASKED_LSTM_DEVICE GateWords(const float (&d)[4]) {
    if constexpr (Operand<Stored>::kPerWord == 2) {
      word[0] = Operand<Stored>::Round(d[0]) | Operand<Stored>::Round(d[1]) << 16;
      word[1] = Operand<Stored>::Round(d[2]) | Operand<Stored>::Round(d[3]) << 16;
    } else {
#pragma unroll
      for (int v = 0; v < 4; ++v) word[v] = Operand<Stored>::Round(d[v]);
    }
  }
};

// Grid: for each call clusters * cluster blocks of 32 * warps threads, in clusters. kSlotTiles: 8
// slots each.
template <typename Stored, typename Variant, int kSlotTiles>
static __global__ void __launch_bounds__(Variant::kThreads, 1)
    ClusterBackwardKernel(const MASKED_LSTM_GRID_CONSTANT BackwardWorks works,
                          BackwardShape shape) {
  constexpr int kTiles = Variant::kTiles, kChunks = Variant::kChunks, kChains = Variant::kChains;
  constexpr int kCells = Variant::kCells, kSlots = kSlotTiles * kColumns;
  [[maybe_unused]] constexpr int kPartsAtOnce =
      Variant::kThreads > 256 ? 2 : 4;  // as registers allow
  const auto& work = works.of[BlockIndex() / shape.cluster / shape.clusters];
  const LstmBackward& call = work.call;
  const DeviceSchedule& schedule = work.schedule;
  const BackwardMemory& memory = work.memory;
  const LstmProblem& p = call.problem;
  const int U = shape.all_units;
  const int lane = ThreadIndex() % kLanes, warp = ThreadIndex() / kLanes;
  const int rank = ClusterRank();
  const int cluster = BlockIndex() / shape.cluster % shape.clusters;
  const int column = BackwardLanes::ColumnOf(lane);
  const int own_unit = ThreadIndex() / kColumns, unit_stride = BlockSize() / kColumns;

  unsigned char* const shared = SharedMemory<unsigned char>();
  uint64_t* const barriers = reinterpret_cast<uint64_t*>(shared);  // of the two buffers
  float* const parts = reinterpret_cast<float*>(barriers + 2);
  // (2, kSlotTiles, cluster, units, kColumns)
  const int tile_parts = shape.cluster * shape.units * kColumns;
  const int message = kSlotTiles * tile_parts * static_cast<int>(sizeof(float));
  unsigned char* const d_rows = reinterpret_cast<unsigned char*>(parts) + 2 * message;
  unsigned char* const stored =
      d_rows + 2 * kSlots * shape.row_bytes;  // (warps, stored_tiles, ...)
  const int warp_tiles = (shape.tiles + shape.warps - 1) / shape.warps;
  const int stored_tiles = warp_tiles > kTiles ? warp_tiles - kTiles : 0;

  // The weights: tile m of the warp is m * warps + warp of all.
  uint32_t weights[kTiles][kChunks][2][4];
#pragma unroll
  for (int m = 0; m < kTiles; ++m) {
    const int tile = m * shape.warps + warp;
    const Words* const from =
        memory.packed + (int64_t{rank} * shape.tiles + tile) * shape.chunks * 2 * kLanes + lane;
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
#pragma unroll
      for (int step = 0; step < 2; ++step) {
        Words words = {{0, 0, 0, 0}};
        if (c < shape.chunks && tile < shape.tiles) words = from[(2 * c + step) * kLanes];
#pragma unroll
        for (int i = 0; i < 4; ++i) weights[m][c][step][i] = words.word[i];
      }
    }
  }
  for (int m = 0; m < stored_tiles; ++m) {
    const int tile = (kTiles + m) * shape.warps + warp;
    if (tile >= shape.tiles) break;
    const Words* const from =
        memory.packed + (int64_t{rank} * shape.tiles + tile) * shape.chunks * 2 * kLanes;
    Words* const to = reinterpret_cast<Words*>(stored + (warp * stored_tiles + m) * shape.chunks *
                                                            kFragmentBytes);
    for (int i = lane; i < shape.chunks * 2 * kLanes; i += kLanes) to[i] = from[i];
  }
  // The end of a row, past the block's units, is multiplied by zeros.
  ClearRows(d_rows, 2 * kSlots * shape.row_bytes);
  OpenBarriers(barriers, message);

  // What a thread holds of each slot and unit it updates.
  BackwardCell cells[kSlotTiles][kCells];
  int32_t ended[kSlotTiles] = {};  // 1 + the row whose first step was the step before; or 0
  SlotWalk<BackwardLanes, kSlotTiles, true> walk(schedule, static_cast<int>(p.batch), cluster,
                                                 shape.clusters);
  const auto UnitOf = [&](int i) {  // of all; U when the block has no such unit
    const int local = own_unit + i * unit_stride;
    const int unit = rank * shape.units + local;
    return local < shape.units && unit < U ? unit : U;
  };
  // Of the step that `walk` stands at.
  const auto Read = [&](int j, int i) {
    cells[j][i].template Read<Stored>(p, memory, walk[j], U, UnitOf(i));
  };
  // Writes dG of step `slot`.
  const auto Update = [&](int j, int i, const Slot& slot, float dh, unsigned buffer) {
    float d[4];
    cells[j][i].template Step<Stored>(call, memory, slot, ended[j], U, UnitOf(i), dh, d);
    const int local = own_unit + i * unit_stride;
    if (local < shape.units) {
      const GateWords<Stored> words(d);
      uint32_t* const to = reinterpret_cast<uint32_t*>(
          d_rows + (buffer * kSlots + j * kColumns + column) * shape.row_bytes +
          local * 4 * kOperandBytes<Stored>);
#pragma unroll
      for (int v = 0; v < 4 / Operand<Stored>::kPerWord; ++v) to[v] = words.word[v];
    }
  };
  // Two halves of tile `tile`, 8 units of one block each, to the blocks that own them.
  const auto Send = [&](int j, int tile, const float (&sum)[4], unsigned buffer) {
    const int group = lane / 4, member = lane % 4;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int unit = tile * kTileRows + half * 8, block = unit / shape.units;
      if (block >= shape.cluster) continue;
      const int local = unit - block * shape.units + group;
      const int at = static_cast<int>(buffer * kSlotTiles + j) * tile_parts +
                     (rank * shape.units + local) * kColumns + 2 * member;
      const SharedAddress there = MapToBlock(AddressOf(shared), block);
      const uint32_t words[2] = {FloatBits(sum[2 * half]), FloatBits(sum[2 * half + 1])};
      StoreAsync(
          there + static_cast<SharedAddress>(reinterpret_cast<unsigned char*>(parts + at) - shared),
          words, there + buffer * static_cast<unsigned>(sizeof(uint64_t)));
    }
  };

  bool active = walk.Active();
  if (!active) return;
#pragma unroll
  for (int j = 0; j < kSlotTiles; ++j) {
#pragma unroll
    for (int i = 0; i < kCells; ++i) Read(j, i);
  }

  for (unsigned step = 0;; ++step) {
    Slot now[kSlotTiles];
#pragma unroll
    for (int j = 0; j < kSlotTiles; ++j) now[j] = walk[j];
    walk.Advance();
    const bool next_active = walk.Active();
    // What was sent in the step before.
    const unsigned before = step - 1;
    if (step > 0) {
      BarrierWait(&barriers[before % 2], before / 2 % 2);
      // For what the next step sends: that is after this thread has sent this step's.
      if (ThreadIndex() == 0) BarrierArriveExpect(&barriers[before % 2], message);
      SyncWarp();
    }
#pragma unroll
    for (int j = 0; j < kSlotTiles; ++j) {
#pragma unroll
      for (int i = 0; i < kCells; ++i) {
        const int local = own_unit + i * unit_stride;
        float dh = 0;
        if (step > 0 && local < shape.units) {
          const float* const mine = parts +
                                    static_cast<int>(before % 2 * kSlotTiles + j) * tile_parts +
                                    local * kColumns + column;
#pragma unroll kPartsAtOnce
          for (int from = 0; from < shape.cluster; ++from) {
            dh += mine[from * shape.units * kColumns];
          }
        }
        Update(j, i, now[j], dh, step % 2);
        Read(j, i);
      }
      ended[j] = now[j].left == 1 ? static_cast<int32_t>(now[j].row) + 1 : 0;
    }
    if (!active) return;  // only gradients of rows that had ended were left to write
    SyncBlock();
#pragma unroll
    for (int j = 0; j < kSlotTiles; ++j) {
      const unsigned char* const rows =
          d_rows + (step % 2 * kSlots + j * kColumns) * shape.row_bytes;
      float sums[kTiles][kChains][4] = {};
#pragma unroll
      for (int k = 0; k < kChunks; ++k) {
        if (k < shape.chunks) {
          const Words chunk = LoadChunk(rows, shape.row_bytes, k);
#pragma unroll
          for (int part = 0; part < 2; ++part) {
#pragma unroll
            for (int m = 0; m < kTiles; ++m) {
              MultiplyStep<Stored>(sums[m][(2 * k + part) % kChains], weights[m][k][part], chunk,
                                   part);
            }
          }
        }
      }
#pragma unroll
      for (int m = 0; m < kTiles; ++m) {
        const int tile = m * shape.warps + warp;
#pragma unroll
        for (int chain = 1; chain < kChains; ++chain) {
#pragma unroll
          for (int i = 0; i < 4; ++i) sums[m][0][i] += sums[m][chain][i];
        }
        if (tile < shape.tiles) Send(j, tile, sums[m][0], step % 2);
      }
      for (int m = 0; m < stored_tiles; ++m) {
        const int tile = (kTiles + m) * shape.warps + warp;
        if (tile >= shape.tiles) break;
        const unsigned char* const fragments =
            stored + (warp * stored_tiles + m) * shape.chunks * kFragmentBytes;
        float chains[2][4] = {};
#pragma unroll 1
        for (int k = 0; k < shape.chunks; ++k) {
          const Words chunk = LoadChunk(rows, shape.row_bytes, k);
#pragma unroll
          for (int part = 0; part < 2; ++part) {
            MultiplyStored<Stored>(chains[part], fragments + k * kFragmentBytes, chunk, part);
          }
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) chains[0][i] += chains[1][i];
        Send(j, tile, chains[0], step % 2);
      }
    }
    active = next_active;
  }
}

template <typename Stored, typename Variant>
int64_t BackwardSharedBytes(const BackwardShape& shape, int slot_tiles) {
  const int warp_tiles = (shape.tiles + shape.warps - 1) / shape.warps;
  const int64_t stored = warp_tiles > Variant::kTiles ? warp_tiles - Variant::kTiles : 0;
  const int64_t parts = int64_t{slot_tiles} * shape.cluster * shape.units * kColumns * 4;
  return 2 * 8 + 2 * parts + int64_t{2} * slot_tiles * kColumns * shape.row_bytes +
         stored * shape.warps * shape.chunks * kFragmentBytes;
}

}  // namespace hopper
}  // namespace cuda
}  // namespace masked_lstm
