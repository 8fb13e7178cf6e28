// The Hopper kernels on the host executor, against the CPU core: every dtype, kind of mask and
// option, clusters of one to sixteen blocks and groups over the grid, more rows than slots; the
// same bits in every order of the threads, with any number of slots and clusters, alone and in a
// batch, and where another call shares the launch.
//
//   check_hopper             passes
//   check_hopper WHAT NAME   clusters or grid: one check with NAME broken (cluster_host.h): fails;
//                            with nothing broken it passes
#include <iterator>
#include <type_traits>

#include "cluster_host.h"
#include "cuda/hopper/hopper_lstm.h"
#include "cuda/hopper/run_hopper.cuh"
#include "cuda_runtime.h"
#include "lstm_case.h"

namespace {

using namespace masked_lstm;
using cuda::hopper::BackwardClusters;
using cuda::hopper::BackwardGrid;
using cuda::hopper::BackwardVariant;
using cuda::hopper::ForwardClusters;
using cuda::hopper::ForwardGrid;
using cuda::hopper::ForwardVariant;
using cuda::hopper::GridVariant;

int failures = 0;

void Fail(const char* what, const LstmProblem& p) {
  std::fprintf(stderr, "%s: %s: batch %d, units %d\n", DTypeName(p.dtype), what,
               static_cast<int>(p.batch), static_cast<int>(p.units));
  ++failures;
}

constexpr int kGroupBlocks = 3;

// The launches of run_hopper.cuh.
struct Launcher {
  unsigned seed;
  int clusters;         // or groups of kGroupBlocks blocks that run at once
  int recurrences = 0;  // launches of them

  template <typename... Parameters, typename... Arguments>
  void operator()(void (*kernel)(Parameters...), int blocks, int blocks_y, int threads,
                  size_t shared_bytes, bool cooperative, Arguments... arguments) {
    cuda_host::runtime.launched.insert(reinterpret_cast<const void*>(kernel));
    cuda_host::Launch(blocks, blocks_y, threads, shared_bytes, cooperative, ++seed,
                      [&] { kernel(arguments...); });
  }
  void Clear(void* memory, size_t bytes) { std::memset(memory, 0, bytes); }
  template <typename Kernel>
  int ResidentClusters(Kernel, int, int, int64_t) {
    return clusters;
  }
  template <typename Kernel>
  int ResidentBlocks(Kernel, int, int64_t) {
    return clusters * kGroupBlocks;
  }
  template <typename... Parameters, typename... Arguments>
  void Cooperative(void (*kernel)(Parameters...), int blocks, int threads, size_t shared_bytes,
                   Arguments... arguments) {
    cuda_host::runtime.launched.insert(reinterpret_cast<const void*>(kernel));
    ++recurrences;
    cuda_host::LaunchClusters(1, blocks, threads, shared_bytes, ++seed,
                              [&] { kernel(arguments...); });
  }
  template <typename... Parameters, typename... Arguments>
  void Clusters(void (*kernel)(Parameters...), int count, int cluster, int threads,
                size_t shared_bytes, Arguments... arguments) {
    cuda_host::runtime.launched.insert(reinterpret_cast<const void*>(kernel));
    recurrences += cluster > 1;
    cuda_host::LaunchClusters(count, cluster, threads, shared_bytes, ++seed,
                              [&] { kernel(arguments...); });
  }
};

constexpr auto kDevice = cuda::hopper::HopperSizes(132);
constexpr int64_t kShared = kDevice.shared_bytes;

// How calls are run: with variants of the test's own, or as planned for the GPU.
template <template <typename, typename> class ForwardOf, typename Forward,
          template <typename, typename> class BackwardOf, typename Backward>
struct Own {
  cuda::hopper::Plan plan;

  template <typename T, typename F>
  auto With(int64_t units, F f) const {
    return f(ForwardOf<T, Forward>(units, plan), BackwardOf<T, Backward>(units, plan));
  }
  template <typename T, typename Call>
  int64_t Bytes(const Call& call, int64_t max_steps) const {
    return With<T>(call.problem.units, [&](auto forward, auto backward) {
      return cuda::hopper::RecurrenceBytes(call, max_steps, forward, backward);
    });
  }
  template <typename T>
  bool Run(const LstmForward* calls, int count, int64_t max_steps, Launcher& launch) const {
    return With<T>(calls->problem.units, [&](auto forward, auto) {
      return cuda::hopper::RunForwardCalls<T>(calls, count, max_steps, nullptr, forward, kShared,
                                              launch);
    });
  }
  template <typename T>
  bool Run(const LstmBackward* calls, int count, int64_t max_steps, Launcher& launch) const {
    return With<T>(calls->problem.units, [&](auto forward, auto backward) {
      return cuda::hopper::RunBackwardCalls<T>(calls, count, max_steps, nullptr, forward, backward,
                                               kShared, launch);
    });
  }
};
// The calls of hopper_lstm.h, as a Hopper GPU's driver would get them.
struct Calls {
  CudaChoice choice = CudaChoice::kHopper;
  int device = cuda_host::kFirstHopper;

