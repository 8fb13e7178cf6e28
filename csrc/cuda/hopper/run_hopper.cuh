// A whole call with the Hopper kernels as a sequence of launches; run.cuh's for the others. The
// same for CUDA's launches and the executor's, which beside run.cuh's have
//   launch.ResidentClusters(kernel, cluster, threads, shared_bytes): how many run at once
//   launch.Clusters(kernel, clusters, cluster, threads, shared_bytes, arguments...)
// A cluster of 1 is a block by itself.
#pragma once

#include "cuda/hopper/backward_cluster.cuh"
#include "cuda/hopper/forward_cluster.cuh"
#include "cuda/hopper/plan.h"
#include "cuda/hopper/tensor_matmul.cuh"
#include "cuda/run.cuh"

namespace masked_lstm {
namespace cuda {
namespace hopper {

// Slots of a cluster are 8, 16, ...: as few as give every row a slot, if all clusters that run at
// once have them.
struct Slots8 {
  int tiles, clusters;
};

// resident(tiles): clusters that run at once with so many slots; 0: that does not fit.
template <typename Resident>
Slots8 ChooseSlots(int64_t batch, int max_tiles, Resident resident) {
  Slots8 best = {0, 0};
  for (int tiles = 1; tiles <= max_tiles; tiles *= 2) {
    const int at_once = resident(tiles);
    if (at_once < 1) break;
    const int64_t wanted = CeilDivide(batch, tiles * kColumns);
    best = {tiles, static_cast<int>(wanted < at_once ? wanted : at_once)};
    if (wanted <= at_once) break;
  }
  return best;
}

template <typename Variant, typename Stored>
ForwardShape ForwardShapeOf(int64_t units, int cluster) {
  ForwardShape shape;
  const int of_warp = cluster * Variant::kTiles * kTileUnits;
  shape.cluster = cluster;
  shape.clusters = 0;
  shape.warps = static_cast<int>(CeilDivide(units, of_warp));
  shape.chunks = static_cast<int>(CeilDivide(units, kChunkValues<Stored>));
  shape.row_bytes = RowBytes<Stored>(of_warp * shape.warps);
  return shape;
}

// f(slot_tiles as a constant) for 1, 2 or 4.
template <typename Variant, typename F>
auto WithSlotTiles(int tiles, F f) {
  if constexpr (Variant::kMaxSlotTiles >= 4) {
    if (tiles == 4) return f(std::integral_constant<int, 4>());
  }
  if constexpr (Variant::kMaxSlotTiles >= 2) {
    if (tiles == 2) return f(std::integral_constant<int, 2>());
  }
  return f(std::integral_constant<int, 1>());
}

// The recurrence alone; false: it does not fit this device.
template <typename Stored, typename Variant, typename Launcher>
bool LaunchForward(const LstmForward& call, const DeviceSchedule& schedule, int cluster,
                   int64_t shared_limit, const ForwardMemory& memory, Launcher& launch) {
  const LstmProblem& p = call.problem;
  ForwardShape shape = ForwardShapeOf<Variant, Stored>(p.units, cluster);
  const int threads = shape.warps * kLanes;
  const Slots8 slots = ChooseSlots(p.batch, Variant::kMaxSlotTiles, [&](int tiles) {
    const int64_t bytes = ForwardSharedBytes<Stored, Variant>(shape, tiles);
    if (bytes > shared_limit) return 0;
    return WithSlotTiles<Variant>(tiles, [&](auto constant) {
      return launch.ResidentClusters(
          ClusterForwardKernel<Stored, Variant, decltype(constant)::value>, cluster, threads,
          bytes);
    });
  });
  if (slots.clusters < 1) return false;
  shape.clusters = slots.clusters;
  WithSlotTiles<Variant>(slots.tiles, [&](auto constant) {
    launch.Clusters(ClusterForwardKernel<Stored, Variant, decltype(constant)::value>,
                    slots.clusters, cluster, threads,
                    ForwardSharedBytes<Stored, Variant>(shape, slots.tiles), call, schedule, shape,
                    memory);
  });
  return true;
}

inline int TensorTiles(int64_t values) { return static_cast<int>(CeilDivide(values, kTensorTile)); }

// Parts that the sum over the compact rows is cut into, so that there are blocks enough for the
// device; of the shape of the weights alone.
inline int WeightSplits(int64_t rows, int64_t columns) {
  constexpr int kBlocks = 264, kMost = 16;  // two for each multiprocessor of an H100
  const int64_t splits = CeilDivide(kBlocks, int64_t{TensorTiles(rows)} * TensorTiles(columns));
  return static_cast<int>(splits < kMost ? splits : kMost);
}

template <typename Stored>
struct HopperForwardLayout : CallLayout {
  ForwardMemory memory;
  Words* packed;
  ForwardShape shape;

