// The product of rows of gate gradients with a packed, transposed panel of weights; and with it
// dx = dG . kernel^T over the N compact rows, 0 at masked steps.
#pragma once

#include <cstring>

#include "job.h"
#include "stored.h"
#include "tile.h"

namespace masked_lstm {
namespace MASKED_LSTM_ISA_NAMESPACE {

// What is read for each row once its product is done: fetched into the second-level cache
// meanwhile, when memory has nothing else to do.
template <typename T>
struct ReadAfter {
  const T* const* gates;         // (4U)
  const T* const* cells;         // (U)
  const void* const* d_outputs;  // (U), of `stored_bytes` each
  int64_t units, stored_bytes;

  MASKED_LSTM_INLINE void Fetch(int64_t row, int64_t column, int64_t n) const {
    for (int gate = 0; gate < 4; ++gate) FetchLines<2>(gates[row] + gate * units + column, n);
    FetchLines<2>(cells[row] + column, n);
    FetchLines<2>(static_cast<const char*>(d_outputs[row]) + column * stored_bytes,
                  n * stored_bytes);
  }
};

// Rows [begin, end) of the panel (`depth` in all) for S rows of dG and V of the panel's 4 vectors.
// The last part writes the first `columns` columns to to[s] + offset; without `to`, into memory.
// `read`: of rows from `first` on; or null.
template <typename T, int S, int V>
static MASKED_LSTM_NOINLINE void MultiplyTile(const T* panel, int64_t begin, int64_t end,
                                              int64_t depth, const T* const* d_gates,
                                              int64_t offset, int64_t columns, T* const* to,
                                              T* memory, Ahead ahead, const ReadAfter<T>* read,
                                              int64_t first) {
  Tile<T, S, V> tile;
  tile.Clear();
  const T* rows[S];
#pragma GCC unroll 6
  for (int s = 0; s < S; ++s) rows[s] = d_gates[s] + begin;
  panel += begin * kPanelColumns<T>;
  const int64_t length = end - begin;
  // A row's lines before each of S parts of the product: the processor cannot keep them all waiting
  // at once.
  const bool fetch = read != nullptr && end == depth;
  const int chunks = fetch ? S : 1;
  for (int chunk = 0; chunk < chunks; ++chunk) {
    const int64_t part = length * (chunk + 1) / chunks - length * chunk / chunks;
    if (fetch) {
      read->Fetch(first + chunk, offset, columns < V * kWidth<T> ? columns : V * kWidth<T>);
    }
    tile.AddRows(panel, rows, part, ahead);
    panel += part * kPanelColumns<T>;
    ahead.from += part * ahead.stride;
#pragma GCC unroll 6
    for (int s = 0; s < S; ++s) rows[s] += part;
  }
  if (begin > 0) tile.Add(memory);
  if (end < depth || to == nullptr) {
    tile.Save(memory);
    return;
  }
#pragma GCC unroll 4
  for (int v = 0; v < V; ++v) {
    const int64_t n = columns - v * kWidth<T>;
    if (n <= 0) break;
#pragma GCC unroll 6
    for (int s = 0; s < S; ++s) StoreFirst(to[s] + offset + v * kWidth<T>, tile.acc[v][s], n);
  }
}

// What a tile of `rows` rows saved, into the first `columns` columns of to[r] + offset. Half
// precision goes this way, which spares compiling every tile again for it.
template <typename T, typename Stored>
static MASKED_LSTM_NOINLINE void StoreSaved(const T* memory, int rows, Stored* const* to,
                                            int64_t offset, int64_t columns) {
  for (int v = 0; v < 4; ++v) {
    const int64_t n = columns - v * kWidth<T>;
    if (n <= 0) break;
    for (int r = 0; r < rows; ++r, memory += kWidth<T>) {
      StoreFirst(to[r] + offset + v * kWidth<T>, Load(memory), n);
    }
  }
}

// to[r][offset ...] = d_gates[r] . panel for all `rows` rows. The sum of a row is the sum of block
// sums of kDepthBlock, in order. `next`: the panel that will be wanted after this one; fetched
// where `fetch`. `read`: or null.
template <typename T, int V, typename Stored>
static void MultiplyPanelOf(const T* panel, const T* next, bool fetch, int64_t depth,
                            const T* const* d_gates, int64_t rows, int64_t offset, int64_t columns,
                            Stored* const* to, T* memory, const ReadAfter<T>* read) {
  for (int64_t begin = 0; begin < depth; begin += kDepthBlock) {
    const int64_t end = begin + kDepthBlock < depth ? begin + kDepthBlock : depth;
    const T* after = end < depth ? panel + end * kPanelColumns<T> : next;
    ForEachTile(rows, [&](int64_t first, auto tag, int64_t tile, int64_t tiles) {
      constexpr int S = decltype(tag)::value;
      T* const saved = memory + first * kPanelColumns<T>;
      T* const* direct = nullptr;
      if constexpr (sizeof(Stored) == sizeof(T)) direct = to + first;
      MultiplyTile<T, S, V>(panel, begin, end, depth, d_gates + first, offset, columns, direct,
                            saved, ShareOfPanel<T>(fetch, after, end - begin, tile, tiles), read,
                            first);
      if constexpr (sizeof(Stored) != sizeof(T)) {
        if (end == depth) StoreSaved(saved, S, to + first, offset, columns);
      }
    });
  }
}

template <typename T, typename Stored>
MASKED_LSTM_INLINE void MultiplyPanel(const T* panel, const T* next, bool fetch, int64_t depth,
                                      const T* const* d_gates, int64_t rows, int64_t offset,
                                      int64_t columns, Stored* const* to, T* memory,
                                      const ReadAfter<T>* read = nullptr) {
  const auto multiply = columns > 3 * kWidth<T>   ? MultiplyPanelOf<T, 4, Stored>
                        : columns > 2 * kWidth<T> ? MultiplyPanelOf<T, 3, Stored>
                        : columns > kWidth<T>     ? MultiplyPanelOf<T, 2, Stored>
                                                  : MultiplyPanelOf<T, 1, Stored>;
  multiply(panel, next, fetch, depth, d_gates, rows, offset, columns, to, memory, read);
}

// S rows where every gate's product has factors of its own: to[s] = sum over the gates of (dG of
// the gate . its rows of the panel) * factors[s] + gate * factor_stride. Without `to`: into memory.
template <typename T, int S, typename Stored>
static MASKED_LSTM_NOINLINE void MultiplyGatesTile(const T* panel, int64_t units,
                                                   const T* const* d_gates,
                                                   const Stored* const* factors,
                                                   int64_t factor_stride, int64_t offset,
                                                   int64_t columns, T* const* to, T* memory) {
  constexpr int W = kWidth<T>;
  Tile<T, S> tile;
  T* total = memory + 4 * S * W;
  for (int64_t gate = 0; gate < 4; ++gate) {
    for (int64_t begin = 0; begin == 0 || begin < units; begin += kDepthBlock) {
      const int64_t end = begin + kDepthBlock < units ? begin + kDepthBlock : units;
      const int64_t at = gate * units + begin;
      const T* rows[S];
#pragma GCC unroll 6
      for (int s = 0; s < S; ++s) rows[s] = d_gates[s] + at;
      tile.Clear();
      tile.AddRows(panel + at * kPanelColumns<T>, rows, end - begin, NothingAhead(panel));
      if (begin > 0) tile.Add(memory);
      if (end < units) tile.Save(memory);
    }
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
      const int64_t column = offset + v * W, n = columns - v * W;
      if (n <= 0) break;
#pragma GCC unroll 6
      for (int s = 0; s < S; ++s) {
        tile.acc[v][s] *= LoadFirst(factors[s] + gate * factor_stride + column, n);
      }
    }
    if (gate > 0) tile.Add(total);
    if (gate < 3) tile.Save(total);
  }
  if (to == nullptr) {
    tile.Save(memory);
    return;
  }
#pragma GCC unroll 4
  for (int v = 0; v < 4; ++v) {
    const int64_t n = columns - v * W;
    if (n <= 0) break;
#pragma GCC unroll 6
    for (int s = 0; s < S; ++s) StoreFirst(to[s] + offset + v * W, tile.acc[v][s], n);
  }
}

// As MultiplyPanel, with factors.
template <typename T, typename To, typename Stored>
static void MultiplyGatesPanel(const T* panel, int64_t units, const T* const* d_gates,
                               const Stored* const* factors, int64_t factor_stride, int64_t rows,
                               int64_t offset, int64_t columns, To* const* to, T* memory) {
  static_assert(kRowBlock >= 2 * kTileRows, "memory holds two tiles");
  ForEachTile(rows, [&](int64_t first, auto tag, int64_t, int64_t) {
    constexpr int S = decltype(tag)::value;
    T* const* direct = nullptr;
    if constexpr (sizeof(To) == sizeof(T)) direct = to + first;
    MultiplyGatesTile<T, S>(panel, units, d_gates + first, factors + first, factor_stride, offset,
                            columns, direct, memory);
    if constexpr (sizeof(To) != sizeof(T)) StoreSaved(memory, S, to + first, offset, columns);
  });
}

template <typename Stored>
class InputGradients {
  using T = Compute<Stored>;

