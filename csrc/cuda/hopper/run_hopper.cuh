// A whole call with the Hopper kernels, or two calls at once, as a sequence of launches; run.cuh's
// for the others. The same for CUDA's launches and the executor's.
//
// Two calls at once have the same dtype, sizes and max_steps, and both or neither a reserve (as
// SameShape says): their recurrences are one launch. Each has its own workspace, and the bits it
// has alone.
#pragma once

#include "cuda/hopper/recurrences.cuh"
#include "cuda/hopper/tensor_matmul.cuh"

namespace masked_lstm {
namespace cuda {
namespace hopper {

inline int TensorTiles(int64_t values) { return static_cast<int>(CeilDivide(values, kTensorTile)); }

// Parts that the sum over the compact rows is cut into, so that there are blocks enough for the
// device; of the shape of the weights alone.
inline int WeightSplits(int64_t rows, int64_t columns) {
  constexpr int kBlocks = 264, kMost = 16;  // two for each multiprocessor of an H100
  const int64_t splits = CeilDivide(kBlocks, int64_t{TensorTiles(rows)} * TensorTiles(columns));
  return static_cast<int>(splits < kMost ? splits : kMost);
}

inline bool SameShape(const LstmProblem& a, const LstmProblem& b) {
  return a.dtype == b.dtype && a.batch == b.batch && a.units == b.units &&
         a.cuda_choice == b.cuda_choice;
}
inline bool SameShape(const LstmForward& a, const LstmForward& b) {
  return SameShape(a.problem, b.problem);
}
inline bool SameShape(const LstmBackward& a, const LstmBackward& b) {
  return SameShape(a.problem, b.problem) && (a.reserve == nullptr) == (b.reserve == nullptr);
}

struct HopperForwardLayout : CallLayout {
  ForwardMemory memory;
  Words* packed;

  template <typename Recurrence>
  HopperForwardLayout(const Recurrence& recurrence, const LstmForward& call, int64_t max_steps,
                      int32_t* bad_length, DeviceArena* arena)
      : CallLayout(call.problem, max_steps, 1, bad_length, arena) {
    const int64_t U = call.problem.units;
    packed = arena->Take<Words>(int64_t{recurrence.tiles} * recurrence.chunks * 2 * kLanes);
    float* const reserve = static_cast<float*>(call.reserve);
    memory.packed = packed;
    memory.save = reserve != nullptr;
    memory.projection = memory.save ? reserve : arena->Take<float>(max_steps * 4 * U);
    memory.cells = memory.save ? reserve + max_steps * 4 * U : nullptr;
    memory.exchange = recurrence.Take(arena);
  }
};

// False: the recurrence does not fit this device.
template <typename Stored, typename Recurrence, typename Launcher>
bool RunForwardCalls(const LstmForward* calls, int count, int64_t max_steps, int32_t* bad_length,
                     const Recurrence& recurrence, int64_t shared_limit, Launcher& launch) {
  ForwardWorks works = {};
  for (int i = 0; i < count; ++i) {
    auto& work = works.of[i];
    work.call = calls[i];
    LstmProblem& p = work.call.problem;
    DeviceArena arena(work.call.workspace);
    const HopperForwardLayout layout(recurrence, work.call, max_steps, bad_length, &arena);
    layout.Schedule(&p, max_steps, launch);
    const int rows = TensorTiles(max_steps), columns = TensorTiles(4 * p.units);
    launch.Clusters(TensorProjectKernel<Stored>, rows * columns, 1, kTensorThreads,
                    kTensorShared<Stored>, p, layout.schedule, rows, columns,
                    layout.memory.projection);
    launch(PackForwardKernel<Stored>, recurrence.chunks, recurrence.tiles, kLanes, 0, false, p,
           recurrence.chunks, layout.packed);
    recurrence.Clear(layout.memory.exchange, launch);
    work.schedule = layout.schedule;
    work.memory = layout.memory;
  }
  if (!recurrence.Launch(works, count, shared_limit, launch)) return false;
  for (int i = 0; i < count; ++i) {
    const LstmForward& call = works.of[i].call;
    if (call.outputs == nullptr && call.h == nullptr && call.c == nullptr) continue;
    constexpr int kThreads = 128;
    launch(FillKernel<Stored>, static_cast<int>(call.problem.batch),
           static_cast<int>(CeilDivide(call.problem.units, kThreads)), kThreads, 0, false, call,
           works.of[i].schedule);
  }
  return true;
}

struct HopperBackwardLayout : CallLayout {
  BackwardMemory memory;
  Words* packed;
  float *d_output, *partial;

