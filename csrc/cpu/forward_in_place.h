// The forward step with weights where the caller has them, for calls too short to pay for packing.
// Rows of the matrices lie far apart there, so a tile of few columns waits for every one of them.
// Where registers are few, some rows are gone through from end to end instead, and the sums stay in
// memory, in the first-level cache. The same chains of multiply-adds as in forward_tile.h.
#pragma once

#include <type_traits>

#include "forward_tile.h"

namespace masked_lstm {
namespace MASKED_LSTM_ISA_NAMESPACE {

// sums[s][gate][u] += sum over K rows k of values[s][k] * weights[k - first][gate][u], u < count,
// whole vectors; for S slots.
template <typename T, int K, int S>
static MASKED_LSTM_NOINLINE void AddRowsInPlace(const T* weights, int64_t units, int64_t count,
                                                const T* const* values, int64_t first, T* sums) {
  Vec<T> value[S][K];
#pragma GCC unroll 2
  for (int s = 0; s < S; ++s) {
#pragma GCC unroll 8
    for (int i = 0; i < K; ++i) value[s][i] = Broadcast<T>(values[s][first + i]);
  }
  for (int gate = 0; gate < 4; ++gate, weights += units) {
    for (int64_t u = 0; u < count; u += kWidth<T>, sums += kWidth<T>) {
      Vec<T> sum[S];
#pragma GCC unroll 2
      for (int s = 0; s < S; ++s) sum[s] = Load(sums + s * 4 * count);
#pragma GCC unroll 8
      for (int i = 0; i < K; ++i) {
        const Vec<T> weight = Load(weights + i * 4 * units + u);
#pragma GCC unroll 2
        for (int s = 0; s < S; ++s) sum[s] = MulAdd<T>(value[s][i], weight, sum[s]);
      }
#pragma GCC unroll 2
      for (int s = 0; s < S; ++s) Store(sums + s * 4 * count, sum[s]);
    }
  }
}

// As AddRowsInPlace for rows [k, end) of a matrix and V vectors of units, with the sums in
// registers meanwhile. `row`: values from one row of the matrix to the next.
template <typename T, int S, int V>
static MASKED_LSTM_NOINLINE void AddColumnsInPlace(const T* weights, int64_t units, int64_t row,
                                                   int64_t count, const T* const* values, int64_t k,
                                                   int64_t end, T* sums) {
  constexpr int W = kWidth<T>;
  Vec<T> sum[S][4][V];
  const auto each = [&](auto f) {
#pragma GCC unroll 6
    for (int s = 0; s < S; ++s) {
#pragma GCC unroll 4
      for (int gate = 0; gate < 4; ++gate) {
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) f(sum[s][gate][v], sums + (s * 4 + gate) * count + v * W);
      }
    }
  };
  each([](Vec<T>& value, const T* at) { value = Load(at); });
  for (weights += k * row; k < end; ++k, weights += row) {
    Vec<T> value[S];
#pragma GCC unroll 6
    for (int s = 0; s < S; ++s) value[s] = Broadcast<T>(values[s][k]);
#pragma GCC unroll 4
    for (int gate = 0; gate < 4; ++gate) {
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        const Vec<T> weight = Load(weights + gate * units + v * W);
#pragma GCC unroll 6
        for (int s = 0; s < S; ++s) sum[s][gate][v] = MulAdd<T>(value[s], weight, sum[s][gate][v]);
      }
    }
  }
  each([](const Vec<T>& value, T* at) { Store(at, value); });
}

