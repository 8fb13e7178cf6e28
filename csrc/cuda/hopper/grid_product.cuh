// Recurrences over the whole grid, for more units than a cluster holds: a group of blocks, all at
// work at once, holds all of recurrent_kernel in registers and shared memory. What a step makes of
// its units every block writes to global memory, to be read by all of the group from the L2 cache.
//
// A block owns some units (its tiles' rows); its warps share the depth of the sum. So each value
// that is exchanged is read once by each block, into the registers it is multiplied from; the sums
// of the warps meet in shared memory and are added in the order of the warps.
//
// Why two buffers of rows are enough: a block writes the rows of step t + 1, over those of t - 1,
// after its warps have seen the flags of all blocks' rows of t; each of those blocks wrote them
// after its barrier, by which all of its warps had read the rows of t - 1.
#pragma once

#include "cuda/hopper/cells.cuh"

namespace masked_lstm {
namespace cuda {
namespace hopper {

template <int kTiles_, int kChunks_, int kThreads_, int kMaxSlotTiles_>
struct GridVariant {
  static constexpr int kTiles = kTiles_;      // of each block, 16 rows each
  static constexpr int kChunks = kChunks_;    // of each tile and warp in registers
  static constexpr int kThreads = kThreads_;  // of each block
  static constexpr int kWarps = kThreads / kLanes;
  static constexpr int kMaxSlotTiles = kMaxSlotTiles_;
  // Independent chains of multiplications, added up in order.
  static constexpr int kChains = kTiles >= 4 ? 1 : 4 / kTiles;
};

struct GridShape {
  int all_units;
  int blocks, groups;  // blocks of each group
  int chunks;          // of a warp's part of the depth
  int row_bytes;       // of one slot, of all warps' parts
  int block_bytes;     // of a row: what one block writes
};

// Of slots: one of an array that stays in registers.
template <int kTiles>
MASKED_LSTM_DEVICE Slot PickSlot(const Slot (&slots)[kTiles], int j) {
  Slot slot = slots[0];
#pragma unroll
  for (int other = 1; other < kTiles; ++other) {
    if (other == j) slot = slots[other];
  }
  return slot;
}

template <typename Stored, typename Variant, int kSlotTiles>
class GridProduct {
  static constexpr int kTiles = Variant::kTiles, kChunks = Variant::kChunks;
  static constexpr int kChains = Variant::kChains, kSlots = kSlotTiles * kColumns;
  static constexpr int kTileSums = kLanes * 4;
  // Chunks on their way from the L2 cache, as registers allow.
  static constexpr int kAtOnce = kSlotTiles >= 4 ? 2 : 4;

 public:
  // packed: fragments of tile 0, 1, ... of all blocks, chunk by chunk.
  MASKED_LSTM_DEVICE GridProduct(const Words* packed, const GridShape& shape,
                                 const Exchange& exchange)
      : shape_(shape),
        exchange_(exchange),
        member_(BlockIndex() % shape.blocks),
        warp_(ThreadIndex() / kLanes),
        partial_(SharedMemory<float>()),
        stored_(reinterpret_cast<unsigned char*>(partial_ + Variant::kWarps * kSlotTiles * kTiles *
                                                                kTileSums)) {
    const int group = BlockIndex() / shape.blocks, lane = ThreadIndex() % kLanes;
    rows_ = exchange.rows + int64_t{group} * 2 * kSlots * shape.row_bytes;
    const int stored_chunks = StoredChunks();
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
      const int64_t tile = int64_t{member_} * kTiles + m;
      const Words* const from =
          packed + (tile * Variant::kWarps + warp_) * shape.chunks * 2 * kLanes + lane;
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
#pragma unroll
        for (int step = 0; step < 2; ++step) {
          Words words = {{0, 0, 0, 0}};
          if (c < shape.chunks) words = from[(2 * c + step) * kLanes];
#pragma unroll
          for (int i = 0; i < 4; ++i) weights_[m][c][step][i] = words.word[i];
        }
      }
      Words* const to = reinterpret_cast<Words*>(Fragment(m, 0)) + lane;
      for (int i = 0; i < stored_chunks * 2; ++i) {
        to[i * kLanes] = from[(2 * kChunks + i) * kLanes];
      }
    }
    SyncWarp();
  }

  // Where this block's part of slot `slot`'s row of step `step` is written.
  MASKED_LSTM_DEVICE unsigned char* RowOf(unsigned step, int slot) const {
    return rows_ + (static_cast<int>(step % 2) * kSlots + slot) * int64_t{shape_.row_bytes} +
           member_ * shape_.block_bytes;
  }

  // All threads, after the block's rows of step `step` are written.
  MASKED_LSTM_DEVICE void Publish(unsigned step) const {
    SyncBlock();
    if (ThreadIndex() == 0) ReleaseFlag(&exchange_.flags[BlockIndex()], step + 1);
  }

