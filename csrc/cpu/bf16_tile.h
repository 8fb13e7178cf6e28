// The forward step's sums as products of bfloat16: x and h are multiplied as bfloat16, exactly, and
// summed in float32. Weights are packed for both instruction sets that have such products:
//   panel of 16 units: [block of 32 rows][gate][16 pairs of rows][unit][2]
// first the rows of kernel, then those of recurrent_kernel, each padded with zeros to whole blocks.
// A [block][gate] piece is 1 KiB: one AMX tile.
#pragma once

#include "forward_tile.h"
#include "pack.h"

namespace masked_lstm {
namespace MASKED_LSTM_ISA_NAMESPACE {

constexpr int64_t kBlock = CpuLayout::kBf16Block;
constexpr int64_t kPiece = kBlock * kWidth<float>;  // values of one gate's block

// Rows of `weights` (rows,4U) for units [unit, unit + 16), to `panel`.
static void PackBf16Rows(const BFloat16* weights, int64_t rows, int64_t units, int64_t unit,
                         BFloat16* panel) {
  for (int64_t k = 0; k < CpuLayout::RoundUp(rows, kBlock); k += 2) {
    for (int gate = 0; gate < 4; ++gate) {
      const BFloat16* from = weights + (k * 4 + gate) * units + unit;
      const Words even =
          k < rows ? __builtin_convertvector(LoadBits(from, units - unit), Words) : Words{};
      const Words odd =
          k + 1 < rows ? __builtin_convertvector(LoadBits(from + 4 * units, units - unit), Words)
                       : Words{};
      const Words pairs = even | odd << 16;
      std::memcpy(panel + (k / kBlock * 4 + gate) * kPiece + k % kBlock * kWidth<float>, &pairs,
                  sizeof(pairs));
    }
  }
}

static void PackBf16Panel(const LstmProblem& p, const CpuLayout& layout, BFloat16* packed,
                          int64_t panel) {
  BFloat16* to = packed + panel * layout.bf16_panel_size();
  float* bias =
      reinterpret_cast<float*>(packed + layout.forward_panels() * layout.bf16_panel_size()) +
      panel * layout.panel_columns;
  const int64_t unit = panel * layout.width;
  PackBf16Rows(static_cast<const BFloat16*>(p.kernel), p.input_dim, p.units, unit, to);
  PackBf16Rows(static_cast<const BFloat16*>(p.recurrent_kernel), p.units, p.units, unit,
               to + layout.bf16_row(p.input_dim) * layout.panel_columns);
  if (p.bias != nullptr) {
    PackGateRows(static_cast<const BFloat16*>(p.bias), 1, p.units, unit, 1, 0, bias);
  } else {
    for (int64_t n = 0; n < layout.panel_columns; ++n) bias[n] = 0;
  }
}

// One panel, and the rows it is multiplied with: slot s has x at x + s * x_stride, and so on.
struct Bf16Panel {
  const BFloat16* weights;
  const float* bias;
  const BFloat16* x;
  const BFloat16* h;
  int64_t x_blocks, h_blocks;
  int64_t x_stride, h_stride;  // values
};

// What both products below have in common.
struct Bf16Weights {
  using Operand = BFloat16;
  using Panel = Bf16Panel;

  static void Pack(const LstmProblem& p, const CpuLayout& layout, Operand* packed, int64_t begin,
                   int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel) PackBf16Panel(p, layout, packed, panel);
  }
};

#if defined(__AMX_BF16__)

// Sums of `rows` slots (at most 32) to sums[gate][slot][16], without the bias.
//
// The rows of a tile of sums are slots, its columns the units of one gate. Up to 16 slots: a tile
// for each gate. More: two gates at a time, two tiles of slots for each, so that weights are
// loaded once for all slots.
class AmxSums {
 public:
  MASKED_LSTM_INLINE void Run(const Bf16Panel& panel, int rows, float* sums) {
    if (rows != configured_) Configure(rows);
    asm volatile("" ::: "memory");  // what the tiles load has been stored
    if (rows <= 16) {
      Narrow(panel, rows, sums);
    } else {
      Wide(panel, rows, 0, sums);
      Wide(panel, rows, 2, sums + 2 * rows * kWidth<float>);
    }
    asm volatile("" ::: "memory");
  }

