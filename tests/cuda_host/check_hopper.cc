// The Hopper kernels on the host executor, against the CPU core: every dtype, kind of mask and
// option, clusters of one to sixteen blocks, more rows than slots; the same bits in every order of
// the threads, with any number of slots and clusters, alone and in a batch.
//
//   check_hopper        0: passed
//   check_hopper NAME   the same, small, with one thing broken (cluster_host.h): must not pass
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

template <typename T, typename Forward, typename Backward>
CaseResults<T> OnExecutor(const Case<T>& one, int cluster, unsigned seed, int clusters) {
  CaseResults<T> r(one, one.x_rows);
  Launcher launch{seed, clusters};
  const cuda::DeviceLimits limits = {one.x_rows, 1, nullptr};
  std::vector<char> workspace(64 << 20, -1);
  CaseResults<T> inference(one, one.x_rows);
  for (const bool save : {false, true}) {
    LstmForward call = (save ? r : inference).Forward(one, save);
    call.workspace = workspace.data();
    if (!cuda::hopper::RunForwardVariant<T, Forward>(call, limits, cluster, 227 << 10, launch)) {
      Fail("does not fit", one.p);
    }
    if (save && !SameBits(inference.outputs, r.outputs)) Fail("saving changes outputs", one.p);
  }
  // In one of the two places for the scratch.
  std::vector<float> scratch(r.reserve.size());
  LstmBackward call = r.Backward(one, seed % 2 == 0 ? nullptr : scratch.data());
  workspace.assign(workspace.size(), -1);
  call.workspace = workspace.data();
  if (!cuda::hopper::RunBackwardVariant<T, Backward>(call, limits, cluster, 227 << 10, launch)) {
    Fail("does not fit, backwards", one.p);
  }
  return r;
}

// h and dG are rounded to the operands' precision before every product, by u = 2^-9 (bfloat16),
// 2^-12 (float16: eps/2 = 2^-11 each way is the bound), 2^-11 (tf32). A rounded sum over U values
// of size 1/sqrt(U) is off by about u in each of a few steps; results are rounded once more.
template <typename T>
constexpr double kLimit = std::is_same_v<T, BFloat16> ? 16 * 0x1p-9 : 16 * 0x1p-11;

template <typename T, typename Forward, typename Backward>
void Check(const CaseShape& shape, Mask mask, int options, int cluster) {
  const Case<T> one(shape, mask, options);
  const CaseResults<T> expected = OnCpu(one);
  const CaseResults<T> actual = OnExecutor<T, Forward, Backward>(one, cluster, 1, 2);
  const CaseResults<T> again = OnExecutor<T, Forward, Backward>(one, cluster, 1000, 1);
  const auto a = actual.All(), b = again.All(), right = expected.All();
  for (int i = 0; i < static_cast<int>(a.size()); ++i) {
    const double difference = Difference(*a[i], *right[i]);
    if (!(difference <= kLimit<T>)) {
      std::fprintf(stderr, "result %d, mask %d, options %d, off by %g: ", i,
                   static_cast<int>(mask), options, difference);
      Fail("differs from the CPU core", one.p);
    }
    if (!SameBits(*a[i], *b[i])) Fail("the order of threads matters", one.p);
  }
}

template <typename T>
void CheckAll() {
  typedef ForwardVariant<1, 2, 256, true, 4> Pair;
  typedef BackwardVariant<1, 4, 256, true, 1, 4> PairBack;
  Check<T, Pair, PairBack>({19, 5, 9, 17}, Mask::kHoles, 0, 2);
}

}  // namespace

int main() {
  CheckAll<BFloat16>();
  CheckAll<Float16>();
  CheckAll<float>();
  std::printf("%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}
