// The arithmetic of the forward step: tiles of units x slots. A gate's sum is defined as
//   ((bias + x block 0) + x block 1 + ...), then h block 0 continued in the same chain, + h block 1
// + ..., blocks of kDepthBlock values, each later one summed from zero; whether x.W was computed in
// the step or ahead of it (ProjectTile) changes no bit.
#pragma once

#include "activations.h"
#include "job.h"
#include "slots.h"
#include "stored.h"
#include "tile.h"

namespace masked_lstm {
namespace MASKED_LSTM_ISA_NAMESPACE {

// Where one packed panel of weights lies: `width` units of 4 gates.
template <typename T>
struct PanelView {
  const T* kernel;            // row 0
  const T* recurrent_kernel;  // likewise
  const T* bias;
};

// Part of a panel: rows [x_begin, x_end) of kernel, then [h_begin, h_end) of recurrent_kernel.
struct PanelPart {
  int64_t x_begin, x_end, h_begin, h_end;
};

// The part after `part`, which {0, 0, 0, 0} begins: kDepthBlock rows of each, x's first.
MASKED_LSTM_INLINE PanelPart NextPart(const PanelPart& part, int64_t input_dim, int64_t units) {
  PanelPart next = {part.x_end, part.x_end, part.h_end, part.h_end};
  const int64_t x_left = input_dim - next.x_begin, h_left = units - next.h_begin;
  next.x_end += x_left < kDepthBlock ? x_left : kDepthBlock;
  if (next.x_end == input_dim) next.h_end += h_left < kDepthBlock ? h_left : kDepthBlock;
  return next;
}

// Rows [begin, end) of `weights` times those of each slot's `values`: one set for all gates, or
// (gate_stride > 0) one for each.
template <typename T, int S>
MASKED_LSTM_INLINE void AddProduct(Tile<T, S>* tile, const T* const* values, int64_t gate_stride,
                                   const T* weights, int64_t begin, int64_t end, Ahead ahead) {
  const T* rows[S];
#pragma GCC unroll 6
  for (int s = 0; s < S; ++s) rows[s] = values[s] + begin;
  weights += begin * kPanelColumns<T>;
  if (gate_stride == 0) {
    tile->AddRows(weights, rows, end - begin, ahead);
  } else {
    tile->AddGateRows(weights, rows, gate_stride, end - begin);
  }
}

// Where the results of a slot's step go: its states, its output, and what the backward pass needs
// of the gates.
template <typename T, typename Stored, typename Operand>
MASKED_LSTM_INLINE void StoreStep(const ForwardSlots<T, Stored, Operand>& slots, int slot,
                                  int64_t units, int64_t unit, const Vec<T> (&saved)[4], Vec<T> c,
                                  Vec<T> h) {
  const int64_t n = units - unit;
  Store(slots.c[slot] + unit, c);
  StoreFirst(slots.h_next[slot] + unit, h, kWidth<T>);
  if (Stored* output = slots.output[slot]) StoreFirst(output + unit, h, n);
  if (T* gates = slots.saved_gates[slot]) {
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) StoreFirst(gates + v * units + unit, saved[v], n);
    StoreFirst(slots.saved_c[slot] + unit, c, n);
  }
}

// The cell of one slot from its gates' sums, `stride` apart. Any activations; h times its factors.
template <typename T, typename Stored, typename Operand>
static MASKED_LSTM_NOINLINE void FinishCell(const ForwardSlots<T, Stored, Operand>& slots, int slot,
                                            int64_t units, int64_t unit, const T* sums,
                                            int64_t stride) {
  Vec<T> y[4], saved[4];
  for (int v = 0; v < 4; ++v) {
    const Activation activation = v == 2 ? slots.activation : slots.recurrent_activation;
    const Vec<T> sum = Load(sums + v * stride);
    y[v] = Activate<T>(activation, sum);
    saved[v] = Saved<T>(activation, sum, y[v]);
  }
  const Vec<T> c = MulAdd<T>(y[1], Load(slots.c[slot] + unit), y[0] * y[2]);
  const Vec<T> h = y[3] * Activate<T>(slots.activation, c);
  StoreStep(slots, slot, units, unit, saved, c, h);
  T* factored = slots.factored_next[slot];
  for (int v = 0; factored != nullptr && v < 4; ++v) {
    const Stored* factors = slots.factors[slot] + v * slots.factor_stride + unit;
    Store(factored + v * slots.h_gate_stride + unit, h * LoadFirst(factors, units - unit));
  }
}

// Of S slots: as many as are finished operation by operation, so that one's latency hides behind
// the others'.
constexpr int CellsTogether(int S) { return S % 3 == 0 ? 3 : S % 2 == 0 ? 2 : 1; }

// The cells of slots [first, first + S) from their gates' sums. `memory` is overwritten: 4 vectors
// for each slot, those of a gate `gate_stride` apart from the next one's.
template <typename T, typename Stored, typename Operand, int S>
MASKED_LSTM_INLINE void FinishTile(Tile<T, S>* tile, const ForwardSlots<T, Stored, Operand>& slots,
                                   int first, int64_t units, int64_t unit, T* memory,
                                   int64_t gate_stride) {
  if (!slots.plain) {
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
#pragma GCC unroll 6
      for (int s = 0; s < S; ++s) {
        Store(memory + v * gate_stride + s * kWidth<T>, tile->acc[v][s]);
      }
    }
    for (int s = 0; s < S; ++s) {
      FinishCell(slots, first + s, units, unit, memory + s * kWidth<T>, gate_stride);
    }
    return;
  }
  constexpr int N = CellsTogether(S);
#pragma GCC unroll 6
  for (int s = 0; s < S; s += N) {
    Sigmoid<T, N>(tile->acc[0] + s);
    Sigmoid<T, N>(tile->acc[1] + s);
    Tanh<T, N>(tile->acc[2] + s);
    Sigmoid<T, N>(tile->acc[3] + s);
  }
#pragma GCC unroll 6
  for (int s = 0; s < S; s += N) {
    Vec<T> c[N], y[N];
#pragma GCC unroll 3
    for (int n = 0; n < N; ++n) {
      const Vec<T> added = tile->acc[0][s + n] * tile->acc[2][s + n];
      y[n] = c[n] = MulAdd<T>(tile->acc[1][s + n], Load(slots.c[first + s + n] + unit), added);
    }
    Tanh<T, N>(y);
#pragma GCC unroll 3
    for (int n = 0; n < N; ++n) {
      const Vec<T> gates[4] = {tile->acc[0][s + n], tile->acc[1][s + n], tile->acc[2][s + n],
                               tile->acc[3][s + n]};
      StoreStep(slots, first + s + n, units, unit, gates, c[n], gates[3] * y[n]);
    }
  }
}