  // Tile registers that are left in use slow a thread's context switches.
  static void Release() { _tile_release(); }

 private:
  // 0-3: sums. Narrow: 4: slots, 5-7 and again 5: weights. Wide: 4, 5: slots, 6, 7: weights.
  void Configure(int rows) {
    struct alignas(64) {
      uint8_t palette, start_row, reserved[14];
      uint16_t column_bytes[16];
      uint8_t rows[16];
    } config = {};
    config.palette = 1;
    const int first = rows < 16 ? rows : 16;
    for (int tile = 0; tile < 8; ++tile) {
      config.column_bytes[tile] = 64;
      config.rows[tile] = 16;
    }
    config.rows[0] = config.rows[1] = config.rows[4] = static_cast<uint8_t>(first);
    config.rows[2] = config.rows[3] = static_cast<uint8_t>(first);
    if (rows > 16) {
      config.rows[2] = config.rows[3] = config.rows[5] = static_cast<uint8_t>(rows - 16);
    }
    _tile_loadconfig(&config);
    configured_ = rows;
  }

  MASKED_LSTM_INLINE static void Narrow(const Bf16Panel& panel, int rows, float* sums) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    const BFloat16* weights = panel.weights;
    AddNarrow(panel.x, panel.x_stride, panel.x_blocks, &weights);
    AddNarrow(panel.h, panel.h_stride, panel.h_blocks, &weights);
    const int64_t gate = rows * kWidth<float>;
    _tile_stored(0, sums, 64);
    _tile_stored(1, sums + gate, 64);
    _tile_stored(2, sums + 2 * gate, 64);
    _tile_stored(3, sums + 3 * gate, 64);
  }

  MASKED_LSTM_INLINE static void AddNarrow(const BFloat16* slots, int64_t stride, int64_t blocks,
                                           const BFloat16** weights) {
    for (int64_t block = 0; block < blocks; ++block, *weights += 4 * kPiece) {
      _tile_loadd(4, slots + block * kBlock, stride * 2);
      _tile_loadd(5, *weights, 64);
      _tile_dpbf16ps(0, 4, 5);
      _tile_loadd(6, *weights + kPiece, 64);
      _tile_dpbf16ps(1, 4, 6);
      _tile_loadd(7, *weights + 2 * kPiece, 64);
      _tile_dpbf16ps(2, 4, 7);
      _tile_loadd(5, *weights + 3 * kPiece, 64);
      _tile_dpbf16ps(3, 4, 5);
    }
  }

  MASKED_LSTM_INLINE static void Wide(const Bf16Panel& panel, int rows, int gate, float* sums) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    const BFloat16* weights = panel.weights + gate * kPiece;
    AddWide(panel.x, panel.x_stride, panel.x_blocks, &weights);
    AddWide(panel.h, panel.h_stride, panel.h_blocks, &weights);
    float* next_gate = sums + rows * kWidth<float>;
    _tile_stored(0, sums, 64);
    _tile_stored(1, next_gate, 64);
    _tile_stored(2, sums + 16 * kWidth<float>, 64);
    _tile_stored(3, next_gate + 16 * kWidth<float>, 64);
  }

  MASKED_LSTM_INLINE static void AddWide(const BFloat16* slots, int64_t stride, int64_t blocks,
                                         const BFloat16** weights) {
    for (int64_t block = 0; block < blocks; ++block, *weights += 4 * kPiece) {
      _tile_loadd(4, slots + block * kBlock, stride * 2);
      _tile_loadd(6, *weights, 64);
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(7, *weights + kPiece, 64);
      _tile_dpbf16ps(1, 4, 7);
      _tile_loadd(5, slots + 16 * stride + block * kBlock, stride * 2);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  }

  int configured_ = 0;
};

