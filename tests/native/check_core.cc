// Runs the core under a sanitizer: every instruction set, every dtype, masks and options of every
// kind, in buffers of exactly the promised size, on several threads. Checks that all instruction
// sets agree with the generic one, which the Python tests hold to the specification.
//
// "wide" is the 64-byte kernel compiled without AVX-512 (the compiler splits each vector), so that
// the layout AVX-512 uses runs where AVX-512 does not.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <future>
#include <mutex>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "cpu/cpu_lstm.h"
#include "cpu/isa.h"
#include "cpu/stored_types.h"
#include "host/parallel_region.h"
#include "lstm.h"

#if defined(MASKED_LSTM_WIDE)
namespace masked_lstm {
namespace wide {
extern const CpuKernels kKernels;
}
}  // namespace masked_lstm
#endif

namespace {

using namespace masked_lstm;

int failures = 0;

void Fail(const char* what, const char* kernels) {
  std::fprintf(stderr, "%s: %s\n", kernels, what);
  ++failures;
}

void Expect(const Status& status, const char* kernels) {
  if (!status.ok()) Fail(status.message, kernels);
}

// One thread per worker, some of them late.
void RunOnThreads(void*, int workers, void (*body)(void*, int), void* argument) {
  std::vector<std::thread> threads;
  ParallelRegion::Run(workers, body, argument, [&](auto closure) {
    threads.emplace_back([closure, late = threads.size() % 2 == 1]() mutable {
      if (late) std::this_thread::sleep_for(std::chrono::milliseconds(1));
      closure();
    });
  });
  for (std::thread& thread : threads) thread.join();
}

// A pool whose tasks are run in order by `threads` threads.
class Pool {
 public:
  explicit Pool(int threads) {
    for (int i = 0; i < threads; ++i) threads_.emplace_back([this] { Work(); });
  }
  ~Pool() {
    for (size_t i = 0; i < threads_.size(); ++i) Schedule(nullptr);
    for (std::thread& thread : threads_) thread.join();
  }
  void Schedule(std::function<void()> task) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      tasks_.push_back(std::move(task));
    }
    more_.notify_one();
  }

 private:
  void Work() {
    for (;;) {
      std::unique_lock<std::mutex> lock(mutex_);
      more_.wait(lock, [this] { return !tasks_.empty(); });
      const std::function<void()> task = std::move(tasks_.front());
      tasks_.pop_front();
      lock.unlock();
      if (!task) return;
      task();
    }
  }

  std::mutex mutex_;
  std::condition_variable more_;
  std::deque<std::function<void()>> tasks_;
  std::vector<std::thread> threads_;
};

// Six callers that are themselves tasks of the pool they share: whoever waited for a worker that
// has not begun would wait forever, since all threads do so.
void CheckCallersInsideThePool(int threads) {
  constexpr int kCallers = 6, kRounds = 200, kItems = 20;
  std::promise<void> finished;
  std::atomic<int> callers{kCallers}, wrong{0};
  Pool* pool = new Pool(threads);
  for (int caller = 0; caller < kCallers; ++caller) {
    pool->Schedule([&, pool] {
      for (int round = 0; round < kRounds; ++round) {
        struct {
          std::atomic<int> next{0}, done{0};
        } work;
        const auto body = [](void* argument, int) {
          auto& shared = *static_cast<decltype(work)*>(argument);
          while (shared.next++ < kItems) ++shared.done;
        };
        ParallelRegion::Run(4, body, &work,
                            [pool](auto closure) { pool->Schedule(std::move(closure)); });
        if (work.done != kItems) ++wrong;
      }
      if (--callers == 0) finished.set_value();
    });
  }
  if (finished.get_future().wait_for(std::chrono::seconds(60)) != std::future_status::ready) {
    std::fprintf(stderr, "callers inside a pool of %d threads hang\n", threads);
    std::_Exit(1);
  }
  delete pool;
  if (wrong > 0) Fail("a region returned before its work was done", "pool");
}

enum class Mask { kNone, kLengths, kHoles, kEmpty, kRagged };

struct Shape {
  int64_t batch, timesteps, input_dim, units;
};

