// What the XLA kernels (xla_kernels.cc) and the handlers they call (xla_handlers.cc) agree upon.
//
// Both targets take the op's inputs in its order, dense and row-major, and give its outputs; the
// gradient gives one more, the scratch memory of the core. Attributes: "flags" (XlaFlags),
// "activation" and "recurrent_activation" (Activation), and of the gradient "skip" (bit g: gradient
// g is not wanted). The reserve has room for every step, of which the handlers use the front.
#pragma once

#include <cstdint>

namespace masked_lstm {

constexpr char kXlaForward[] = "masked_lstm.forward";
constexpr char kXlaBackward[] = "masked_lstm.backward";

enum XlaFlags : int32_t { kGoBackwards = 1, kZeroOutputForMask = 2, kReturnSequences = 4 };

// Positions of the op's inputs; the last four are the gradient's.
enum XlaInput {
  kX = 0,
  kKernel,
  kRecurrentKernel,
  kBias,
  kH0,
  kC0,
  kMask,
  kInputFactors,
  kRecurrentFactors,
  kReserve,
  kDOutputs,
  kDH,
  kDC,
};
constexpr int kForwardInputs = kReserve, kBackwardInputs = kDC + 1;

}  // namespace masked_lstm
