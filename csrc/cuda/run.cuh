// A whole call as a sequence of launches: lays out the workspace, chooses the grid. The same for
// CUDA's launches (launch.cu) and the executor's (tests/cuda_host). Nothing waits for the device.
#pragma once

#include "cuda/backward.cuh"
#include "cuda/forward.cuh"
#include "cuda/matmul.cuh"

namespace masked_lstm {
namespace cuda {

// What the host knows of a call beside its arguments.
struct DeviceLimits {
  int64_t max_steps;    // B*T, or the rows of x of a ragged batch: at least N
  int resident_blocks;  // that run at once, of kGroupThreads threads and the shared memory asked
                        // for
  int32_t* bad_length;  // device memory, set to 1 when a length was clamped; or null
};

// Hands out 256-byte aligned pieces; with a null base it only counts.
class DeviceArena {
 public:
  explicit DeviceArena(void* base) : base_(static_cast<char*>(base)) {}
  template <typename P>
  P* Take(int64_t values) {
    char* const piece = base_ + bytes_;
    bytes_ += (values * static_cast<int64_t>(sizeof(P)) + 255) / 256 * 256;
    return reinterpret_cast<P*>(piece);
  }
  int64_t bytes() const { return bytes_; }

 private:
  char* base_;
  int64_t bytes_ = 0;
};

inline int64_t CeilDivide(int64_t n, int64_t by) { return (n + by - 1) / by; }

// As many groups as have rows for their slots, and as can run at once.
inline Groups ChooseGroups(const LstmProblem& p, const DeviceLimits& limits) {
  Groups groups;
  groups.blocks = static_cast<int>(CeilDivide(p.units, kGroupUnits));
  const int64_t wanted = CeilDivide(p.batch, kGroupSlots);
  const int64_t possible = limits.resident_blocks / groups.blocks;
  groups.groups = static_cast<int>(wanted < possible ? wanted : possible);
  if (groups.groups < 1) groups.groups = 1;
  groups.counters = nullptr;
  return groups;
}

// What forward and backward have in common.
struct CallLayout {
  DeviceSchedule schedule;
  Groups groups;

  CallLayout(const LstmProblem& p, const DeviceLimits& limits, DeviceArena* arena) {
    schedule.counts = arena->Take<int32_t>(p.batch);
    schedule.first = arena->Take<int64_t>(p.batch + 1);
    schedule.order = arena->Take<int32_t>(p.batch);
    schedule.x_rows = arena->Take<int64_t>(limits.max_steps);
    schedule.batch_rows = arena->Take<int32_t>(limits.max_steps);
    schedule.bad_length = limits.bad_length;
    groups = ChooseGroups(p, limits);
    groups.counters = arena->Take<unsigned>(groups.groups);
  }

  template <typename Launcher>
  void Schedule(const LstmProblem& p, Launcher& launch) const {
    constexpr size_t kShared = kScheduleThreads * sizeof(int32_t);
    const int rows = static_cast<int>(p.batch);
    launch.Clear(groups.counters, groups.groups * sizeof(unsigned));
    launch(CountStepsKernel, rows, 1, kScheduleThreads, kShared, false, p, schedule);
    launch(OrderRowsKernel, static_cast<int>(CeilDivide(p.batch, kScheduleThreads)), 1,
           kScheduleThreads, 0, false, p, schedule);
    launch(ListStepsKernel, rows, 1, kScheduleThreads, kShared, false, p, schedule);
  }
};

inline int Tiles(int64_t values) { return static_cast<int>(CeilDivide(values, kMatmulTile)); }

template <typename T>
struct ForwardLayout : CallLayout {
  ForwardBuffers<T> buffers;

  ForwardLayout(const LstmForward& call, const DeviceLimits& limits, DeviceArena* arena)
      : CallLayout(call.problem, limits, arena) {
    const int64_t U = call.problem.units;
    buffers.save = call.reserve != nullptr;
    buffers.h = arena->Take<T>(groups.groups * 2 * kGroupSlots * U);
    T* const reserve = static_cast<T*>(call.reserve);
    buffers.projection = buffers.save ? reserve : arena->Take<T>(limits.max_steps * 4 * U);
    buffers.cells = buffers.save ? reserve + limits.max_steps * 4 * U : nullptr;
  }
};

template <typename Stored, typename Launcher>
void RunForward(const LstmForward& call, const DeviceLimits& limits, Launcher& launch) {
  using T = Compute<Stored>;
  const LstmProblem& p = call.problem;
  if (p.batch == 0) return;
  DeviceArena arena(call.workspace);
  const ForwardLayout<T> layout(call, limits, &arena);
  layout.Schedule(p, launch);
  if (limits.max_steps > 0) {
    launch(ProjectKernel<Stored>, Tiles(4 * p.units), Tiles(limits.max_steps), kMatmulThreads,
           kMatmulShared<T>, false, p, layout.schedule, layout.buffers.projection);
    launch(ForwardKernel<Stored>, layout.groups.groups * layout.groups.blocks, 1, kGroupThreads,
           kForwardShared<T>, true, call, layout.schedule, layout.groups, layout.buffers);
  }
  constexpr int kThreads = 128;
  launch(FillKernel<Stored>, static_cast<int>(CeilDivide(p.units, kThreads)),
         static_cast<int>(p.batch), kThreads, 0, false, call, layout.schedule);
}

template <typename T>
struct BackwardLayout : CallLayout {
  BackwardBuffers<T> buffers;
  T* transposed;