// Gates' sums, then the cell, of all slots.
class Bf16Product : public Bf16Weights {
 public:
  template <typename Slots>
  MASKED_LSTM_INLINE void Run(const Slots& slots, const Bf16Panel& panel, int64_t units,
                              int64_t unit, float* sums) {
    const int rows = slots.active;
    sums_.Run(panel, rows, sums);
    ForEachTile(rows, [&](int64_t first, auto tag, int64_t, int64_t) {
      FinishSums<decltype(tag)::value>(slots, static_cast<int>(first), units, unit, panel.bias,
                                       sums + first * kWidth<float>, rows * kWidth<float>);
    });
  }
  static void Release() { AmxSums::Release(); }

 private:
  template <int S, typename Slots>
  static MASKED_LSTM_NOINLINE void FinishSums(const Slots& slots, int first, int64_t units,
                                              int64_t unit, const float* bias, float* sums,
                                              int64_t gate_stride) {
    Tile<float, S> tile;
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
      const Vec<float> b = Load(bias + v * kWidth<float>);
#pragma GCC unroll 6
      for (int s = 0; s < S; ++s) {
        tile.acc[v][s] = b + Load(sums + v * gate_stride + s * kWidth<float>);
      }
    }
    FinishTile(&tile, slots, first, units, unit, sums, gate_stride);
  }

  AmxSums sums_;
};

#else

// Pairs of rows by VDPBF16PS, in registers from the bias to the cell.
class Bf16Product : public Bf16Weights {
 public:
  template <typename Slots>
  MASKED_LSTM_INLINE void Run(const Slots& slots, const Bf16Panel& panel, int64_t units,
                              int64_t unit, float* memory) {
    ForEachTile(slots.active, [&](int64_t first, auto tag, int64_t, int64_t) {
      StepTile<decltype(tag)::value>(slots, static_cast<int>(first), panel, units, unit, memory);
    });
  }
  static void Release() {}

 private:
  template <int S>
  MASKED_LSTM_INLINE static void AddBlocks(const BFloat16* rows, int64_t stride, int64_t blocks,
                                           const BFloat16** weights, Tile<float, S>* tile) {
    for (int64_t block = 0; block < blocks; ++block, *weights += 4 * kPiece) {
#pragma GCC unroll 2
      for (int64_t pair = 0; pair < kBlock / 2; ++pair) {
        __m512bh value[S];
#pragma GCC unroll 6
        for (int s = 0; s < S; ++s) {
          int bits;
          std::memcpy(&bits, rows + s * stride + block * kBlock + 2 * pair, sizeof(bits));
          value[s] = (__m512bh)_mm512_set1_epi32(bits);
        }
#pragma GCC unroll 4
        for (int v = 0; v < 4; ++v) {
          __m512bh w;
          std::memcpy(&w, *weights + v * kPiece + pair * 2 * kWidth<float>, sizeof(w));
#pragma GCC unroll 6
          for (int s = 0; s < S; ++s) {
            tile->acc[v][s] = (Vec<float>)_mm512_dpbf16_ps((__m512)tile->acc[v][s], value[s], w);
          }
        }
      }
    }
  }

  template <int S, typename Slots>
  static MASKED_LSTM_NOINLINE void StepTile(const Slots& slots, int first, const Bf16Panel& panel,
                                            int64_t units, int64_t unit, float* memory) {
    Tile<float, S> tile;
    tile.Fill(panel.bias);
    const BFloat16* weights = panel.weights;
    AddBlocks<S>(panel.x + first * panel.x_stride, panel.x_stride, panel.x_blocks, &weights, &tile);
    AddBlocks<S>(panel.h + first * panel.h_stride, panel.h_stride, panel.h_blocks, &weights, &tile);
    FinishTile(&tile, slots, first, units, unit, memory, S * kWidth<float>);
  }
};

#endif

}  // namespace MASKED_LSTM_ISA_NAMESPACE
}  // namespace masked_lstm