double ToDouble(double value) { return value; }
double ToDouble(Float16 value) {
  const int exponent = value.bits >> 10 & 31;  // no infinity, no NaN in these tests
  const double mantissa = (value.bits & 1023) / 1024.0 + (exponent > 0);
  return std::ldexp(value.bits >> 15 ? -mantissa : mantissa, std::max(exponent, 1) - 15);
}
double ToDouble(BFloat16 value) {
  const uint32_t bits = uint32_t{value.bits} << 16;
  float wide;
  std::memcpy(&wide, &bits, sizeof(wide));
  return wide;
}

template <typename T>
constexpr DType kDType = sizeof(T) == 8 ? DType::kFloat64 : DType::kFloat32;
template <>
constexpr DType kDType<Float16> = DType::kFloat16;
template <>
constexpr DType kDType<BFloat16> = DType::kBFloat16;

template <typename T>
T FromDouble(double value) {
  return static_cast<T>(value);
}
template <>
Float16 FromDouble<Float16>(double value) {  // |value| < 65504, rounded towards zero
  int exponent;
  const double mantissa = std::frexp(std::abs(value), &exponent);
  if (exponent < -13) return {0};
  return {static_cast<uint16_t>((std::signbit(value) << 15) + ((exponent + 13) << 10) +
                                static_cast<int>(mantissa * 2048))};
}
template <>
BFloat16 FromDouble<BFloat16>(double value) {  // rounded towards zero
  const float narrow = static_cast<float>(value);
  uint32_t bits;
  std::memcpy(&bits, &narrow, sizeof(bits));
  return {static_cast<uint16_t>(bits >> 16)};
}

template <typename T>
struct Results {
  std::vector<Compute<T>> reserve;
  std::vector<T> outputs, h, c, dx, d_kernel, d_recurrent_kernel, d_bias, dh0, dc0;

  std::vector<const std::vector<T>*> All() const {
    return {&outputs, &h, &c, &dx, &d_kernel, &d_recurrent_kernel, &d_bias, &dh0, &dc0};
  }
};

template <typename T>
std::vector<T> Normal(std::mt19937& random, int64_t n, double scale) {
  std::normal_distribution<double> normal(0, scale);
  std::vector<T> values(n);
  for (T& value : values) value = FromDouble<T>(normal(random));
  return values;
}

// Not bits: -0 equals 0.
template <typename T>
bool SameValues(const std::vector<T>& a, const std::vector<T>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                    [](T x, T y) { return ToDouble(x) == ToDouble(y); });
}

