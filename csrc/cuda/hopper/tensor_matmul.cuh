// The products over the N compact rows on tensor cores: x.W before the recurrence, dG.W^T, x^T.dG
// and h^T.dG after it; N known on the device only. Operands are rounded once to 16 bits (or tf32),
// sums are float32, in an order that the place of a row in the batch does not change.
#pragma once

#include "cuda/hopper/operand.cuh"
#include "cuda/schedule.cuh"

namespace masked_lstm {
namespace cuda {
namespace hopper {

constexpr int kTensorTile = 128;  // rows and columns of a block's result
constexpr int kTensorThreads = 256;
constexpr int kTensorChunks = 2;  // of the depth, staged at once

template <typename Stored>
constexpr int kTensorDepth = kTensorChunks * kChunkValues<Stored>;
template <typename Stored>
constexpr int kTensorRow = RowBytes<Stored>(kTensorDepth<Stored>);
template <typename Stored>
constexpr int kTensorShared = 2 * kTensorTile * kTensorRow<Stored>;

// value(row, k), as operands, for kTensorTile rows and the depth staged at once, into shared
// memory. kRowsFast: neighbouring threads read neighbouring rows, else neighbouring k.
template <typename Stored, bool kRowsFast, typename Value>
MASKED_LSTM_DEVICE void StageRows(unsigned char* to, Value value) {
  constexpr int kDepth = kTensorDepth<Stored>;
#pragma unroll 4
  for (int i = ThreadIndex(); i < kTensorTile * kDepth; i += kTensorThreads) {
    const int row = kRowsFast ? i % 8 + i / (8 * kDepth) * 8 : i / kDepth;
    const int k = kRowsFast ? i / 8 % kDepth : i % kDepth;
    unsigned char* const at = to + row * kTensorRow<Stored> + k * kOperandBytes<Stored>;
    const uint32_t bits = value(row, k);
    if constexpr (kOperandBytes<Stored> == 2) {
      *reinterpret_cast<uint16_t*>(at) = static_cast<uint16_t>(bits);
    } else {
      *reinterpret_cast<uint32_t*>(at) = bits;
    }
  }
}

// store(m, n, sum over k in [begin, end) of a(m, k) * b(k, n)) for the block's rows from `row` and
// columns from `column`, below `rows` and `columns`. a and b return operands' bits.
template <typename Stored, bool kARowsFast, bool kBColumnsFast, typename A, typename B,
          typename Store>
MASKED_LSTM_DEVICE void TensorProduct(int64_t rows, int64_t columns, int64_t row, int64_t column,
                                      int64_t begin, int64_t end, A a, B b, Store store) {
  unsigned char* const left = SharedMemory<unsigned char>();
  unsigned char* const right = left + kTensorTile * kTensorRow<Stored>;
  const int lane = ThreadIndex() % kLanes, warp = ThreadIndex() / kLanes;
  const int group = lane / 4, member = lane % 4;
  // Each warp: 4 tiles of 16 rows by 4 of 8 columns.
  const int first_row = warp / 4 * 64, first_column = warp % 4 * 32;
  float sums[4][4][4] = {};
  for (; begin < end; begin += kTensorDepth<Stored>) {
    StageRows<Stored, kARowsFast>(left, [&](int m, int k) {
      return row + m < rows && begin + k < end ? a(row + m, begin + k) : 0u;
    });
    StageRows<Stored, kBColumnsFast>(right, [&](int n, int k) {
      return column + n < columns && begin + k < end ? b(begin + k, column + n) : 0u;
    });
    SyncBlock();
#pragma unroll
    for (int c = 0; c < kTensorChunks; ++c) {
      Words chunk[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        chunk[j] = LoadChunk(right + (first_column + j * kColumns) * kTensorRow<Stored>,
                             kTensorRow<Stored>, c);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const unsigned char* const at = left + (first_row + i * 16 + group) * kTensorRow<Stored> +
                                        c * kChunkBytes + member * 16;
        const Words upper = *reinterpret_cast<const Words*>(at);
        const Words lower = *reinterpret_cast<const Words*>(at + 8 * kTensorRow<Stored>);
#pragma unroll
        for (int step = 0; step < 2; ++step) {
          const uint32_t fragment[4] = {upper.word[2 * step], lower.word[2 * step],
                                        upper.word[2 * step + 1], lower.word[2 * step + 1]};
#pragma unroll
          for (int j = 0; j < 4; ++j) MultiplyStep<Stored>(sums[i][j], fragment, chunk[j], step);
        }
      }
    }
    SyncBlock();
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
#pragma unroll
      for (int part = 0; part < 4; ++part) {
        const int64_t m = row + first_row + i * 16 + group + part / 2 * 8;
        const int64_t n = column + first_column + j * kColumns + 2 * member + part % 2;
        if (m < rows && n < columns) store(m, n, sums[i][j][part]);
      }
    }
  }
}

// The block's tile: rows fastest, so that blocks at work at once share columns of the weights.
struct TensorBlock {
  int64_t row, column;
  int split;

