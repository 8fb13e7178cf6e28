// Activations of vectors; sigmoid and tanh within 4 ulp of the exact value
// (tests/test_core_activations.py).
// tanh comes from expm1, so that it keeps its precision near 0.
#pragma once

#include "lstm.h"
#include "vec.h"

namespace masked_lstm {
namespace MASKED_LSTM_ISA_NAMESPACE {

// exp on [-ln(2)/2, ln(2)/2]: expm1(r) = r * (kTerms[0] + kTerms[1] * r + ...), Chebyshev
// interpolation of (expm1(r)/r - 1)/r: relative error below 2.5e-8 and 5.5e-19.
template <typename T>
struct ExpConstants;

template <>
struct ExpConstants<float> {
  static constexpr float kLargest = 88.0f;    // exp(-88) is below the smallest normal number
  static constexpr float kTanhIsOne = 10.0f;  // to the last bit
  // 1.5 * 2^23: adding it rounds to a whole number n; and 127, so that the sum's low bits are the
  // exponent of 2^n.
  static constexpr float kRound = 12582912.0f + 127;
  static constexpr int kMantissaBits = 23;
  static constexpr float kLn2High = 0.693359375f;  // few bits, so that n * kLn2High is exact
  static constexpr float kLn2Low = -2.12194440e-4f;
  static constexpr int kDegree = 5;
  static constexpr float kTerms[] = {
      1.0f, 0.5f, 0.1666657685f, 0.04166655444f, 0.008363202972f, 0.001392621347f};
};

template <>
struct ExpConstants<double> {
  static constexpr double kLargest = 709.0;
  static constexpr double kTanhIsOne = 22.0;
  static constexpr double kRound = 6755399441055744.0 + 1023;  // 1.5 * 2^52, likewise
  static constexpr int kMantissaBits = 52;
  static constexpr double kLn2High = 6.93147180369123816490e-01;
  static constexpr double kLn2Low = 1.90821492927058770002e-10;
  static constexpr int kDegree = 11;
  static constexpr double kTerms[] = {1.0,
                                      0.5,
                                      0.16666666666666671008,
                                      0.041666666666666669767,
                                      0.0083333333333261120526,
                                      0.0013888888888883731828,
                                      0.00019841269874901259234,
                                      0.000024801587325605322782,
                                      2.7557255297969644392e-6,
                                      2.7557273570102139673e-7,
                                      2.5105259538448493419e-8,
                                      2.0914717341716375952e-9};
};

// exp(factor * x) = scale * (1 + part), scale = 2^n, |part| < 0.42; x in [-kLargest, kLargest].
// kExactLn2: n * ln(2) in two parts, which matters where n is large and exp is not added to 1.
// Here and below N vectors go through each operation before the next one: a chain of operations
// waits for its own results, and a processor does not look far enough ahead to find other chains.
template <typename T, bool kExactLn2, int N>
MASKED_LSTM_INLINE void ExpParts(const Vec<T> (&x)[N], T factor, Vec<T> (&scale)[N],
                                 Vec<T> (&part)[N]) {
  using C = ExpConstants<T>;
  Vec<T> shifted[N], n[N], r[N], sum[N];
  const Vec<T> log2_e = Broadcast<T>(T(factor * T(1.44269504088896340736)));
  for (int v = 0; v < N; ++v) shifted[v] = MulAdd<T>(x[v], log2_e, Broadcast<T>(C::kRound));
  for (int v = 0; v < N; ++v) n[v] = shifted[v] - Broadcast<T>(C::kRound);
  // r = factor * x - n * ln(2), divided by the factor: its powers go into the terms.
  if (kExactLn2) {
    for (int v = 0; v < N; ++v) r[v] = MulAdd<T>(n[v], Broadcast<T>(-C::kLn2High / factor), x[v]);
    for (int v = 0; v < N; ++v) r[v] = MulAdd<T>(n[v], Broadcast<T>(-C::kLn2Low / factor), r[v]);
  } else {
    constexpr T kLn2 = T(0.69314718055994530942);
    for (int v = 0; v < N; ++v) r[v] = MulAdd<T>(n[v], Broadcast<T>(-kLn2 / factor), x[v]);
  }
  T power[C::kDegree + 1];
  power[0] = factor;
  for (int term = 1; term <= C::kDegree; ++term) power[term] = power[term - 1] * factor;
  for (int v = 0; v < N; ++v) sum[v] = Broadcast<T>(C::kTerms[C::kDegree] * power[C::kDegree]);
#pragma GCC unroll 16
  for (int term = C::kDegree - 1; term >= 0; --term) {
    const Vec<T> next = Broadcast<T>(C::kTerms[term] * power[term]);
    for (int v = 0; v < N; ++v) sum[v] = MulAdd<T>(sum[v], r[v], next);
  }
  for (int v = 0; v < N; ++v) part[v] = sum[v] * r[v];
  for (int v = 0; v < N; ++v) scale[v] = (Vec<T>)((Bits<T>)shifted[v] << C::kMantissaBits);
}

// x[v] = sigmoid(x[v]), N of them
template <typename T, int N>
MASKED_LSTM_INLINE void Sigmoid(Vec<T>* x) {
  const Vec<T> one = Broadcast<T>(T(1));
  Vec<T> y[N], scale[N], part[N];
  for (int v = 0; v < N; ++v) y[v] = Clamp<T>(x[v], ExpConstants<T>::kLargest);
  ExpParts<T, true, N>(y, T(-1), scale, part);
  for (int v = 0; v < N; ++v) part[v] = MulAdd<T>(scale[v], part[v], scale[v]);
  for (int v = 0; v < N; ++v) part[v] = one + part[v];
  for (int v = 0; v < N; ++v) y[v] = one;
  Divide<T, N>(y, part);
  for (int v = 0; v < N; ++v) x[v] = y[v];
}

// x[v] = tanh(x[v]), N of them
template <typename T, int N>
MASKED_LSTM_INLINE void Tanh(Vec<T>* x) {
  Vec<T> clamped[N], scale[N], part[N], e[N];  // e = expm1(2x)
  for (int v = 0; v < N; ++v) clamped[v] = Clamp<T>(x[v], ExpConstants<T>::kTanhIsOne);
  ExpParts<T, false, N>(clamped, T(2), scale, part);
  for (int v = 0; v < N; ++v) e[v] = scale[v] - Broadcast<T>(T(1));
  for (int v = 0; v < N; ++v) e[v] = MulAdd<T>(scale[v], part[v], e[v]);
  for (int v = 0; v < N; ++v) part[v] = e[v] + Broadcast<T>(T(2));
  Divide<T, N>(e, part);
  const Bits<T> sign = (Bits<T>)Broadcast<T>(T(-0.0));  // for -0, whose sign the sum lost
  for (int v = 0; v < N; ++v) x[v] = (Vec<T>)((Bits<T>)e[v] | ((Bits<T>)x[v] & sign));
}

template <typename T>
MASKED_LSTM_INLINE Vec<T> Sigmoid(Vec<T> x) {
  Sigmoid<T, 1>(&x);
  return x;
}

template <typename T>
MASKED_LSTM_INLINE Vec<T> Tanh(Vec<T> x) {
  Tanh<T, 1>(&x);
  return x;
}

// Any of them. A NaN stays one.
template <typename T>
MASKED_LSTM_INLINE Vec<T> Activate(Activation activation, Vec<T> x) {
  const Vec<T> zero = {}, one = Broadcast<T>(T(1));
  switch (activation) {
    case Activation::kTanh:
      return Tanh<T>(x);
    case Activation::kSigmoid:
      return Sigmoid<T>(x);
    case Activation::kRelu:
      return zero > x ? zero : x;
    case Activation::kHardSigmoid:
      x = (x + Broadcast<T>(T(3))) / Broadcast<T>(T(6));
      x = zero > x ? zero : x;
      return one < x ? one : x;
    case Activation::kLinear:
      return x;
    case Activation::kSoftsign:
      return x / (one + (zero > x ? -x : x));
  }
  return x;
}

// What the backward pass is given of f(x): its value y; of softsign x, since 1 - |y| loses what
// little there is of the derivative where |x| is large.
template <typename T>
MASKED_LSTM_INLINE Vec<T> Saved(Activation activation, Vec<T> x, Vec<T> y) {
  return activation == Activation::kSoftsign ? x : y;
}

// y from what was saved.
template <typename T>
MASKED_LSTM_INLINE Vec<T> ValueOf(Activation activation, Vec<T> saved) {
  return activation == Activation::kSoftsign ? Activate<T>(activation, saved) : saved;
}

// dy/dx from what was saved. At a kink: 0, as TensorFlow has it.
template <typename T>
MASKED_LSTM_INLINE Vec<T> Derivative(Activation activation, Vec<T> saved) {
  const Vec<T> zero = {}, one = Broadcast<T>(T(1));
  switch (activation) {
    case Activation::kTanh:
      return one - saved * saved;
    case Activation::kSigmoid:
      return saved * (one - saved);
    case Activation::kRelu:
      return saved > zero ? one : zero;
    case Activation::kHardSigmoid:
      return (saved > zero) & (saved < one) ? Broadcast<T>(T(1) / T(6)) : zero;
    case Activation::kLinear:
      return one;
    case Activation::kSoftsign: {
      const Vec<T> rest = one / (one + (zero > saved ? -saved : saved));
      return rest * rest;
    }
  }
  return one;
}

}  // namespace MASKED_LSTM_ISA_NAMESPACE
}  // namespace masked_lstm