  template <typename Call>
  void Choose(Call* call, Launcher& launch) const {
    call->problem.cuda_choice = choice;
    cuda_host::runtime.device = device;
    cuda_host::runtime.seed = launch.seed;
  }
  static Status WorkspaceBytes(const LstmForward& call, int64_t max_steps, size_t* bytes) {
    return HopperForwardWorkspaceBytes(call, max_steps, bytes);
  }
  static Status WorkspaceBytes(const LstmBackward& call, int64_t max_steps, size_t* bytes) {
    return HopperBackwardWorkspaceBytes(call, max_steps, bytes);
  }
  static Status RunAll(const LstmForward* calls, int count, int64_t max_steps) {
    return RunHopperForward(calls, count, max_steps, nullptr, nullptr);
  }
  static Status RunAll(const LstmBackward* calls, int count, int64_t max_steps) {
    return RunHopperBackward(calls, count, max_steps, nullptr, nullptr);
  }
  // Of a call that holds only what the size may follow from, as a binding asks before it has
  // arrays.
  template <typename T, typename Call>
  int64_t Bytes(const Call& call, int64_t max_steps) const {
    Call asked;
    asked.problem = call.problem;
    asked.reserve = call.reserve;
    Launcher none{1, 1};
    Choose(&asked, none);
    size_t bytes = 0;
    if (!WorkspaceBytes(asked, max_steps, &bytes).ok()) Fail("no workspace", call.problem);
    return static_cast<int64_t>(bytes);
  }
  template <typename T, typename Call>
  bool Run(Call* calls, int count, int64_t max_steps, Launcher& launch) const {
    for (int i = 0; i < count; ++i) {
      Choose(&calls[i], launch);
      calls[i].workspace_bytes = Bytes<T>(calls[i], max_steps);
    }
    const Status status = RunAll(calls, count, max_steps);
    if (!status.ok()) std::fprintf(stderr, "%s\n", status.message);
    return status.ok();
  }
};

// With workspaces of the size asked for, aligned as device memory is, NaN at first.
template <typename T, typename How, typename Call>
void Run(Call* calls, int count, const Case<T>& one, const How& how, Launcher& launch) {
  std::vector<char> workspaces[2];
  for (int i = 0; i < count; ++i) {
    workspaces[i].assign(how.template Bytes<T>(calls[i], one.x_rows) + 64, -1);
    const auto address = reinterpret_cast<uintptr_t>(workspaces[i].data());
    calls[i].workspace = workspaces[i].data() + (64 - address % 64) % 64;
  }
  if (!how.template Run<T>(calls, count, one.x_rows, launch)) Fail("does not fit", one.p);
}
template <typename T, typename How, typename Call>
void Run(Call call, const Case<T>& one, const How& how, Launcher& launch) {
  Run(&call, 1, one, how, launch);
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

// The directions of a bidirectional layer, in one launch and by themselves; and the gates computed
// again, of both.
template <typename T, typename How>
void CheckPair(const CaseShape& shape, const How& how, int launches) {
  const Case<T> cases[] = {Case<T>(shape, Mask::kHoles, 0),
                           Case<T>(shape, Mask::kHoles, kBackwards + kLastOnly)};
  CaseResults<T> together[] = {CaseResults<T>(cases[0], cases[0].x_rows),
                               CaseResults<T>(cases[1], cases[1].x_rows)};
  for (int saved : {1, 0}) {
    Launcher launch{77, 3};
    LstmForward forward[2];
    LstmBackward backward[2];
    for (int i = 0; i < 2; ++i) {
      forward[i] = together[i].Forward(cases[i], saved);
      backward[i] = together[i].Backward(cases[i], nullptr);
      if (!saved) backward[i].reserve = nullptr;
    }
    Run(forward, 2, cases[0], how, launch);
    Run(backward, 2, cases[0], how, launch);
    if (launch.recurrences != launches * (saved ? 2 : 3))
      Fail("another number of launches", cases[0].p);
    for (int i = 0; i < 2; ++i) {
      const CaseResults<T> alone = OnExecutor(cases[i], how, 5, 2);
      const auto a = together[i].All(), b = alone.All();
      for (size_t k = 0; k < a.size(); ++k) {
        if (!SameBits(*a[k], *b[k]))
          Fail("a call differs where another shares the launch", cases[i].p);
      }
    }
  }
}

// The reserve is one format: the backward pass of these kernels after the forward pass of those of
// run.cuh, and the other way round.
template <typename T, typename How>
void CheckCrossed(const CaseShape& shape, Mask mask, const How& how) {
  const Case<T> one(shape, mask, kBackwards);
  const CaseResults<T> expected = OnCpu(one);
  const cuda::DeviceLimits limits = {one.x_rows, 4, 3, nullptr};
  for (bool hopper_first : {false, true}) {
    CaseResults<T> r(one, one.x_rows);
    Launcher launch{hopper_first ? 31u : 32u, 2};
    std::vector<char> workspace;
    LstmForward forward = r.Forward(one, true);
    LstmBackward backward = r.Backward(one, nullptr);
    if (hopper_first) {
      Run(forward, one, how, launch);
      workspace.assign(cuda::BackwardWorkspaceBytes<T>(backward, limits), -1);
      backward.workspace = workspace.data();
      cuda::RunBackward<T>(backward, limits, launch);
    } else {
      workspace.assign(cuda::ForwardWorkspaceBytes<T>(forward, limits), -1);
      forward.workspace = workspace.data();
      cuda::RunForward<T>(forward, limits, launch);
      Run(backward, one, how, launch);
    }
    const auto a = r.All(), right = expected.All();
    for (size_t i = 0; i < a.size(); ++i) {
      if (!(Difference(*a[i], *right[i]) <= kLimit<T>)) Fail("a crossed reserve differs", one.p);
    }
  }
}

// Clusters of two blocks with 8 slots: every mask and option.
typedef Own<ForwardClusters, ForwardVariant<1, 2, 256, 1>, BackwardClusters,
            BackwardVariant<1, 4, 256, 1, 1>>
    Pair;
// Of three, with weights in shared memory and up to 32 slots.
typedef Own<ForwardClusters, ForwardVariant<2, 2, 256, 4>, BackwardClusters,
            BackwardVariant<1, 6, 256, 2, 4>>
    Stored;
// Groups over the grid of three blocks of two warps, with weights in shared memory.
typedef Own<ForwardGrid, GridVariant<4, 1, 64, 4>, BackwardGrid, GridVariant<1, 2, 64, 4>> Grid;
constexpr cuda::hopper::Plan kPair = {cuda::hopper::Variant::kNone, 2, 0};
constexpr cuda::hopper::Plan kThree = {cuda::hopper::Variant::kNone, 3, 2};

template <typename T>
void CheckAll() {
  constexpr bool kFull = std::is_same_v<T, BFloat16>;
  for (Mask mask : {Mask::kNone, Mask::kLengths, Mask::kHoles, Mask::kEmpty, Mask::kRagged}) {
    for (int options : {0, kBackwards, kZeroOutput, kBackwards + kLastOnly, kBare}) {
      if ((!kFull || mask != Mask::kHoles) && options != kBackwards) continue;
      if (!kFull && mask != Mask::kHoles && mask != Mask::kRagged) continue;
      Check<T>({19, 5, 9, 17}, mask, options, Pair{kPair});
    }
  }
  // float16 differs from bfloat16 in the multiplication's name alone.
  if constexpr (!std::is_same_v<T, Float16>) {
    Check<T>({19, 4, 3, 70}, Mask::kHoles, 0, Stored{kThree});
    Check<T>({37, 4, 3, 48}, Mask::kHoles, 0, Grid{kThree});
  }
}

// Which kernel takes a call; too small a workspace, a cluster that the device cannot run and every
// fault of the runtime: one sentence each, and nothing worse.
constexpr int kSmallest = cuda_host::kFirstHopper + 1;  // 3 multiprocessors

void CheckCalls() {
  cuda_host::Runtime& runtime = cuda_host::runtime;
  LstmProblem p;
  p.dtype = DType::kBFloat16, p.batch = 2, p.cuda_choice = CudaChoice::kHopper;
  const auto expect = [&](int device, int64_t units, CudaKernel kernel) {
    runtime.device = device, p.units = units;
    if (HopperKernel(p, 4) != kernel) Fail("another kernel takes it", p);
  };
  expect(0, 64, CudaKernel::kGroups);  // an older GPU
  expect(cuda_host::kFirstHopper, 640, CudaKernel::kClusters);
  expect(cuda_host::kFirstHopper, 769, CudaKernel::kGroups);  // more blocks than run at once
  p.cuda_choice = CudaChoice::kHopperGrid;
  expect(cuda_host::kFirstHopper, 640, CudaKernel::kGrid);
  expect(kSmallest, 49, CudaKernel::kGroups);
  expect(kSmallest, 48, CudaKernel::kGrid);
  p.dtype = DType::kFloat32;
  expect(kSmallest, 48, CudaKernel::kGrid);
  p.cuda_choice = CudaChoice::kHopper;
  expect(kSmallest, 48, CudaKernel::kGroups);  // tf32 was not asked for

  const Case<BFloat16> one({2, 2, 2, 140}, Mask::kNone, 0);
  CaseResults<BFloat16> r(one, one.x_rows);
  LstmForward call = r.Forward(one, true);
  alignas(64) static char workspace[1 << 21];
  Launcher launch{1, 1};
  const Calls how;
  how.Choose(&call, launch);
  call.workspace = workspace;
  call.workspace_bytes = how.Bytes<BFloat16>(call, one.x_rows) - 1;
  const auto refused = [&](const char* words) {
    const Status status = RunHopperForward(&call, 1, one.x_rows, nullptr, nullptr);
    if (status.ok() || std::strstr(status.message, words) == nullptr) Fail(words, one.p);
  };
  refused("workspace: expected");
  call.workspace_bytes = sizeof(workspace);
  runtime.device = kSmallest;
  refused("expected a GPU that runs a cluster or group");
  call.problem.cuda_choice = CudaChoice::kHopperGrid;  // the workspace is enough for any device
  refused("expected a GPU that runs a cluster or group");
  call.problem.cuda_choice = CudaChoice::kHopper;
  runtime.device = cuda_host::kFirstHopper;
  for (int at = 1;; ++at) {
    runtime.error = cudaErrorIllegalAddress, runtime.fails_at = at, runtime.calls = 0;
    const Status status = RunHopperForward(&call, 1, one.x_rows, nullptr, nullptr);
    runtime.error = cudaSuccess;
    if (runtime.calls < at) break;  // it ran to its end
    if (status.ok()) Fail("a fault of the runtime is not told", one.p);
  }
}

void CheckEverything() {
  CheckAll<BFloat16>();
  CheckAll<Float16>();
  CheckAll<float>();
  // Each variant as planned for the GPU; the third has weights in shared memory.
  Check<BFloat16>({11, 4, 3, 33}, Mask::kLengths, 0, Calls());
  Check<BFloat16>({9, 2, 3, 130}, Mask::kHoles, 0, Calls());
  Check<BFloat16>({2, 2, 2, 520}, Mask::kNone, 0, Calls());
  Check<BFloat16>({2, 2, 2, 300}, Mask::kNone, 0, Calls());
  Check<BFloat16>({2, 2, 2, 400}, Mask::kNone, 0, Calls());
  Check<BFloat16>({3, 2, 0, 17}, Mask::kHoles, 0, Calls());  // no input
  const Calls tf32 = {CudaChoice::kHopperTf32};
  // Products of several tiles and stages, copied 16 bytes at once.
  Check<BFloat16>({9, 17, 200, 36}, Mask::kNone, 0, Calls());
  Check<float>({7, 19, 104, 36}, Mask::kNone, 0, tf32);
  for (int units : {33, 70, 200, 300}) Check<float>({2, 2, 3, units}, Mask::kNone, 0, tf32);
  for (int options : {int{kBackwards}, int{kBare}}) {
    Check<BFloat16>({9, 4, 3, 41}, Mask::kRagged, options, Grid{kThree});
  }
  CheckCrossed<BFloat16>({19, 4, 3, 17}, Mask::kHoles, Pair{kPair});
  CheckCrossed<float>({11, 3, 3, 41}, Mask::kRagged, Grid{kThree});
  CheckPair<BFloat16>({19, 4, 3, 17}, Pair{kPair}, 1);
  CheckPair<BFloat16>({19, 3, 3, 41}, Grid{kThree}, 2);
  CheckPair<BFloat16>({9, 3, 3, 20}, Calls(), 0);  // whose launches are not counted
  Check<BFloat16>({9, 3, 3, 40}, Mask::kHoles, 0, Calls{CudaChoice::kHopperGrid, kSmallest});
  CheckCalls();
}

template <typename T, typename V>
bool Fits(const ForwardClusters<T, V>& f, int64_t units) {
  return f.shape.warps * 32 <= V::kThreads && f.tiles * 4 >= units &&
         cuda::hopper::ForwardSharedBytes<T, V>(f.shape, 1) <= kShared;
}
template <typename T, typename V>
bool Fits(const BackwardClusters<T, V>& b, int64_t units) {
  return b.shape.warps * 32 <= V::kThreads && b.shape.cluster * b.shape.units >= units &&
         b.shape.chunks <= V::kChunks &&
         cuda::hopper::BackwardSharedBytes<T, V>(b.shape, 1) <= kShared;
}
template <typename Recurrence, typename V>
bool GridFits(const Recurrence& r, V, int64_t units, int rows_of_unit) {
  const auto& shape = r.shape;
  return shape.blocks * V::kTiles * 16 >= units * rows_of_unit && shape.groups >= 1 &&
         shape.groups * shape.blocks <= kDevice.processors &&
         shape.blocks * shape.block_bytes <= shape.row_bytes &&
         cuda::hopper::GridSharedBytes<V>(shape, 1) <= kShared;
}
template <typename T, typename V>
bool Fits(const ForwardGrid<T, V>& f, int64_t units) {
  return GridFits(f, V(), units, 4);
}
template <typename T, typename V>
bool Fits(const BackwardGrid<T, V>& b, int64_t units) {
  return GridFits(b, V(), units, 1);
}

// Every path of the rule leads to a variant that fits; where clusters end, and the grid.
void CheckPlans() {
  for (DType dtype : {DType::kFloat16, DType::kBFloat16, DType::kFloat32}) {
    const bool tf32 = dtype == DType::kFloat32;
    const int64_t most = tf32 ? 512 : 768, most_of_all = tf32 ? 1280 : 2112;
    for (int64_t units = 1; units <= most_of_all + 1; ++units) {
      const auto plan = cuda::hopper::ChoosePlan(units, dtype, kDevice);
      const bool planned = plan.variant != cuda::hopper::Variant::kNone;
      const bool grid = plan.variant == cuda::hopper::Variant::kGrid;
      LstmProblem p;
      p.units = units, p.dtype = dtype;
      if (planned != (units <= most_of_all) || grid != (planned && units > most)) {
        Fail("the rule ends elsewhere", p);
      }
      if (!planned) continue;
      const auto fits = [&](auto stored) {
        using T = decltype(stored);
        return cuda::hopper::WithRecurrences<T>(
            units, plan, [&](auto f, auto b) { return Fits(f, units) && Fits(b, units); });
      };
      if (!(tf32 ? fits(float()) : fits(BFloat16()))) Fail("the planned variant does not fit", p);
    }
  }
  // Fewer multiprocessors, fewer units.
  const auto small = cuda::hopper::HopperSizes(60);
  for (int64_t units : {960, 961}) {
    const auto plan = cuda::hopper::ChoosePlan(units, DType::kBFloat16, small);
    if ((plan.variant == cuda::hopper::Variant::kGrid) != (units == 960)) {
      Fail("a group of more blocks than run at once", LstmProblem());
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  cuda_host::launch_clusters = cuda_host::LaunchClusters;
  const char* const names[] = {"nothing", "wait", "block", "cluster", "bytes", "release", "copies"};
  for (size_t i = 0; argc > 2 && i < std::size(names); ++i) {
    if (std::strcmp(argv[2], names[i]) == 0) cuda_host::broken = static_cast<cuda_host::Broken>(i);
  }
  if (argc > 2 && std::strcmp(argv[1], "grid") == 0) {
    Check<BFloat16>({11, 4, 3, 48}, Mask::kHoles, 0, Grid{kThree});
  } else if (argc > 2) {
    Check<BFloat16>({19, 4, 3, 70}, Mask::kHoles, 0, Stored{kThree});
    Check<BFloat16>({19, 9, 4, 34}, Mask::kNone, 0, Stored{kThree});
    Check<BFloat16>({19, 9, 4, 18}, Mask::kNone, 0, Pair{kPair});
  } else {
    CheckPlans();
    CheckEverything();
  }
  for (const void* kernel : cuda_host::runtime.launched) std::printf("launched %p\n", kernel);
  std::printf("%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}