  // The block's tiles times the rows of step `step` of all blocks, each warp its part of the depth;
  // Sum may be asked for after SyncBlock.
  MASKED_LSTM_DEVICE void Multiply(unsigned step) const {
    const int lane = ThreadIndex() % kLanes;
    const int begin = warp_ * shape_.chunks * kChunkBytes;
    const int end = begin + shape_.chunks * kChunkBytes;
    for (int block = begin / shape_.block_bytes + lane;
         block < shape_.blocks && block * shape_.block_bytes < end; block += kLanes) {
      WaitForFlag(&exchange_.flags[BlockIndex() - member_ + block], step + 1);
    }
    SyncWarp();
    const int stored_chunks = StoredChunks();
#pragma unroll 1
    for (int j = 0; j < kSlotTiles; ++j) {
      const int slot = static_cast<int>(step % 2) * kSlots + j * kColumns + lane / 4;
      const unsigned char* const row =
          rows_ + slot * int64_t{shape_.row_bytes} + begin + lane % 4 * 16;
      float sums[kTiles][kChains][4] = {};
#pragma unroll
      for (int begin = 0; begin < kChunks; begin += kAtOnce) {
        Words chunks[kAtOnce];
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
          if (begin + i < kChunks && begin + i < shape_.chunks)
            GridLoad(row + (begin + i) * kChunkBytes, chunks[i].word);
        }
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
          if (begin + i < kChunks && begin + i < shape_.chunks) {
#pragma unroll
            for (int part = 0; part < 2; ++part) {
#pragma unroll
              for (int m = 0; m < kTiles; ++m) {
                MultiplyStep<Stored>(sums[m][(2 * i + part) % kChains],
                                     weights_[m][(begin + i) % kChunks][part], chunks[i], part);
              }
            }
          }
        }
      }
#pragma unroll 1
      for (int begin = 0; begin < stored_chunks; begin += kAtOnce) {
        Words chunks[kAtOnce];
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
          if (begin + i < stored_chunks) {
            GridLoad(row + (kChunks + begin + i) * kChunkBytes, chunks[i].word);
          }
        }
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
          if (begin + i < stored_chunks) {
#pragma unroll
            for (int part = 0; part < 2; ++part) {
#pragma unroll
              for (int m = 0; m < kTiles; ++m) {
                MultiplyStored<Stored>(sums[m][(2 * i + part) % kChains], Fragment(m, begin + i),
                                       chunks[i], part);
              }
            }
          }
        }
      }
#pragma unroll
      for (int m = 0; m < kTiles; ++m) {
        float* const to = partial_ + Place(warp_, j, m) + lane / 4 * kColumns + lane % 4 * 2;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          float sum = sums[m][0][i];
#pragma unroll
          for (int chain = 1; chain < kChains; ++chain) sum += sums[m][chain][i];
          to[i / 2 * 8 * kColumns + i % 2] = sum;
        }
      }
    }
  }

  // Row `row` of tile `tile`, column `column` of slot tile j.
  MASKED_LSTM_DEVICE float Sum(int j, int tile, int row, int column) const {
    float sum = 0;
#pragma unroll
    for (int warp = 0; warp < Variant::kWarps; ++warp) {
      sum += partial_[Place(warp, j, tile) + row * kColumns + column];
    }
    return sum;
  }

 private:
  MASKED_LSTM_DEVICE int StoredChunks() const {
    return shape_.chunks > kChunks ? shape_.chunks - kChunks : 0;
  }
  MASKED_LSTM_DEVICE unsigned char* Fragment(int tile, int chunk) const {
    return stored_ + ((warp_ * kTiles + tile) * StoredChunks() + chunk) * kFragmentBytes;
  }
  MASKED_LSTM_DEVICE int Place(int warp, int j, int tile) const {
    return ((warp * kSlotTiles + j) * kTiles + tile) * kTileSums;
  }

  const GridShape& shape_;
  const Exchange& exchange_;
  const int member_, warp_;
  float* const partial_;         // (warps, kSlotTiles, kTiles, 16, kColumns)
  unsigned char* const stored_;  // the weights that are not in registers
  unsigned char* rows_;
  uint32_t weights_[kTiles][kChunks][2][4];
};

// A thread's units and slots in a block of kUnits units: number i of them.
template <typename Variant, int kUnits, int kSlotTiles>
struct GridCells {
  static constexpr int kRows = Variant::kThreads / kColumns;
  static constexpr int kCells = (kSlotTiles * kUnits + kRows - 1) / kRows;
  static_assert(kUnits % 4 == 0, "warps have all of their cells, or none");

  static MASKED_LSTM_DEVICE int Pair(int i) { return ThreadIndex() / kColumns + i * kRows; }
  static MASKED_LSTM_DEVICE bool Exists(int i) { return Pair(i) < kSlotTiles * kUnits; }
  static MASKED_LSTM_DEVICE int UnitOf(int i) { return Pair(i) % kUnits; }
  static MASKED_LSTM_DEVICE int SlotTileOf(int i) { return Pair(i) / kUnits; }
};

template <typename Variant>
int64_t GridSharedBytes(const GridShape& shape, int slot_tiles) {
  const int64_t stored = shape.chunks > Variant::kChunks ? shape.chunks - Variant::kChunks : 0;
  return int64_t{Variant::kWarps} * Variant::kTiles *
         (slot_tiles * kLanes * 16 + stored * kFragmentBytes);
}

}  // namespace hopper
}  // namespace cuda
}  // namespace masked_lstm
