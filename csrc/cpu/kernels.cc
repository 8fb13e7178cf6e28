// The CPU kernels of one instruction set. CMake compiles this file once per set, with its -m flags,
// MASKED_LSTM_ISA_NAMESPACE and MASKED_LSTM_VECTOR_BYTES; cpu/isa.cc lists the results.
#include "backward.h"
#include "forward.h"

#define MASKED_LSTM_STRING(x) #x
#define MASKED_LSTM_NAME(x) MASKED_LSTM_STRING(x)

namespace masked_lstm {
namespace MASKED_LSTM_ISA_NAMESPACE {
namespace {

template <typename Stored, typename F>
void Apply(const void* x, void* y, int64_t n, F f) {
  const Stored* from = static_cast<const Stored*>(x);
  for (int64_t at = 0; at < n; at += kWidth<Compute<Stored>>) {
    StoreFirst(static_cast<Stored*>(y) + at, f(LoadFirst(from + at, n - at)), n - at);
  }
}

template <typename Stored>
void ApplySigmoid(const void* x, void* y, int64_t n) {
  using T = Compute<Stored>;
  Apply<Stored>(x, y, n, [](Vec<T> v) { return Sigmoid<T>(v); });
}

template <typename Stored>
void ApplyTanh(const void* x, void* y, int64_t n) {
  using T = Compute<Stored>;
  Apply<Stored>(x, y, n, [](Vec<T> v) { return Tanh<T>(v); });
}

// Independent multiply-adds that never leave the registers: the rate everything is measured
// against.
template <typename T>
double MultiplyAddLoop(int64_t iterations) {
  constexpr int kChains = 12;
  Vec<T> acc[kChains];
#pragma GCC unroll 12
  for (int i = 0; i < kChains; ++i) acc[i] = Broadcast<T>(T(i));
  const Vec<T> a = Broadcast<T>(T(0.999)), b = Broadcast<T>(T(0.001));
  for (int64_t n = 0; n < iterations; ++n) {
#pragma GCC unroll 12
    for (int i = 0; i < kChains; ++i) acc[i] = MulAdd<T>(acc[i], a, b);
  }
  Vec<T> sum = {};
#pragma GCC unroll 12
  for (int i = 0; i < kChains; ++i) sum += acc[i];
  volatile T keep = sum[0];  // without a use the loop would be removed
  (void)keep;
  return 2.0 * kChains * kWidth<T> * static_cast<double>(iterations);
}

}  // namespace

// In the order of DType.
#define FOR_ALL_DTYPES(f) {f<float>, f<double>, f<Float16>, f<BFloat16>}

extern const CpuKernels kKernels;
const CpuKernels kKernels = {MASKED_LSTM_NAME(MASKED_LSTM_ISA_NAMESPACE),
                             MASKED_LSTM_VECTOR_BYTES,
                             kTileRows,
                             FOR_ALL_DTYPES(RunForward),
                             FOR_ALL_DTYPES(RunBackward),
                             FOR_ALL_DTYPES(ApplySigmoid),
                             FOR_ALL_DTYPES(ApplyTanh),
                             {MultiplyAddLoop<float>, MultiplyAddLoop<double>,
                              MultiplyAddLoop<float>, MultiplyAddLoop<float>}};

}  // namespace MASKED_LSTM_ISA_NAMESPACE
}  // namespace masked_lstm