// Fetches the lines of outputs and of the reserve that StoreStep will write for slots [first,
// first + S).
template <typename T, int S, typename Stored>
MASKED_LSTM_INLINE void FetchResults(const ForwardSlots<T, Stored>& slots, int first, int64_t units,
                                     int64_t unit) {
#pragma GCC unroll 6
  for (int s = 0; s < S; ++s) {
    if (const Stored* output = slots.output[first + s]) __builtin_prefetch(output + unit);
    if (const T* gates = slots.saved_gates[first + s]) {
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) __builtin_prefetch(gates + v * units + unit);
      __builtin_prefetch(slots.saved_c[first + s] + unit);
    }
  }
}

// Slots [first, first + S) of one part; sums go through `memory` from part to part. The last part
// finishes the cell in registers: no buffer of gates.
template <typename Stored, int S, typename T = Compute<Stored>>
static MASKED_LSTM_NOINLINE void ForwardTile(const ForwardSlots<T, Stored>& slots, int first,
                                             int64_t units, int64_t unit, const PanelView<T>& panel,
                                             const PanelPart& part, T* memory, Ahead ahead) {
  Tile<T, S> tile;
  const bool first_part = part.x_begin == 0 && part.h_begin == 0;
  if (first_part && slots.projection[first] != nullptr) {
    const T* rows[S];
#pragma GCC unroll 6
    for (int s = 0; s < S; ++s) rows[s] = slots.projection[first + s] + unit * 4;
    tile.LoadRows(rows);
  } else {
    tile.Fill(first_part ? panel.bias : nullptr);
  }
  if (part.x_begin < part.x_end) {
    AddProduct<T, S>(&tile, slots.x + first, slots.x_gate_stride, panel.kernel, part.x_begin,
                     part.x_end, ahead);
    ahead.from += ahead.stride * (part.x_end - part.x_begin);
    if (part.x_begin > 0) tile.Add(memory);
  }
  if (part.h_end == units) FetchResults<T, S>(slots, first, units, unit);
  if (part.h_begin < part.h_end) {
    const T* const* h = slots.h_gate_stride == 0 ? slots.h + first : slots.factored + first;
    AddProduct<T, S>(&tile, h, slots.h_gate_stride, panel.recurrent_kernel, part.h_begin,
                     part.h_end, ahead);
    if (part.h_begin > 0) tile.Add(memory);
  }
  if (part.h_end < units) {
    tile.Save(memory);
    return;
  }
  FinishTile(&tile, slots, first, units, unit, memory, S * kWidth<T>);
}

