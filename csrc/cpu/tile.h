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

// What to fetch into the second-level cache meanwhile, a line for each row of a panel. Stride 0:
// nothing (`from` is then memory in use anyway: a null pointer would cost a page walk each time).
struct Ahead {
  const char* from;
  int64_t stride;  // bytes

  MASKED_LSTM_INLINE void Fetch() {
    __builtin_prefetch(from, 0, 2);
    from += stride;
  }
};

MASKED_LSTM_INLINE Ahead NothingAhead(const void* in_use) {
  return {static_cast<const char*>(in_use), 0};
}

// Tile `tile` of `tiles` fetches its share of a panel that stands packed at `panel`, where `fetch`.
template <typename T>
MASKED_LSTM_INLINE Ahead ShareOfPanel(bool fetch, const void* panel, int64_t rows, int64_t tile,
                                      int64_t tiles) {
  constexpr int64_t kLines = kPanelColumns<T> * sizeof(T) / 64;
  const int64_t stride = (kLines + tiles - 1) / tiles * 64;
  if (!fetch || tile * stride >= kLines * 64) return NothingAhead(panel);
  return {static_cast<const char*>(panel) + tile * rows * stride, stride};
}

// Fetches n values into the first-level cache, or only into the second. Inlined, with all its
// callers: GCC takes a function that does nothing else for one without effect, and leaves its calls
// out.
template <int Locality = 3, typename V>
MASKED_LSTM_INLINE void FetchLines(const V* values, int64_t n) {
  const char* from = reinterpret_cast<const char*>(values);
  const int64_t bytes = n * static_cast<int64_t>(sizeof(V));
  for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(from + at, 0, Locality);
  __builtin_prefetch(from + bytes - 1, 0, Locality);
}

template <typename T, int S, int V = 4>
struct Tile {
  Vec<T> acc[V][S];

  // The same 4 vectors for every row (a bias), or zeros.
  MASKED_LSTM_INLINE void Fill(const T* row) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      const Vec<T> value = row == nullptr ? Vec<T>{} : Load(row + v * kWidth<T>);
#pragma GCC unroll 6
      for (int s = 0; s < S; ++s) acc[v][s] = value;
    }
  }

  // Row s: four vectors at rows[s].
  MASKED_LSTM_INLINE void LoadRows(const T* const (&rows)[S]) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
#pragma GCC unroll 6
      for (int s = 0; s < S; ++s) acc[v][s] = Load(rows[s] + v * kWidth<T>);
    }
  }

  // Adds the sums that Save left.
  MASKED_LSTM_INLINE void Add(const T* memory) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
#pragma GCC unroll 6
      for (int s = 0; s < S; ++s) acc[v][s] += Load(memory + (v * S + s) * kWidth<T>);
    }
  }

  MASKED_LSTM_INLINE void Save(T* memory) const {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
#pragma GCC unroll 6
      for (int s = 0; s < S; ++s) Store(memory + (v * S + s) * kWidth<T>, acc[v][s]);
    }
  }

  MASKED_LSTM_INLINE void Step(const T* panel_row, const Vec<T> (&a)[S]) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      const Vec<T> w = Load(panel_row + v * kWidth<T>);
#pragma GCC unroll 6
      for (int s = 0; s < S; ++s) acc[v][s] = MulAdd<T>(a[s], w, acc[v][s]);
    }
  }

  MASKED_LSTM_INLINE void Clear() { Fill(nullptr); }

  // a_s[k] = rows[s][k]: each row's values stand one after another (x_t, h_{t-1}, dG_t).
  MASKED_LSTM_INLINE void AddRows(const T* panel, const T* const (&rows)[S], int64_t length,
                                  Ahead ahead) {
    const T* a[S];
#pragma GCC unroll 6
    for (int s = 0; s < S; ++s) a[s] = rows[s];
    const auto row = [&](int64_t k) {
      Vec<T> value[S];
#pragma GCC unroll 6
      for (int s = 0; s < S; ++s) value[s] = Broadcast<T>(a[s][k]);
      Step(panel + k * kPanelColumns<T>, value);
    };
    if (S < 3 || ahead.stride == 0) {
#pragma GCC unroll 2
      for (int64_t k = 0; k < length; ++k) row(k);
      return;
    }
#pragma GCC unroll 2
    for (int64_t k = 0; k < length; ++k) {
      ahead.Fetch();
      row(k);
    }
  }

  // a_s[k] = rows[s][k + v * gate_stride]: values of their own for each vector, that is, each gate.
  MASKED_LSTM_INLINE void AddGateRows(const T* panel, const T* const (&rows)[S],
                                      int64_t gate_stride, int64_t length) {
    const T* a[S];
#pragma GCC unroll 6
    for (int s = 0; s < S; ++s) a[s] = rows[s];
    for (int64_t k = 0; k < length; ++k) {
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        const Vec<T> w = Load(panel + k * kPanelColumns<T> + v * kWidth<T>);
#pragma GCC unroll 6
        for (int s = 0; s < S; ++s) {
          acc[v][s] = MulAdd<T>(Broadcast<T>(a[s][k + v * gate_stride]), w, acc[v][s]);
        }
      }
    }
  }

  // a_s[k] = row(k)[s]: the transposed operand of a weight gradient.
  template <typename Row>
  MASKED_LSTM_INLINE void AddColumns(const T* panel, Row row, int64_t length) {
#pragma GCC unroll 2
    for (int64_t k = 0; k < length; ++k) {
      const T* a = row(k);
      Vec<T> value[S];
#pragma GCC unroll 6
      for (int s = 0; s < S; ++s) value[s] = Broadcast<T>(a[s]);
      Step(panel + k * kPanelColumns<T>, value);
    }
  }
};

// Calls f(RowsTag<rows>()) for rows in [1, kTileRows].
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

// Calls f(first, tag, tile, tiles) for the tiles that cover [0, rows). Their sizes differ by at
// most one: a tile of one row waits for its own sums.
template <typename F>
MASKED_LSTM_INLINE void ForEachTile(int64_t rows, F&& f) {
  const int64_t tiles = (rows + kTileRows - 1) / kTileRows;
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const int64_t first = rows * tile / tiles, next = rows * (tile + 1) / tiles;
    WithTileRows(static_cast<int>(next - first), [&](auto tag) { f(first, tag, tile, tiles); });
  }
}

}  // namespace MASKED_LSTM_ISA_NAMESPACE
}  // namespace masked_lstm
