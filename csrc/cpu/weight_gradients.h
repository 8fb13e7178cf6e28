// d_kernel = X^T dG, d_recurrent_kernel = H^T dG, d_bias = column sums of dG, over the N compact
// rows. A piece is some columns times some rows of one of the matrices; each of its values is the
// sum of block sums of kWeightBlock steps, in order: the same bits on any number of threads.
#pragma once

#include "job.h"
#include "stored.h"
#include "tile.h"

namespace masked_lstm {
namespace MASKED_LSTM_ISA_NAMESPACE {

template <typename Stored>
class WeightGradients {
  using T = Compute<Stored>;
  static constexpr int64_t kBlock = CpuLayout::kWeightBlock;
  static constexpr bool kInPlace = ReadsInPlace(MASKED_LSTM_VECTOR_BYTES);
  static constexpr int64_t kBlocks = WeightBlocks(MASKED_LSTM_VECTOR_BYTES);

 public:
  WeightGradients(BackwardJob* job, const CpuLayout& layout, T* memory)
      : job_(*job),
        call_(*job->call),
        p_(job->call->problem),
        layout_(layout),
        d_gates_(static_cast<const T*>(job->call->scratch)),
        h_before_(d_gates_ + job->schedule.total * 4 * p_.units),
        most_columns_(job->weight_panels * layout.panel_columns),
        stride_(job->weight_stride) {
    T* at = memory + layout.saved_tiles(kMaxSlots);
    for (Block& block : blocks_) {
      block.d_gates = at;
      block.left = at + kBlock * most_columns_;
      at = block.left + kBlock * stride_;
    }
    sums_ = at;
  }

  // Pieces of a call: per group of panels, those of kernel, then those of recurrent_kernel. With
  // factors, which differ from gate to gate, no group reaches from one gate into the next.
  void Run() {
    const int64_t of_kernel = CpuLayout::Panels(p_.input_dim, job_.weight_rows);
    const int64_t per_group = of_kernel + CpuLayout::Panels(p_.units, job_.weight_rows);
    const int64_t width = 4 * p_.units / job_.weight_parts;
    const int64_t groups = CpuLayout::Panels(width, most_columns_);
    for (int64_t item; (item = job_.weights.Take()) >= 0;) {
      const int64_t group = item / per_group, piece = item % per_group;
      Operands of = {};
      of.gate = group / groups;
      const int64_t from = group % groups * most_columns_;
      of.column = of.gate * width + from;
      of.columns = width - from < most_columns_ ? width - from : most_columns_;
      of.left_is_x = piece < of_kernel;
      of.row = (of.left_is_x ? piece : piece - of_kernel) * job_.weight_rows;
      const int64_t height = of.left_is_x ? p_.input_dim : p_.units;
      of.rows = height - of.row < job_.weight_rows ? height - of.row : job_.weight_rows;
      void* const result = of.left_is_x ? call_.d_kernel : call_.d_recurrent_kernel;
      void* const bias = piece == 0 ? call_.d_bias : nullptr;
      Piece(of, static_cast<Stored*>(result), static_cast<Stored*>(bias));
    }
  }

 private:
  // What is multiplied: columns of x or h, the rows of the result, with columns of dG.
  struct Operands {
    int64_t gate;  // where x or h have factors of their own for each
    int64_t row, rows;
    int64_t column, columns;
    bool left_is_x;
  };

  // A block of steps as tiles read it. It is copied: steps' rows are powers of two apart, or
  // nearly, and would meet in a few sets of L1. Where kInPlace, x and h are read where they are,
  // unless they must be widened or multiplied with factors: a line of theirs is six loads of one
  // row of a tile, whose multiply-adds take long enough for L2.
  struct Block {
    T* d_gates;  // (weight_panels, kBlock, 4*width)
    T* left;     // (kBlock, stride_) of x or h
    // Where kInPlace: each step's row of x or h.
    const T* rows[kInPlace ? kBlock : 1];
  };

  // A block still to be copied: at once or, so that memory is not waited for, little by little
  // between tiles.
  struct NextBlock {
    Block* block;
    int64_t begin, length;  // compact rows
    int64_t copied;
  };

