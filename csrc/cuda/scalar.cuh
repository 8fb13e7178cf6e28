// Scalars as the kernels compute with them: stored types widened and rounded, activations.
#pragma once

#include "cpu/stored_types.h"
#include "cuda/device.cuh"

namespace masked_lstm {
namespace cuda {

MASKED_LSTM_DEVICE float Widen(float value) { return value; }
MASKED_LSTM_DEVICE double Widen(double value) { return value; }
MASKED_LSTM_DEVICE float Widen(Float16 value) { return HalfToFloat(value.bits); }
MASKED_LSTM_DEVICE float Widen(BFloat16 value) { return FloatFromBits(uint32_t{value.bits} << 16); }

// To nearest, ties to even.
template <typename Stored>
MASKED_LSTM_DEVICE Stored Narrow(Compute<Stored> value) {
  return value;
}
template <>
MASKED_LSTM_DEVICE Float16 Narrow<Float16>(float value) {
  return {FloatToHalf(value)};
}
template <>
MASKED_LSTM_DEVICE BFloat16 Narrow<BFloat16>(float value) {
  const uint32_t bits = FloatBits(value);
  if ((bits & 0x7fffffff) > 0x7f800000) return {static_cast<uint16_t>((bits >> 16) | 0x40)};
  return {static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}

MASKED_LSTM_DEVICE float Exp(float x) { return expf(x); }
MASKED_LSTM_DEVICE double Exp(double x) { return exp(x); }
MASKED_LSTM_DEVICE float Tanh(float x) { return tanhf(x); }
MASKED_LSTM_DEVICE double Tanh(double x) { return tanh(x); }

// As csrc/cpu/activations.h.
template <typename T>
MASKED_LSTM_DEVICE T Activate(Activation activation, T x) {
  switch (activation) {
    case Activation::kTanh:
      return Tanh(x);
    case Activation::kSigmoid:
      return T(1) / (T(1) + Exp(-x));
    case Activation::kRelu:
      return T(0) > x ? T(0) : x;
    case Activation::kHardSigmoid:
      x = (x + T(3)) / T(6);
      x = T(0) > x ? T(0) : x;
      return T(1) < x ? T(1) : x;
    case Activation::kLinear:
      return x;
    case Activation::kSoftsign:
      return x / (T(1) + (T(0) > x ? -x : x));
  }
  return x;
}

// What is saved of f(x), and y and dy/dx from it.
template <typename T>
MASKED_LSTM_DEVICE T Saved(Activation activation, T x, T y) {
  return activation == Activation::kSoftsign ? x : y;
}
template <typename T>
MASKED_LSTM_DEVICE T ValueOf(Activation activation, T saved) {
  return activation == Activation::kSoftsign ? Activate(activation, saved) : saved;
}
template <typename T>
MASKED_LSTM_DEVICE T Derivative(Activation activation, T saved) {
  switch (activation) {
    case Activation::kTanh:
      return T(1) - saved * saved;
    case Activation::kSigmoid:
      return saved * (T(1) - saved);
    case Activation::kRelu:
      return saved > T(0) ? T(1) : T(0);
    case Activation::kHardSigmoid:
      return saved > T(0) && saved < T(1) ? T(1) / T(6) : T(0);
    case Activation::kLinear:
      return T(1);
    case Activation::kSoftsign: {
      const T rest = T(1) / (T(1) + (T(0) > saved ? -saved : saved));
      return rest * rest;
    }
  }
  return T(1);
}

}  // namespace cuda
}  // namespace masked_lstm