 public:
  InputGradients(BackwardJob* job, const CpuLayout& layout, T* memory)
      : job_(*job), p_(job->call->problem), layout_(layout), saved_tiles_(memory) {}

  // Items: blocks of kRowBlock compact rows. W^T streams past a block that stays in the cache.
  void Run() {
    if (job_.call->dx == nullptr) return;
    for (int64_t item; (item = job_.zeros.Take()) >= 0;) ZeroMaskedSteps(item);
    const T* d_gates = static_cast<const T*>(job_.call->scratch);
    const T* packed = static_cast<const T*>(job_.packed) +
                      layout_.recurrent_panels() * layout_.backward_panel_size();
    const bool fetch =
        layout_.input_panels() * layout_.backward_panel_size() * static_cast<int64_t>(sizeof(T)) >
        FetchedBytes(MASKED_LSTM_VECTOR_BYTES);
    for (int64_t item; (item = job_.inputs.Take()) >= 0;) {
      const int64_t begin = item * kRowBlock;
      const int64_t left = job_.schedule.total - begin;
      const int64_t rows = left < kRowBlock ? left : kRowBlock;
      const T* from[kRowBlock];
      Stored* to[kRowBlock];
      const Stored* factors[kRowBlock];
      for (int64_t r = 0; r < rows; ++r) {
        if (p_.input_factors != nullptr) {
          factors[r] = static_cast<const Stored*>(p_.input_factors) +
                       job_.batch_rows[begin + r] * p_.input_dim;
        }
        from[r] = d_gates + (begin + r) * 4 * p_.units;
        to[r] = static_cast<Stored*>(job_.call->dx) + job_.x_rows[begin + r] * p_.input_dim;
      }
      for (int64_t panel = 0; panel < layout_.input_panels(); ++panel) {
        const int64_t column = panel * layout_.panel_columns;
        if (p_.input_factors != nullptr) {
          MultiplyGatesPanel(packed + panel * layout_.backward_panel_size(), p_.units, from,
                             factors, p_.batch * p_.input_dim, rows, column, p_.input_dim - column,
                             to, saved_tiles_);
          continue;
        }
        const int64_t next = panel + 1 < layout_.input_panels() ? panel + 1 : 0;
        MultiplyPanel(packed + panel * layout_.backward_panel_size(),
                      packed + next * layout_.backward_panel_size(), fetch, 4 * p_.units, from,
                      rows, column, p_.input_dim - column, to, saved_tiles_);
      }
    }
  }

 private:
  void ZeroMaskedSteps(int64_t row) {
    const int64_t D = p_.input_dim;
    Stored* dx = static_cast<Stored*>(job_.call->dx) + row * p_.timesteps * D;
    const RowSteps steps = StepsOfRow(p_, row);
    for (int64_t begin = 0; begin < p_.timesteps;) {
      int64_t end = steps.Next(begin - 1, 1);  // the next valid step
      if (end >= steps.limit) end = p_.timesteps;
      if (begin < end) std::memset(dx + begin * D, 0, (end - begin) * D * sizeof(Stored));
      begin = end + 1;
    }
  }

  BackwardJob& job_;
  const LstmProblem& p_;
  const CpuLayout& layout_;
  T* saved_tiles_;
};

}  // namespace MASKED_LSTM_ISA_NAMESPACE
}  // namespace masked_lstm