  template <typename Variant>
  HopperForwardLayout(Variant, int cluster, const LstmForward& call, int64_t max_steps,
                      int32_t* bad_length, DeviceArena* arena)
      : CallLayout(call.problem, max_steps, 1, bad_length, arena),
        shape(ForwardShapeOf<Variant, Stored>(call.problem.units, cluster)) {
    const int64_t U = call.problem.units;
    packed = arena->Take<Words>(Tiles4<Variant>() * shape.chunks * 2 * kLanes);
    float* const reserve = static_cast<float*>(call.reserve);
    memory.packed = packed;
    memory.save = reserve != nullptr;
    memory.projection = memory.save ? reserve : arena->Take<float>(max_steps * 4 * U);
    memory.cells = memory.save ? reserve + max_steps * 4 * U : nullptr;
  }

  // Tiles of 4 units in all blocks.
  template <typename Variant>
  int64_t Tiles4() const {
    return int64_t{shape.cluster} * shape.warps * Variant::kTiles;
  }
};

template <typename Stored, typename Variant, typename Launcher>
bool RunForwardVariant(LstmForward call, int64_t max_steps, int32_t* bad_length, int cluster,
                       int64_t shared_limit, Launcher& launch) {
  LstmProblem& p = call.problem;
  DeviceArena arena(call.workspace);
  const HopperForwardLayout<Stored> layout(Variant(), cluster, call, max_steps, bad_length, &arena);
  layout.Schedule(&p, max_steps, launch);
  const int rows = TensorTiles(max_steps), columns = TensorTiles(4 * p.units);
  launch.Clusters(TensorProjectKernel<Stored>, rows * columns, 1, kTensorThreads,
                  kTensorShared<Stored>, p, layout.schedule, rows, columns,
                  layout.memory.projection);
  launch(PackForwardKernel<Stored>, layout.shape.chunks,
         static_cast<int>(layout.template Tiles4<Variant>()), kLanes, 0, false, p,
         layout.shape.chunks, layout.packed);
  if (!LaunchForward<Stored, Variant>(call, layout.schedule, cluster, shared_limit, layout.memory,
                                      launch)) {
    return false;
  }
  if (call.outputs == nullptr && call.h == nullptr && call.c == nullptr) return true;
  constexpr int kThreads = 128;
  launch(FillKernel<Stored>, static_cast<int>(p.batch),
         static_cast<int>(CeilDivide(p.units, kThreads)), kThreads, 0, false, call,
         layout.schedule);
  return true;
}

template <typename Variant, typename Stored>
BackwardShape BackwardShapeOf(int64_t units, int cluster) {
  BackwardShape shape;
  shape.cluster = cluster;
  shape.clusters = 0;
  shape.units = static_cast<int>(CeilDivide(units, cluster * 8) * 8);
  shape.warps = static_cast<int>(CeilDivide(shape.units, Variant::kCells * kLanes / kColumns));
  shape.tiles = static_cast<int>(CeilDivide(cluster * shape.units, kTileRows));
  shape.chunks = static_cast<int>(CeilDivide(4 * shape.units, kChunkValues<Stored>));
  shape.row_bytes = RowBytes<Stored>(4 * shape.units);
  return shape;
}

template <typename Stored, typename Variant, typename Launcher>
bool LaunchBackward(const LstmBackward& call, const DeviceSchedule& schedule, int cluster,
                    int64_t shared_limit, const BackwardMemory& memory, Launcher& launch) {
  const LstmProblem& p = call.problem;
  BackwardShape shape = BackwardShapeOf<Variant, Stored>(p.units, cluster);
  const int threads = shape.warps * kLanes;
  const Slots8 slots = ChooseSlots(p.batch, Variant::kMaxSlotTiles, [&](int tiles) {
    const int64_t bytes = BackwardSharedBytes<Stored, Variant>(shape, tiles);
    if (bytes > shared_limit) return 0;
    return WithSlotTiles<Variant>(tiles, [&](auto constant) {
      return launch.ResidentClusters(
          ClusterBackwardKernel<Stored, Variant, decltype(constant)::value>, cluster, threads,
          bytes);
    });
  });
  if (slots.clusters < 1) return false;
  shape.clusters = slots.clusters;
  WithSlotTiles<Variant>(slots.tiles, [&](auto constant) {
    launch.Clusters(ClusterBackwardKernel<Stored, Variant, decltype(constant)::value>,
                    slots.clusters, cluster, threads,
                    BackwardSharedBytes<Stored, Variant>(shape, slots.tiles), call, schedule, shape,
                    memory);
  });
  return true;
}

template <typename Stored>
struct HopperBackwardLayout : CallLayout {
  BackwardMemory memory;
  Words* packed;
  float *d_output, *partial;
  BackwardShape shape;

