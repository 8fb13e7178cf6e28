// The calls of cuda_lstm.h on the host executor, against the CPU core (which the Python tests hold
// to the specification): every dtype, kind of mask and option, more rows than slots, several groups
// and blocks; the same bits in every order of the threads, on devices of every size, alone and in a
// batch; and every fault of CUDA's runtime. Prints the address of each kernel that ran.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <vector>

#include "cuda/cuda_lstm.h"
#include "cuda/scalar.cuh"
#include "cuda_runtime.h"

namespace {

using namespace masked_lstm;

int failures = 0;

void Fail(const char* what, const char* dtype, int options) {
  std::fprintf(stderr, "%s: %s (options %d)\n", dtype, what, options);
  ++failures;
}

template <typename T>
constexpr DType kDType = sizeof(T) == 8 ? DType::kFloat64 : DType::kFloat32;
template <>
constexpr DType kDType<Float16> = DType::kFloat16;
template <>
constexpr DType kDType<BFloat16> = DType::kBFloat16;

enum class Mask { kNone, kLengths, kHoles, kEmpty, kRagged, kLeft };

// Bits of `options`.
constexpr int kBackwards = 1, kZeros = 2, kLastOnly = 4, kNoOptional = 8, kOtherActivations = 16,
              kInputFactors = 32, kRecurrentFactors = 64, kRecompute = 128,
              kUnboundedActivations = 256;

struct Shape {
  int64_t batch, timesteps, input_dim, units;
};

template <typename T>
std::vector<T> Normal(std::mt19937& random, int64_t n, double scale) {
  std::normal_distribution<double> normal(0, scale);
  std::vector<T> values(n);
  for (T& value : values) value = cuda::Narrow<T>(static_cast<Compute<T>>(normal(random)));
  return values;
}

template <typename T>
struct Problem {
  Shape shape;
  std::vector<T> x, kernel, recurrent_kernel, bias, h0, c0, d_outputs, d_h, d_c;
  std::vector<T> input_factors, recurrent_factors;
  std::vector<uint8_t> mask;
  std::vector<int32_t> lengths;
  std::vector<int64_t> row_splits;
  LstmProblem p;
  int64_t x_rows, steps;
  bool recompute;

  Problem(const Shape& s, Mask kind, int options) : shape(s) {
    std::mt19937 random(7);
    const int64_t B = s.batch, T_ = s.timesteps, D = s.input_dim, U = s.units;
    lengths.resize(B);
    for (int32_t& length : lengths) length = random() % (T_ + 1);
    if (B > 1) lengths[0] = static_cast<int32_t>(T_), lengths[1] = 0;
    row_splits = {0};
    for (int32_t length : lengths) row_splits.push_back(row_splits.back() + length);
    x_rows = kind == Mask::kRagged ? row_splits.back() : B * T_;
    mask.resize(B * T_);
    for (uint8_t& valid : mask) valid = kind == Mask::kHoles && random() % 2 == 0;
    for (int64_t at = 0; at < B * T_ && kind == Mask::kLeft; ++at) {
      mask[at] = at % T_ >= T_ - lengths[at / T_];
    }
    x = Normal<T>(random, x_rows * D, 1);
    kernel = Normal<T>(random, D * 4 * U, 1 / std::sqrt(D + 1.0));
    recurrent_kernel = Normal<T>(random, U * 4 * U, 1 / std::sqrt(U));
    bias = Normal<T>(random, 4 * U, 0.5);
    h0 = Normal<T>(random, B * U, 0.5), c0 = Normal<T>(random, B * U, 1);
    p.dtype = kDType<T>;
    p.batch = B, p.input_dim = D, p.units = U;
    p.timesteps = T_;
    if (kind == Mask::kRagged) {
      p.timesteps = B == 0 ? 0 : *std::max_element(lengths.begin(), lengths.end());
      p.row_splits = row_splits.data();
    }
    p.go_backwards = options & kBackwards;
    p.zero_output_for_mask = options & kZeros;
    p.return_sequences = !(options & kLastOnly);
    recompute = options & kRecompute;
    p.isa = Isa::kGeneric;
    if (options & kOtherActivations) {
      p.activation = Activation::kSoftsign, p.recurrent_activation = Activation::kHardSigmoid;
    }
    if (options & kUnboundedActivations) {
      p.activation = Activation::kRelu, p.recurrent_activation = Activation::kLinear;
    }
    p.x = x.data(), p.kernel = kernel.data(), p.recurrent_kernel = recurrent_kernel.data();
    if (!(options & kNoOptional)) p.bias = bias.data(), p.h0 = h0.data(), p.c0 = c0.data();
    if (kind == Mask::kHoles || kind == Mask::kEmpty || kind == Mask::kLeft) p.mask = mask.data();
    if (kind == Mask::kLengths) p.sequence_lengths = lengths.data();
    if (!CountValidSteps(p, &steps).ok()) Fail("CountValidSteps", DTypeName(p.dtype), options);
    const int64_t outputs = p.return_sequences ? x_rows * U : B * U;
    d_outputs = Normal<T>(random, outputs, 1);
    d_h = Normal<T>(random, B * U, 1), d_c = Normal<T>(random, B * U, 1);
    input_factors = Normal<T>(random, 4 * B * D, 1);
    recurrent_factors = Normal<T>(random, 4 * B * U, 1);
    if (options & kInputFactors) p.input_factors = input_factors.data();
    if (options & kRecurrentFactors) p.recurrent_factors = recurrent_factors.data();
  }
};

template <typename T>
struct Results {
  std::vector<T> outputs, h, c, dx, d_kernel, d_recurrent_kernel, d_bias, dh0, dc0;

