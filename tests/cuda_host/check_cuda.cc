// The CUDA kernels on the host executor, against the CPU core (which the Python tests hold to the
// specification): every dtype, kind of mask and option, more rows than slots, several groups and
// blocks; the same bits in every order of the threads, alone and in a batch.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

#include "cuda/run.cuh"
#include "cuda_host.h"

namespace {

using namespace masked_lstm;

int failures = 0;

void Fail(const char* what, const char* dtype, int options) {
  std::fprintf(stderr, "%s: %s (options %d)\n", dtype, what, options);
  ++failures;
}

// CUDA's launches for run.cuh.
struct Launcher {
  unsigned seed = 0;

  template <typename... Parameters, typename... Arguments>
  void operator()(void (*kernel)(Parameters...), int blocks, int blocks_y, int threads,
                  size_t shared_bytes, bool cooperative, Arguments... arguments) {
    cuda_host::Launch(blocks, blocks_y, threads, shared_bytes, cooperative, ++seed,
                      [&] { kernel(arguments...); });
  }
  void Clear(void* memory, size_t bytes) { std::memset(memory, 0, bytes); }
};

template <typename T>
constexpr DType kDType = sizeof(T) == 8 ? DType::kFloat64 : DType::kFloat32;
template <>
constexpr DType kDType<Float16> = DType::kFloat16;
template <>
constexpr DType kDType<BFloat16> = DType::kBFloat16;

enum class Mask { kNone, kLengths, kHoles, kEmpty, kRagged };

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
  std::vector<uint8_t> mask;
  std::vector<int32_t> lengths;
  std::vector<int64_t> row_splits;
  LstmProblem p;
  int64_t x_rows, steps;

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
    p.go_backwards = options & 1;
    p.zero_output_for_mask = options & 2;
    p.return_sequences = !(options & 4);
    p.isa = Isa::kGeneric;
    if (options & 16) {
      p.activation = Activation::kSoftsign, p.recurrent_activation = Activation::kHardSigmoid;
    }
    p.x = x.data(), p.kernel = kernel.data(), p.recurrent_kernel = recurrent_kernel.data();
    if (!(options & 8)) p.bias = bias.data(), p.h0 = h0.data(), p.c0 = c0.data();
    if (kind == Mask::kHoles || kind == Mask::kEmpty) p.mask = mask.data();
    if (kind == Mask::kLengths) p.sequence_lengths = lengths.data();
    if (!CountValidSteps(p, &steps).ok()) Fail("CountValidSteps", DTypeName(p.dtype), options);
    const int64_t outputs = p.return_sequences ? x_rows * U : B * U;
    d_outputs = Normal<T>(random, outputs, 1);
    d_h = Normal<T>(random, B * U, 1), d_c = Normal<T>(random, B * U, 1);
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
  std::vector<Compute<T>> reserve(steps * 5 * U), scratch(reserve_is_scratch ? 0 : steps * 5 * U);
  LstmForward forward;
  forward.problem = p;
  forward.outputs = r.outputs.data(), forward.h = r.h.data(), forward.c = r.c.data();
  forward.reserve = reserve.data();
  run_forward(forward);
  LstmBackward backward;
  backward.problem = p;
  backward.reserve = reserve.data();
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

template <typename T>
Results<T> OnExecutor(const Problem<T>& problem, unsigned seed, int resident_blocks,
                      bool reserve_is_scratch, int32_t* bad_length = nullptr) {
  std::vector<char> workspace;
  const cuda::DeviceLimits limits = {problem.x_rows, resident_blocks, bad_length};
  Launcher launch{seed};
  return Run<T>(
      problem, true, reserve_is_scratch,
      [&](LstmForward& call) {
        workspace.assign(cuda::ForwardWorkspaceBytes<T>(call, limits), -1);
        call.workspace = workspace.data();
        cuda::RunForward<T>(call, limits, launch);
        // For inference: the same without saved gates.
        std::vector<T> outputs(problem.d_outputs.size());
        LstmForward inference = call;
        inference.outputs = outputs.data(), inference.reserve = nullptr;
        workspace.assign(cuda::ForwardWorkspaceBytes<T>(inference, limits), -1);
        inference.workspace = workspace.data();
        cuda::RunForward<T>(inference, limits, launch);
        if (std::memcmp(outputs.data(), call.outputs, outputs.size() * sizeof(T)) != 0) {
          Fail("saving the gates changes the outputs", DTypeName(problem.p.dtype), 0);
        }
      },
      [&](LstmBackward& call) {
        workspace.assign(cuda::BackwardWorkspaceBytes<T>(call, limits), -1);
        call.workspace = workspace.data();
        cuda::RunBackward<T>(call, limits, launch);
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
  const Results<T> alone = OnExecutor(one, 99, 64, true);
  const bool same = Same(alone.outputs, part(results.outputs, outputs)) &&
                    Same(alone.h, part(results.h, U)) && Same(alone.c, part(results.c, U)) &&
                    Same(alone.dx, part(results.dx, T_ * D)) &&
                    Same(alone.dh0, part(results.dh0, U)) && Same(alone.dc0, part(results.dc0, U));
  if (!same) Fail("a row differs alone", DTypeName(whole.p.dtype), options);
}

template <typename T>
void Check() {
  const Shape shapes[] = {{1, 1, 1, 1}, {5, 4, 3, 5},  {19, 5, 9, 17}, {3, 0, 2, 2},   {0, 3, 2, 2},
                          {3, 2, 0, 4}, {2, 3, 5, 70}, {2, 140, 1, 3}, {30, 3, 70, 16}};
  for (const Shape& shape : shapes) {
    const bool large = shape.units > 60 || shape.timesteps > 100 || shape.batch > 20;
    for (Mask kind : {Mask::kNone, Mask::kLengths, Mask::kHoles, Mask::kEmpty, Mask::kRagged}) {
      for (int options : {0, 1, 2, 5, 8, 16}) {
        if ((large || sizeof(T) != 4) && (kind != Mask::kHoles || options > 1)) continue;
        if ((kind == Mask::kNone || kind == Mask::kEmpty) && options != 1) continue;
        if (kind == Mask::kRagged && (options & 2)) continue;
        const Problem<T> problem(shape, kind, options);
        const Results<T> expected = OnCpu(problem);
        const Results<T> actual = OnExecutor(problem, 1, 64, false);
        // Another order of the threads, other groups, the reserve overwritten.
        const Results<T> again = OnExecutor(problem, 1000, 1, true);
        const auto a = actual.All(), b = again.All(), right = expected.All();
        for (size_t i = 0; i < a.size(); ++i) {
          if (!Close(*a[i], *right[i])) {
            std::fprintf(stderr, "result %zu, mask %d: ", i, static_cast<int>(kind));
            Fail("differs from the CPU core", DTypeName(problem.p.dtype), options);
          }
          if (!Same(*a[i], *b[i]))
            Fail("the order of threads matters", DTypeName(problem.p.dtype), options);
        }
        if (kind == Mask::kHoles && shape.batch > 1 && shape.timesteps > 0) {
          CheckAlone(problem, actual, shape.batch - 1, options);
        }
      }
    }
  }
}

// Lengths outside [0,T] are clamped, and reported to who asks.
void CheckBadLengths() {
  Problem<float> problem({4, 5, 3, 6}, Mask::kLengths, 0);
  problem.lengths = {5, 0, 3, 2};
  int32_t bad_length = 0;
  const Results<float> good = OnExecutor(problem, 1, 64, true, &bad_length);
  if (bad_length != 0) Fail("good lengths are reported", "float32", 0);
  problem.lengths = {INT32_MAX, -3, 3, 2};
  const Results<float> bad = OnExecutor(problem, 2, 64, true, &bad_length);
  if (bad_length != 1) Fail("bad lengths are not reported", "float32", 0);
  const auto a = good.All(), b = bad.All();
  for (size_t i = 0; i < a.size(); ++i) {
    if (!Same(*a[i], *b[i])) Fail("bad lengths are not clamped", "float32", 0);
  }
}

}  // namespace

int main() {
  CheckBadLengths();
  Check<float>();
  Check<double>();
  Check<Float16>();
  Check<BFloat16>();
  std::printf("%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}
