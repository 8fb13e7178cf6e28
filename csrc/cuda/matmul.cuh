// Products over the N compact rows, N known on the device only: x.W, dG.W^T, x^T.dG, h^T.dG. Each
// value is one chain of multiply-adds in the order of k, whatever the rest of the batch is; a
// weight gradient is a fixed number of such chains, added in order.
#pragma once

#include "cuda/scalar.cuh"
#include "cuda/schedule.cuh"

namespace masked_lstm {
namespace cuda {

constexpr int kMatmulTile = 64;      // rows and columns of a block's result
constexpr int kMatmulDepth = 16;     // k staged at once
constexpr int kMatmulThreads = 256;  // 16 x 16, each 4 x 4 values

template <typename T>
constexpr size_t kMatmulShared = 2 * kMatmulDepth * (kMatmulTile + 4) * sizeof(T);

// What a block computes: rows and columns from these on, of so many.
struct Tile {
  int64_t row, column, rows, columns;
};

MASKED_LSTM_DEVICE Tile TileOf(int64_t row_tile, int64_t rows, int64_t columns) {
  return {row_tile * kMatmulTile, int64_t{BlockIndexY()} * kMatmulTile, rows, columns};
}

// sums += sum over k in [begin, end) of a(m, k) * b(k, n), each thread for its 4 x 4 values.
// kRowsFast: neighbouring threads load a of neighbouring m, else of neighbouring k; likewise b.
template <typename T, bool kARowsFast, bool kBColumnsFast, typename A, typename B>
MASKED_LSTM_DEVICE void TileProduct(const Tile& tile, int64_t begin, int64_t end, A a, B b,
                                    T (&sums)[4][4]) {
  constexpr int kStride = kMatmulTile + 4;
  T* const staged_a = SharedMemory<T>();
  T* const staged_b = staged_a + kMatmulDepth * kStride;
  const int64_t row = tile.row, column = tile.column;
  const int thread = ThreadIndex(), y = thread / 16, x = thread % 16;
  for (; begin < end; begin += kMatmulDepth) {
    for (int i = thread; i < kMatmulTile * kMatmulDepth; i += kMatmulThreads) {
      const int m = kARowsFast ? i % kMatmulTile : i / kMatmulDepth;
      const int k = kARowsFast ? i / kMatmulTile : i % kMatmulDepth;
      staged_a[k * kStride + m] =
          row + m < tile.rows && begin + k < end ? a(row + m, begin + k) : T(0);
    }
    for (int i = thread; i < kMatmulTile * kMatmulDepth; i += kMatmulThreads) {
      const int n = kBColumnsFast ? i % kMatmulTile : i / kMatmulDepth;
      const int k = kBColumnsFast ? i / kMatmulTile : i % kMatmulDepth;
      staged_b[k * kStride + n] =
          column + n < tile.columns && begin + k < end ? b(begin + k, column + n) : T(0);
    }
    BlockBarrier();
    for (int k = 0; k < kMatmulDepth; ++k) {
      T left[4], right[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        left[i] = staged_a[k * kStride + y * 4 + i];
        right[i] = staged_b[k * kStride + x * 4 + i];
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) sums[i][j] = MulAdd(left[i], right[j], sums[i][j]);
      }
    }
    BlockBarrier();
  }
}

// each(m, n, i, j) for this thread's part of the tile: its value [i][j] is that of row m, column n.
template <typename Each>
MASKED_LSTM_DEVICE void ForTile(const Tile& tile, Each each) {
  const int64_t row = tile.row + ThreadIndex() / 16 * 4;
  const int64_t column = tile.column + ThreadIndex() % 16 * 4;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (row + i < tile.rows && column + j < tile.columns) each(row + i, column + j, i, j);
    }
  }
}

// Columns of the 4U that one launch computes: all of them, or one gate's with its factors.
struct Columns {
  int64_t first, count;
  const void* factors;  // (B,D) of x or (B,U) of h, dtype; null: ones
};

// projection[n] = x of compact row n . kernel + bias. (N,4U)
template <typename Stored, typename T = Compute<Stored>>
static __global__ void ProjectKernel(LstmProblem p, DeviceSchedule schedule, Columns columns,
                                     T* projection) {
  const Stored* x = static_cast<const Stored*>(p.x);
  const Stored* kernel = static_cast<const Stored*>(p.kernel) + columns.first;
  const Stored* bias = static_cast<const Stored*>(p.bias);
  const Stored* factors = static_cast<const Stored*>(columns.factors);
  const int64_t stride = 4 * p.units, D = p.input_dim, N = schedule.first[p.batch];
  const Tile tile = TileOf(BlockIndex(), N, columns.count);
  if (tile.row >= N) return;
  T sums[4][4] = {};
  TileProduct<T, false, true>(
      tile, 0, D,
      [&](int64_t n, int64_t k) {
        const T value = Widen(x[schedule.x_rows[n] * D + k]);
        return factors == nullptr ? value : value * Widen(factors[schedule.batch_rows[n] * D + k]);
      },
      [&](int64_t k, int64_t column) { return Widen(kernel[k * stride + column]); }, sums);
  ForTile(tile, [&](int64_t n, int64_t column, int i, int j) {
    column += columns.first;
    const T sum = sums[i][j];
    projection[n * stride + column] = bias == nullptr ? sum : sum + Widen(bias[column]);
  });
}

