// The types of values in the caller's buffers, and what they are computed in.
#pragma once

#include <cstdint>

namespace masked_lstm {

struct Float16 {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

template <typename Stored>
struct ComputeOf {
  typedef Stored Type;
};
template <>
struct ComputeOf<Float16> {
  typedef float Type;
};
template <>
struct ComputeOf<BFloat16> {
  typedef float Type;
};
template <typename Stored>
using Compute = typename ComputeOf<Stored>::Type;

// Whether a buffer must be copied before it can be computed with.
template <typename Stored>
constexpr bool kWidened = sizeof(Stored) != sizeof(Compute<Stored>);

}  // namespace masked_lstm