  template <typename Recurrence>
  HopperBackwardLayout(const Recurrence& recurrence, const LstmBackward& call, int64_t max_steps,
                       int32_t* bad_length, DeviceArena* arena)
      : CallLayout(call.problem, max_steps, 1, bad_length, arena) {
    const int64_t U = call.problem.units, all_gates = max_steps * 4 * U;
    const BackwardShape& pack = recurrence.pack;
    packed = arena->Take<Words>(int64_t{pack.cluster} * pack.tiles * pack.chunks * 2 * kLanes);
    d_output = call.d_outputs == nullptr ? nullptr : arena->Take<float>(max_steps * U);
    const int64_t weight_rows = call.problem.input_dim + 1 > U ? call.problem.input_dim + 1 : U;
    const int64_t kernel_splits = WeightSplits(call.problem.input_dim + 1, 4 * U);
    const int64_t splits = WeightSplits(U, 4 * U);
    partial =
        arena->Take<float>((splits > kernel_splits ? splits : kernel_splits) * weight_rows * 4 * U);
    float* const scratch = static_cast<float*>(call.scratch);
    const float* const reserve =
        call.reserve == nullptr ? scratch : static_cast<const float*>(call.reserve);
    memory = {packed,
              reserve,
              reserve + all_gates,
              d_output,
              scratch,
              scratch + all_gates,
              recurrence.Take(arena)};
  }
};

// dG's products: dx and the weights' gradients.
template <typename Stored, typename Launcher>
void RunGradientProducts(const LstmBackward& call, const HopperBackwardLayout& layout,
                         int64_t max_steps, Launcher& launch) {
  constexpr int kThreads = 128;
  const LstmProblem& p = call.problem;
  const int64_t U = p.units, D = p.input_dim;
  const float *d_gates = layout.memory.d_gates, *h_before = layout.memory.h_before;
  if (call.dx != nullptr && D > 0) {
    const int rows = TensorTiles(max_steps), columns = TensorTiles(D);
    launch.Clusters(TensorInputGradientsKernel<Stored>, rows * columns, 1, kTensorThreads,
                    kTensorShared<Stored>, p, layout.schedule, rows, columns, d_gates,
                    static_cast<Stored*>(call.dx));
  }
  const auto weights = [&](int64_t rows, const float* h, void* to, void* last) {
    const int row_tiles = TensorTiles(rows), column_tiles = TensorTiles(4 * U);
    const int splits = WeightSplits(rows, 4 * U);
    launch.Clusters(TensorWeightGradientsKernel<Stored>, row_tiles * column_tiles * splits, 1,
                    kTensorThreads, kTensorShared<Stored>, p, layout.schedule, row_tiles,
                    column_tiles, splits, d_gates, h, layout.partial);
    const int64_t size = rows * 4 * U;
    launch(SumSplitsKernel<Stored>, static_cast<int>(CeilDivide(size, kThreads)), 1, kThreads, 0,
           false, static_cast<const float*>(layout.partial), splits, size,
           h == nullptr ? D * 4 * U : size, static_cast<Stored*>(to), static_cast<Stored*>(last));
  };
  if (call.d_kernel != nullptr || call.d_bias != nullptr) {
    weights(D + 1, nullptr, call.d_kernel, call.d_bias);
  }
  if (call.d_recurrent_kernel != nullptr) {
    weights(U, h_before, call.d_recurrent_kernel, nullptr);
  }
}

// Without a reserve the gates are computed again, into the scratch memory.
template <typename Stored, typename Forward, typename Backward, typename Launcher>
bool RunBackwardCalls(const LstmBackward* calls, int count, int64_t max_steps, int32_t* bad_length,
                      const Forward& forward, const Backward& backward, int64_t shared_limit,
                      Launcher& launch) {
  constexpr int kThreads = 128;
  if (calls[0].reserve == nullptr) {
    LstmForward again[2];
    for (int i = 0; i < count; ++i) again[i] = Recompute(calls[i]);
    if (!RunForwardCalls<Stored>(again, count, max_steps, bad_length, forward, shared_limit,
                                 launch)) {
      return false;
    }
  }
  BackwardWorks works = {};
  for (int i = 0; i < count; ++i) {
    auto& work = works.of[i];
    LstmBackward& call = work.call = calls[i];
    LstmProblem& p = call.problem;
    const int64_t U = p.units;
    if (call.dx != nullptr) launch.Clear(call.dx, max_steps * p.input_dim * sizeof(Stored));
    DeviceArena arena(call.workspace);
    const HopperBackwardLayout layout(backward, call, max_steps, bad_length, &arena);
    layout.Schedule(&p, max_steps, launch);
    launch(PassStatesKernel<Stored, float>, static_cast<int>(CeilDivide(p.batch * U, kThreads)), 1,
           kThreads, 0, false, call, layout.schedule);
    if (layout.d_output != nullptr) {
      const int blocks_y = static_cast<int>(max_steps < 4096 ? max_steps : 4096);
      launch(GatherOutputGradientsKernel<Stored>, static_cast<int>(CeilDivide(U, kThreads)),
             blocks_y, kThreads, 0, false, call, layout.schedule, blocks_y, layout.d_output);
    }
    const BackwardShape& pack = backward.pack;
    launch(PackBackwardKernel<Stored>, pack.chunks, pack.cluster * pack.tiles, kLanes, 0, false, p,
           pack, layout.packed);
    backward.Clear(layout.memory.exchange, launch);
    work.schedule = layout.schedule;
    work.memory = layout.memory;
  }
  if (!backward.Launch(works, count, shared_limit, launch)) return false;
  for (int i = 0; i < count; ++i) {
    const LstmBackward& call = works.of[i].call;
    DeviceArena arena(call.workspace);  // laid out as before
    const HopperBackwardLayout layout(backward, call, max_steps, bad_length, &arena);
    RunGradientProducts<Stored>(call, layout, max_steps, launch);
  }
  return true;
}

// One call, or two. plan.variant may not be kNone. False: nothing fits this device.
template <typename Stored, typename Launcher>
bool RunHopper(const LstmForward* calls, int count, int64_t max_steps, int32_t* bad_length,
               const Plan& plan, int64_t shared_limit, Launcher& launch) {
  return WithRecurrences<Stored>(calls->problem.units, plan, [&](auto forward, auto) {
    return RunForwardCalls<Stored>(calls, count, max_steps, bad_length, forward, shared_limit,
                                   launch);
  });
}
template <typename Stored, typename Launcher>
bool RunHopper(const LstmBackward* calls, int count, int64_t max_steps, int32_t* bad_length,
               const Plan& plan, int64_t shared_limit, Launcher& launch) {
  return WithRecurrences<Stored>(calls->problem.units, plan, [&](auto forward, auto backward) {
    return RunBackwardCalls<Stored>(calls, count, max_steps, bad_length, forward, backward,
                                    shared_limit, launch);
  });
}

// Bytes of workspace.
template <typename Forward, typename Backward>
int64_t RecurrenceBytes(const LstmForward& call, int64_t max_steps, const Forward& forward,
                        const Backward&) {
  DeviceArena arena(nullptr);
  HopperForwardLayout(forward, call, max_steps, nullptr, &arena);
  return arena.bytes();
}
template <typename Forward, typename Backward>
int64_t RecurrenceBytes(const LstmBackward& call, int64_t max_steps, const Forward& forward,
                        const Backward& backward) {
  DeviceArena arena(nullptr);
  HopperBackwardLayout(backward, call, max_steps, nullptr, &arena);
  if (call.reserve != nullptr) return arena.bytes();
  LstmForward again = Recompute(call);
  again.reserve = &again;  // not followed
  const int64_t bytes = RecurrenceBytes(again, max_steps, forward, backward);
  return bytes > arena.bytes() ? bytes : arena.bytes();
}
template <typename Stored, typename Call>
int64_t HopperBytes(const Call& call, int64_t max_steps, const Plan& plan) {
  return WithRecurrences<Stored>(call.problem.units, plan, [&](auto forward, auto backward) {
    return RecurrenceBytes(call, max_steps, forward, backward);
  });
}

}  // namespace hopper
}  // namespace cuda
}  // namespace masked_lstm