template <typename T>
Results<T> Run(const CpuKernels& kernels, const Shape& s, Mask kind, int options, int workers,
               bool reserve_is_scratch) {
  std::mt19937 random(7);
  const int64_t B = s.batch, D = s.input_dim, U = s.units;
  std::vector<int32_t> lengths(B);
  for (int32_t& length : lengths) length = random() % (s.timesteps + 1);
  std::vector<int64_t> row_splits = {0};
  for (int32_t length : lengths) row_splits.push_back(row_splits.back() + length);
  const bool ragged = kind == Mask::kRagged;
  const int64_t longest = B > 0 ? *std::max_element(lengths.begin(), lengths.end()) : 0;
  const int64_t timesteps = ragged ? longest : s.timesteps;
  const int64_t steps_in_x = ragged ? row_splits[B] : B * timesteps;
  std::vector<T> x = Normal<T>(random, steps_in_x * D, 1);
  const auto kernel = Normal<T>(random, D * 4 * U, 1 / std::sqrt(D + 1.0));
  const auto recurrent_kernel = Normal<T>(random, U * 4 * U, 1 / std::sqrt(U));
  const auto bias = Normal<T>(random, 4 * U, 0.5);
  const auto h0 = Normal<T>(random, B * U, 0.5), c0 = Normal<T>(random, B * U, 1);
  std::vector<uint8_t> mask(steps_in_x);
  for (uint8_t& valid : mask) valid = kind == Mask::kHoles && random() % 2 == 0;

  LstmForward forward;
  LstmProblem& p = forward.problem;
  // "wide" has no name that a caller could ask for.
  const bool is_public = ParseIsa(kernels.name, &p.isa).ok();
  p.dtype = kDType<T>;
  p.batch = B, p.timesteps = timesteps, p.input_dim = D, p.units = U;
  p.go_backwards = options & 1;
  p.zero_output_for_mask = options & 2;
  p.return_sequences = !(options & 4);
  const bool bare = options & 8;      // optional arguments left out, and dx
  const bool only_dx = options & 32;  // no other result
  const auto input_factors = Normal<T>(random, 4 * B * D, 1);
  const auto recurrent_factors = Normal<T>(random, 4 * B * U, 1);
  if (options & 16) {
    p.input_factors = input_factors.data(), p.recurrent_factors = recurrent_factors.data();
    p.activation = Activation::kSoftsign, p.recurrent_activation = Activation::kHardSigmoid;
  }
  p.x = x.data();
  p.kernel = kernel.data();
  p.recurrent_kernel = recurrent_kernel.data();
  if (!bare) p.bias = bias.data(), p.h0 = h0.data(), p.c0 = c0.data();
  if (kind == Mask::kHoles || kind == Mask::kEmpty) p.mask = mask.data();
  if (kind == Mask::kLengths) p.sequence_lengths = lengths.data();
  if (ragged) p.row_splits = row_splits.data();
  int64_t steps = 0;
  if (!CountValidSteps(p, &steps).ok()) Fail("CountValidSteps", kernels.name);

  Threads threads;
  threads.workers = workers;
  threads.run = RunOnThreads;
  Results<T> r;
  const int64_t outputs = p.return_sequences ? steps_in_x * U : B * U;
  r.outputs.resize(outputs), r.h.resize(B * U), r.c.resize(B * U), r.reserve.resize(steps * 5 * U);
  if (!only_dx) {
    forward.outputs = r.outputs.data(), forward.h = r.h.data(), forward.c = r.c.data();
  }
  forward.reserve = r.reserve.data();
  std::vector<char> workspace;
  if (is_public) {
    size_t bytes = 0;
    Expect(LstmForwardWorkspaceBytes(p, workers, &bytes), kernels.name);
    workspace.resize(bytes + 1);  // any alignment will do
    forward.workspace = workspace.data() + 1, forward.workspace_bytes = bytes;
    Expect(RunLstmForward(forward, threads), kernels.name);
    if (options == 0) {  // inference
      const std::vector<T> outputs_before = std::exchange(r.outputs, std::vector<T>(outputs));
      forward.outputs = r.outputs.data(), forward.reserve = nullptr;
      Expect(RunLstmForward(forward, threads), kernels.name);
      if (!SameValues(r.outputs, outputs_before)) Fail("inference differs", kernels.name);
    }
  } else {
    workspace.resize(CpuForwardWorkspaceBytes(p, kernels, workers));
    forward.workspace = workspace.data();
    CpuForward(forward, steps, kernels, threads);
  }

  const auto d_outputs = Normal<T>(random, outputs, 1), d_h = Normal<T>(random, B * U, 1),
             d_c = Normal<T>(random, B * U, 1);
  LstmBackward backward;
  backward.problem = p;
  std::vector<Compute<T>> scratch(reserve_is_scratch ? 0 : r.reserve.size());
  backward.reserve = r.reserve.data();
  backward.scratch = reserve_is_scratch ? r.reserve.data() : scratch.data();
  if (!bare) {
    backward.d_outputs = d_outputs.data(), backward.d_h = d_h.data(), backward.d_c = d_c.data();
  }
  r.dx.resize(x.size()), r.d_kernel.resize(kernel.size());
  r.d_recurrent_kernel.resize(recurrent_kernel.size()), r.d_bias.resize(bias.size());
  r.dh0.resize(B * U), r.dc0.resize(B * U);
  if (!bare) backward.dx = r.dx.data();
  if (!only_dx) {
    backward.d_kernel = r.d_kernel.data();
    backward.d_recurrent_kernel = r.d_recurrent_kernel.data();
    backward.d_bias = r.d_bias.data();
    backward.dh0 = r.dh0.data(), backward.dc0 = r.dc0.data();
  }
  if (is_public) {
    // With one worker the reserve is computed again, which must give the same bits.
    if (workers == 1) backward.reserve = nullptr, backward.scratch = r.reserve.data();
    size_t bytes = 0;
    Expect(LstmBackwardWorkspaceBytes(p, backward.reserve != nullptr, workers, &bytes),
           kernels.name);
    workspace = std::vector<char>(bytes + 1);
    backward.workspace = workspace.data() + 1, backward.workspace_bytes = bytes;
    Expect(RunLstmBackward(backward, threads), kernels.name);
  } else {
    workspace = std::vector<char>(CpuBackwardWorkspaceBytes(p, steps, kernels, workers));
    backward.workspace = workspace.data();
    CpuBackward(backward, steps, kernels, threads);
  }
  return r;
}

