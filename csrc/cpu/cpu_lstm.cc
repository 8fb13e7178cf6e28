#include "cpu/cpu_lstm.h"

#include <algorithm>

#include "cpu/float_mode.h"

namespace masked_lstm {
namespace {

// Hands out 64-byte aligned pieces of a buffer; with a null base it only counts.
class Arena {
 public:
  explicit Arena(void* base) {
    if (base != nullptr) at_ = (reinterpret_cast<uintptr_t>(base) + 63) / 64 * 64;
    begin_ = at_;
  }
  template <typename P>
  P* Take(int64_t bytes) {
    P* piece = reinterpret_cast<P*>(at_);
    at_ += CpuLayout::RoundUp(bytes, 64);
    return piece;
  }
  size_t Bytes() const { return at_ - begin_ + 64; }

 private:
  uintptr_t at_ = 0, begin_ = 0;
};

int64_t ItemBytes(const LstmProblem& p) { return p.dtype == DType::kFloat64 ? 8 : 4; }

CpuLayout LayoutOf(const LstmProblem& p, const CpuKernels& kernels) {
  const int64_t width = kernels.vector_bytes / ItemBytes(p);
  return {width, 4 * width, p.input_dim, p.units};
}

// Slots per worker: a few tiles share each part of the weights that is read, but no more than a
// worker's share of the batch. Results do not depend on it.
int SlotCount(const LstmProblem& p, const CpuKernels& kernels, int workers) {
  const int64_t most = kMaxSlots / kernels.tile_rows * kernels.tile_rows / 2;
  const int64_t share = CpuLayout::RoundUp((p.batch + workers - 1) / workers, kernels.tile_rows);
  return static_cast<int>(std::max<int64_t>(kernels.tile_rows, std::min(most, share)));
}

// Handing work to a thread costs some microseconds: about what this many multiply-adds take.
constexpr double kMultiplyAddsPerThread = 400e3;

Threads WorthTheWork(const Threads& threads, const LstmProblem& p, int64_t steps) {
  // More threads than rows help only to pack weights; count a pass over them like a step.
  const double work = 4.0 * static_cast<double>(steps + 1) * static_cast<double>(p.units) *
                      static_cast<double>(p.input_dim + p.units);
  Threads used = threads;
  const double most = 1 + work / kMultiplyAddsPerThread;
  if (used.workers > most) used.workers = static_cast<int>(most);
  return used;
}

template <typename Job>
struct Region {
  Job* job;
  void (*worker)(Job*, int);

  static void Body(void* argument, int index) {
    const Region& region = *static_cast<Region*>(argument);
    const ScopedFloatMode mode;
    region.worker(region.job, index);
  }
  void Run(const Threads& threads) {
    if (threads.workers <= 1) {
      Body(this, 0);
    } else {
      threads.run(threads.context, threads.workers, Body, this);
    }
  }
};

size_t LayOutForward(const LstmProblem& p, const CpuKernels& kernels, int workers, void* workspace,
                     ForwardJob* job) {
  const CpuLayout layout = LayoutOf(p, kernels);
  Arena arena(workspace);
  void* schedule = arena.Take<void>(ScheduleBytes(p));
  job->slots = SlotCount(p, kernels, workers);
  job->packed = arena.Take<void>(layout.forward_packed() * ItemBytes(p));
  job->worker_bytes = CpuLayout::RoundUp(layout.forward_worker(job->slots) * ItemBytes(p), 64);
  job->worker_memory = arena.Take<char>(workers * job->worker_bytes);
  job->pack.size = layout.forward_panels();
  job->rows.size = p.batch;
  if (workspace != nullptr) job->schedule = BuildSchedule(p, schedule);
  return arena.Bytes();
}

size_t LayOutBackward(const LstmProblem& p, int64_t steps, bool with_dx, const CpuKernels& kernels,
                      int workers, void* workspace, BackwardJob* job) {
  const CpuLayout layout = LayoutOf(p, kernels);
  Arena arena(workspace);
  void* schedule = arena.Take<void>(ScheduleBytes(p));
  job->slots = SlotCount(p, kernels, workers);
  job->pack.size = layout.recurrent_panels() + (with_dx ? layout.input_panels() : 0);
  job->packed = arena.Take<void>(job->pack.size * layout.backward_panel_size() * ItemBytes(p));
  job->worker_bytes = CpuLayout::RoundUp(layout.backward_worker(job->slots) * ItemBytes(p), 64);
  job->worker_memory = arena.Take<char>(workers * job->worker_bytes);
  job->x_rows = arena.Take<int64_t>(steps * 8);
  job->rows.size = p.batch;
  // Pieces small enough that workers finish together, large enough that packing dG stays cheap.
  const int64_t panels = CpuLayout::Panels(4 * p.units, layout.panel_columns);
  const int64_t pieces = CpuLayout::Panels(8 * workers, panels);
  job->weight_rows = std::max<int64_t>(
      48, CpuLayout::RoundUp((p.input_dim + p.units) / pieces + 1, kernels.tile_rows));
  job->weights.size = panels * (CpuLayout::Panels(p.input_dim, job->weight_rows) +
                                CpuLayout::Panels(p.units, job->weight_rows));
  if (workspace != nullptr) job->schedule = BuildSchedule(p, schedule);
  return arena.Bytes();
}

}  // namespace

size_t CpuForwardWorkspaceBytes(const LstmProblem& p, const CpuKernels& kernels, int workers) {
  ForwardJob job = {};
  return LayOutForward(p, kernels, workers, nullptr, &job);
}

size_t CpuBackwardWorkspaceBytes(const LstmProblem& p, int64_t steps, const CpuKernels& kernels,
                                 int workers) {
  BackwardJob job = {};
  return LayOutBackward(p, steps, /*with_dx=*/true, kernels, workers, nullptr, &job);
}

void CpuForward(const LstmForward& call, int64_t steps, const CpuKernels& kernels,
                const Threads& threads) {
  const LstmProblem& p = call.problem;
  ForwardJob job = {};
  job.call = &call;
  LayOutForward(p, kernels, threads.workers, call.workspace, &job);
  Region<ForwardJob>{&job, kernels.forward[static_cast<int>(p.dtype)]}.Run(
      WorthTheWork(threads, p, steps));
}

void CpuBackward(const LstmBackward& call, int64_t steps, const CpuKernels& kernels,
                 const Threads& threads) {
  const LstmProblem& p = call.problem;
  BackwardJob job = {};
  job.call = &call;
  job.reserve = call.reserve;
  LayOutBackward(p, steps, call.dx != nullptr, kernels, threads.workers, call.workspace, &job);
  Region<BackwardJob>{&job, kernels.backward[static_cast<int>(p.dtype)]}.Run(
      WorthTheWork(threads, p, steps));
}

}  // namespace masked_lstm