  template <typename Variant>
  HopperBackwardLayout(Variant, int cluster, const LstmBackward& call, int64_t max_steps,
                       int32_t* bad_length, DeviceArena* arena)
      : CallLayout(call.problem, max_steps, 1, bad_length, arena),
        shape(BackwardShapeOf<Variant, Stored>(call.problem.units, cluster)) {
    const int64_t U = call.problem.units, all_gates = max_steps * 4 * U;
    packed = arena->Take<Words>(int64_t{cluster} * shape.tiles * shape.chunks * 2 * kLanes);
    d_output = call.d_outputs == nullptr ? nullptr : arena->Take<float>(max_steps * U);
    const int64_t weight_rows = call.problem.input_dim + 1 > U ? call.problem.input_dim + 1 : U;
    const int64_t kernel_splits = WeightSplits(call.problem.input_dim + 1, 4 * U);
    const int64_t splits = WeightSplits(U, 4 * U);
    partial =
        arena->Take<float>((splits > kernel_splits ? splits : kernel_splits) * weight_rows * 4 * U);
    float* const scratch = static_cast<float*>(call.scratch);
    const float* const reserve =
        call.reserve == nullptr ? scratch : static_cast<const float*>(call.reserve);
    memory = {packed, reserve, reserve + all_gates, d_output, scratch, scratch + all_gates};
  }
};

// Without a reserve the gates are computed again, into the scratch memory.
template <typename Stored, typename Forward, typename Backward, typename Launcher>
bool RunBackwardVariant(LstmBackward call, int64_t max_steps, int32_t* bad_length, int cluster,
                        int64_t shared_limit, Launcher& launch) {
  LstmProblem& p = call.problem;
  constexpr int kThreads = 128;
  const int64_t U = p.units, D = p.input_dim;
  if (call.dx != nullptr) launch.Clear(call.dx, max_steps * D * sizeof(Stored));
  if (call.reserve == nullptr) {
    if (!RunForwardVariant<Stored, Forward>(Recompute(call), max_steps, bad_length, cluster,
                                            shared_limit, launch)) {
      return false;
    }
    call.reserve = call.scratch;
  }
  DeviceArena arena(call.workspace);
  const HopperBackwardLayout<Stored> layout(Backward(), cluster, call, max_steps, bad_length,
                                            &arena);
  layout.Schedule(&p, max_steps, launch);
  launch(PassStatesKernel<Stored, float>, static_cast<int>(CeilDivide(p.batch * U, kThreads)), 1,
         kThreads, 0, false, call, layout.schedule);
  if (layout.d_output != nullptr) {
    const int blocks_y = static_cast<int>(max_steps < 4096 ? max_steps : 4096);
    launch(GatherOutputGradientsKernel<Stored>, static_cast<int>(CeilDivide(U, kThreads)), blocks_y,
           kThreads, 0, false, call, layout.schedule, blocks_y, layout.d_output);
  }
  launch(PackBackwardKernel<Stored>, layout.shape.chunks, layout.shape.cluster * layout.shape.tiles,
         kLanes, 0, false, p, layout.shape, layout.packed);
  if (!LaunchBackward<Stored, Backward>(call, layout.schedule, cluster, shared_limit, layout.memory,
                                        launch)) {
    return false;
  }
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
  return true;
}

// f(the plan's variant for forward, for backward), as values of their types.
template <typename Stored, typename F>
auto WithVariants(Variant variant, F f) {
  typedef BackwardVariants<Stored> Backward;
  switch (variant) {
    case Variant::kTiny:
      return f(TinyForward(), typename Backward::Tiny());
    case Variant::kSmall:
      return f(SmallForward(), typename Backward::Small());
    case Variant::kLarge:
      if constexpr (kOperandBytes<Stored> == 2) {
        return f(LargeForward(), typename Backward::Large());
      }
      [[fallthrough]];
    default:
      return f(MediumForward(), typename Backward::Medium());
  }
}

// As those of run.cuh; plan.variant may not be kNone. False: nothing fits this device.
template <typename Stored, typename Launcher>
bool RunHopper(const LstmForward& call, int64_t max_steps, int32_t* bad_length, const Plan& plan,
               int64_t shared_limit, Launcher& launch) {
  return WithVariants<Stored>(plan.variant, [&](auto forward, auto) {
    return RunForwardVariant<Stored, decltype(forward)>(call, max_steps, bad_length, plan.cluster,
                                                        shared_limit, launch);
  });
}
template <typename Stored, typename Launcher>
bool RunHopper(const LstmBackward& call, int64_t max_steps, int32_t* bad_length, const Plan& plan,
               int64_t shared_limit, Launcher& launch) {
  return WithVariants<Stored>(plan.variant, [&](auto forward, auto backward) {
    return RunBackwardVariant<Stored, decltype(forward), decltype(backward)>(
        call, max_steps, bad_length, plan.cluster, shared_limit, launch);
  });
}

// Bytes of workspace.
template <typename Stored>
int64_t HopperBytes(const LstmForward& call, int64_t max_steps, const Plan& plan) {
  return WithVariants<Stored>(plan.variant, [&](auto forward, auto) {
    DeviceArena arena(nullptr);
    HopperForwardLayout<Stored>(forward, plan.cluster, call, max_steps, nullptr, &arena);
    return arena.bytes();
  });
}
template <typename Stored>
int64_t HopperBytes(const LstmBackward& call, int64_t max_steps, const Plan& plan) {
  const int64_t bytes = WithVariants<Stored>(plan.variant, [&](auto, auto backward) {
    DeviceArena arena(nullptr);
    HopperBackwardLayout<Stored>(backward, plan.cluster, call, max_steps, nullptr, &arena);
    return arena.bytes();
  });
  if (call.reserve != nullptr) return bytes;
  LstmForward forward = Recompute(call);
  forward.reserve = &forward;  // not followed
  const int64_t forward_bytes = HopperBytes<Stored>(forward, max_steps, plan);
  return forward_bytes > bytes ? forward_bytes : bytes;
}

}  // namespace hopper
}  // namespace cuda
}  // namespace masked_lstm