template <typename T>
bool Close(const std::vector<T>& a, const std::vector<T>& b) {
  double largest = 1;
  for (T value : b) largest = std::max(largest, std::abs(ToDouble(value)));
  const double limit = sizeof(T) == 8 ? 1e-12 : sizeof(T) == 4 ? 1e-4 : 1e-2;
  for (size_t i = 0; i < a.size(); ++i) {
    if (!(std::abs(ToDouble(a[i]) - ToDouble(b[i])) <= limit * largest)) return false;
  }
  return a.size() == b.size();
}

template <typename T>
bool Same(const Results<T>& a, const Results<T>& b) {
  const auto all_a = a.All(), all_b = b.All();
  for (size_t i = 0; i < all_a.size(); ++i) {
    if (!SameValues(*all_a[i], *all_b[i])) return false;
  }
  return true;
}

template <typename T>
void Check(const std::vector<const CpuKernels*>& sets) {
  const Shape shapes[] = {{1, 1, 1, 1},     {5, 4, 3, 5},    {13, 5, 9, 17},   {29, 3, 70, 33},
                          {2, 90, 2, 3},    {0, 3, 2, 2},    {3, 0, 2, 2},     {3, 2, 0, 4},
                          {4, 3, 300, 65},  {3, 150, 5, 20}, {24, 12, 40, 48}, {1, 60, 70, 96},
                          {40, 1, 9, 65},      // weights in place, several tiles of slots
                          {2, 8, 300, 40},     // x.W ahead of the steps; all workers in one team
                          {3, 2, 40, 520},     // weights so large that workers share them
                          {12, 6, 420, 104}};  // workers help another team
  const CpuKernels* generic = sets[0];
  for (const Shape& shape : shapes) {
    const bool large = shape.units > 100, half = sizeof(T) == 2;
    for (Mask mask : {Mask::kNone, Mask::kLengths, Mask::kHoles, Mask::kEmpty, Mask::kRagged}) {
      for (int options : {0, 1, 2, 5, 7, 8, 16, 32, 40}) {
        // Not all of them where that takes long, or where another has gone the same way.
        if ((large || half) && ((options > 1 && options != 16) || mask != Mask::kHoles)) continue;
        if (mask == Mask::kEmpty && options > 0) continue;
        if (options >= 32 && mask != Mask::kHoles) continue;
        if (mask == Mask::kRagged && options != 0 && options != 7 && options != 16) continue;
        if (mask == Mask::kNone && options > 0 && options < 7) continue;
        const Results<T> expected = Run<T>(*generic, shape, mask, options, 1, false);
        for (const CpuKernels* kernels : sets) {
          const Results<T> one = Run<T>(*kernels, shape, mask, options, 1, false);
          const Results<T> three = Run<T>(*kernels, shape, mask, options, 3, true);
          if (!Same(one, three)) Fail("threads or scratch change the result", kernels->name);
          const auto actual = one.All(), right = expected.All();
          for (size_t i = 0; i < actual.size(); ++i) {
            if (!Close(*actual[i], *right[i])) Fail("differs from generic", kernels->name);
          }
        }
      }
    }
  }
}

