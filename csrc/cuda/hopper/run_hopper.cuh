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

inline int TensorTiles(int64_t values) {
  return static_cast<int>(CeilDivide(values, kProductTile));
}

template <typename Stored>
MatrixView<Stored, false> RowsOf(const void* values, int64_t pitch) {
  return {static_cast<const Stored*>(values), static_cast<int>(pitch), nullptr};
}

// f(the largest number of bytes, as a constant, that may be copied at once from both matrices).
template <typename Stored, bool kRows, typename F>
void WithCopyBytes(const MatrixView<Stored, kRows>& left, const MatrixView<Stored, false>& right,
                   F f) {
  const int of_left = CopyBytes(left), of_right = CopyBytes(right);
  const int bytes = of_left < of_right ? of_left : of_right;
  if (bytes == 16) return f(std::integral_constant<int, 16>());
  if constexpr (sizeof(Stored) < 4) {
    if (bytes < 4) return f(std::integral_constant<int, 2>());
  }
  f(std::integral_constant<int, 4>());
}

// Parts that the sum over the compact rows is cut into, so that there are blocks enough for the
// device; of the shape of the weights alone.
inline int WeightSplits(int64_t rows, int64_t columns) {
  constexpr int kBlocks = 264, kMost = 16;  // two for each multiprocessor of an H100
  if (rows == 0) return 1;
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
    const auto x = RowsOf<Stored>(p.x, p.input_dim), kernel = RowsOf<Stored>(p.kernel, 4 * p.units);
    WithCopyBytes(x, kernel, [&](auto bytes) {
      launch.Clusters(TensorProjectKernel<Stored, decltype(bytes)::value>, rows * columns, 1,
                      kProductThreads, kProductShared, p, layout.schedule, rows, columns,
                      layout.memory.projection);
    });
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
    const int64_t U = call.problem.units, D = call.problem.input_dim, all_gates = max_steps * 4 * U;
    const BackwardShape& pack = recurrence.pack;
    packed = arena->Take<Words>(int64_t{pack.cluster} * pack.tiles * pack.chunks * 2 * kLanes);
    // Taken without d_outputs too: what a workspace is asked for does not know of them.
    d_output = arena->Take<float>(max_steps * U);
    if (call.d_outputs == nullptr) d_output = nullptr;
    const int64_t of_kernel = WeightSplits(D, 4 * U) * D, of_recurrent = WeightSplits(U, 4 * U) * U;
    int64_t rows = of_kernel > of_recurrent ? of_kernel : of_recurrent;
    if (rows < kBiasSplits) rows = kBiasSplits;
    partial = arena->Take<float>(rows * 4 * U);
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
    if (call.problem.dtype == DType::kFloat32) return;
    memory.d_gates = arena->Take<uint16_t>(all_gates);  // half of the scratch's bytes to move
    memory.h_before = arena->Take<uint16_t>(max_steps * U);
  }
};

// dG's products: dx and the weights' gradients.
template <typename Stored, typename Launcher>
void RunGradientProducts(const LstmBackward& call, const HopperBackwardLayout& layout,
                         int64_t max_steps, Launcher& launch) {
  constexpr int kThreads = 128;
  const LstmProblem& p = call.problem;
  const int64_t U = p.units, D = p.input_dim, columns = 4 * U;
  const Stored* const d_gates = static_cast<const Stored*>(layout.memory.d_gates);
  const auto gates = RowsOf<Stored>(d_gates, columns);
  if (call.dx != nullptr && D > 0) {
    const int row_tiles = TensorTiles(max_steps), column_tiles = TensorTiles(D);
    const auto kernel = RowsOf<Stored>(p.kernel, columns);
    WithCopyBytes(gates, kernel, [&](auto bytes) {
      launch.Clusters(TensorInputGradientsKernel<Stored, decltype(bytes)::value>,
                      row_tiles * column_tiles, 1, kProductThreads, kProductShared, p,
                      layout.schedule, row_tiles, column_tiles, d_gates,
                      static_cast<Stored*>(call.dx));
    });
  }
  const auto sum = [&](int splits, int64_t size, void* to) {
    launch(SumSplitsKernel<Stored>, static_cast<int>(CeilDivide(size, kThreads)), 1, kThreads, 0,
           false, static_cast<const float*>(layout.partial), splits, size,
           static_cast<Stored*>(to));
  };
  const auto weights = [&](const auto& left, int64_t rows, void* to) {
    const int row_tiles = TensorTiles(rows), column_tiles = TensorTiles(columns);
    const int splits = WeightSplits(rows, columns);
    WithCopyBytes(left, gates, [&](auto bytes) {
      constexpr bool kRows = std::decay_t<decltype(left)>::kGathered;
      launch.Clusters(TensorWeightGradientsKernel<Stored, kRows, decltype(bytes)::value>,
                      row_tiles * column_tiles * splits, 1, kProductThreads, kProductShared, p,
                      layout.schedule, row_tiles, column_tiles, splits, left,
                      static_cast<int>(rows), d_gates, layout.partial);
    });
    sum(splits, rows * columns, to);
  };
  if (call.d_kernel != nullptr && D > 0) {
    const MatrixView<Stored, true> x = {static_cast<const Stored*>(p.x), static_cast<int>(D),
                                        layout.schedule.x_rows};
    weights(x, D, call.d_kernel);
  }
  if (call.d_recurrent_kernel != nullptr) {
    weights(RowsOf<Stored>(layout.memory.h_before, U), U, call.d_recurrent_kernel);
  }
  if (call.d_bias != nullptr) {
    launch(BiasGradientKernel<Stored>, static_cast<int>(CeilDivide(columns, kLanes)), kBiasSplits,
           kBiasWarps * kLanes, kBiasWarps * kLanes * sizeof(float), false, p, layout.schedule,
           d_gates, layout.partial);
    sum(kBiasSplits, columns, call.d_bias);
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
