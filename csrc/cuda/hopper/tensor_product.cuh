// The product of two matrices in device memory on tensor cores, a tile of 128 x 128 for each block:
// copied into shared memory three stages ahead of the multiplications, 16 bytes at once where the
// matrices allow it. Sums are float32, each a single chain in the order of the depth: its bits do
// not depend on where in the result it stands.
//
// A stage holds 128 bytes of depth: 64 values of 16 bits, 32 of float32 (multiplied as tf32). It
// keeps the matrix's own order; 16-byte pieces are moved within a row so that neither the copies
// nor the loads of fragments meet bank conflicts.
#pragma once

#include "cuda/hopper/operand.cuh"

namespace masked_lstm {
namespace cuda {
namespace hopper {

constexpr int kProductTile = 128;  // rows and columns of a block's part of the result
constexpr int kProductThreads = 256;
constexpr int kProductStages = 3;
constexpr int kDepthBytes = 128;                                  // of a stage
constexpr int kStageBytes = kProductTile * kDepthBytes;           // of one of the matrices
constexpr int kProductShared = 2 * kProductStages * kStageBytes;  // 96 KiB: two blocks fit

// Blocks of a multiprocessor. float32's fragments take more registers.
template <typename Stored>
constexpr int kProductBlocks = sizeof(Stored) == 2 ? 2 : 1;

// Row r of a matrix begins at values + pitch * (kRows ? rows[r] : r).
template <typename Stored, bool kRows>
struct MatrixView {
  static constexpr bool kGathered = kRows;
  const Stored* values;
  int pitch;
  const int64_t* rows;
};

// Bytes that may be copied at once from every row of the matrix.
template <typename Stored, bool kRows>
int CopyBytes(const MatrixView<Stored, kRows>& matrix) {
  const uintptr_t at = reinterpret_cast<uintptr_t>(matrix.values) |
                       static_cast<uintptr_t>(matrix.pitch) * sizeof(Stored);
  return at % 16 == 0 ? 16 : at % 4 == 0 ? 4 : 2;
}

// Copies one matrix's part of a stage. kAlongDepth: its rows in memory run along the depth, so that
// a row of the stage is a row (column) of the result; else a row of the stage is one of the depth.
template <typename Stored, bool kRows, bool kAlongDepth, int kCopyBytes>
class StageCopy {
  static constexpr int kRowBytes =
      kAlongDepth ? kDepthBytes : kProductTile * static_cast<int>(sizeof(Stored));
  static constexpr int kValues = kCopyBytes / static_cast<int>(sizeof(Stored));
  static constexpr int kOfRow = kRowBytes / kCopyBytes;  // copies
  static constexpr int kCopies = kStageBytes / kCopyBytes / kProductThreads;
  static constexpr int kRowStep = kProductThreads / kOfRow;
  // Of gathered rows: which they are is read a stage ahead, for it takes its time.
  static constexpr bool kAhead = kRows && kCopies <= 4;

 public:
  // first: the tile's first row (column) of the result, of `size`; [begin, end): of the depth.
  MASKED_LSTM_DEVICE StageCopy(const MatrixView<Stored, kRows>& matrix, int first, int size,
                               int begin, int end)
      : matrix_(matrix), first_(first), size_(size), end_(end) {
    if constexpr (kAhead) Find(begin);
  }

  // The stage of the depth from k on. Those after it must be asked for in order.
  MASKED_LSTM_DEVICE void operator()(unsigned char* stage, int k) {
    // Computed again for every stage: kept for the next one, addresses would not leave registers
    // for the sums.
    const int thread = Forget(ThreadIndex());
    const int column = thread % kOfRow * kValues;
    const int along = (kAlongDepth ? k : first_) + column;
    const bool inside = along < (kAlongDepth ? end_ : size_);
#pragma unroll kCopies <= 4 ? 4 : 2
    for (int i = 0; i < kCopies; ++i) {
      const int row = thread / kOfRow + i * kRowStep;
      const bool valid = inside && Exists(k, row);
      int64_t in_memory = RowOf(k, row);
      if constexpr (kAhead) {
        in_memory = found_[i];
      } else if constexpr (kRows) {
        in_memory = valid ? matrix_.rows[in_memory] : 0;
      }
      CopyAsync<kCopyBytes>(stage + PlaceOf(row, column * static_cast<int>(sizeof(Stored))),
                            matrix_.values + (valid ? in_memory * matrix_.pitch + along : 0),
                            valid);
    }
    if constexpr (kAhead && !kAlongDepth) Find(k + kRowsOfStage);
  }

  // Of byte `byte` of row `row` within the stage.
  static MASKED_LSTM_DEVICE int PlaceOf(int row, int byte) {
    // Fragments are loaded from 8 rows at once; of float32 along the rows, from 4.
    const int turn = kAlongDepth || sizeof(Stored) == 2 ? row % 8 : row % 4 * 2;
    return row * kRowBytes + ((byte / 16 ^ turn) * 16 | byte % 16);
  }

 private:
  static constexpr int kRowsOfStage = kStageBytes / kRowBytes;

  MASKED_LSTM_DEVICE int RowOf(int k, int row) const { return (kAlongDepth ? first_ : k) + row; }
  MASKED_LSTM_DEVICE bool Exists(int k, int row) const {
    return RowOf(k, row) < (kAlongDepth ? size_ : end_);
  }
  MASKED_LSTM_DEVICE void Find(int k) {
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
      const int row = ThreadIndex() / kOfRow + i * kRowStep;
      found_[i] = Exists(k, row) ? static_cast<int>(matrix_.rows[RowOf(k, row)]) : 0;
    }
  }

