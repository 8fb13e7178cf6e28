// What the XLA kernels (xla_kernels.cc) and the handlers they call (xla_handlers.cc,
// xla_cuda_handlers.h) agree upon.
//
// Both targets take the op's inputs in its order, dense and row-major, and give its outputs; the
// gradient gives one more, the scratch memory of the core. Attributes: "flags" (XlaFlags),
// "activation" and "recurrent_activation" (Activation), and of the gradient "skip" (bit g: gradient
// g is not wanted). The reserve has room for every step, of which the handlers use the front.
//
// The handlers for CUDA are given workspace as a last result, with a flag of the device behind it,
// and "cuda_choice" (CudaChoice) as one more attribute. As a result XLA plans it with all other
// memory of the program: what a handler allocated and gave back while it ran might be another
// stream's meanwhile, or belong to a CUDA graph that is replayed later.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "lstm.h"

namespace masked_lstm {

constexpr char kXlaForward[] = "masked_lstm.forward";
constexpr char kXlaBackward[] = "masked_lstm.backward";

enum XlaFlags : int32_t {
  kGoBackwards = 1,
  kZeroOutputForMask = 2,
  kReturnSequences = 4,
  kCheckLengths = 8,  // of CUDA's forward handler: the program relies on it, whatever is set later
};

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

// Behind the workspace: int32, set when a length had to be clamped, where somebody asks for it.
constexpr size_t kXlaFlagBytes = 64;

// Whether programs that XLA compiles for `device`, such as "XLA_CPU_JIT", call the CUDA handlers.
bool XlaCallsCuda(const std::string& device);

// Asked for while such a program is compiled, there being no device yet: sets the call's
// cuda_choice, and *bytes of workspace and flag. Of the call's pointers only whether there are any
// counts. Errors: kUnsupported where the CUDA kernels are not built.
Status XlaCudaWorkspace(int64_t max_steps, LstmForward* call, size_t* bytes);
Status XlaCudaWorkspace(int64_t max_steps, LstmBackward* call, size_t* bytes);

}  // namespace masked_lstm
