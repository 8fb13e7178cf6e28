// A whole call as a sequence of launches: lays out the workspace, chooses the grid. The same for
// CUDA's launches (launch.cu) and the executor's (tests/cuda_host). Nothing waits for the device.
#pragma once

#include "cuda/backward.cuh"
#include "cuda/forward.cuh"
#include "cuda/matmul.cuh"

namespace masked_lstm {
namespace cuda {

// What the host knows of a call beside its arguments. Blocks: of kGroupThreads threads and the
// shared memory that the recurrence asks for.
struct DeviceLimits {
  int64_t max_steps;      // B*T, or the rows of x of a ragged batch: at least N
  int forward_resident;   // blocks of the forward recurrence that run at once, >= 1
  int backward_resident;  // of the backward one; not read for a forward call
  int32_t* bad_length;    // device memory, set to 1 when a length was clamped; or null
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
inline Groups ChooseGroups(const LstmProblem& p, int64_t resident) {
  Groups groups;
  const int64_t tiles = CeilDivide(p.units, kGroupUnits);
  const int64_t blocks = tiles < resident ? tiles : resident;
  const int64_t wanted = CeilDivide(p.batch, kGroupSlots), possible = resident / blocks;
  groups.tiles = static_cast<int>(tiles);
  groups.blocks = static_cast<int>(blocks);
  groups.groups = static_cast<int>(wanted < possible ? wanted : possible);
  if (groups.groups < 1) groups.groups = 1;
  groups.counters = nullptr;
  return groups;
}

// What forward and backward have in common.
struct CallLayout {
  DeviceSchedule schedule;
  Groups groups;

  CallLayout(const LstmProblem& p, int64_t max_steps, int resident, int32_t* bad_length,
             DeviceArena* arena) {
    schedule.counts = arena->Take<int32_t>(p.batch);
    schedule.first = arena->Take<int64_t>(p.batch + 1);
    schedule.order = arena->Take<int32_t>(p.batch);
    schedule.x_rows = arena->Take<int64_t>(max_steps);
    schedule.batch_rows = arena->Take<int32_t>(max_steps);
    schedule.splits = p.row_splits == nullptr ? nullptr : arena->Take<int64_t>(p.batch + 1);
    schedule.bad_length = bad_length;
    groups = ChooseGroups(p, resident);
    groups.counters = arena->Take<unsigned>(groups.groups);
  }

  // Afterwards *p has row_splits that lead nowhere out of bounds.
  template <typename Launcher>
  void Schedule(LstmProblem* p, int64_t max_steps, Launcher& launch) const {
    constexpr size_t kShared = kScheduleThreads * sizeof(int32_t);
    const int rows = static_cast<int>(p->batch);
    launch.Clear(groups.counters, groups.groups * sizeof(unsigned));
    if (p->row_splits != nullptr) {
      launch(CheckSplitsKernel, static_cast<int>(CeilDivide(p->batch + 1, kScheduleThreads)), 1,
             kScheduleThreads, 0, false, *p, schedule, max_steps);
      p->row_splits = schedule.splits;
    }
    launch(CountStepsKernel, rows, 1, kScheduleThreads, kShared, false, *p, schedule);
    launch(OrderRowsKernel, static_cast<int>(CeilDivide(p->batch, kScheduleThreads)), 1,
           kScheduleThreads, 0, false, *p, schedule);
    launch(ListStepsKernel, rows, 1, kScheduleThreads, kShared, false, *p, schedule);
  }
};

inline int Tiles(int64_t values) { return static_cast<int>(CeilDivide(values, kMatmulTile)); }

// Parts that a weight gradient's sum is cut into, so that there are blocks enough; of the weights'
// shape alone, so that the order of a sum is the same on every device.
inline int GradientParts(int64_t rows, int64_t columns) {
  constexpr int kBlocks = 264, kMost = 16;  // two for each multiprocessor of an H100
  const int64_t parts = CeilDivide(kBlocks, int64_t{Tiles(rows)} * Tiles(columns));
  return static_cast<int>(parts < kMost ? parts : kMost);
}

// each(columns): all 4U at once, or, with factors (4,B,width), one gate after another.
template <typename Stored, typename Each>
void ForColumns(const LstmProblem& p, const void* factors, int64_t width, Each each) {
  if (factors == nullptr) return each(Columns{0, 4 * p.units, nullptr});
  for (int64_t gate = 0; gate < 4; ++gate) {
    each(Columns{gate * p.units, p.units,
                 static_cast<const Stored*>(factors) + gate * p.batch * width});
  }
}

template <typename T>
struct ForwardLayout : CallLayout {
  ForwardBuffers<T> buffers;

