// The CPU kernels of one instruction set. CMake compiles this file once per set, with its -m flags,
// MASKED_LSTM_ISA_NAMESPACE and MASKED_LSTM_VECTOR_BYTES; cpu/isa.cc lists the results.
#include "backward.h"
#include "forward.h"

#define MASKED_LSTM_STRING(x) #x
#define MASKED_LSTM_NAME(x) MASKED_LSTM_STRING(x)

namespace masked_lstm {
namespace MASKED_LSTM_ISA_NAMESPACE {
namespace {

template <typename T, typename F>
void Apply(const void* x, void* y, int64_t n, F f) {
  for (int64_t at = 0; at < n; at += kWidth<T>) {
    StoreFirst(static_cast<T*>(y) + at, f(LoadFirst(static_cast<const T*>(x) + at, n - at)),
               n - at);
  }
}

template <typename T>
void ApplySigmoid(const void* x, void* y, int64_t n) {
  Apply<T>(x, y, n, [](Vec<T> v) { return Sigmoid<T>(v); });
}

template <typename T>
void ApplyTanh(const void* x, void* y, int64_t n) {
  Apply<T>(x, y, n, [](Vec<T> v) { return Tanh<T>(v); });
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

extern const CpuKernels kKernels;
const CpuKernels kKernels = {MASKED_LSTM_NAME(MASKED_LSTM_ISA_NAMESPACE),
                             MASKED_LSTM_VECTOR_BYTES,
                             kTileRows,
                             {RunForward<float>, RunForward<double>},
                             {RunBackward<float>, RunBackward<double>},
                             {ApplySigmoid<float>, ApplySigmoid<double>},
                             {ApplyTanh<float>, ApplyTanh<double>},
                             {MultiplyAddLoop<float>, MultiplyAddLoop<double>}};

}  // namespace MASKED_LSTM_ISA_NAMESPACE
}  // namespace masked_lstm