// More timesteps cost inference nothing for each step of each row, with holes or without, and the
// backward pass, beside the reserve, the places of its valid steps.
void CheckWorkspace() {
  constexpr int64_t kFewTimesteps = 100, kTimesteps = 900, kTimestepsMore = 800;
  constexpr int64_t kBinBytes = 4, kPlaceBytes = 8 + 4, kRounding = 1024;
  for (const int64_t batch : {1, 4, 40}) {
    for (const Mask kind : {Mask::kNone, Mask::kHoles}) {
      const std::vector<uint8_t> mask(batch * kTimesteps, 1);
      size_t forward[2], backward[2];
      for (const int more : {0, 1}) {
        LstmProblem p;
        p.batch = batch, p.timesteps = more ? kTimesteps : kFewTimesteps;
        p.input_dim = 70, p.units = 50;
        if (kind == Mask::kHoles) p.mask = mask.data();
        Expect(LstmForwardWorkspaceBytes(p, 3, &forward[more]), "workspace");
        Expect(LstmBackwardWorkspaceBytes(p, true, 3, &backward[more]), "workspace");
      }
      const size_t bins = kTimestepsMore * kBinBytes + kRounding;
      if (forward[1] > forward[0] + bins) Fail("inference grows with the steps", "workspace");
      if (backward[1] > backward[0] + bins + batch * kTimestepsMore * kPlaceBytes) {
        Fail("the backward pass grows with more than its steps' places", "workspace");
      }
    }
  }
}

// A call of little work asks which threads need not be woken, and is run by no more workers.
void CheckWhoIsWoken() {
  struct Pool {
    int awake;
    int asked = 0, workers = 0;
  };
  constexpr int64_t kSize = 104;  // 430k multiply-adds for four rows
  const std::vector<float> kernel(kSize * 4 * kSize, 0.01f), x(64 * kSize, 1.0f);
  std::vector<float> h(64 * kSize), c(64 * kSize);
  const auto workers_of = [&](int64_t batch, int awake, int* asked) {
    Pool pool = {awake};
    Threads threads;
    threads.workers = 2;
    threads.context = &pool;
    threads.run = [](void* context, int workers, void (*body)(void*, int), void* argument) {
      static_cast<Pool*>(context)->workers = workers;
      body(argument, 0);
    };
    threads.awake = [](void* context) {
      ++static_cast<Pool*>(context)->asked;
      return static_cast<Pool*>(context)->awake;
    };
    LstmForward call;
    LstmProblem& p = call.problem;
    p.batch = batch, p.timesteps = 1, p.input_dim = p.units = kSize;
    p.x = x.data(), p.kernel = p.recurrent_kernel = kernel.data();
    call.h = h.data(), call.c = c.data();
    Expect(LstmForwardWorkspaceBytes(p, threads.workers, &call.workspace_bytes), "who is woken");
    std::vector<char> workspace(call.workspace_bytes);
    call.workspace = workspace.data();
    Expect(RunLstmForward(call, threads), "who is woken");
    *asked = pool.asked;
    return pool.workers;
  };
  int asked = 0;
  if (workers_of(4, 1, &asked) != 1 || asked != 1) Fail("a small call wakes", "who is woken");
  if (workers_of(4, 2, &asked) != 2 || asked != 1) Fail("a small call waits", "who is woken");
  if (workers_of(64, 1, &asked) != 2 || asked != 0) Fail("a large call asks", "who is woken");
}

}  // namespace

// With an argument only what matters to races: how workers share is the same code for every
// instruction set, and the thread sanitizer is slow.
int main(int argc, char**) {
  const bool races = argc > 1;
  for (int threads : {1, 2}) CheckCallersInsideThePool(threads);
  CheckWorkspace();
  CheckWhoIsWoken();
  std::vector<const CpuKernels*> sets;
  for (Isa isa : {Isa::kGeneric, Isa::kAvx2, Isa::kAvx512}) {
    const CpuKernels* kernels = nullptr;
    if (FindCpuKernels(isa, &kernels).ok()) sets.push_back(kernels);
  }
  if (races) {
    sets = {sets.back()};
    Check<float>(sets);
    Check<BFloat16>(sets);
  } else {
#if defined(MASKED_LSTM_WIDE)
    sets.push_back(&wide::kKernels);
#endif
    Check<float>(sets);
    Check<double>(sets);
    Check<Float16>(sets);
    Check<BFloat16>(sets);
  }
  for (const CpuKernels* kernels : sets) std::printf("%s ", kernels->name);
  std::printf("%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}
