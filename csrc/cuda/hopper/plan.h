// Which variant of the Hopper kernels runs, with how many blocks to a cluster. Everything that the
// bits of a result depend on follows from units, dtype and device. How many slots a cluster has and
// how many clusters there are follows from the batch too: no bit depends on that, since a column of
// a tile is the same chain of multiplications whatever the other columns hold.
#pragma once

#include <cstdint>

#include "lstm.h"

namespace masked_lstm {
namespace cuda {
namespace hopper {

// As kernels are compiled; forward_cluster.cuh and backward_cluster.cuh say what each is.
enum class Variant { kNone, kTiny, kSmall, kMedium, kLarge };

// What of the device decides.
struct DeviceSizes {
  int max_cluster;       // blocks: 8, or 16 where that may be asked for
  int64_t shared_bytes;  // a block may have
};

struct Plan {
  Variant variant = Variant::kNone;  // kNone: not with these kernels
  int cluster = 0;                   // blocks of a cluster
};

// 227 KiB; a cluster of 16 is allowed on every Hopper GPU.
constexpr DeviceSizes kHopper = {16, 227 << 10};

// What the Hopper kernels take: Keras' activations, no factors (dropout), dtypes that tensor cores
// multiply (float32 as tf32, if that is allowed), row numbers of 31 bits.
inline bool HopperTakes(const LstmProblem& p, int64_t max_steps, bool allow_tf32) {
  return p.activation == Activation::kTanh && p.recurrent_activation == Activation::kSigmoid &&
         p.input_factors == nullptr && p.recurrent_factors == nullptr &&
         p.dtype != DType::kFloat64 && (p.dtype != DType::kFloat32 || allow_tf32) && p.batch > 0 &&
         max_steps > 0 && max_steps < INT32_MAX && p.batch < INT32_MAX / 64;
}

// The weights of one warp's tiles fill its registers; beyond, shared memory; beyond that, kNone.
inline Plan ChoosePlan(int64_t units, DType dtype, const DeviceSizes& device) {
  struct Rule {
    int64_t units;  // up to
    Variant variant;
    int cluster;
  };
  constexpr Rule kSixteenBits[] = {{128, Variant::kTiny, 1},
                                   {256, Variant::kSmall, 4},
                                   {384, Variant::kLarge, 8},
                                   {512, Variant::kMedium, 16},
                                   {768, Variant::kLarge, 16}};
  constexpr Rule kTf32[] = {{64, Variant::kTiny, 1},
                            {128, Variant::kSmall, 2},
                            {256, Variant::kMedium, 8},
                            {512, Variant::kMedium, 16},
                            {0, Variant::kNone, 0}};
  for (const Rule& rule : dtype == DType::kFloat32 ? kTf32 : kSixteenBits) {
    if (units <= rule.units && rule.cluster <= device.max_cluster) {
      return {rule.variant, rule.cluster};
    }
  }
  return {};
}

}  // namespace hopper
}  // namespace cuda
}  // namespace masked_lstm