  ForwardLayout(const LstmForward& call, const DeviceLimits& limits, DeviceArena* arena)
      : CallLayout(call.problem, limits.max_steps, limits.forward_resident, limits.bad_length,
                   arena) {
    const int64_t U = call.problem.units, slots = int64_t{groups.groups} * kGroupSlots;
    buffers.save = call.reserve != nullptr;
    buffers.h = arena->Take<T>(2 * slots * U);
    buffers.c = arena->Take<T>(slots * U);
    T* const reserve = static_cast<T*>(call.reserve);
    buffers.projection = buffers.save ? reserve : arena->Take<T>(limits.max_steps * 4 * U);
    buffers.cells = buffers.save ? reserve + limits.max_steps * 4 * U : nullptr;
  }
};

// The forward recurrence: reads the projection, writes outputs, states and the reserve of rows with
// steps. Other recurrences (of one kind of device, dtype, shape) are chosen here.
template <typename Stored, typename Launcher>
void RunForwardRecurrence(const LstmForward& call, const ForwardLayout<Compute<Stored>>& layout,
                          Launcher& launch) {
  using T = Compute<Stored>;
  auto kernel = call.problem.recurrent_factors == nullptr ? ForwardKernel<Stored, false, T>
                                                          : ForwardKernel<Stored, true, T>;
  launch(kernel, layout.groups.groups * layout.groups.blocks, 1, kGroupThreads, kForwardShared<T>,
         true, call, layout.schedule, layout.groups, layout.buffers);
}

template <typename Stored, typename Launcher>
void RunForward(LstmForward call, const DeviceLimits& limits, Launcher& launch) {
  using T = Compute<Stored>;
  LstmProblem& p = call.problem;
  if (p.batch == 0) return;
  DeviceArena arena(call.workspace);
  const ForwardLayout<T> layout(call, limits, &arena);
  layout.Schedule(&p, limits.max_steps, launch);
  if (limits.max_steps > 0) {
    ForColumns<Stored>(p, p.input_factors, p.input_dim, [&](const Columns& columns) {
      launch(ProjectKernel<Stored, T>, Tiles(limits.max_steps), Tiles(columns.count),
             kMatmulThreads, kMatmulShared<T>, false, p, layout.schedule, columns,
             layout.buffers.projection);
    });
    RunForwardRecurrence<Stored>(call, layout, launch);
  }
  if (call.outputs == nullptr && call.h == nullptr && call.c == nullptr) return;
  constexpr int kThreads = 128;
  launch(FillKernel<Stored>, static_cast<int>(p.batch),
         static_cast<int>(CeilDivide(p.units, kThreads)), kThreads, 0, false, call,
         layout.schedule);
}

template <typename T>
struct BackwardLayout : CallLayout {
  BackwardBuffers<T> buffers;
  T *transposed, *parts;  // parts: of one weight gradient, then of the next