// dx of compact row n = dG . kernel^T; kFactors: with input_factors each gate's share is scaled by
// itself.
template <typename Stored, bool kFactors, typename T = Compute<Stored>>
static __global__ void InputGradientsKernel(LstmProblem p, DeviceSchedule schedule,
                                            const T* d_gates, Stored* dx) {
  const Stored* kernel = static_cast<const Stored*>(p.kernel);
  const Stored* factors = static_cast<const Stored*>(p.input_factors);
  const int64_t columns = 4 * p.units, D = p.input_dim, N = schedule.first[p.batch];
  const Tile tile = TileOf(BlockIndex(), N, D);
  if (tile.row >= N) return;
  const auto product = [&](int64_t begin, int64_t end, T(&sums)[4][4]) {
    TileProduct<T, false, false>(
        tile, begin, end, [&](int64_t n, int64_t k) { return d_gates[n * columns + k]; },
        [&](int64_t k, int64_t d) { return Widen(kernel[d * columns + k]); }, sums);
  };
  T sums[4][4] = {};
  if (!kFactors) {
    product(0, columns, sums);
  } else {
    for (int64_t gate = 0; gate < 4; ++gate) {
      T part[4][4] = {};
      product(gate * p.units, (gate + 1) * p.units, part);
      ForTile(tile, [&](int64_t n, int64_t d, int i, int j) {
        const int64_t at = (gate * p.batch + schedule.batch_rows[n]) * D + d;
        sums[i][j] = MulAdd(part[i][j], Widen(factors[at]), sums[i][j]);
      });
    }
  }
  ForTile(tile, [&](int64_t n, int64_t d, int i, int j) {
    dx[schedule.x_rows[n] * D + d] = Narrow<Stored>(sums[i][j]);
  });
}

// A weight gradient's sum over n is cut into `parts` equal parts, whose sums are kept apart and
// then added in order: few weights alone would not give a GPU enough blocks.
template <typename T>
struct Parts {
  int count, row_tiles;  // BlockIndex() is part * row_tiles + tile
  T* sums;               // (count, rows, 4U)
};

template <typename T, typename A, typename B>
MASKED_LSTM_DEVICE void PartialProduct(const Parts<T>& parts, int64_t rows, const Columns& columns,
                                       int64_t stride, int64_t steps, A a, B b) {
  const int64_t part = BlockIndex() / parts.row_tiles;
  const Tile tile = TileOf(BlockIndex() % parts.row_tiles, rows, columns.count);
  const int64_t chunks = (steps + kMatmulDepth - 1) / kMatmulDepth;
  const int64_t length = (chunks + parts.count - 1) / parts.count * kMatmulDepth;
  const int64_t begin = part * length, end = begin + length < steps ? begin + length : steps;
  T sums[4][4] = {};
  TileProduct<T, true, true>(tile, begin, end, a, b, sums);
  ForTile(tile, [&](int64_t row, int64_t column, int i, int j) {
    parts.sums[(part * rows + row) * stride + columns.first + column] = sums[i][j];
  });
}

// Parts of d_kernel = sum over n of x^T.dG; its row `input_dim` is d_bias, the sum of dG.
template <typename Stored, typename T = Compute<Stored>>
static __global__ void KernelGradientsKernel(LstmProblem p, DeviceSchedule schedule,
                                             Columns columns, Parts<T> parts, const T* d_gates) {
  const Stored* x = static_cast<const Stored*>(p.x);
  const Stored* factors = static_cast<const Stored*>(columns.factors);
  const int64_t stride = 4 * p.units, D = p.input_dim;
  PartialProduct<T>(
      parts, D + 1, columns, stride, schedule.first[p.batch],
      [&](int64_t d, int64_t n) {
        if (d == D) return T(1);
        const T value = Widen(x[schedule.x_rows[n] * D + d]);
        return factors == nullptr ? value : value * Widen(factors[schedule.batch_rows[n] * D + d]);
      },
      [&](int64_t n, int64_t column) { return d_gates[n * stride + columns.first + column]; });
}

// Parts of d_recurrent_kernel = sum over n of h_{t-1}^T.dG.
template <typename Stored, typename T = Compute<Stored>>
static __global__ void RecurrentGradientsKernel(LstmProblem p, DeviceSchedule schedule,
                                                Columns columns, Parts<T> parts, const T* d_gates,
                                                const T* h_before) {
  const Stored* factors = static_cast<const Stored*>(columns.factors);
  const int64_t U = p.units, stride = 4 * U;
  PartialProduct<T>(
      parts, U, columns, stride, schedule.first[p.batch],
      [&](int64_t u, int64_t n) {
        const T value = h_before[n * U + u];
        return factors == nullptr ? value : value * Widen(factors[schedule.batch_rows[n] * U + u]);
      },
      [&](int64_t n, int64_t column) { return d_gates[n * stride + columns.first + column]; });
}

// The parts added up: values before `last_begins` go to `to`, the others to `last`. Either may be
// null. One thread for each of `size` values.
template <typename Stored, typename T = Compute<Stored>>
static __global__ void SumPartsKernel(Parts<T> parts, int64_t size, int64_t last_begins, Stored* to,
                                      Stored* last) {
  const int64_t i = int64_t{BlockIndex()} * BlockSize() + ThreadIndex();
  if (i >= size) return;
  T sum = parts.sums[i];
  for (int part = 1; part < parts.count; ++part) sum += parts.sums[part * size + i];
  Stored* const target = i < last_begins ? to : last;
  if (target != nullptr) target[i < last_begins ? i : i - last_begins] = Narrow<Stored>(sum);
}

}  // namespace cuda
}  // namespace masked_lstm
