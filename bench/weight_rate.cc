// How fast the forward step's loop can be, given where its weights lie: tiles of 6 rows x 64
// columns of float32 (AVX-512), blocks of 256 rows, panels walked to and fro, nothing else. And how
// fast one row's step reads its weights, four panels at once.
//
//   g++ -O3 -march=native -mprefer-vector-width=512 bench/weight_rate.cc -o weight_rate
//   ./weight_rate
#include <immintrin.h>
#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>

constexpr long kColumns = 64, kRows = 6, kBlock = 256;

double Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

float* Allocate(size_t values) {
  const size_t huge = size_t{2} << 20, bytes = (values * 4 + huge - 1) / huge * huge;
  void* memory = std::aligned_alloc(huge, bytes);
  if (memory == nullptr) std::abort();
  madvise(memory, bytes, MADV_HUGEPAGE);
  std::fill_n(static_cast<float*>(memory), bytes / 4, 0.0f);
  return static_cast<float*>(memory);
}

// sums (24,16) = [sums +] rows (6,stride) . weights (length,64)
__attribute__((noinline)) void Tile(const float* weights, long length, const float* rows,
                                    long stride, float* sums, bool add) {
  __m512 acc[4][kRows];
#pragma GCC unroll 4
  for (int v = 0; v < 4; ++v) {
#pragma GCC unroll 6
    for (int s = 0; s < kRows; ++s) {
      acc[v][s] = add ? _mm512_load_ps(sums + (v * kRows + s) * 16) : _mm512_setzero_ps();
    }
  }
#pragma GCC unroll 2
  for (long k = 0; k < length; ++k) {
    __m512 x[kRows];
#pragma GCC unroll 6
    for (int s = 0; s < kRows; ++s) x[s] = _mm512_set1_ps(rows[s * stride + k]);
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
      const __m512 w = _mm512_load_ps(weights + k * kColumns + v * 16);
#pragma GCC unroll 6
      for (int s = 0; s < kRows; ++s) acc[v][s] = _mm512_fmadd_ps(x[s], w, acc[v][s]);
    }
  }
#pragma GCC unroll 4
  for (int v = 0; v < 4; ++v) {
#pragma GCC unroll 6
    for (int s = 0; s < kRows; ++s) _mm512_store_ps(sums + (v * kRows + s) * 16, acc[v][s]);
  }
}

// Seconds of one pass over `panels` of `depth` rows for `tiles` tiles.
double PassTime(long panels, long depth, int tiles) {
  const long stride = (depth + 15) / 16 * 16 + 16;
  float* weights = Allocate(panels * depth * kColumns);
  float* rows = Allocate(tiles * kRows * stride);
  float* sums = Allocate(tiles * kRows * kColumns);
  const double flops = 2.0 * panels * depth * kColumns * tiles * kRows;
  const int passes = 2 + 2 * static_cast<int>(10e9 / flops);
  double best = 1e9;
  for (int round = 0; round < 5; ++round) {
    const double start = Now();
    for (int pass = 0; pass < passes; ++pass) {
      for (long i = 0; i < panels; ++i) {
        const long panel = pass % 2 == 0 ? i : panels - 1 - i;
        for (long k = 0; k < depth; k += kBlock) {
          for (int tile = 0; tile < tiles; ++tile) {
            Tile(weights + (panel * depth + k) * kColumns, std::min(kBlock, depth - k),
                 rows + tile * kRows * stride + k, stride, sums + tile * kRows * kColumns, k > 0);
          }
        }
      }
    }
    best = std::min(best, (Now() - start) / passes);
  }
  std::free(weights);
  std::free(rows);
  std::free(sums);
  return best;
}

// sums (4,64) = row (length) . four panels (length,64), `panel` values apart
__attribute__((noinline)) void WideTile(const float* weights, long panel, long length,
                                        const float* row, float* sums) {
  __m512 acc[16];
#pragma GCC unroll 16
  for (int v = 0; v < 16; ++v) acc[v] = _mm512_setzero_ps();
  for (long k = 0; k < length; ++k) {
    const __m512 x = _mm512_set1_ps(row[k]);
#pragma GCC unroll 16
    for (int v = 0; v < 16; ++v) {
      const float* w = weights + v / 4 * panel + k * kColumns + v % 4 * 16;
      acc[v] = _mm512_fmadd_ps(x, _mm512_load_ps(w), acc[v]);
    }
  }
#pragma GCC unroll 16
  for (int v = 0; v < 16; ++v) _mm512_store_ps(sums + v * 16, acc[v]);
}

// Bytes per second of a row's passes over `panels` of `depth` rows, to and fro.
double OneRowRate(long panels, long depth) {
  const long panel = depth * kColumns;
  float* weights = Allocate(panels * panel);
  float* row = Allocate(depth);
  float* sums = Allocate(4 * kColumns);
  const double bytes = 4.0 * static_cast<double>(panels * panel);
  const int passes = 2 + 2 * static_cast<int>(1e9 / bytes);
  double best = 1e9;
  for (int round = 0; round < 5; ++round) {
    const double start = Now();
    for (int pass = 0; pass < passes; ++pass) {
      for (long i = 0; i < panels; i += 4) {
        const long first = pass % 2 == 0 ? i : panels - 4 - i;
        WideTile(weights + first * panel, panel, depth, row, sums);
      }
    }
    best = std::min(best, (Now() - start) / passes);
  }
  std::free(weights);
  std::free(row);
  std::free(sums);
  return bytes / best;
}

int main() {
  // In the first-level cache: the time of 120 rows less that of 40, so that a tile's ends cancel.
  const double row = (PassTime(1, 120, 1) - PassTime(1, 40, 1)) / 80;
  const double first = 2.0 * kColumns * kRows / row / 1e9;
  std::printf("L1, per row of a tile: %.0f GFLOP/s\n", first);
  for (long kilobytes : {512, 1024, 1536, 1792, 2048, 2432, 3072, 4864}) {
    for (int tiles : {2, 4}) {
      const long depth = 592, panels = kilobytes * 1024 / (depth * kColumns * 4);
      const double rate =
          2.0 * panels * depth * kColumns * tiles * kRows / PassTime(panels, depth, tiles) / 1e9;
      std::printf("%ld KiB of weights, %d slots: %.0f GFLOP/s\n", kilobytes, tiles * 6, rate);
    }
  }
  for (long kilobytes : {16, 256, 512, 1024, 2048, 4096}) {
    const long depth = kilobytes < 512 ? kilobytes : 512;
    const long panels = kilobytes * 1024 / (depth * kColumns * 4);
    std::printf("%ld KiB of weights, one row: %.0f GB/s\n", kilobytes,
                OneRowRate(panels, depth) / 1e9);
  }
}