  BackwardLayout(const LstmBackward& call, const DeviceLimits& limits, DeviceArena* arena)
      : CallLayout(call.problem, limits.max_steps, limits.backward_resident, limits.bad_length,
                   arena) {
    const int64_t U = call.problem.units, gates = limits.max_steps * 4 * U;
    const int64_t states = int64_t{groups.groups} * kGroupSlots * U;
    const int64_t rows[] = {call.problem.input_dim + 1, U};
    int64_t part_values = 0;
    for (int64_t r : rows) {
      const int64_t values = GradientParts(r, 4 * U) * r * 4 * U;
      part_values = values > part_values ? values : part_values;
    }
    transposed = arena->Take<T>(4 * U * U);
    parts = arena->Take<T>(part_values);
    T* const dh = arena->Take<T>(states);
    T* const dc = arena->Take<T>(states);
    T* const scratch = static_cast<T*>(call.scratch);
    const T* const reserve =
        call.reserve == nullptr ? scratch : static_cast<const T*>(call.reserve);
    buffers = {reserve, reserve + gates, scratch, scratch + gates, transposed, dh, dc};
  }
};

// The forward call that fills the scratch memory when there is no reserve.
inline LstmForward Recompute(const LstmBackward& call) {
  LstmForward forward;
  forward.problem = call.problem;
  forward.reserve = call.scratch;
  forward.workspace = call.workspace;
  return forward;
}

// The backward recurrence, over the saved gates: writes dG, h_{t-1} of each step, dh0 and dc0.
template <typename Stored, typename Launcher>
void RunBackwardRecurrence(const LstmBackward& call, const BackwardLayout<Compute<Stored>>& layout,
                           Launcher& launch) {
  using T = Compute<Stored>;
  constexpr int kThreads = 128;
  const int64_t U = call.problem.units;
  launch(TransposeKernel<Stored, T>, static_cast<int>(CeilDivide(4 * U * U, kThreads)), 1, kThreads,
         0, false, call.problem, layout.transposed);
  auto kernel = call.problem.recurrent_factors == nullptr ? BackwardKernel<Stored, false, T>
                                                          : BackwardKernel<Stored, true, T>;
  launch(kernel, layout.groups.groups * layout.groups.blocks, 1, kGroupThreads, kBackwardShared<T>,
         true, call, layout.schedule, layout.groups, layout.buffers);
}

template <typename Stored, typename Launcher>
void RunBackward(LstmBackward call, const DeviceLimits& limits, Launcher& launch) {
  using T = Compute<Stored>;
  LstmProblem& p = call.problem;
  constexpr int kThreads = 128;
  const int64_t U = p.units, D = p.input_dim;
  if (call.dx != nullptr) launch.Clear(call.dx, limits.max_steps * D * sizeof(Stored));
  if (p.batch == 0 || limits.max_steps == 0) {
    if (call.d_kernel != nullptr) launch.Clear(call.d_kernel, D * 4 * U * sizeof(Stored));
    if (call.d_recurrent_kernel != nullptr) {
      launch.Clear(call.d_recurrent_kernel, U * 4 * U * sizeof(Stored));
    }
    if (call.d_bias != nullptr) launch.Clear(call.d_bias, 4 * U * sizeof(Stored));
    if (p.batch == 0) return;
  }
  if (call.reserve == nullptr && limits.max_steps > 0) {
    RunForward<Stored>(Recompute(call), limits, launch);
  }
  DeviceArena arena(call.workspace);
  const BackwardLayout<T> layout(call, limits, &arena);
  layout.Schedule(&p, limits.max_steps, launch);
  launch(PassStatesKernel<Stored, T>, static_cast<int>(CeilDivide(p.batch * U, kThreads)), 1,
         kThreads, 0, false, call, layout.schedule);
  if (limits.max_steps == 0) return;
  RunBackwardRecurrence<Stored>(call, layout, launch);
  const T *d_gates = layout.buffers.d_gates, *h_before = layout.buffers.h_before;
  if (call.dx != nullptr && D > 0) {
    auto kernel = p.input_factors == nullptr ? InputGradientsKernel<Stored, false, T>
                                             : InputGradientsKernel<Stored, true, T>;
    launch(kernel, Tiles(limits.max_steps), Tiles(D), kMatmulThreads, kMatmulShared<T>, false, p,
           layout.schedule, d_gates, static_cast<Stored*>(call.dx));
  }
  // to: (rows, 4U), but for its last row, which goes to `last` where last_begins says so.
  const auto weights = [&](int64_t rows, const void* factors, int64_t width, auto product,
                           int64_t last_begins, void* to, void* last) {
    const Parts<T> parts = {GradientParts(rows, 4 * U), Tiles(rows), layout.parts};
    ForColumns<Stored>(p, factors, width, [&](const Columns& columns) { product(columns, parts); });
    launch(SumPartsKernel<Stored, T>, static_cast<int>(CeilDivide(rows * 4 * U, kThreads)), 1,
           kThreads, 0, false, parts, rows * 4 * U, last_begins, static_cast<Stored*>(to),
           static_cast<Stored*>(last));
  };
  if (call.d_kernel != nullptr || call.d_bias != nullptr) {
    const auto product = [&](const Columns& columns, const Parts<T>& parts) {
      launch(KernelGradientsKernel<Stored, T>, parts.row_tiles * parts.count, Tiles(columns.count),
             kMatmulThreads, kMatmulShared<T>, false, p, layout.schedule, columns, parts, d_gates);
    };
    weights(D + 1, p.input_factors, D, product, D * 4 * U, call.d_kernel, call.d_bias);
  }
  if (call.d_recurrent_kernel != nullptr) {
    const auto product = [&](const Columns& columns, const Parts<T>& parts) {
      launch(RecurrentGradientsKernel<Stored, T>, parts.row_tiles * parts.count,
             Tiles(columns.count), kMatmulThreads, kMatmulShared<T>, false, p, layout.schedule,
             columns, parts, d_gates, h_before);
    };
    weights(U, p.recurrent_factors, U, product, U * 4 * U, call.d_recurrent_kernel, nullptr);
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
  if (call.reserve != nullptr) return arena.bytes();
  LstmForward forward = Recompute(call);
  forward.reserve = &forward;  // not followed
  const int64_t forward_bytes = ForwardWorkspaceBytes<Stored>(forward, limits);
  return forward_bytes > arena.bytes() ? forward_bytes : arena.bytes();
}

}  // namespace cuda
}  // namespace masked_lstm
