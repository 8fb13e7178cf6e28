// The recurrences as their launches: the shape of each, what it needs of the workspace, how many
// slots and clusters or groups it runs with. The same for CUDA's launches and the executor's, which
// beside run.cuh's have
//   launch.ResidentClusters(kernel, cluster, threads, shared_bytes): how many run at once
//   launch.Clusters(kernel, clusters, cluster, threads, shared_bytes, arguments...)
//   launch.ResidentBlocks(kernel, threads, shared_bytes): likewise, of a cooperative launch
//   launch.Cooperative(kernel, blocks, threads, shared_bytes, arguments...)
// A cluster of 1 is a block by itself.
#pragma once

#include "cuda/hopper/backward_grid.cuh"
#include "cuda/hopper/forward_grid.cuh"
#include "cuda/hopper/plan.h"
#include "cuda/run.cuh"

namespace masked_lstm {
namespace cuda {
namespace hopper {

// Slots of a cluster or group are 8, 16, ...: as few as give every row a slot, if all that run at
// once have them.
struct Slots8 {
  int tiles, at_once;
};

// resident(tiles): clusters that run at once with so many slots, for each of the launch's calls; 0:
// that does not fit.
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

// The launch of a recurrence by clusters; kernel(slot tiles as a constant) is one. False: it does
// not fit the device.
template <typename Variant, typename Kernel, typename Bytes, typename Works, typename Shape,
          typename Launcher>
bool LaunchClusters(Kernel kernel, Bytes shared_bytes, Shape shape, const Works& works, int count,
                    int64_t shared_limit, Launcher& launch) {
  const int threads = shape.warps * kLanes;
  const int64_t batch = works.of[0].call.problem.batch;
  const Slots8 slots = ChooseSlots(batch, Variant::kMaxSlotTiles, [&](int tiles) {
    if (shared_bytes(shape, tiles) > shared_limit) return 0;
    const int resident = WithSlotTiles<Variant>(tiles, [&](auto constant) {
      return launch.ResidentClusters(kernel(constant), shape.cluster, threads,
                                     shared_bytes(shape, tiles));
    });
    // Clusters wait for no other: those of two calls may run one after another.
    return resident > count ? resident / count : resident > 0 ? 1 : 0;
  });
  if (slots.at_once < 1) return false;
  shape.clusters = slots.at_once;
  WithSlotTiles<Variant>(slots.tiles, [&](auto constant) {
    launch.Clusters(kernel(constant), count * shape.clusters, shape.cluster, threads,
                    static_cast<size_t>(shared_bytes(shape, slots.tiles)), works, shape);
  });
  return true;
}

// Likewise over the grid, which one call fills: two run one after another.
template <typename Variant, typename Kernel, typename Works, typename Launcher>
bool LaunchGrid(Kernel kernel, GridShape shape, const Works& works, int count, int64_t shared_limit,
                Launcher& launch) {
  const int64_t batch = works.of[0].call.problem.batch;
  const int most = shape.groups;  // have room in the exchange
  const Slots8 slots = ChooseSlots(batch, Variant::kMaxSlotTiles, [&](int tiles) {
    const int64_t bytes = GridSharedBytes<Variant>(shape, tiles);
    if (bytes > shared_limit) return 0;
    const int resident = WithSlotTiles<Variant>(tiles, [&](auto constant) {
      return launch.ResidentBlocks(kernel(constant), Variant::kThreads, bytes);
    });
    return resident / shape.blocks < most ? resident / shape.blocks : most;
  });
  if (slots.at_once < 1) return false;
  shape.groups = slots.at_once;
  for (int i = 0; i < count; ++i) {
    WithSlotTiles<Variant>(slots.tiles, [&](auto constant) {
      launch.Cooperative(kernel(constant), shape.groups * shape.blocks, Variant::kThreads,
                         static_cast<size_t>(GridSharedBytes<Variant>(shape, slots.tiles)),
                         works.of[i], shape);
    });
  }
  return true;
}

template <typename Variant, typename Stored>
GridShape GridShapeOf(int64_t depth, int64_t units, int block_units, const Plan& plan) {
  GridShape shape;
  const int64_t values = int64_t{Variant::kWarps} * kChunkValues<Stored>;
  shape.all_units = static_cast<int>(units);
  shape.blocks = plan.blocks;
  shape.groups = plan.groups;
  shape.chunks = static_cast<int>(CeilDivide(depth, values));
  shape.row_bytes = Variant::kWarps * shape.chunks * kChunkBytes;
  shape.block_bytes = static_cast<int>(depth / units) * block_units * kOperandBytes<Stored>;
  return shape;
}

// Of the most slots and groups there can be.
template <typename Variant>
int64_t ExchangeBytes(const GridShape& shape) {
  return int64_t{shape.groups} * 2 * Variant::kMaxSlotTiles * kColumns * shape.row_bytes;
}
template <typename Variant>
Exchange TakeExchange(const GridShape& shape, DeviceArena* arena) {
  Exchange exchange;
  exchange.rows = arena->Take<unsigned char>(ExchangeBytes<Variant>(shape));
  exchange.flags = arena->Take<unsigned>(shape.groups * shape.blocks);
  return exchange;
}
template <typename Variant, typename Launcher>
void ClearExchange(const GridShape& shape, const Exchange& exchange, Launcher& launch) {
  launch.Clear(exchange.rows, ExchangeBytes<Variant>(shape));
  launch.Clear(exchange.flags, shape.groups * shape.blocks * sizeof(unsigned));
}

// Of each of these: the packed weights' tiles and chunks; the exchange, before and in a call; the
// launch.
template <typename Stored, typename Variant>
struct ForwardClusters {
  ForwardShape shape;
  int tiles, chunks;

