// The products over the N compact rows: x.W before the recurrence, dG.W^T, x^T.dG and h^T.dG after
// it; N known on the device only. Operands have 16 bits (or are multiplied as tf32), sums are
// float32, in an order that the place of a row in the batch does not change.
//
// kCopyBytes of each: as TensorProduct has it.
#pragma once

#include "cuda/hopper/tensor_product.cuh"
#include "cuda/schedule.cuh"

namespace masked_lstm {
namespace cuda {
namespace hopper {

// The block's tile: rows fastest, so that blocks at work at once share columns of the weights.
struct TensorBlock {
  int row, column, split;

  MASKED_LSTM_DEVICE TensorBlock(int row_tiles, int column_tiles)
      : row(BlockIndex() % row_tiles * kProductTile),
        column(BlockIndex() / row_tiles % column_tiles * kProductTile),
        split(BlockIndex() / row_tiles / column_tiles) {}
};

struct alignas(8) Pair {
  float first, second;
};
// Of neighbours, the first at an even place of rows of an even length.
MASKED_LSTM_DEVICE void StorePair(float* to, float first, float second) {
  *reinterpret_cast<Pair*>(to) = {first, second};
}

// projection[n] = x of compact row n . kernel + bias. (N,4U)
template <typename Stored, int kCopyBytes>
static __global__ void __launch_bounds__(kProductThreads, kProductBlocks<Stored>)
    TensorProjectKernel(LstmProblem p, DeviceSchedule schedule, int row_tiles, int column_tiles,
                        float* projection) {
  const TensorBlock block(row_tiles, column_tiles);
  const int N = static_cast<int>(schedule.first[p.batch]), D = static_cast<int>(p.input_dim);
  const int columns = static_cast<int>(4 * p.units);
  if (block.row >= N) return;
  const Stored* const bias = static_cast<const Stored*>(p.bias);
  const MatrixView<Stored, true> x = {static_cast<const Stored*>(p.x), D, schedule.x_rows};
  const MatrixView<Stored, false> kernel = {static_cast<const Stored*>(p.kernel), columns, nullptr};
  TensorProduct<Stored, true, false, kCopyBytes>(
      x, kernel, N, columns, block.row, block.column, 0, D,
      [&](int n, int column, float first, float second) {
        if (bias != nullptr) {
          first += Widen(bias[column]);
          second += Widen(bias[column + 1]);
        }
        StorePair(projection + int64_t{n} * columns + column, first, second);
      });
}

// dx of compact row n = dG . kernel^T.
template <typename Stored, int kCopyBytes>
static __global__ void __launch_bounds__(kProductThreads, kProductBlocks<Stored>)
    TensorInputGradientsKernel(LstmProblem p, DeviceSchedule schedule, int row_tiles,
                               int column_tiles, const Stored* d_gates, Stored* dx) {
  const TensorBlock block(row_tiles, column_tiles);
  const int N = static_cast<int>(schedule.first[p.batch]), D = static_cast<int>(p.input_dim);
  const int depth = static_cast<int>(4 * p.units);
  if (block.row >= N) return;
  const MatrixView<Stored, false> gates = {d_gates, depth, nullptr};
  const MatrixView<Stored, false> kernel = {static_cast<const Stored*>(p.kernel), depth, nullptr};
  TensorProduct<Stored, true, true, kCopyBytes>(
      gates, kernel, N, D, block.row, block.column, 0, depth,
      [&](int n, int d, float first, float second) {
        Stored* const to = dx + schedule.x_rows[n] * D + d;
        to[0] = Narrow<Stored>(first);
        if (d + 1 < D) to[1] = Narrow<Stored>(second);
      });
}

// The compact rows of part `split`.
struct SplitRows {
  int begin, end;

  MASKED_LSTM_DEVICE SplitRows(int all, int split, int splits) {
    const int part = all / splits + (all % splits > 0);
    const int64_t from = int64_t{split} * part;
    begin = from < all ? static_cast<int>(from) : all;
    end = all - begin < part ? all : begin + part;
  }
};

// partial[split] = sum over the split's compact rows of left^T.dG. (splits, rows, 4U). left: x, or
// h_{t-1}; `rows` columns of it.
template <typename Stored, bool kRows, int kCopyBytes>
static __global__ void __launch_bounds__(kProductThreads, kProductBlocks<Stored>)
    TensorWeightGradientsKernel(LstmProblem p, DeviceSchedule schedule, int row_tiles,
                                int column_tiles, int splits, MatrixView<Stored, kRows> left,
                                int rows, const Stored* d_gates, float* partial) {
  const TensorBlock block(row_tiles, column_tiles);
  const int columns = static_cast<int>(4 * p.units);
  const SplitRows part(static_cast<int>(schedule.first[p.batch]), block.split, splits);
  float* const sums = partial + int64_t{block.split} * rows * columns;
  const MatrixView<Stored, false> gates = {d_gates, columns, nullptr};
  TensorProduct<Stored, false, false, kCopyBytes>(
      left, gates, rows, columns, block.row, block.column, part.begin, part.end,
      [&](int m, int column, float first, float second) {
        StorePair(sums + int64_t{m} * columns + column, first, second);
      });
}

// partial[split] = sum over the split's compact rows of dG. (splits, 4U). Grid: (4U / kLanes,
// splits); the block's warps take the rows in turns, their sums are added in order.
constexpr int kBiasSplits = 32, kBiasWarps = 8;
template <typename Stored>
static __global__ void BiasGradientKernel(LstmProblem p, DeviceSchedule schedule,
                                          const Stored* d_gates, float* partial) {
  const int64_t columns = 4 * p.units;
  const int lane = ThreadIndex() % kLanes, warp = ThreadIndex() / kLanes;
  const int64_t column = int64_t{BlockIndex()} * kLanes + lane;
  const SplitRows part(static_cast<int>(schedule.first[p.batch]), BlockIndexY(), kBiasSplits);
  float* const sums = SharedMemory<float>();  // (kBiasWarps, kLanes)
  float sum = 0;
  if (column < columns) {
#pragma unroll 4
    for (int n = part.begin + warp; n < part.end; n += kBiasWarps) {
      sum += Widen(d_gates[n * columns + column]);
    }
  }
  sums[ThreadIndex()] = sum;
  BlockBarrier();
  if (warp > 0 || column >= columns) return;
  for (int other = 1; other < kBiasWarps; ++other) sum += sums[other * kLanes + lane];
  partial[int64_t{BlockIndexY()} * columns + column] = sum;
}

// The splits added up in order. One thread for each of `size` values.
template <typename Stored>
static __global__ void SumSplitsKernel(const float* partial, int splits, int64_t size, Stored* to) {
  const int64_t i = int64_t{BlockIndex()} * BlockSize() + ThreadIndex();
  if (i >= size) return;
  float sum = partial[i];
  for (int split = 1; split < splits; ++split) sum += partial[split * size + i];
  to[i] = Narrow<Stored>(sum);
}

}  // namespace hopper
}  // namespace cuda
}  // namespace masked_lstm
