// Weights rearranged into panels: one tile's four vectors of columns stand together for every k.
#pragma once

#include "job.h"
#include "stored.h"
#include "tile.h"

namespace masked_lstm {
namespace MASKED_LSTM_ISA_NAMESPACE {

// rows of `weights` (rows,4U) -> panel rows [gate][unit], for units [unit, unit + width).
template <typename Stored, typename T = Compute<Stored>>
static void PackGateRows(const Stored* weights, int64_t rows, int64_t units, int64_t unit,
                         T* panel) {
  constexpr int W = kWidth<T>;
  const int64_t n = units - unit < W ? units - unit : W;
  for (int64_t k = 0; k < rows; ++k) {
    for (int gate = 0; gate < 4; ++gate) {
      Store(panel + (k * 4 + gate) * W, LoadFirst(weights + (k * 4 + gate) * units + unit, n));
    }
  }
}

template <typename Stored>
static void PackForwardPanel(const ForwardJob& job, const CpuLayout& layout, int64_t panel) {
  using T = Compute<Stored>;
  const LstmProblem& p = job.call->problem;
  T* packed = static_cast<T*>(job.packed);
  T* to = packed + panel * layout.forward_panel_size();
  T* bias =
      packed + layout.forward_panels() * layout.forward_panel_size() + panel * layout.panel_columns;
  const int64_t unit = panel * layout.width;
  PackGateRows(static_cast<const Stored*>(p.kernel), p.input_dim, p.units, unit, to);
  PackGateRows(static_cast<const Stored*>(p.recurrent_kernel), p.units, p.units, unit,
               to + p.input_dim * layout.panel_columns);
  if (p.bias != nullptr) {
    PackGateRows(static_cast<const Stored*>(p.bias), 1, p.units, unit, bias);
  } else {
    for (int64_t n = 0; n < layout.panel_columns; ++n) bias[n] = T(0);
  }
}

// Rows [row, row + 4*width) of `weights` (rows,4U), transposed: panel[k][column] = weights[row +
// column][k].
template <typename Stored, typename T = Compute<Stored>>
static void PackTransposedPanel(const Stored* weights, int64_t rows, int64_t units, int64_t row,
                                T* panel) {
  constexpr int64_t P = kPanelColumns<T>;
  constexpr int64_t kBlock = 64;  // panel rows written together stay in L1
  for (int64_t begin = 0; begin < 4 * units; begin += kBlock) {
    const int64_t end = begin + kBlock < 4 * units ? begin + kBlock : 4 * units;
    for (int64_t column = 0; column < P; ++column) {
      if (row + column < rows) {
        T from[kBlock];
        Convert(from, weights + (row + column) * 4 * units + begin, end - begin);
        for (int64_t k = begin; k < end; ++k) panel[k * P + column] = from[k - begin];
      } else {
        for (int64_t k = begin; k < end; ++k) panel[k * P + column] = T(0);
      }
    }
  }
}

// Panels of recurrent_kernel^T first, then (when dx is wanted) those of kernel^T.
template <typename Stored>
static void PackBackwardPanel(const BackwardJob& job, const CpuLayout& layout, int64_t panel) {
  using T = Compute<Stored>;
  const LstmProblem& p = job.call->problem;
  T* to = static_cast<T*>(job.packed) + panel * layout.backward_panel_size();
  const int64_t of_input = panel - layout.recurrent_panels();
  if (of_input < 0) {
    PackTransposedPanel(static_cast<const Stored*>(p.recurrent_kernel), p.units, p.units,
                        panel * layout.panel_columns, to);
  } else {
    PackTransposedPanel(static_cast<const Stored*>(p.kernel), p.input_dim, p.units,
                        of_input * layout.panel_columns, to);
  }
}

}  // namespace MASKED_LSTM_ISA_NAMESPACE
}  // namespace masked_lstm