  ForwardClusters(int64_t units, const Plan& plan) {
    const int of_warp = plan.blocks * Variant::kTiles * kTileUnits;
    shape.cluster = plan.blocks;
    shape.clusters = 0;
    shape.warps = static_cast<int>(CeilDivide(units, of_warp));
    shape.chunks = static_cast<int>(CeilDivide(units, kChunkValues<Stored>));
    shape.row_bytes = RowBytes<Stored>(of_warp * shape.warps);
    tiles = shape.cluster * shape.warps * Variant::kTiles;
    chunks = shape.chunks;
  }
  Exchange Take(DeviceArena*) const { return {}; }
  template <typename Launcher>
  void Clear(const Exchange&, Launcher&) const {}
  template <typename Launcher>
  bool Launch(const ForwardWorks& works, int count, int64_t shared_limit, Launcher& launch) const {
    return LaunchClusters<Variant>(
        [](auto constant) {
          return ClusterForwardKernel<Stored, Variant, decltype(constant)::value>;
        },
        ForwardSharedBytes<Stored, Variant>, shape, works, count, shared_limit, launch);
  }
};

template <typename Stored, typename Variant>
struct BackwardClusters {
  BackwardShape shape, pack;

  BackwardClusters(int64_t units, const Plan& plan) {
    shape.cluster = plan.blocks;
    shape.clusters = 0;
    shape.all_units = static_cast<int>(units);
    shape.units = static_cast<int>(CeilDivide(units, plan.blocks * 8) * 8);
    shape.warps = static_cast<int>(CeilDivide(shape.units, Variant::kCells * kLanes / kColumns));
    shape.tiles = static_cast<int>(CeilDivide(plan.blocks * shape.units, kTileRows));
    shape.chunks = static_cast<int>(CeilDivide(4 * shape.units, kChunkValues<Stored>));
    shape.row_bytes = RowBytes<Stored>(4 * shape.units);
    pack = shape;
  }
  Exchange Take(DeviceArena*) const { return {}; }
  template <typename Launcher>
  void Clear(const Exchange&, Launcher&) const {}
  template <typename Launcher>
  bool Launch(const BackwardWorks& works, int count, int64_t shared_limit, Launcher& launch) const {
    return LaunchClusters<Variant>(
        [](auto constant) {
          return ClusterBackwardKernel<Stored, Variant, decltype(constant)::value>;
        },
        BackwardSharedBytes<Stored, Variant>, shape, works, count, shared_limit, launch);
  }
};

template <typename Stored, typename Variant>
struct ForwardGrid {
  GridShape shape;
  int tiles, chunks;

  ForwardGrid(int64_t units, const Plan& plan)
      : shape(GridShapeOf<Variant, Stored>(units, units, Variant::kTiles * kTileUnits, plan)),
        tiles(shape.blocks * Variant::kTiles),
        chunks(Variant::kWarps * shape.chunks) {}
  Exchange Take(DeviceArena* arena) const { return TakeExchange<Variant>(shape, arena); }
  template <typename Launcher>
  void Clear(const Exchange& exchange, Launcher& launch) const {
    ClearExchange<Variant>(shape, exchange, launch);
  }
  template <typename Launcher>
  bool Launch(const ForwardWorks& works, int count, int64_t shared_limit, Launcher& launch) const {
    return LaunchGrid<Variant>(
        [](auto constant) { return GridForwardKernel<Stored, Variant, decltype(constant)::value>; },
        shape, works, count, shared_limit, launch);
  }
};

template <typename Stored, typename Variant>
struct BackwardGrid {
  GridShape shape;
  BackwardShape pack;  // as of one block that owns all units

  BackwardGrid(int64_t units, const Plan& plan)
      : shape(GridShapeOf<Variant, Stored>(4 * units, units, Variant::kTiles * kTileRows, plan)) {
    pack = {};
    pack.cluster = 1;
    pack.all_units = pack.units = static_cast<int>(units);
    pack.tiles = shape.blocks * Variant::kTiles;
    pack.chunks = Variant::kWarps * shape.chunks;
  }
  Exchange Take(DeviceArena* arena) const { return TakeExchange<Variant>(shape, arena); }
  template <typename Launcher>
  void Clear(const Exchange& exchange, Launcher& launch) const {
    ClearExchange<Variant>(shape, exchange, launch);
  }
  template <typename Launcher>
  bool Launch(const BackwardWorks& works, int count, int64_t shared_limit, Launcher& launch) const {
    return LaunchGrid<Variant>(
        [](auto constant) {
          return GridBackwardKernel<Stored, Variant, decltype(constant)::value>;
        },
        shape, works, count, shared_limit, launch);
  }
};

// f(the plan's forward recurrence, its backward one).
template <typename Stored, typename F>
auto WithRecurrences(int64_t units, const Plan& plan, F f) {
  typedef BackwardVariants<Stored> Backward;
  const auto clusters = [&](auto forward, auto backward) {
    return f(ForwardClusters<Stored, decltype(forward)>(units, plan),
             BackwardClusters<Stored, decltype(backward)>(units, plan));
  };
  switch (plan.variant) {
    case Variant::kGrid:
      return f(ForwardGrid<Stored, GridForward>(units, plan),
               BackwardGrid<Stored, GridBackward>(units, plan));
    case Variant::kLarge:
      if constexpr (kOperandBytes<Stored> == 2) {
        return clusters(LargeForward(), typename Backward::Large());
      }
      [[fallthrough]];
    default:
      return clusters(MediumForward(), typename Backward::Medium());
  }
}

}  // namespace hopper
}  // namespace cuda
}  // namespace masked_lstm