// Rows [k, end) of a matrix, for all slots. With 16 registers: some rows from end to end, two slots
// share what is loaded of them. With 32 the sums of a tile of slots fit beside the weights.
template <typename T>
static void AddAllRowsInPlace(const T* weights, int64_t units, int64_t count,
                              const T* const* values, int64_t k, int64_t end, int slots, T* sums) {
  constexpr int W = kWidth<T>, kRows = 8, kRowsOfTwo = 4;
  const int64_t row = 4 * units, slot = 4 * count;
  if constexpr (sizeof(Vec<T>) == 64) {
    ForEachTile(slots, [&](int64_t first, auto tag, int64_t, int64_t) {
      constexpr int S = decltype(tag)::value, V = S == 1 ? 4 : S <= 3 ? 2 : 1;
      T* const to = sums + first * slot;
      int64_t u = 0;
      for (; u + V * W <= count; u += V * W) {
        AddColumnsInPlace<T, S, V>(weights + u, units, row, count, values + first, k, end, to + u);
      }
      for (; V > 1 && u < count; u += W) {
        AddColumnsInPlace<T, S, 1>(weights + u, units, row, count, values + first, k, end, to + u);
      }
    });
    return;
  }
  const auto add = [&](auto rows, int64_t at) {
    constexpr int K = decltype(rows)::value, K2 = K < kRowsOfTwo ? K : kRowsOfTwo;
    int s = 0;
    for (; s + 2 <= slots; s += 2) {
      for (int i = 0; i < K; i += K2) {
        AddRowsInPlace<T, K2, 2>(weights + (at + i) * row, units, count, values + s, at + i,
                                 sums + s * slot);
      }
    }
    if (s < slots) {
      AddRowsInPlace<T, K, 1>(weights + at * row, units, count, values + s, at, sums + s * slot);
    }
  };
  for (; k + kRows <= end; k += kRows) add(std::integral_constant<int, kRows>(), k);
  for (; k < end; ++k) add(std::integral_constant<int, 1>(), k);
}

// One step of all slots for units [unit, unit + count), whole vectors, without factors. `memory`:
// 8 * count values for each slot, and a tile.
template <typename Stored, typename T = Compute<Stored>>
static MASKED_LSTM_NOINLINE void ForwardInPlace(const ForwardSlots<T, Stored>& slots,
                                                const LstmProblem& p, int64_t unit, int64_t count,
                                                T* memory) {
  constexpr int W = kWidth<T>;
  const int64_t U = p.units;
  const int n = slots.active;
  const int64_t size = n * 4 * count;
  T *sums = memory, *before = memory + size, *tile_memory = before + size;
  const auto add_rows = [&](const void* matrix, const T* const* values, int64_t k, int64_t end) {
    AddAllRowsInPlace(static_cast<const T*>(matrix) + unit, U, count, values, k, end, n, sums);
  };
  const auto add_before = [&] {
    for (int64_t i = 0; i < size; i += W) Store(sums + i, Load(sums + i) + Load(before + i));
  };
  PanelPart part = {0, 0, 0, 0};
  while (part.h_end < U) {
    part = NextPart(part, p.input_dim, U);
    const bool first_part = part.x_begin == 0 && part.h_begin == 0;
    const T* bias = first_part ? static_cast<const T*>(p.bias) : nullptr;
    Swap(sums, before);
    for (int gate = 0; gate < 4; ++gate) {
      for (int64_t u = 0; u < count; u += W) {
        const Vec<T> value = bias != nullptr ? Load(bias + gate * U + unit + u) : Vec<T>{};
        for (int s = 0; s < n; ++s) Store(sums + (s * 4 + gate) * count + u, value);
      }
    }
    add_rows(p.kernel, slots.x, part.x_begin, part.x_end);
    if (part.x_begin > 0 && part.x_begin < part.x_end) add_before();
    add_rows(p.recurrent_kernel, slots.h, part.h_begin, part.h_end);
    if (part.h_begin > 0) add_before();
  }
  for (int64_t u = 0; u < count; u += W) {
    ForEachTile(n, [&](int64_t first, auto tag, int64_t, int64_t) {
      constexpr int S = decltype(tag)::value;
      Tile<T, S> tile;
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) {
#pragma GCC unroll 6
        for (int s = 0; s < S; ++s) {
          tile.acc[v][s] = Load(sums + ((first + s) * 4 + v) * count + u);
        }
      }
      FinishTile(&tile, slots, static_cast<int>(first), U, unit + u, tile_memory, S * W);
    });
  }
}

}  // namespace MASKED_LSTM_ISA_NAMESPACE
}  // namespace masked_lstm
