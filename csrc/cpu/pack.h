// Weights rearranged into panels: one tile's four vectors of columns stand together for every k.
#pragma once

#include <cstring>

#include "job.h"
#include "stored.h"
#include "tile.h"

namespace masked_lstm {
namespace MASKED_LSTM_ISA_NAMESPACE {

// rows of `weights` (rows,4U) -> rows [gate][unit] of `panels` panels, `panel_size` apart, for
// units from `unit` on. Row by row, since a panel's share of a row may be less than a cache line.
template <typename Stored, typename T = Compute<Stored>>
static void PackGateRows(const Stored* weights, int64_t rows, int64_t units, int64_t unit,
                         int64_t panels, int64_t panel_size, T* to) {
  constexpr int W = kWidth<T>;
  for (int64_t k = 0; k < rows; ++k, to += kPanelColumns<T>) {
    for (int64_t panel = 0; panel < panels; ++panel) {
      const int64_t from = unit + panel * W;
      for (int gate = 0; gate < 4; ++gate) {
        Store(to + panel * panel_size + gate * W,
              LoadFirst(weights + (k * 4 + gate) * units + from, units - from));
      }
    }
  }
}

// Panels [begin, end) of `packed`.
template <typename Stored, typename T = Compute<Stored>>
static void PackForwardPanels(const LstmProblem& p, const CpuLayout& layout, T* packed,
                              int64_t begin, int64_t end) {
  const int64_t unit = begin * layout.width, panels = end - begin;
  const int64_t size = layout.forward_panel_size(), columns = layout.panel_columns;
  T* to = packed + begin * size;
  T* bias = packed + layout.forward_panels() * size + begin * columns;
  PackGateRows(static_cast<const Stored*>(p.kernel), p.input_dim, p.units, unit, panels, size, to);
  PackGateRows(static_cast<const Stored*>(p.recurrent_kernel), p.units, p.units, unit, panels, size,
               to + p.input_dim * columns);
  if (p.bias != nullptr) {
    PackGateRows(static_cast<const Stored*>(p.bias), 1, p.units, unit, panels, columns, bias);
  } else {
    std::memset(bias, 0, panels * columns * sizeof(T));
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