// As all parts of ForwardTile for one slot and WidePanels packed panels at once, `next_panel`
// values apart, without factors: chains of multiply-adds enough for one row, and weights in more
// streams.
template <typename Stored, typename T = Compute<Stored>>
static MASKED_LSTM_NOINLINE void ForwardWideTile(const ForwardSlots<T, Stored>& slots,
                                                 int64_t input_dim, int64_t units, int64_t unit,
                                                 const PanelView<T>& panel, int64_t next_panel,
                                                 T* memory) {
  constexpr int P = WidePanels(kTileRows), W = kWidth<T>;
  Tile<T, 1> tiles[P];
  const auto for_all = [&](auto f) {
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) f(&tiles[p], p);
  };
  const auto add_rows = [&](const T* values, const T* weights, int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      const Vec<T> value[1] = {Broadcast<T>(values[k])};
      for_all([&](auto* tile, int p) {
        tile->Step(weights + k * kPanelColumns<T> + p * next_panel, value);
      });
    }
  };
  const T* projection = slots.projection[0];
  if (projection != nullptr) input_dim = 0;
  PanelPart part = {0, 0, 0, 0};
  while (part.h_end < units) {
    part = NextPart(part, input_dim, units);
    const bool first_part = part.x_begin == 0 && part.h_begin == 0;
    for_all([&](auto* tile, int p) {
      if (first_part && projection != nullptr) {
        const T* rows[1] = {projection + (unit + p * W) * 4};
        tile->LoadRows(rows);
      } else {
        tile->Fill(first_part ? panel.bias + p * kPanelColumns<T> : nullptr);
      }
    });
    const auto add_before = [&](auto* tile, int p) { tile->Add(memory + p * kPanelColumns<T>); };
    add_rows(slots.x[0], panel.kernel, part.x_begin, part.x_end);
    if (part.x_begin > 0 && part.x_begin < part.x_end) for_all(add_before);
    add_rows(slots.h[0], panel.recurrent_kernel, part.h_begin, part.h_end);
    if (part.h_begin > 0) for_all(add_before);
    if (part.h_end < units) {
      for_all([&](auto* tile, int p) { tile->Save(memory + p * kPanelColumns<T>); });
    }
  }
  for_all([&](auto* tile, int p) { FinishTile(tile, slots, 0, units, unit + p * W, memory, W); });
}

// x.W + bias of S steps of one slot, into rows of `projections`; sums go through `memory` from
// block to block.
template <typename T, int S>
static MASKED_LSTM_NOINLINE void ProjectTile(const T* const* x, int64_t gate_stride,
                                             int64_t input_dim, const PanelView<T>& panel, T* to,
                                             int64_t to_stride, T* memory) {
  Tile<T, S> tile;
  for (int64_t begin = 0; begin == 0 || begin < input_dim; begin += kDepthBlock) {
    const int64_t end = begin + kDepthBlock < input_dim ? begin + kDepthBlock : input_dim;
    tile.Fill(begin == 0 ? panel.bias : nullptr);
    AddProduct<T, S>(&tile, x, gate_stride, panel.kernel, begin, end, NothingAhead(panel.kernel));
    if (begin > 0) tile.Add(memory);
    if (end < input_dim) tile.Save(memory);
  }
#pragma GCC unroll 6
  for (int s = 0; s < S; ++s) {
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) Store(to + s * to_stride + v * kWidth<T>, tile.acc[v][s]);
  }
}

}  // namespace MASKED_LSTM_ISA_NAMESPACE
}  // namespace masked_lstm