  // `result` and `bias`: of the whole call, or null.
  void Piece(Operands of, Stored* result, Stored* bias) {
    if (result == nullptr && bias == nullptr) return;
    if (result == nullptr) of.rows = 0;
    // Sums of a half-precision result stand in memory of the worker's own until they are complete.
    T *sums = sums_, *bias_sums = sums_ + of.rows * of.columns;
    int64_t stride = of.columns;
    if constexpr (!kWidened<Stored>) {
      if (result != nullptr) sums = result + of.row * 4 * p_.units + of.column;
      if (bias != nullptr) bias_sums = bias + of.column;
      stride = 4 * p_.units;
    }
    const int64_t total = job_.schedule.total;
    const int64_t panels = CpuLayout::Panels(of.columns, layout_.panel_columns);
    NextBlock next = {&blocks_[0], 0, total < kBlock ? total : kBlock, 0};
    CopyShare(of, &next, 1, 1);
    // The first block stores, the others add; without any valid step the sums are zeros.
    for (int64_t begin = 0; begin == 0 || begin < total; begin += kBlock) {
      const Block& block = *next.block;
      const int64_t length = next.length, left = total - begin - length;
      next = {&blocks_[(begin / kBlock + 1) % kBlocks], begin + length,
              left < kBlock ? left : kBlock, 0};
      int64_t done = 0;
      for (int64_t panel = 0; panel < panels; ++panel) {
        const int64_t from = panel * layout_.panel_columns, lanes = of.columns - from;
        const T* d_gates = block.d_gates + kBlock * from;
        if (bias != nullptr) AddBias(d_gates, bias_sums + from, lanes, length, begin == 0);
        ForEachTile(of.rows, [&](int64_t first, auto tag, int64_t tile, int64_t tiles) {
          Ahead ahead = NothingAhead(d_gates);
          if constexpr (kBlocks == 1) {
            // The last block may have fewer rows than are fetched here: its own and some before.
            if (next.length > 0) {
              const int64_t first_row = next.begin < total - length ? next.begin : total - length;
              ahead = LineOfGates(of, first_row, from, tile, ahead);
            }
          } else {
            CopyShare(of, &next, ++done, tiles * panels);
          }
          AddTile<decltype(tag)::value>(d_gates, block, first, sums + first * stride + from, stride,
                                        lanes, length, begin == 0, ahead);
        });
      }
      CopyShare(of, &next, 1, 1);
    }
    if constexpr (kWidened<Stored>) {
      for (int64_t r = 0; r < of.rows; ++r) {
        Convert(result + (of.row + r) * 4 * p_.units + of.column, sums + r * stride, of.columns);
      }
      if (bias != nullptr) Convert(bias + of.column, bias_sums, of.columns);
    }
  }

  // Copies what is missing until `done` of `parts` equal parts are there, and fetches what the next
  // part will need.
  MASKED_LSTM_NOINLINE void CopyShare(const Operands& of, NextBlock* next, int64_t done,
                                      int64_t parts) const {
    const int64_t goal = next->length * done / parts;
    for (; next->copied < goal; ++next->copied) {
      CopyStep(of, next->begin, next->copied, next->block);
    }
    const int64_t soon = done < parts ? next->length * (done + 1) / parts : goal;
    for (int64_t k = goal; k < soon; ++k) FetchStep(of, next->begin + k);
  }

  // A line of each row of dG from compact row n on, for tile `tile` of the panel `from` columns on
  // to fetch; `nothing` where the panel has no more.
  MASKED_LSTM_INLINE Ahead LineOfGates(const Operands& of, int64_t n, int64_t from, int64_t tile,
                                       Ahead nothing) const {
    constexpr int64_t kSize = sizeof(T), kLine = 64 / kSize;
    if (tile * kLine >= kPanelColumns<T> || from + tile * kLine >= of.columns) return nothing;
    const T* line = d_gates_ + n * 4 * p_.units + of.column + from + tile * kLine;
    return {reinterpret_cast<const char*>(line), 4 * p_.units * kSize};
  }

  // x and h_{t-1} of compact row n.
  const Stored* InputOf(int64_t n) const {
    return static_cast<const Stored*>(p_.x) + job_.x_rows[n] * p_.input_dim;
  }
  const T* StateOf(int64_t n) const { return h_before_ + n * p_.units; }

  // Compact row begin + k as step k of a block.
  MASKED_LSTM_INLINE void CopyStep(const Operands& of, int64_t begin, int64_t k, Block* to) const {
    const int64_t n = begin + k;
    PackRow(d_gates_ + n * 4 * p_.units + of.column, of.columns,
            to->d_gates + k * layout_.panel_columns);
    if (!of.left_is_x) {
      TakeLeft(of, StateOf(n), p_.recurrent_factors, n, p_.units, k, to);
    } else {
      TakeLeft(of, InputOf(n), p_.input_factors, n, p_.input_dim, k, to);
    }
  }