  MASKED_LSTM_DEVICE TensorBlock(int row_tiles, int column_tiles)
      : row(int64_t{BlockIndex() % row_tiles} * kTensorTile),
        column(int64_t{BlockIndex() / row_tiles % column_tiles} * kTensorTile),
        split(BlockIndex() / row_tiles / column_tiles) {}
};

// projection[n] = x of compact row n . kernel + bias. (N,4U)
template <typename Stored>
static __global__ void __launch_bounds__(kTensorThreads, 1)
    TensorProjectKernel(LstmProblem p, DeviceSchedule schedule, int row_tiles, int column_tiles,
                        float* projection) {
  const TensorBlock block(row_tiles, column_tiles);
  const int64_t N = schedule.first[p.batch], D = p.input_dim, columns = 4 * p.units;
  if (block.row >= N) return;
  const Stored* const x = static_cast<const Stored*>(p.x);
  const Stored* const kernel = static_cast<const Stored*>(p.kernel);
  const Stored* const bias = static_cast<const Stored*>(p.bias);
  TensorProduct<Stored, false, true>(
      N, columns, block.row, block.column, 0, D,
      [&](int64_t n, int64_t k) { return Operand<Stored>::Bits(x[schedule.x_rows[n] * D + k]); },
      [&](int64_t k, int64_t column) {
        return Operand<Stored>::Bits(kernel[k * columns + column]);
      },
      [&](int64_t n, int64_t column, float sum) {
        projection[n * columns + column] = bias == nullptr ? sum : sum + Widen(bias[column]);
      });
}

// dx of compact row n = dG . kernel^T.
template <typename Stored>
static __global__ void __launch_bounds__(kTensorThreads, 1)
    TensorInputGradientsKernel(LstmProblem p, DeviceSchedule schedule, int row_tiles,
                               int column_tiles, const float* d_gates, Stored* dx) {
  const TensorBlock block(row_tiles, column_tiles);
  const int64_t N = schedule.first[p.batch], D = p.input_dim, depth = 4 * p.units;
  if (block.row >= N) return;
  const Stored* const kernel = static_cast<const Stored*>(p.kernel);
  TensorProduct<Stored, false, false>(
      N, D, block.row, block.column, 0, depth,
      [&](int64_t n, int64_t k) { return Operand<Stored>::Round(d_gates[n * depth + k]); },
      [&](int64_t k, int64_t d) { return Operand<Stored>::Bits(kernel[d * depth + k]); },
      [&](int64_t n, int64_t d, float sum) {
        dx[schedule.x_rows[n] * D + d] = Narrow<Stored>(sum);
      });
}

// partial[split] = sum over the split's part of the compact rows of x^T.dG, with a row of ones
// below x: d_bias. (splits, D+1, 4U); where h_before is given: of h_{t-1}^T.dG, (splits, U, 4U).
template <typename Stored>
static __global__ void __launch_bounds__(kTensorThreads, 1)
    TensorWeightGradientsKernel(LstmProblem p, DeviceSchedule schedule, int row_tiles,
                                int column_tiles, int splits, const float* d_gates,
                                const float* h_before, float* partial) {
  const TensorBlock block(row_tiles, column_tiles);
  const int64_t N = schedule.first[p.batch], columns = 4 * p.units, D = p.input_dim;
  const int64_t rows = h_before == nullptr ? D + 1 : p.units;
  const int64_t part = (N + splits - 1) / splits, begin = block.split * part;
  const int64_t end = begin + part < N ? begin + part : N;
  const Stored* const x = static_cast<const Stored*>(p.x);
  float* const sums = partial + block.split * rows * columns;
  TensorProduct<Stored, true, true>(
      rows, columns, block.row, block.column, begin, end,
      [&](int64_t m, int64_t n) {
        if (h_before != nullptr) return Operand<Stored>::Round(h_before[n * p.units + m]);
        if (m == D) return Operand<Stored>::Round(1.0f);
        return Operand<Stored>::Bits(x[schedule.x_rows[n] * D + m]);
      },
      [&](int64_t n, int64_t column) {
        return Operand<Stored>::Round(d_gates[n * columns + column]);
      },
      [&](int64_t m, int64_t column, float sum) { sums[m * columns + column] = sum; });
}

// The splits added up in order: rows 0 ... rows-1 to `to`, row `rows` to `last`. Either may be
// null. One thread for each value.
template <typename Stored>
static __global__ void SumSplitsKernel(const float* partial, int splits, int64_t size,
                                       int64_t last_begins, Stored* to, Stored* last) {
  const int64_t i = int64_t{BlockIndex()} * BlockSize() + ThreadIndex();
  if (i >= size) return;
  float sum = partial[i];
  for (int split = 1; split < splits; ++split) sum += partial[split * size + i];
  Stored* const target = i < last_begins ? to : last;
  if (target != nullptr) target[i < last_begins ? i : i - last_begins] = Narrow<Stored>(sum);
}

}  // namespace hopper
}  // namespace cuda
}  // namespace masked_lstm
