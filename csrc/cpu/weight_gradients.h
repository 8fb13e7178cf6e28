// d_kernel = X^T dG, d_recurrent_kernel = H^T dG, d_bias = column sums of dG, over the N compact
// rows. A piece is a panel of columns times some rows of one of the matrices; each of its values is
// the sum of block sums of kWeightBlock steps, in order: the same bits on any number of threads.
#pragma once

#include "job.h"
#include "stored.h"
#include "tile.h"

namespace masked_lstm {
namespace MASKED_LSTM_ISA_NAMESPACE {

template <typename Stored>
class WeightGradients {
  using T = Compute<Stored>;

 public:
  WeightGradients(BackwardJob* job, const CpuLayout& layout, T* memory)
      : job_(*job),
        call_(*job->call),
        p_(job->call->problem),
        layout_(layout),
        d_gates_(static_cast<const T*>(job->call->scratch)),
        h_before_(d_gates_ + job->schedule.total * 4 * p_.units),
        panel_(memory + layout.saved_tiles(kRowBlock)),
        staged_(panel_ + CpuLayout::kWeightBlock * layout.panel_columns),
        sums_(staged_ + CpuLayout::kWeightBlock * job->weight_rows) {}

  // Pieces of a call: per panel, those of kernel, then those of recurrent_kernel. With factors,
  // which differ from gate to gate, no panel reaches from one gate into the next.
  void Run() {
    const int64_t of_kernel = CpuLayout::Panels(p_.input_dim, job_.weight_rows);
    const int64_t per_panel = of_kernel + CpuLayout::Panels(p_.units, job_.weight_rows);
    const int64_t width = 4 * p_.units / job_.weight_parts;
    const int64_t panels = CpuLayout::Panels(width, layout_.panel_columns);
    for (int64_t item; (item = job_.weights.Take()) >= 0;) {
      const int64_t panel = item / per_panel, piece = item % per_panel, part = panel / panels;
      const int64_t from = panel % panels * layout_.panel_columns;
      const Columns columns = {part, part * width + from, width - from};
      const bool with_bias = piece == 0 && call_.d_bias != nullptr;
      if (piece < of_kernel) {
        Piece(static_cast<Stored*>(call_.d_kernel), p_.input_dim, piece * job_.weight_rows, columns,
              true, with_bias);
      } else {
        Piece(static_cast<Stored*>(call_.d_recurrent_kernel), p_.units,
              (piece - of_kernel) * job_.weight_rows, columns, false, with_bias);
      }
    }
  }

 private:
  // Of a piece: a panel's, from `first` on.
  struct Columns {
    int64_t gate;  // where there are factors
    int64_t first;
    int64_t lanes;  // up to the end of the matrix or gate
  };

  // Where a piece's sums stand.
  struct Sums {
    T* rows;
    T* bias;
    int64_t stride;  // between rows
  };

