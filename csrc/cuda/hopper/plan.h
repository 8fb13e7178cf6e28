// Which variant of the Hopper kernels runs, with how many blocks to a cluster or group. Everything
// that the bits of a result depend on follows from units, dtype and device. How many slots a
// cluster has and how many clusters or groups there are follows from the batch too: no bit depends
// on that, since a column of a tile is the same chain of multiplications whatever the other columns
// hold.
#pragma once

#include <cstdint>

#include "lstm.h"

namespace masked_lstm {
namespace cuda {
namespace hopper {

// As kernels are compiled; forward_cluster.cuh and backward_cluster.cuh say what each is, kGrid is
// that of grid_product.cuh.
enum class Variant { kNone, kMedium, kLarge, kGrid };

// What of the device decides.
struct DeviceSizes {
  int max_cluster;       // blocks: 8, or 16 where that may be asked for
  int64_t shared_bytes;  // a block may have
  int processors;        // multiprocessors: blocks that run at once
};

struct Plan {
  Variant variant = Variant::kNone;  // kNone: not with these kernels
  int blocks = 0;                    // of a cluster or, with kGrid, of a group
  int groups = 0;                    // with kGrid: that run at once
};

// 227 KiB; a cluster of 16 is allowed on every Hopper GPU.
constexpr DeviceSizes HopperSizes(int processors) { return {16, 227 << 10, processors}; }
constexpr int kMostProcessors = 144;  // of any Hopper GPU

// Units of a block of kGrid: 64 rows of recurrent_kernel's sums.
constexpr int kGridUnits = 16;

// What the Hopper kernels take: Keras' activations, no factors (dropout), dtypes that tensor cores
// multiply (float32 as tf32, if that is allowed), row numbers of 31 bits.
inline bool HopperTakes(const LstmProblem& p, int64_t max_steps, bool allow_tf32) {
  return p.activation == Activation::kTanh && p.recurrent_activation == Activation::kSigmoid &&
         p.input_factors == nullptr && p.recurrent_factors == nullptr &&
         p.dtype != DType::kFloat64 && (p.dtype != DType::kFloat32 || allow_tf32) && p.batch > 0 &&
         max_steps > 0 && max_steps < INT32_MAX - 512 && p.batch < INT32_MAX / 64;
}

// The whole grid, for any number of units: 64 * U values for each block, of which registers hold
// 128 KiB and shared memory, beside the sums of the warps, what ends at 2112 or, in tf32, 1280
// units; a device with fewer than U / 16 multiprocessors ends sooner.
inline Plan ChooseGrid(int64_t units, DType dtype, const DeviceSizes& device) {
  const int64_t blocks = (units + kGridUnits - 1) / kGridUnits;
  if (units > (dtype == DType::kFloat32 ? 1280 : 2112) || blocks > device.processors) return {};
  return {Variant::kGrid, static_cast<int>(blocks), static_cast<int>(device.processors / blocks)};
}

// A cluster as long as it holds the weights: in its warps' registers, then in shared memory.
// Beyond, the grid. Beyond that, kNone: the kernels of cuda/run.cuh.
//
// Blocks of a cluster: as many as leave each lane one unit of a slot, for the activations of
// several take longer than the hand-off to more blocks. Measured on an H200
// (docs/performance-gpu.md): the hand-off within a cluster takes 0.2 to 1.1 us, over the grid 2.5
// to 4.5 us, so clusters first; of U = 512 and 768 each is faster for some batches and passes.
// The kernels of run.cuh read all of recurrent_kernel from the L2 cache in every step: last.
inline Plan ChoosePlan(int64_t units, DType dtype, const DeviceSizes& device) {
  struct Rule {
    int64_t units;  // up to
    Variant variant;
    int cluster;
  };
  constexpr Rule kSixteenBits[] = {{32, Variant::kMedium, 1},  {64, Variant::kMedium, 2},
                                   {128, Variant::kMedium, 4}, {256, Variant::kMedium, 8},
                                   {384, Variant::kLarge, 8},  {512, Variant::kMedium, 16},
                                   {768, Variant::kLarge, 16}};
  constexpr Rule kTf32[] = {{32, Variant::kMedium, 1},   {64, Variant::kMedium, 2},
                            {128, Variant::kMedium, 4},  {256, Variant::kMedium, 8},
                            {512, Variant::kMedium, 16}, {0, Variant::kNone, 0}};
  const auto cluster = [&](const auto& rules) -> Plan {
    for (const Rule& rule : rules) {
      if (units <= rule.units && rule.cluster <= device.max_cluster) {
        return {rule.variant, rule.cluster, 0};
      }
    }
    return {};
  };
  const Plan plan = dtype == DType::kFloat32 ? cluster(kTf32) : cluster(kSixteenBits);
  if (plan.variant != Variant::kNone) return plan;
  return ChooseGrid(units, dtype, device);
}

}  // namespace hopper
}  // namespace cuda
}  // namespace masked_lstm