  std::vector<const std::vector<T>*> All() const {
    return {&outputs, &h, &c, &dx, &d_kernel, &d_recurrent_kernel, &d_bias, &dh0, &dc0};
  }
};

// Outputs start as garbage; both passes.
template <typename T, typename Forward, typename Backward>
Results<T> Run(const Problem<T>& problem, bool on_gpu, bool reserve_is_scratch, Forward run_forward,
               Backward run_backward) {
  const LstmProblem& p = problem.p;
  T garbage;
  std::memset(&garbage, 0x7f, sizeof(garbage));
  Results<T> r;
  const int64_t U = p.units, D = p.input_dim;
  const int64_t steps = on_gpu ? problem.x_rows : problem.steps;
  r.outputs.assign(problem.d_outputs.size(), garbage);
  r.h.assign(p.batch * U, garbage), r.c = r.h, r.dh0 = r.h, r.dc0 = r.h;
  r.dx.assign(problem.x.size(), garbage), r.d_kernel.assign(D * 4 * U, garbage);
  r.d_recurrent_kernel.assign(4 * U * U, garbage), r.d_bias.assign(4 * U, garbage);
  const Compute<T> nan = std::numeric_limits<Compute<T>>::quiet_NaN();
  std::vector<Compute<T>> reserve(steps * 5 * U, nan);
  std::vector<Compute<T>> scratch(reserve_is_scratch ? 0 : steps * 5 * U, nan);
  LstmForward forward;
  forward.problem = p;
  forward.outputs = r.outputs.data(), forward.h = r.h.data(), forward.c = r.c.data();
  if (!problem.recompute || !on_gpu) forward.reserve = reserve.data();
  run_forward(forward);
  LstmBackward backward;
  backward.problem = p;
  backward.reserve = forward.reserve;
  backward.scratch = reserve_is_scratch ? reserve.data() : scratch.data();
  backward.d_outputs = problem.d_outputs.data();
  backward.d_h = problem.d_h.data(), backward.d_c = problem.d_c.data();
  backward.dx = r.dx.data(), backward.d_kernel = r.d_kernel.data();
  backward.d_recurrent_kernel = r.d_recurrent_kernel.data(), backward.d_bias = r.d_bias.data();
  backward.dh0 = r.dh0.data(), backward.dc0 = r.dc0.data();
  run_backward(backward);
  return r;
}

template <typename T>
Results<T> OnCpu(const Problem<T>& problem) {
  std::vector<char> workspace;
  return Run<T>(
      problem, false, false,
      [&](LstmForward& call) {
        size_t bytes = 0;
        (void)LstmForwardWorkspaceBytes(call.problem, 1, &bytes);
        workspace.assign(bytes, 0);
        call.workspace = workspace.data(), call.workspace_bytes = bytes;
        if (!RunLstmForward(call, Threads()).ok()) Fail("the CPU core refuses", "", 0);
      },
      [&](LstmBackward& call) {
        size_t bytes = 0;
        (void)LstmBackwardWorkspaceBytes(call.problem, true, 1, &bytes);
        workspace.assign(bytes, 0);
        call.workspace = workspace.data(), call.workspace_bytes = bytes;
        if (!RunLstmBackward(call, Threads()).ok()) Fail("the CPU core refuses", "", 0);
      });
}

// Memory of exactly the size asked for, aligned as device memory is, and full of NaN.
struct Workspace {
  struct Free {
    void operator()(char* memory) const { std::free(memory); }
  };
  std::unique_ptr<char, Free> memory;

