// The forward pass with products of bfloat16. CMake compiles this file once for each instruction
// set that has them, with its -m flags and MASKED_LSTM_ISA_NAMESPACE; cpu/isa.cc lists the results.
#include "bf16_tile.h"
#include "forward.h"

namespace masked_lstm {
namespace MASKED_LSTM_ISA_NAMESPACE {

static void RunBf16Forward(ForwardJob* job, int worker) {
  const LstmProblem& p = job->call->problem;
  const CpuLayout layout = {kWidth<float>, kPanelColumns<float>, p.input_dim, p.units};
  job->pack.RunAll([&](int64_t item) { PackBf16Panel(*job, layout, item); });
  ForEachTeam(job->teams, worker, [&](int team, int member) {
    ForwardTeam<BFloat16, Bf16Product>(job, team, worker).Run(member);
  });
  Bf16Product::Release();
  FillMaskedOutputs<BFloat16>(job, worker == 0);
}

extern const ForwardFunction kBf16Forward;
const ForwardFunction kBf16Forward = RunBf16Forward;

}  // namespace MASKED_LSTM_ISA_NAMESPACE
}  // namespace masked_lstm
