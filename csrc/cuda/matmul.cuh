// Products over the N compact rows, N known on the device only: x.W, dG.W^T, x^T.dG, h^T.dG. Each
// value is one chain of multiply-adds in the order of k, whatever the rest of the batch is.
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

// c(m, n, sum over k of a(m, k) * b(k, n)) for the tile at BlockIndexY(), BlockIndex().
// kRowsFast: neighbouring threads load a of neighbouring m, else of neighbouring k; likewise b.
template <typename T, bool kARowsFast, bool kBColumnsFast, typename A, typename B, typename C>
MASKED_LSTM_DEVICE void Matmul(int64_t rows, int64_t columns, int64_t depth, A a, B b, C c) {
  constexpr int kStride = kMatmulTile + 4;
  T* const staged_a = SharedMemory<T>();
  T* const staged_b = staged_a + kMatmulDepth * kStride;
  const int64_t row = int64_t{BlockIndexY()} * kMatmulTile;
  const int64_t column = int64_t{BlockIndex()} * kMatmulTile;
  if (row >= rows) return;  // the whole block
  const int thread = ThreadIndex(), y = thread / 16, x = thread % 16;
  T sums[4][4] = {};
  for (int64_t begin = 0; begin < depth; begin += kMatmulDepth) {
    for (int i = thread; i < kMatmulTile * kMatmulDepth; i += kMatmulThreads) {
      const int m = kARowsFast ? i % kMatmulTile : i / kMatmulDepth;
      const int k = kARowsFast ? i / kMatmulTile : i % kMatmulDepth;
      staged_a[k * kStride + m] =
          row + m < rows && begin + k < depth ? a(row + m, begin + k) : T(0);
    }
    for (int i = thread; i < kMatmulTile * kMatmulDepth; i += kMatmulThreads) {
      const int n = kBColumnsFast ? i % kMatmulTile : i / kMatmulDepth;
      const int k = kBColumnsFast ? i / kMatmulTile : i % kMatmulDepth;
      staged_b[k * kStride + n] =
          column + n < columns && begin + k < depth ? b(begin + k, column + n) : T(0);
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
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int64_t m = row + y * 4 + i, n = column + x * 4 + j;
      if (m < rows && n < columns) c(m, n, sums[i][j]);
    }
  }
}

// projection[n] = x of compact row n . kernel + bias. (N,4U)
template <typename Stored, typename T = Compute<Stored>>
static __global__ void ProjectKernel(LstmProblem p, DeviceSchedule schedule, T* projection) {
  const Stored* x = static_cast<const Stored*>(p.x);
  const Stored* kernel = static_cast<const Stored*>(p.kernel);
  const Stored* bias = static_cast<const Stored*>(p.bias);
  const int64_t columns = 4 * p.units;
  Matmul<T, false, true>(
      schedule.first[p.batch], columns, p.input_dim,
      [&](int64_t n, int64_t k) { return Widen(x[schedule.x_rows[n] * p.input_dim + k]); },
      [&](int64_t k, int64_t column) { return Widen(kernel[k * columns + column]); },
      [&](int64_t n, int64_t column, T sum) {
        projection[n * columns + column] = bias == nullptr ? sum : sum + Widen(bias[column]);
      });
}

// dx of compact row n = dG . kernel^T.
template <typename Stored, typename T = Compute<Stored>>
static __global__ void InputGradientsKernel(LstmProblem p, DeviceSchedule schedule,
                                            const T* d_gates, Stored* dx) {
  const Stored* kernel = static_cast<const Stored*>(p.kernel);
  const int64_t depth = 4 * p.units;
  Matmul<T, false, false>(
      schedule.first[p.batch], p.input_dim, depth,
      [&](int64_t n, int64_t k) { return d_gates[n * depth + k]; },
      [&](int64_t k, int64_t d) { return Widen(kernel[d * depth + k]); },
      [&](int64_t n, int64_t d, T sum) {
        dx[schedule.x_rows[n] * p.input_dim + d] = Narrow<Stored>(sum);
      });
}

// d_kernel = sum over n of x^T.dG; with row `input_dim`: d_bias, the sum of dG.
template <typename Stored, typename T = Compute<Stored>>
static __global__ void KernelGradientsKernel(LstmProblem p, DeviceSchedule schedule,
                                             const T* d_gates, Stored* d_kernel, Stored* d_bias) {
  const Stored* x = static_cast<const Stored*>(p.x);
  const int64_t columns = 4 * p.units, D = p.input_dim;
  Matmul<T, true, true>(
      D + 1, columns, schedule.first[p.batch],
      [&](int64_t d, int64_t n) { return d < D ? Widen(x[schedule.x_rows[n] * D + d]) : T(1); },
      [&](int64_t n, int64_t column) { return d_gates[n * columns + column]; },
      [&](int64_t d, int64_t column, T sum) {
        if (d < D && d_kernel != nullptr) d_kernel[d * columns + column] = Narrow<Stored>(sum);
        if (d == D && d_bias != nullptr) d_bias[column] = Narrow<Stored>(sum);
      });
}

// d_recurrent_kernel = sum over n of h_{t-1}^T.dG.
template <typename Stored, typename T = Compute<Stored>>
static __global__ void RecurrentGradientsKernel(LstmProblem p, DeviceSchedule schedule,
                                                const T* d_gates, const T* h_before,
                                                Stored* d_recurrent_kernel) {
  const int64_t columns = 4 * p.units;
  Matmul<T, true, true>(
      p.units, columns, schedule.first[p.batch],
      [&](int64_t u, int64_t n) { return h_before[n * p.units + u]; },
      [&](int64_t n, int64_t column) { return d_gates[n * columns + column]; },
      [&](int64_t u, int64_t column, T sum) {
        d_recurrent_kernel[u * columns + column] = Narrow<Stored>(sum);
      });
}

}  // namespace cuda
}  // namespace masked_lstm