  MASKED_LSTM_INLINE void FetchStep(const Operands& of, int64_t n) const {
    FetchLines(d_gates_ + n * 4 * p_.units + of.column, of.columns);
    if (!of.left_is_x) {
      FetchLines(StateOf(n) + of.row, of.rows);
    } else {
      FetchLines(InputOf(n) + of.row, of.rows);
    }
  }

  // Step k's part of a row of x or h, (width), times the factors of its gate and batch row,
  // (4,B,width), where there are any.
  template <typename From>
  MASKED_LSTM_INLINE void TakeLeft(const Operands& of, const From* row, const void* factors,
                                   int64_t n, int64_t width, int64_t k, Block* block) const {
    row += of.row;
    T* to = block->left + k * stride_;
    if constexpr (kInPlace && sizeof(From) == sizeof(T)) {
      if (factors == nullptr) {
        block->rows[k] = row;
        return;
      }
    }
    if constexpr (kInPlace) block->rows[k] = to;
    const Stored* times = nullptr;
    if (factors != nullptr) {
      times = static_cast<const Stored*>(factors) +
              (of.gate * p_.batch + job_.batch_rows[n]) * width + of.row;
    }
    for (int64_t at = 0; at < of.rows; at += kWidth<T>) {
      Vec<T> value = LoadFirst(row + at, of.rows - at);
      if (times != nullptr) value *= LoadFirst(times + at, of.rows - at);
      Store(to + at, value);  // rows of a block have room for whole vectors
    }
  }

  // Columns of a row of dG -> a row of each panel, the last one padded with zeros.
  MASKED_LSTM_INLINE void PackRow(const T* d_gates, int64_t columns, T* to) const {
    for (int64_t from = 0; from < columns; from += layout_.panel_columns) {
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) {
        const int64_t at = from + v * kWidth<T>, left = columns - at;
        Store(to + v * kWidth<T>, left > 0 ? LoadFirst(d_gates + at, left) : Vec<T>{});
      }
      to += kBlock * layout_.panel_columns;
    }
  }

  // sums (S,lanes), rows `stride` apart, = [sums +] (length,S)^T . panel (length,lanes), columns
  // [first, first + S) of x or h.
  template <int S>
  MASKED_LSTM_NOINLINE void AddTile(const T* panel, const Block& block, int64_t first, T* sums,
                                    int64_t stride, int64_t lanes, int64_t length, bool store,
                                    Ahead ahead) {
    Tile<T, S> tile;
    tile.Clear();
    if constexpr (kInPlace) {
      const T* const* rows = block.rows;
      const auto row = [=](int64_t k) mutable {
        ahead.Fetch();
        const T* values = rows[k] + first;
        __builtin_prefetch(values + 64 / sizeof(T));  // for the tiles after this one
        return values;
      };
      tile.AddColumns(panel, row, length);
    } else {
      const T* left = block.left + first;
      const int64_t apart = stride_;
      tile.AddColumns(panel, [=](int64_t k) { return left + k * apart; }, length);
    }
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
      const int64_t from = v * kWidth<T>;
      if (lanes <= from) break;
#pragma GCC unroll 6
      for (int s = 0; s < S; ++s) {
        AddTo(sums + s * stride + from, tile.acc[v][s], lanes - from, store);
      }
    }
  }

  void AddBias(const T* panel, T* bias, int64_t lanes, int64_t length, bool store) {
    for (int v = 0; v < 4; ++v) {
      const int64_t from = v * kWidth<T>;
      if (lanes <= from) break;
      Vec<T> sum = {};
      for (int64_t k = 0; k < length; ++k) {
        sum += Load(panel + k * layout_.panel_columns + v * kWidth<T>);
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
  const T* d_gates_;      // (N,4U)
  const T* h_before_;     // (N,U)
  int64_t most_columns_;  // of a piece
  int64_t stride_;        // between rows of Block::left
  Block blocks_[kBlocks];
  T* sums_;  // (weight_rows + 1, most_columns_)
};

}  // namespace MASKED_LSTM_ISA_NAMESPACE
}  // namespace masked_lstm
