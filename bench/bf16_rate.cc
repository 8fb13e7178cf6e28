// What bfloat16 dot products (AVX512-BF16) could give on this CPU: the rate of independent
// VDPBF16PS beside that of float32 multiply-adds, on one core.
//
//   g++ -O3 -std=c++17 -mavx512f -mavx512bf16 bench/bf16_rate.cc -o /tmp/bf16_rate &&
//   /tmp/bf16_rate
#include <immintrin.h>

#include <chrono>
#include <cstdio>

namespace {

constexpr int kChains = 16;

template <bool kDot>
double Rate(long iterations) {
  __m512 sums[kChains];
#pragma GCC unroll 16
  for (int i = 0; i < kChains; ++i) sums[i] = _mm512_set1_ps(static_cast<float>(i));
  const __m512 a = _mm512_set1_ps(0.999f), b = _mm512_set1_ps(0.001f);
  const auto start = std::chrono::steady_clock::now();
  for (long n = 0; n < iterations; ++n) {
#pragma GCC unroll 16
    for (int i = 0; i < kChains; ++i) {
      if constexpr (kDot) {
        sums[i] = _mm512_dpbf16_ps(sums[i], (__m512bh)a, (__m512bh)b);
      } else {
        sums[i] = _mm512_fmadd_ps(sums[i], a, b);
      }
    }
  }
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  __m512 sum = sums[0];
#pragma GCC unroll 16
  for (int i = 1; i < kChains; ++i) sum = _mm512_add_ps(sum, sums[i]);
  volatile float keep = sum[0];  // without a use the loop would be removed
  (void)keep;
  return kChains * 16.0 * 2 * (kDot ? 2 : 1) * iterations / seconds.count() / 1e9;
}

}  // namespace

int main() {
  for (int round = 0; round < 3; ++round) {
    std::printf("float32 multiply-adds %.0f GFLOP/s, bfloat16 dot products %.0f GFLOP/s\n",
                Rate<false>(20000000), Rate<true>(20000000));
  }
}
