// d_kernel = X^T dG, d_recurrent_kernel = H^T dG, d_bias = column sums of dG, over the N compact
// rows. A piece is a panel of columns times some rows of one of the matrices; each of its values is
// the sum of block sums of kWeightBlock steps, in order: the same bits on any number of threads.
#pragma once

#include "job.h"
#include "tile.h"

namespace masked_lstm {
namespace MASKED_LSTM_ISA_NAMESPACE {

template <typename T>
class WeightGradients {
 public:
  WeightGradients(BackwardJob* job, const CpuLayout& layout, T* memory)
      : job_(*job),
        call_(*job->call),
        p_(job->call->problem),
        layout_(layout),
        d_gates_(static_cast<const T*>(job->call->scratch)),
        h_before_(d_gates_ + job->schedule.total * 4 * p_.units),
        panel_(memory + layout.saved_tiles(kMaxSlots)) {}

  // Pieces of a call: per panel, those of kernel, then those of recurrent_kernel.
  void Run() {
    const int64_t of_kernel = CpuLayout::Panels(p_.input_dim, job_.weight_rows);
    const int64_t per_panel = of_kernel + CpuLayout::Panels(p_.units, job_.weight_rows);
    for (int64_t item; (item = job_.weights.Take()) >= 0;) {
      const int64_t column = item / per_panel * layout_.panel_columns;
      const int64_t piece = item % per_panel;
      const bool with_bias = piece == 0 && call_.d_bias != nullptr;
      if (piece < of_kernel) {
        Piece(static_cast<T*>(call_.d_kernel), p_.input_dim, piece * job_.weight_rows, column,
              static_cast<const T*>(p_.x), true, with_bias);
      } else {
        Piece(static_cast<T*>(call_.d_recurrent_kernel), p_.units,
              (piece - of_kernel) * job_.weight_rows, column, h_before_, false, with_bias);
      }
    }
  }

 private:
  void Piece(T* result, int64_t height, int64_t row, int64_t column, const T* left, bool left_is_x,
             bool with_bias) {
    if (result == nullptr && !with_bias) return;
    const int64_t stop = row + job_.weight_rows < height ? row + job_.weight_rows : height;
    const int64_t total = job_.schedule.total;
    // The first block stores, the others add; without any valid step the sums are zeros.
    for (int64_t begin = 0; begin == 0 || begin < total; begin += CpuLayout::kWeightBlock) {
      const int64_t length =
          total - begin < CpuLayout::kWeightBlock ? total - begin : CpuLayout::kWeightBlock;
      const T* rows[CpuLayout::kWeightBlock];
      for (int64_t k = 0; k < length; ++k) {
        const int64_t n = begin + k;
        PackRow(d_gates_ + n * 4 * p_.units, column, panel_ + k * layout_.panel_columns);
        rows[k] = left_is_x ? left + job_.x_rows[n] * p_.input_dim : left + n * p_.units;
      }
      if (with_bias) AddBias(column, length, begin == 0);
      if (result == nullptr) continue;
      ForEachTile(stop - row, [&](int64_t first, auto tag, int64_t tile, int64_t) {
        AddTile<decltype(tag)::value>(result, row + first, column, rows, length, begin == 0,
                                      NextBlock(begin, column, tile));
      });
    }
  }

  // The first tiles of a block fetch the next one's dG, a line of each row.
  Ahead NextBlock(int64_t begin, int64_t column, int64_t tile) const {
    const int64_t n = begin + CpuLayout::kWeightBlock;
    const int64_t at = column + tile * 64 / static_cast<int64_t>(sizeof(T));
    if (n >= job_.schedule.total || at >= column + layout_.panel_columns || at >= 4 * p_.units) {
      return {reinterpret_cast<const char*>(panel_), 0};
    }
    return {reinterpret_cast<const char*>(d_gates_ + n * 4 * p_.units + at),
            4 * p_.units * static_cast<int64_t>(sizeof(T))};
  }

  void PackRow(const T* d_gates, int64_t column, T* to) {
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
      const int64_t from = column + v * kWidth<T>;
      Store(to + v * kWidth<T>,
            from < 4 * p_.units ? LoadFirst(d_gates + from, 4 * p_.units - from) : Vec<T>{});
    }
  }

  template <int S>
  MASKED_LSTM_NOINLINE void AddTile(T* result, int64_t row, int64_t column, const T* const* rows,
                                    int64_t length, bool store, Ahead ahead) {
    Tile<T, S> tile;
    tile.Clear();
    tile.AddColumns(panel_, rows, row, length, ahead);
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
      const int64_t from = column + v * kWidth<T>, lanes = 4 * p_.units - from;
      if (lanes <= 0) break;
#pragma GCC unroll 6
      for (int s = 0; s < S; ++s) {
        AddTo(result + (row + s) * 4 * p_.units + from, tile.acc[v][s], lanes, store);
      }
    }
  }

  void AddBias(int64_t column, int64_t length, bool store) {
    for (int v = 0; v < 4; ++v) {
      const int64_t from = column + v * kWidth<T>, lanes = 4 * p_.units - from;
      if (lanes <= 0) break;
      Vec<T> sum = {};
      for (int64_t k = 0; k < length; ++k) {
        sum += Load(panel_ + k * layout_.panel_columns + v * kWidth<T>);
      }
      AddTo(static_cast<T*>(call_.d_bias) + from, sum, lanes, store);
    }
  }

  MASKED_LSTM_INLINE void AddTo(T* to, Vec<T> value, int64_t lanes, bool store) {
    StoreFirst(to, store ? value : LoadFirst(to, lanes) + value, lanes);
  }

  BackwardJob& job_;
  const LstmBackward& call_;
  const LstmProblem& p_;
  const CpuLayout& layout_;
  const T* d_gates_;   // (N,4U)
  const T* h_before_;  // (N,U)
  T* panel_;           // (kWeightBlock, 4*width) packed block of dG
};

}  // namespace MASKED_LSTM_ISA_NAMESPACE
}  // namespace masked_lstm