  // Rows [row, row + weight_rows) of `result`.
  void Piece(Stored* result, int64_t height, int64_t row, const Columns& columns, bool left_is_x,
             bool with_bias) {
    if (result == nullptr && !with_bias) return;
    const int64_t count = row + job_.weight_rows < height ? job_.weight_rows : height - row;
    const int64_t column = columns.first, lanes = columns.lanes;
    // Sums of a half-precision result stand in memory of the worker's own until they are complete.
    Sums sums = {sums_, sums_ + count * layout_.panel_columns, layout_.panel_columns};
    if constexpr (!kWidened<Stored>) {
      T* const rows = result == nullptr ? nullptr : result + row * 4 * p_.units + column;
      T* const bias = with_bias ? static_cast<T*>(call_.d_bias) + column : nullptr;
      sums = {rows, bias, 4 * p_.units};
    }
    const int64_t total = job_.schedule.total;
    // The first block stores, the others add; without any valid step the sums are zeros.
    for (int64_t begin = 0; begin == 0 || begin < total; begin += CpuLayout::kWeightBlock) {
      const int64_t length =
          total - begin < CpuLayout::kWeightBlock ? total - begin : CpuLayout::kWeightBlock;
      const T* rows[CpuLayout::kWeightBlock];
      for (int64_t k = 0; k < length; ++k) {
        const int64_t n = begin + k;
        PackRow(d_gates_ + n * 4 * p_.units, column, panel_ + k * layout_.panel_columns);
        rows[k] = left_is_x ? InputAt(n, k, row, count, columns.gate)
                            : StateAt(n, k, row, count, columns.gate);
      }
      if (with_bias) AddBias(sums.bias, lanes, length, begin == 0);
      if (result == nullptr) continue;
      ForEachTile(count, [&](int64_t first, auto tag, int64_t tile, int64_t) {
        AddTile<decltype(tag)::value>(sums, first, lanes, rows, length, begin == 0,
                                      NextBlock(begin, column, tile));
      });
    }
    if constexpr (kWidened<Stored>) {
      const int64_t n = lanes < layout_.panel_columns ? lanes : layout_.panel_columns;
      for (int64_t r = 0; result != nullptr && r < count; ++r) {
        Convert(result + (row + r) * 4 * p_.units + column, sums.rows + r * sums.stride, n);
      }
      if (with_bias) Convert(static_cast<Stored*>(call_.d_bias) + column, sums.bias, n);
    }
  }

  // Values [row, row + count) of x of compact row n; widened, or times the gate's factors, in row k
  // of staged_.
  const T* InputAt(int64_t n, int64_t k, int64_t row, int64_t count, int64_t gate) const {
    const int64_t D = p_.input_dim;
    const Stored* x = static_cast<const Stored*>(p_.x) + job_.x_rows[n] * D + row;
    T* staged = staged_ + k * job_.weight_rows;
    if (p_.input_factors != nullptr) {
      Multiply(staged, x, Factors(p_.input_factors, n, gate, D) + row, count);
      return staged;
    }
    if constexpr (kWidened<Stored>) {
      Convert(staged, x, count);
      return staged;
    } else {
      return x;
    }
  }

  // ... of h_{t-1}.
  const T* StateAt(int64_t n, int64_t k, int64_t row, int64_t count, int64_t gate) const {
    const T* h = h_before_ + n * p_.units + row;
    if (p_.recurrent_factors == nullptr) return h;
    T* staged = staged_ + k * job_.weight_rows;
    Multiply(staged, h, Factors(p_.recurrent_factors, n, gate, p_.units) + row, count);
    return staged;
  }

  // (width) of compact row n, from (4,B,width).
  const Stored* Factors(const void* factors, int64_t n, int64_t gate, int64_t width) const {
    return static_cast<const Stored*>(factors) + (gate * p_.batch + job_.batch_rows[n]) * width;
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
  MASKED_LSTM_NOINLINE void AddTile(const Sums& sums, int64_t first, int64_t lanes,
                                    const T* const* rows, int64_t length, bool store, Ahead ahead) {
    Tile<T, S> tile;
    tile.Clear();
    constexpr int64_t kLine = 64 / sizeof(T);
    tile.AddColumns(panel_, rows, first, length, first % kLine < S, ahead);
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
      const int64_t from = v * kWidth<T>;
      if (lanes <= from) break;
#pragma GCC unroll 6
      for (int s = 0; s < S; ++s) {
        AddTo(sums.rows + (first + s) * sums.stride + from, tile.acc[v][s], lanes - from, store);
      }
    }
  }

  void AddBias(T* bias, int64_t lanes, int64_t length, bool store) {
    for (int v = 0; v < 4; ++v) {
      const int64_t from = v * kWidth<T>;
      if (lanes <= from) break;
      Vec<T> sum = {};
      for (int64_t k = 0; k < length; ++k) {
        sum += Load(panel_ + k * layout_.panel_columns + v * kWidth<T>);
      }
      AddTo(bias + from, sum, lanes - from, store);
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
  T* staged_;          // (kWeightBlock, weight_rows) copied block of x or h
  T* sums_;            // (weight_rows + 1, 4*width)
};

}  // namespace MASKED_LSTM_ISA_NAMESPACE
}  // namespace masked_lstm
