// sigmoid and tanh of one vector, within 4 ulp of the exact value (tests/test_core_activations.py).
// Both come from expm1 of a non-positive argument, so that nothing overflows and tanh keeps its
// precision near 0.
#pragma once

#include "vec.h"

namespace masked_lstm {
namespace MASKED_LSTM_ISA_NAMESPACE {

template <typename T>
struct ExpConstants;

template <>
struct ExpConstants<float> {
  static constexpr float kLowest = 88.0f;          // exp(-88) is below the smallest normal number
  static constexpr float kRound = 12582912.0f;     // 1.5 * 2^23: adding it rounds to an integer
  static constexpr float kLn2High = 0.693359375f;  // few bits, so that n * kLn2High is exact
  static constexpr float kLn2Low = -2.12194440e-4f;
  static constexpr int kBias = 127, kMantissaBits = 23;
  static constexpr int kTerms = 7;
};

template <>
struct ExpConstants<double> {
  static constexpr double kLowest = 709.0;
  static constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr double kLn2High = 6.93147180369123816490e-01;
  static constexpr double kLn2Low = 1.90821492927058770002e-10;
  static constexpr int kBias = 1023, kMantissaBits = 52;
  static constexpr int kTerms = 13;
};

constexpr double kInverseFactorial[] = {1.0,
                                        1.0,
                                        1.0 / 2,
                                        1.0 / 6,
                                        1.0 / 24,
                                        1.0 / 120,
                                        1.0 / 720,
                                        1.0 / 5040,
                                        1.0 / 40320,
                                        1.0 / 362880,
                                        1.0 / 3628800,
                                        1.0 / 39916800,
                                        1.0 / 479001600,
                                        1.0 / 6227020800.0};

template <typename T>
MASKED_LSTM_INLINE Vec<T> Abs(Vec<T> x) {
  return (Vec<T>)((Bits<T>)x & (Bits<T>)~(Bits<T>)Broadcast<T>(T(-0.0)));
}

// exp(y) - 1 = scale * part + (scale - 1) with scale = 2^n, for y = -min(magnitude, kLowest) <= 0.
// A NaN stays one.
template <typename T>
MASKED_LSTM_INLINE void ExpParts(Vec<T> magnitude, Vec<T>* scale, Vec<T>* part) {
  using C = ExpConstants<T>;
  const Vec<T> lowest = Broadcast<T>(C::kLowest);
  const Vec<T> y = -(lowest < magnitude ? lowest : magnitude);
  const Vec<T> round = Broadcast<T>(C::kRound);
  const Vec<T> shifted = MulAdd<T>(y, Broadcast<T>(T(1.44269504088896340736)), round);
  const Vec<T> n = shifted - round;
  Vec<T> r = MulAdd<T>(n, Broadcast<T>(-C::kLn2High), y);
  r = MulAdd<T>(n, Broadcast<T>(-C::kLn2Low), r);
  Vec<T> poly = Broadcast<T>(T(kInverseFactorial[C::kTerms]));
#pragma GCC unroll 16
  for (int term = C::kTerms - 1; term >= 2; --term) {
    poly = MulAdd<T>(poly, r, Broadcast<T>(T(kInverseFactorial[term])));
  }
  *part = MulAdd<T>(poly * r, r, r);
  *scale = (Vec<T>)(((Bits<T>)shifted + C::kBias) << C::kMantissaBits);
}

template <typename T>
MASKED_LSTM_INLINE Vec<T> Sigmoid(Vec<T> x) {
  Vec<T> scale, part;
  ExpParts<T>(Abs<T>(x), &scale, &part);
  const Vec<T> one = Broadcast<T>(T(1));
  const Vec<T> e = scale * (one + part);  // exp(-|x|); scale * part alone may be flushed to 0
  return (x < Vec<T>{} ? e : one) / (one + e);
}

template <typename T>
MASKED_LSTM_INLINE Vec<T> Tanh(Vec<T> x) {
  Vec<T> scale, part;
  const Vec<T> magnitude = Abs<T>(x);
  ExpParts<T>(magnitude + magnitude, &scale, &part);
  const Vec<T> e = MulAdd<T>(scale, part, scale - Broadcast<T>(T(1)));  // expm1(-2|x|)
  const Vec<T> tanh = -e / (e + Broadcast<T>(T(2)));
  const Bits<T> sign = (Bits<T>)Broadcast<T>(T(-0.0));
  return (Vec<T>)((Bits<T>)tanh | ((Bits<T>)x & sign));
}

}  // namespace MASKED_LSTM_ISA_NAMESPACE
}  // namespace masked_lstm
