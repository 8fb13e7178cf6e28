// The forward pass with products of bfloat16. CMake compiles this file once for each instruction
// set that has them, with its -m flags and MASKED_LSTM_ISA_NAMESPACE; cpu/isa.cc lists the results.
#include "bf16_tile.h"
#include "forward.h"

namespace masked_lstm {
namespace MASKED_LSTM_ISA_NAMESPACE {

static void RunBf16Forward(ForwardJob* job, int worker) {
  RunForward<BFloat16, Bf16Product>(job, worker);
}

extern const ForwardFunction kBf16Forward;
const ForwardFunction kBf16Forward = RunBf16Forward;

}  // namespace MASKED_LSTM_ISA_NAMESPACE
}  // namespace masked_lstm
