// Small helpers of the slot loops, forward and backward.
#pragma once

#include <cstring>

#include "vec.h"

namespace masked_lstm {
namespace MASKED_LSTM_ISA_NAMESPACE {

// to[0,n) = from[offset, offset + n), or zeros when from is null.
template <typename T>
static void CopyOrZero(T* to, const void* from, int64_t offset, int64_t n) {
  if (from != nullptr) {
    std::memcpy(to, static_cast<const T*>(from) + offset, n * sizeof(T));
  } else {
    std::memset(to, 0, n * sizeof(T));
  }
}

template <typename P>
MASKED_LSTM_INLINE void Swap(P& a, P& b) {
  P t = a;
  a = b;
  b = t;
}

}  // namespace MASKED_LSTM_ISA_NAMESPACE
}  // namespace masked_lstm
