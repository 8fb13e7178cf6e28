// The register tile, the one place where multiplications happen:
//   acc[v][s] += sum over k of a_s[k] * panel[k][v], v < 4 vectors of columns, s < S rows.
// All 4*S accumulators stay in registers over the whole loop. Each element is one chain of
// multiply-adds in the order of k, whatever S is: results do not depend on which rows share a tile.
// An accumulator array indexed in a loop that the compiler does not unroll would live on the stack;
// every loop over v and s has a constant bound for that reason.
#pragma once

#include "vec.h"

namespace masked_lstm {
namespace MASKED_LSTM_ISA_NAMESPACE {

// Rows of a full tile: 4*S accumulators + S broadcasts + 1 weight vector fill the register file.
#if MASKED_LSTM_VECTOR_BYTES == 64
constexpr int kTileRows = 6;
#elif MASKED_LSTM_VECTOR_BYTES == 32
constexpr int kTileRows = 3;
#else
constexpr int kTileRows = 2;
#endif

template <typename T>
constexpr int kPanelColumns = 4 * kWidth<T>;

// Rows of a panel that all slots go through before the next rows are touched, so that this part of
// the panel stays in L1 or L2. A block is summed by itself, from zero, and blocks are added in
// order: the rounding error grows with the length of a block and the number of blocks, not with
// their product. That makes it part of the result's definition.
constexpr int64_t kDepthBlock = 256;

template <typename T, int S>
struct Tile {
  Vec<T> acc[4][S];

  // The same 4 vectors for every row (a bias), or zeros.
  MASKED_LSTM_INLINE void Fill(const T* row) {
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
      const Vec<T> value = row == nullptr ? Vec<T>{} : Load(row + v * kWidth<T>);
#pragma GCC unroll 6
      for (int s = 0; s < S; ++s) acc[v][s] = value;
    }
  }

  // Adds the sums that Save left.
  MASKED_LSTM_INLINE void Add(const T* memory) {
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
#pragma GCC unroll 6
      for (int s = 0; s < S; ++s) acc[v][s] += Load(memory + (v * S + s) * kWidth<T>);
    }
  }

  MASKED_LSTM_INLINE void Save(T* memory) const {
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
#pragma GCC unroll 6
      for (int s = 0; s < S; ++s) Store(memory + (v * S + s) * kWidth<T>, acc[v][s]);
    }
  }

  MASKED_LSTM_INLINE void Step(const T* panel_row, const Vec<T> (&a)[S]) {
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
      const Vec<T> w = Load(panel_row + v * kWidth<T>);
#pragma GCC unroll 6
      for (int s = 0; s < S; ++s) acc[v][s] = MulAdd<T>(a[s], w, acc[v][s]);
    }
  }

  // a_s[k] = rows[s][k]: each row's values stand one after another (x_t, h_{t-1}, dG_t).
  MASKED_LSTM_INLINE void AddRows(const T* panel, const T* const (&rows)[S], int64_t length) {
    const T* a[S];
#pragma GCC unroll 6
    for (int s = 0; s < S; ++s) a[s] = rows[s];
#pragma GCC unroll 2
    for (int64_t k = 0; k < length; ++k) {
      Vec<T> value[S];
#pragma GCC unroll 6
      for (int s = 0; s < S; ++s) value[s] = Broadcast<T>(a[s][k]);
      Step(panel + k * kPanelColumns<T>, value);
    }
  }

  // a_s[k] = rows[k][column + s]: the transposed operand of a weight gradient.
  MASKED_LSTM_INLINE void AddColumns(const T* panel, const T* const* rows, int64_t column,
                                     int64_t length) {
#pragma GCC unroll 2
    for (int64_t k = 0; k < length; ++k) {
      const T* row = rows[k] + column;
      Vec<T> value[S];
#pragma GCC unroll 6
      for (int s = 0; s < S; ++s) value[s] = Broadcast<T>(row[s]);
      Step(panel + k * kPanelColumns<T>, value);
    }
  }
};

// Calls f(std::integral_constant-like S) for n in [1, kTileRows]: the last, smaller tile.
template <int S>
struct RowsTag {
  static constexpr int value = S;
};

template <typename F>
MASKED_LSTM_INLINE void WithTileRows(int rows, F&& f) {
  static_assert(kTileRows <= 6, "add cases");
  switch (rows) {
    case 1:
      return f(RowsTag<1>());
    case 2:
      return f(RowsTag<2>());
#if MASKED_LSTM_VECTOR_BYTES >= 32
    case 3:
      return f(RowsTag<3>());
#endif
#if MASKED_LSTM_VECTOR_BYTES >= 64
    case 4:
      return f(RowsTag<4>());
    case 5:
      return f(RowsTag<5>());
    case 6:
      return f(RowsTag<6>());
#endif
  }
}

}  // namespace MASKED_LSTM_ISA_NAMESPACE
}  // namespace masked_lstm