  BackwardLayout(const LstmBackward& call, const DeviceLimits& limits, DeviceArena* arena)
      : CallLayout(call.problem, limits, arena) {
    const int64_t U = call.problem.units, gates = limits.max_steps * 4 * U;
    transposed = arena->Take<T>(4 * U * U);
    const T* const reserve = static_cast<const T*>(call.reserve);
    T* const scratch = static_cast<T*>(call.scratch);
    buffers = {reserve, reserve + gates, scratch, scratch + gates, transposed};
  }
};

template <typename Stored, typename Launcher>
void RunBackward(const LstmBackward& call, const DeviceLimits& limits, Launcher& launch) {
  using T = Compute<Stored>;
  const LstmProblem& p = call.problem;
  constexpr int kThreads = 128;
  const int64_t U = p.units, D = p.input_dim;
  DeviceArena arena(call.workspace);
  const BackwardLayout<T> layout(call, limits, &arena);
  if (call.dx != nullptr) launch.Clear(call.dx, limits.max_steps * D * sizeof(Stored));
  if (p.batch == 0 || limits.max_steps == 0) {
    if (call.d_kernel != nullptr) launch.Clear(call.d_kernel, D * 4 * U * sizeof(Stored));
    if (call.d_recurrent_kernel != nullptr) {
      launch.Clear(call.d_recurrent_kernel, U * 4 * U * sizeof(Stored));
    }
    if (call.d_bias != nullptr) launch.Clear(call.d_bias, 4 * U * sizeof(Stored));
    if (p.batch == 0) return;
  }
  layout.Schedule(p, launch);
  launch(PassStatesKernel<Stored>, static_cast<int>(CeilDivide(p.batch * U, kThreads)), 1, kThreads,
         0, false, call, layout.schedule);
  if (limits.max_steps == 0) return;
  launch(TransposeKernel<Stored>, static_cast<int>(CeilDivide(4 * U * U, kThreads)), 1, kThreads, 0,
         false, p, layout.transposed);
  launch(BackwardKernel<Stored>, layout.groups.groups * layout.groups.blocks, 1, kGroupThreads,
         kBackwardShared<T>, true, call, layout.schedule, layout.groups, layout.buffers);
  const T *d_gates = layout.buffers.d_gates, *h_before = layout.buffers.h_before;
  if (call.dx != nullptr && D > 0) {
    launch(InputGradientsKernel<Stored>, Tiles(D), Tiles(limits.max_steps), kMatmulThreads,
           kMatmulShared<T>, false, p, layout.schedule, d_gates, static_cast<Stored*>(call.dx));
  }
  if (call.d_kernel != nullptr || call.d_bias != nullptr) {
    launch(KernelGradientsKernel<Stored>, Tiles(4 * U), Tiles(D + 1), kMatmulThreads,
           kMatmulShared<T>, false, p, layout.schedule, d_gates,
           static_cast<Stored*>(call.d_kernel), static_cast<Stored*>(call.d_bias));
  }
  if (call.d_recurrent_kernel != nullptr) {
    launch(RecurrentGradientsKernel<Stored>, Tiles(4 * U), Tiles(U), kMatmulThreads,
           kMatmulShared<T>, false, p, layout.schedule, d_gates, h_before,
           static_cast<Stored*>(call.d_recurrent_kernel));
  }
}

template <typename Stored>
int64_t ForwardWorkspaceBytes(const LstmForward& call, const DeviceLimits& limits) {
  DeviceArena arena(nullptr);
  ForwardLayout<Compute<Stored>>(call, limits, &arena);
  return arena.bytes();
}

template <typename Stored>
int64_t BackwardWorkspaceBytes(const LstmBackward& call, const DeviceLimits& limits) {
  DeviceArena arena(nullptr);
  BackwardLayout<Compute<Stored>>(call, limits, &arena);
  return arena.bytes();
}

}  // namespace cuda
}  // namespace masked_lstm