  template <typename Call>
  void GiveTo(Call* call, size_t bytes) {
    memory.reset(static_cast<char*>(std::aligned_alloc(256, bytes)));
    if (bytes % 256 != 0 || memory == nullptr) std::abort();
    std::memset(memory.get(), 0xff, bytes);
    call->workspace = memory.get();
    call->workspace_bytes = bytes;
  }
};

void Expect(const Status& status) {
  if (!status.ok()) Fail(status.message, "", 0);
}

// On simulated device `device`, whose size decides how the work is split.
template <typename T>
Results<T> OnExecutor(const Problem<T>& problem, unsigned seed, int device, bool reserve_is_scratch,
                      int32_t* bad_length = nullptr) {
  Workspace workspace;
  size_t bytes = 0;
  cuda_host::runtime.seed = seed;
  cuda_host::runtime.device = device;
  return Run<T>(
      problem, true, reserve_is_scratch,
      [&](LstmForward& call) {
        Expect(CudaForwardWorkspaceBytes(call, problem.x_rows, &bytes));
        workspace.GiveTo(&call, bytes);
        Expect(RunCudaForward(call, problem.x_rows, bad_length, nullptr));
        if (call.reserve == nullptr) return;
        // For inference: the same without saved gates.
        std::vector<T> outputs(problem.d_outputs.size());
        LstmForward inference = call;
        inference.outputs = outputs.data(), inference.reserve = nullptr;
        Expect(CudaForwardWorkspaceBytes(inference, problem.x_rows, &bytes));
        workspace.GiveTo(&inference, bytes);
        Expect(RunCudaForward(inference, problem.x_rows, bad_length, nullptr));
        if (std::memcmp(outputs.data(), call.outputs, outputs.size() * sizeof(T)) != 0) {
          Fail("saving the gates changes the outputs", DTypeName(problem.p.dtype), 0);
        }
      },
      [&](LstmBackward& call) {
        Expect(CudaBackwardWorkspaceBytes(call, problem.x_rows, &bytes));
        workspace.GiveTo(&call, bytes);
        Expect(RunCudaBackward(call, problem.x_rows, bad_length, nullptr));
      });
}

template <typename T>
bool Close(const std::vector<T>& a, const std::vector<T>& b) {
  double largest = 1;
  for (T value : b) largest = std::max<double>(largest, std::abs(cuda::Widen(value)));
  const double limit = sizeof(T) == 8 ? 1e-12 : sizeof(T) == 4 ? 1e-4 : 1e-2;
  for (size_t i = 0; i < a.size(); ++i) {
    const double difference = std::abs(double{cuda::Widen(a[i])} - double{cuda::Widen(b[i])});
    if (!(difference <= limit * largest)) return false;
  }
  return a.size() == b.size();
}

template <typename T>
bool Same(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

// Row `row` of the problem by itself has the bits it has in the batch.
template <typename T>
void CheckAlone(const Problem<T>& whole, const Results<T>& results, int64_t row, int options) {
  Problem<T> one = whole;
  const int64_t U = whole.p.units, D = whole.p.input_dim, T_ = whole.p.timesteps;
  const auto part = [row](const std::vector<T>& values, int64_t n) {
    return std::vector<T>(values.begin() + row * n, values.begin() + (row + 1) * n);
  };
  const int64_t outputs = whole.p.return_sequences ? T_ * U : U;
  one.x = part(whole.x, T_ * D), one.h0 = part(whole.h0, U), one.c0 = part(whole.c0, U);
  one.d_outputs = part(whole.d_outputs, outputs);
  one.d_h = part(whole.d_h, U), one.d_c = part(whole.d_c, U);
  one.mask.assign(whole.mask.begin() + row * T_, whole.mask.begin() + (row + 1) * T_);
  one.p.batch = 1, one.x_rows = T_;
  one.p.x = one.x.data(), one.p.mask = one.mask.data();
  if (whole.p.h0 != nullptr) one.p.h0 = one.h0.data(), one.p.c0 = one.c0.data();
  const Results<T> alone = OnExecutor(one, 99, 0, true);
  const bool same = Same(alone.outputs, part(results.outputs, outputs)) &&
                    Same(alone.h, part(results.h, U)) && Same(alone.c, part(results.c, U)) &&
                    Same(alone.dx, part(results.dx, T_ * D)) &&
                    Same(alone.dh0, part(results.dh0, U)) && Same(alone.dc0, part(results.dc0, U));
  if (!same) Fail("a row differs alone", DTypeName(whole.p.dtype), options);
}

template <typename T>
void CheckOne(const Shape& shape, Mask kind, int options) {
  const Problem<T> problem(shape, kind, options);
  const Results<T> expected = OnCpu(problem);
  const Results<T> actual = OnExecutor(problem, 1, 0, false);
  // Another order of the threads, another device, the reserve overwritten.
  const Results<T> again = OnExecutor(problem, 1000, 1 + shape.batch % 2, true);
  const auto a = actual.All(), b = again.All(), right = expected.All();
  for (size_t i = 0; i < a.size(); ++i) {
    if (!Close(*a[i], *right[i])) {
      std::fprintf(stderr, "result %zu, mask %d, units %d: ", i, static_cast<int>(kind),
                   static_cast<int>(shape.units));
      Fail("differs from the CPU core", DTypeName(problem.p.dtype), options);
    }
    if (!Same(*a[i], *b[i])) {
      Fail("the order of threads matters", DTypeName(problem.p.dtype), options);
    }
  }
  const bool factors = options & (kInputFactors | kRecurrentFactors);
  if (kind == Mask::kHoles && shape.batch > 1 && shape.timesteps > 0 && !factors) {
    CheckAlone(problem, actual, shape.batch - 1, options);
  }
}

template <typename T>
void Check() {
  constexpr int kFactors = kInputFactors | kRecurrentFactors;
  const Shape shapes[] = {{1, 1, 1, 1}, {5, 4, 3, 5},  {19, 5, 9, 17}, {3, 0, 2, 2},   {0, 3, 2, 2},
                          {3, 2, 0, 4}, {2, 3, 5, 70}, {2, 140, 1, 3}, {30, 3, 70, 16}};
  for (const Shape& shape : shapes) {
    const bool large = shape.units > 60 || shape.timesteps > 100 || shape.batch > 20;
    for (Mask kind : {Mask::kNone, Mask::kLengths, Mask::kHoles, Mask::kEmpty, Mask::kRagged}) {
      for (int options : {0, kBackwards, int{kZeros}, kBackwards | kLastOnly, int{kNoOptional},
                          int{kOtherActivations}}) {
        if ((large || sizeof(T) != 4) && (kind != Mask::kHoles || options > kBackwards)) continue;
        if ((kind == Mask::kNone || kind == Mask::kEmpty) && options != kBackwards) continue;
        if (kind == Mask::kRagged && (options & kZeros)) continue;
        CheckOne<T>(shape, kind, options);
      }
    }
  }
  CheckOne<T>({5, 4, 3, 5}, Mask::kHoles, kFactors | kBackwards);
  if (sizeof(T) != 4) return;
  CheckOne<T>({11, 3, 70, 21}, Mask::kHoles, kFactors);
  CheckOne<T>({4, 3, 5, 70}, Mask::kRagged, kFactors | kRecompute | kBackwards);
  CheckOne<T>({5, 4, 3, 5}, Mask::kLengths, kInputFactors);
  CheckOne<T>({19, 5, 9, 17}, Mask::kLeft, kBackwards);
  CheckOne<T>({5, 4, 3, 5}, Mask::kLeft, kUnboundedActivations);
  CheckOne<T>({11, 4, 3, 18}, Mask::kLengths, kRecompute);
  CheckOne<T>({3, 0, 2, 2}, Mask::kHoles, kRecompute);
}

// Lengths outside [0,T] and splits that do not rise from 0 to the values are made safe, and
// reported to who asks.
void CheckBadLengths() {
  Problem<float> problem({4, 5, 3, 6}, Mask::kLengths, 0);
  Problem<float> ragged({4, 5, 3, 6}, Mask::kRagged, 0);
  problem.lengths = {5, 0, 3, 2};
  const int64_t values = ragged.x_rows;
  ragged.row_splits = {0, 2, 2, values, values};
  int32_t bad_length = 0;
  const auto run = [&bad_length](const Problem<float>& which, unsigned seed) {
    const Results<float> results = OnExecutor(which, seed, 0, true, &bad_length);
    int32_t value = 2;
    Expect(ReadCudaFlag(&bad_length, nullptr, &value));
    if (value != bad_length) Fail("the flag is not read", "float32", 0);
    return results;
  };
  const Results<float> good[] = {run(problem, 1), run(ragged, 1)};
  if (bad_length != 0) Fail("good lengths are reported", "float32", 0);
  problem.lengths = {INT32_MAX, -3, 3, 2};
  ragged.row_splits = {-7, 2, 1, INT64_MAX, values - 1};
  const Results<float> bad_lengths = run(problem, 2);
  if (bad_length != 1) Fail("bad lengths are not reported", "float32", 0);
  Expect(ClearCudaFlag(&bad_length, nullptr));
  const Results<float> bad_splits = run(ragged, 2);
  if (bad_length != 1) Fail("bad splits are not reported", "float32", 0);
  for (int which : {0, 1}) {
    const auto a = good[which].All(), b = (which == 0 ? bad_lengths : bad_splits).All();
    for (size_t i = 0; i < a.size(); ++i) {
      if (!Same(*a[i], *b[i])) Fail("bad lengths are not clamped", "float32", which);
    }
  }
}

// Every error is one sentence, whichever call of the runtime it comes from; the call after it is
// right again, and CUDA has nothing left to tell the next caller.
void CheckFaults() {
  const Problem<float> problem({5, 4, 3, 5}, Mask::kHoles, 0);
  cuda_host::Runtime& runtime = cuda_host::runtime;
  const struct {
    cudaError_t error;
    StatusCode code;
    const char* words;
  } faults[] = {
      {cudaErrorMemoryAllocation, StatusCode::kOutOfMemory, "CUDA: out of memory"},
      {cudaErrorIllegalAddress, StatusCode::kDeviceError,
       "an illegal memory access was encountered (cudaErrorIllegalAddress; perhaps of an earlier"},
      {cudaErrorNoKernelImageForDevice, StatusCode::kUnsupported,
       "the kernels were compiled for 80,90a, the device has compute capability "},
      {cudaErrorNoDevice, StatusCode::kDeviceError, "no CUDA-capable device is detected"},
  };
  std::vector<float> outputs(problem.d_outputs.size()), reserve(problem.x_rows * 5 * 5);
  LstmForward forward;
  forward.problem = problem.p;
  forward.outputs = outputs.data(), forward.reserve = reserve.data();
  LstmBackward backward;
  backward.problem = problem.p;
  backward.reserve = reserve.data(), backward.scratch = reserve.data();
  backward.d_outputs = problem.d_outputs.data();
  Workspace workspaces[2];
  size_t bytes = 0;
  runtime.device = 0;
  Expect(CudaForwardWorkspaceBytes(forward, problem.x_rows, &bytes));
  workspaces[0].GiveTo(&forward, bytes);
  Expect(CudaBackwardWorkspaceBytes(backward, problem.x_rows, &bytes));
  workspaces[1].GiveTo(&backward, bytes);
  const auto run = [&](bool is_forward) {
    runtime.calls = 0;
    return is_forward ? RunCudaForward(forward, problem.x_rows, nullptr, nullptr)
                      : RunCudaBackward(backward, problem.x_rows, nullptr, nullptr);
  };
  for (bool is_forward : {true, false}) {
    const int occupancy_calls = runtime.occupancy_calls;
    Expect(run(is_forward));
    if (runtime.occupancy_calls != occupancy_calls) Fail("the device is asked again", "", 0);
    const int calls = runtime.calls;
    for (const auto& fault : faults) {
      for (int at = 1; at <= calls; ++at) {
        runtime.error = fault.error, runtime.fails_at = at;
        const Status status = run(is_forward);
        runtime.error = cudaSuccess;
        if (status.code != fault.code || std::strstr(status.message, fault.words) == nullptr) {
          Fail(status.message, "a fault is reported wrongly", at);
        }
        if (cudaGetLastError() != cudaSuccess) Fail("the error stays behind", "", at);
      }
    }
    Expect(run(is_forward));
  }
  const auto expect = [](const Status& status, const char* words) {
    if (status.ok() || std::strstr(status.message, words) == nullptr)
      Fail(status.message, words, 0);
  };
  LstmForward wrong = forward;
  --wrong.workspace_bytes;
  expect(RunCudaForward(wrong, problem.x_rows, nullptr, nullptr), "workspace: expected ");
  wrong = forward, wrong.workspace = static_cast<char*>(wrong.workspace) + 4;
  expect(RunCudaForward(wrong, problem.x_rows, nullptr, nullptr),
         "workspace: expected memory aligned to 64 bytes");
  wrong = forward, wrong.problem.units = 0;
  expect(RunCudaForward(wrong, problem.x_rows, nullptr, nullptr), "units from 1 to 2^20");
  wrong = forward, wrong.problem.timesteps = int64_t{1} << 31;
  expect(RunCudaForward(wrong, problem.x_rows, nullptr, nullptr), "timesteps");
  expect(RunCudaForward(forward, INT64_MAX, nullptr, nullptr), "a reserve below 2^56 values");
  runtime.device = 3;  // runs no block
  expect(RunCudaForward(forward, problem.x_rows, nullptr, nullptr), "cannot run the kernels");
  runtime.device = 0;
  // Everything goes to the stream it was given, and may be captured into a graph: the recomputing
  // pass and the flag too, but not reading the flag.
  auto* const stream = reinterpret_cast<cudaStream_t>(&runtime);
  int32_t flag = 0, value = 0;
  runtime.streams.clear();
  runtime.capturing = true;
  Expect(ClearCudaFlag(&flag, stream));
  Expect(RunCudaForward(forward, problem.x_rows, &flag, stream));
  Expect(RunCudaBackward(backward, problem.x_rows, &flag, stream));
  backward.reserve = nullptr;
  Expect(CudaBackwardWorkspaceBytes(backward, problem.x_rows, &bytes));
  workspaces[1].GiveTo(&backward, bytes);
  Expect(RunCudaBackward(backward, problem.x_rows, nullptr, stream));
  if (ReadCudaFlag(&flag, stream, &value).ok()) Fail("a wait is captured", "", 0);
  runtime.capturing = false;
  if (runtime.streams != std::set<cudaStream_t>{stream}) Fail("another stream is used", "", 0);
}

}  // namespace

int main() {
  CheckBadLengths();
  CheckFaults();
  Check<float>();
  Check<double>();
  Check<Float16>();
  Check<BFloat16>();
  for (const void* kernel : cuda_host::runtime.launched) std::printf("launched %p\n", kernel);
  std::printf("%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}
