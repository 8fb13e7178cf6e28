// The Hopper kernels on the host executor, against the CPU core: every dtype, kind of mask and
// option, clusters of one to sixteen blocks, more rows than slots; the same bits in every order of
// the threads, with any number of slots and clusters, alone and in a batch.
//
//   check_hopper        passes
//   check_hopper NAME   one check with wait, block, cluster or bytes broken (cluster_host.h): fails
#include <type_traits>

#include "cluster_host.h"
#include "cuda/hopper/run_hopper.cuh"
#include "lstm_case.h"

namespace {

using namespace masked_lstm;
using cuda::hopper::BackwardVariant;
using cuda::hopper::ForwardVariant;

int failures = 0;

void Fail(const char* what, const LstmProblem& p) {
  std::fprintf(stderr, "%s: %s: batch %d, units %d\n", DTypeName(p.dtype), what,
               static_cast<int>(p.batch), static_cast<int>(p.units));
  ++failures;
}

// The launches of run_hopper.cuh.
struct Launcher {
  unsigned seed;
  int clusters;  // that run at once

  template <typename... Parameters, typename... Arguments>
  void operator()(void (*kernel)(Parameters...), int blocks, int blocks_y, int threads,
                  size_t shared_bytes, bool cooperative, Arguments... arguments) {
    cuda_host::Launch(blocks, blocks_y, threads, shared_bytes, cooperative, ++seed,
                      [&] { kernel(arguments...); });
  }
  void Clear(void* memory, size_t bytes) { std::memset(memory, 0, bytes); }
  template <typename Kernel>
  int ResidentClusters(Kernel, int, int, int64_t) {
    return clusters;
  }
  template <typename... Parameters, typename... Arguments>
  void Clusters(void (*kernel)(Parameters...), int count, int cluster, int threads,
                size_t shared_bytes, Arguments... arguments) {
    cuda_host::LaunchClusters(count, cluster, threads, shared_bytes, ++seed,
                              [&] { kernel(arguments...); });
  }
};

constexpr int64_t kShared = 227 << 10;

// How a call is run: with variants of the test's own, or as planned for the GPU.
template <typename Forward, typename Backward>
struct Own {
  int cluster;
  template <typename T, typename Call>
  int64_t Bytes(const Call&, int64_t) const {
    return 4 << 20;
  }
  template <typename T>
  bool Run(const LstmForward& call, int64_t max_steps, Launcher& launch) const {
    return cuda::hopper::RunForwardVariant<T, Forward>(call, max_steps, nullptr, cluster, kShared,
                                                       launch);
  }
  template <typename T>
  bool Run(const LstmBackward& call, int64_t max_steps, Launcher& launch) const {
    return cuda::hopper::RunBackwardVariant<T, Forward, Backward>(call, max_steps, nullptr, cluster,
                                                                  kShared, launch);
  }
};
struct Planned {
  static cuda::hopper::Plan Plan(const LstmProblem& p) {
    return cuda::hopper::ChoosePlan(p.units, p.dtype, cuda::hopper::kHopper);
  }
  template <typename T, typename Call>
  int64_t Bytes(const Call& call, int64_t max_steps) const {
    return cuda::hopper::HopperBytes<T>(call, max_steps, Plan(call.problem));
  }
  template <typename T, typename Call>
  bool Run(const Call& call, int64_t max_steps, Launcher& launch) const {
    return cuda::hopper::RunHopper<T>(call, max_steps, nullptr, Plan(call.problem), kShared,
                                      launch);
  }
};

// With a workspace of exactly the size asked for, NaN at first.
template <typename T, typename How, typename Call>
void Run(Call call, const Case<T>& one, const How& how, Launcher& launch) {
  std::vector<char> workspace(how.template Bytes<T>(call, one.x_rows), -1);
  call.workspace = workspace.data();
  if (!how.template Run<T>(call, one.x_rows, launch)) Fail("does not fit", one.p);
}

template <typename T, typename How>
CaseResults<T> OnExecutor(const Case<T>& one, const How& how, unsigned seed, int clusters) {
  CaseResults<T> r(one, one.x_rows);
  Launcher launch{seed, clusters};
  Run(r.Forward(one, true), one, how, launch);
  // For inference: the same without saved gates.
  if (seed % 2 == 0) {
    CaseResults<T> inference(one, one.x_rows);
    Run(inference.Forward(one, false), one, how, launch);
    if (!SameBits(inference.outputs, r.outputs)) Fail("saving changes outputs", one.p);
  }
  // In one of the two places for the scratch; with the gates saved, or computed again.
  std::vector<float> scratch(r.reserve.size());
  LstmBackward backward = r.Backward(one, seed % 2 == 0 ? nullptr : scratch.data());
  if (seed % 7 == 0) backward.reserve = nullptr;
  Run(backward, one, how, launch);
  return r;
}

// h and dG are rounded to the operands' precision before every product, by u = 2^-9 (bfloat16),
// 2^-12 (float16: eps/2 = 2^-11 each way is the bound), 2^-11 (tf32). A rounded sum over U values
// of size 1/sqrt(U) is off by about u in each of a few steps; results are rounded once more.
template <typename T>
constexpr double kLimit = std::is_same_v<T, BFloat16> ? 16 * 0x1p-9 : 16 * 0x1p-11;

// Row `row` of the case by itself has the bits it has in the batch.
template <typename T, typename How>
void CheckAlone(const Case<T>& whole, const CaseResults<T>& results, const How& how, int64_t row) {
  Case<T> one = whole;
  const int64_t U = whole.p.units, D = whole.p.input_dim, time = whole.p.timesteps;
  const auto part = [row](const std::vector<T>& values, int64_t n) {
    return std::vector<T>(values.begin() + row * n, values.begin() + (row + 1) * n);
  };
  const int64_t outputs = whole.p.return_sequences ? time * U : U;
  one.x = part(whole.x, time * D), one.h0 = part(whole.h0, U), one.c0 = part(whole.c0, U);
  one.d_outputs = part(whole.d_outputs, outputs);
  one.d_h = part(whole.d_h, U), one.d_c = part(whole.d_c, U);
  one.mask.assign(whole.mask.begin() + row * time, whole.mask.begin() + (row + 1) * time);
  one.p.batch = 1, one.x_rows = time;
  one.p.x = one.x.data(), one.p.mask = one.mask.data();
  if (whole.p.h0 != nullptr) one.p.h0 = one.h0.data(), one.p.c0 = one.c0.data();
  const CaseResults<T> alone = OnExecutor(one, how, 98, 1);
  const bool same =
      SameBits(alone.outputs, part(results.outputs, outputs)) &&
      SameBits(alone.h, part(results.h, U)) && SameBits(alone.c, part(results.c, U)) &&
      SameBits(alone.dx, part(results.dx, time * D)) && SameBits(alone.dh0, part(results.dh0, U)) &&
      SameBits(alone.dc0, part(results.dc0, U));
  if (!same) Fail("a row differs alone", whole.p);
}

template <typename T, typename How>
void Check(const CaseShape& shape, Mask mask, int options, const How& how) {
  const Case<T> one(shape, mask, options);
  const CaseResults<T> expected = OnCpu(one);
  const CaseResults<T> actual = OnExecutor(one, how, 1, 2);
  // Another order of the threads, other slots and clusters.
  const CaseResults<T> again = OnExecutor(one, how, 1000, 1);
  const auto a = actual.All(), b = again.All(), right = expected.All();
  for (size_t i = 0; i < a.size(); ++i) {
    if (a[i]->empty()) continue;
    const double difference = Difference(*a[i], *right[i]);
    if (!(difference <= kLimit<T>)) {
      std::fprintf(stderr, "result %zu, mask %d, options %d, off by %g: ", i,
                   static_cast<int>(mask), options, difference);
      Fail("differs from the CPU core", one.p);
    }
    if (!SameBits(*a[i], *b[i])) Fail("the order of threads matters", one.p);
  }
  if (mask == Mask::kHoles) CheckAlone(one, actual, how, shape.batch - 1);
}

// Clusters of two blocks with 8 slots: every mask and option.
typedef Own<ForwardVariant<1, 2, 256, true, 1>, BackwardVariant<1, 4, 256, true, 1, 1>> Pair;
// Of three, with weights in shared memory and up to 32 slots.
typedef Own<ForwardVariant<2, 2, 256, true, 4>, BackwardVariant<1, 6, 256, true, 2, 4>> Stored;

template <typename T>
void CheckAll() {
  constexpr bool kFull = std::is_same_v<T, BFloat16>;
  for (Mask mask : {Mask::kNone, Mask::kLengths, Mask::kHoles, Mask::kEmpty, Mask::kRagged}) {
    for (int options : {0, kBackwards, kZeroOutput, kBackwards + kLastOnly, kBare}) {
      if ((!kFull || mask != Mask::kHoles) && options != kBackwards) continue;
      if (!kFull && mask != Mask::kHoles && mask != Mask::kRagged) continue;
      Check<T>({19, 5, 9, 17}, mask, options, Pair{2});
    }
  }
  // float16 differs from bfloat16 in the multiplication's name alone.
  if constexpr (!std::is_same_v<T, Float16>) {
    Check<T>({19, 4, 3, 70}, Mask::kHoles, 0, Stored{3});
  }
}

// ClusterForwardKernel, ClusterBackwardKernel, PackForwardKernel, PackBackwardKernel,
// GatherOutputGradientsKernel, TensorProjectKernel, TensorInputGradientsKernel,
// TensorWeightGradientsKernel and SumSplitsKernel: every call runs all of them.
void CheckEverything() {
  CheckAll<BFloat16>();
  CheckAll<Float16>();
  CheckAll<float>();
  // Each variant as planned for the GPU; the third has weights in shared memory.
  Check<BFloat16>({11, 4, 3, 33}, Mask::kLengths, 0, Planned());
  Check<BFloat16>({9, 2, 3, 130}, Mask::kHoles, 0, Planned());
  Check<BFloat16>({2, 2, 2, 520}, Mask::kNone, 0, Planned());
  Check<BFloat16>({2, 2, 2, 400}, Mask::kNone, 0, Planned());
}

// Every path of the rule leads to a variant that fits.
void CheckPlans() {
  for (DType dtype : {DType::kFloat16, DType::kBFloat16, DType::kFloat32}) {
    const int64_t most = dtype == DType::kFloat32 ? 512 : 768;
    for (int64_t units = 1; units <= most + 1; ++units) {
      const auto plan = cuda::hopper::ChoosePlan(units, dtype, cuda::hopper::kHopper);
      const bool planned = plan.variant != cuda::hopper::Variant::kNone;
      LstmProblem p;
      p.units = units, p.dtype = dtype;
      if (planned != (units <= most)) Fail("the rule ends elsewhere", p);
      if (!planned) continue;
      const auto fits = [&](auto stored) {
        using T = decltype(stored);
        return cuda::hopper::WithVariants<T>(plan.variant, [&](auto forward, auto backward) {
          using F = decltype(forward);
          using B = decltype(backward);
          const auto f = cuda::hopper::ForwardShapeOf<F, T>(units, plan.cluster);
          const auto b = cuda::hopper::BackwardShapeOf<B, T>(units, plan.cluster);
          return f.warps * 32 <= F::kThreads && b.warps * 32 <= B::kThreads &&
                 f.cluster * f.warps * F::kTiles * 4 >= units && b.cluster * b.units >= units &&
                 b.chunks <= B::kChunks &&
                 cuda::hopper::ForwardSharedBytes<T, F>(f, 1) <= kShared &&
                 cuda::hopper::BackwardSharedBytes<T, B>(b, 1) <= kShared;
        });
      };
      if (!(dtype == DType::kFloat32 ? fits(float()) : fits(BFloat16()))) {
        Fail("the planned variant does not fit", p);
      }
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  const char* const names[] = {"nothing", "wait", "block", "cluster", "bytes"};
  for (int i = 0; argc > 1 && i < 5; ++i) {
    if (std::strcmp(argv[1], names[i]) == 0) cuda_host::broken = static_cast<cuda_host::Broken>(i);
  }
  if (argc > 1) {
    Check<BFloat16>({19, 4, 3, 70}, Mask::kHoles, 0, Stored{3});
  } else {
    CheckPlans();
    CheckEverything();
  }
  std::printf("%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}