  const MatrixView<Stored, kRows> matrix_;
  const int first_, size_, end_;
  int found_[kAhead ? kCopies : 1];
};

// Word (place along the result, place along the depth / values of a word) of float32's stages whose
// rows run along the result.
template <typename Copy>
MASKED_LSTM_DEVICE uint32_t WordAt(const unsigned char* stage, int along_result, int depth) {
  return *reinterpret_cast<const uint32_t*>(stage + Copy::PlaceOf(depth, 4 * along_result));
}

// The fragments of 16 places along the result, from `first` on, for multiplication `step` of the
// stage: a of rows; b of two times 8 columns.
template <typename Stored, bool kAlongDepth>
MASKED_LSTM_DEVICE void LoadLeft(const unsigned char* stage, int first, int step,
                                 uint32_t (&a)[4]) {
  typedef StageCopy<Stored, false, kAlongDepth, 16> Copy;
  const int lane = ThreadIndex() % kLanes;
  if constexpr (kAlongDepth) {
    LoadMatrices(stage + Copy::PlaceOf(first + lane % 16, 32 * step + lane / 16 * 16), a);
  } else if constexpr (sizeof(Stored) == 2) {
    const int k = 16 * step + lane / 16 * 8 + lane % 8;
    LoadMatricesTransposed(stage + Copy::PlaceOf(k, 2 * first + lane / 8 % 2 * 16), a);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      a[i] = WordAt<Copy>(stage, first + lane / 4 + i % 2 * 8, 8 * step + lane % 4 + i / 2 * 4);
    }
  }
  RoundWords<Stored>(a);
}
template <typename Stored, bool kAlongDepth>
MASKED_LSTM_DEVICE void LoadRight(const unsigned char* stage, int first, int step,
                                  uint32_t (&b)[4]) {
  typedef StageCopy<Stored, false, kAlongDepth, 16> Copy;
  const int lane = ThreadIndex() % kLanes;
  if constexpr (kAlongDepth) {
    const int column = first + lane / 16 * 8 + lane % 8;
    LoadMatrices(stage + Copy::PlaceOf(column, 32 * step + lane / 8 % 2 * 16), b);
  } else if constexpr (sizeof(Stored) == 2) {
    const int k = 16 * step + lane / 8 % 2 * 8 + lane % 8;
    LoadMatricesTransposed(stage + Copy::PlaceOf(k, 2 * first + lane / 16 * 16), b);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      b[i] = WordAt<Copy>(stage, first + lane / 4 + i / 2 * 8, 8 * step + lane % 4 + i % 2 * 4);
    }
  }
  RoundWords<Stored>(b);
}

// store(m, n, two sums over k in [begin, end) of left(m, k) * right(k, n) and of (m, n + 1)) for
// the block's tile, rows from `row` and columns from `column` on, below `rows` and `columns`; of
// the second sum column n + 1 may be past the end. kLeft, kRight: whether rows in memory run along
// the depth. kCopyBytes: CopyBytes of both, or less.
template <typename Stored, bool kLeft, bool kRight, int kCopyBytes, bool kRows, typename Store>
MASKED_LSTM_DEVICE void TensorProduct(const MatrixView<Stored, kRows>& left,
                                      const MatrixView<Stored, false>& right, int rows, int columns,
                                      int row, int column, int begin, int end, Store store) {
  constexpr int kDepth = kDepthBytes / sizeof(Stored);
  unsigned char* const stages = SharedMemory<unsigned char>();  // (stages, left and right)
  StageCopy<Stored, kRows, kLeft, kCopyBytes> copy_left(left, row, rows, begin, end);
  StageCopy<Stored, false, kRight, kCopyBytes> copy_right(right, column, columns, begin, end);
  const int count = (end - begin + kDepth - 1) / kDepth;
  const auto Copy = [&](int i) {
    if (i < count) {
      unsigned char* const stage = stages + i % kProductStages * 2 * kStageBytes;
      copy_left(stage, begin + i * kDepth);
      copy_right(stage + kStageBytes, begin + i * kDepth);
    }
    CommitCopies();  // an empty group too: they are counted
  };
#pragma unroll
  for (int i = 0; i < kProductStages - 1; ++i) Copy(i);

  const int lane = ThreadIndex() % kLanes, warp = ThreadIndex() / kLanes;
  // Each warp: 4 tiles of 16 rows by 4 of 8 columns.
  const int first_row = warp / 4 * 64, first_column = warp % 4 * 32;
  float sums[4][4][4] = {};
  for (int i = 0; i < count; ++i) {
    WaitForCopies<kProductStages - 2>();
    SyncBlock();  // everybody's copies have come, and nobody reads the stage before this one
    Copy(i + kProductStages - 1);
    const unsigned char* const stage = stages + i % kProductStages * 2 * kStageBytes;
#pragma unroll
    for (int step = 0; step < kDepthBytes / 32; ++step) {
      uint32_t b[2][4];
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        LoadRight<Stored, kRight>(stage + kStageBytes, first_column + 16 * j, step, b[j]);
      }
#pragma unroll
      for (int m = 0; m < 4; ++m) {
        uint32_t a[4];
        LoadLeft<Stored, kLeft>(stage, first_row + 16 * m, step, a);
#pragma unroll
        for (int n = 0; n < 4; ++n) {
          const uint32_t of_tile[2] = {b[n / 2][n % 2 * 2], b[n / 2][n % 2 * 2 + 1]};
          Operand<Stored>::Mma(sums[m][n], a, of_tile);
        }
      }
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int m = row + first_row + i * 16 + lane / 4 + half * 8;
      if (m >= rows) continue;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int n = column + first_column + j * kColumns + 2 * (lane % 4);
        if (n < columns) store(m, n, sums[i][j][2 * half], sums[i][j][2 * half + 1]);
      }
    }
  }
}

}  // namespace hopper
}  // namespace cuda
}  // namespace masked_lstm
