// What the members of a team share of its slots. Plain data, its size the same for all dtypes.
// T: what is computed in; Stored: what the caller's buffers hold.
#pragma once

#include <cstdint>

#include "force_inline.h"
#include "lstm.h"

namespace masked_lstm {

constexpr int kMaxSlots = 32;  // of a team
constexpr int kRowBlock = 24;  // compact rows that are multiplied together
// Steps of a slot whose x.W is computed at once, where it is computed ahead.
constexpr int kProjectedSteps = 12;

// Panels whose sums for one slot fit into the registers of a tile of so many slots.
constexpr int WidePanels(int tile_rows) { return tile_rows >= 4 ? 4 : 2; }

template <typename P>
MASKED_LSTM_INLINE void Swap(P& a, P& b) {
  P t = a;
  a = b;
  b = t;
}

// Operand: what x and h are multiplied as.
template <typename T, typename Stored, typename Operand = T>
struct alignas(64) ForwardSlots {
  const Operand* x[kMaxSlots];       // (D) this step's input
  const T* projection[kMaxSlots];    // x.W + bias of this step, panel by panel, or null
  Operand* h[kMaxSlots];             // (U) h_{t-1}
  Operand* h_next[kMaxSlots];        // (U) h_t
  T* c[kMaxSlots];                   // (U)
  Stored* output[kMaxSlots];         // (U) where h_t is wanted, or null
  T* saved_gates[kMaxSlots];         // (4U) of the reserve, or null
  T* saved_c[kMaxSlots];             // (U) of the reserve, or null
  Operand* staged[kMaxSlots];        // inputs that cannot be read where they are
  T* factored[kMaxSlots];            // (4,U) h_{t-1} times its factors, or null: none are given
  T* factored_next[kMaxSlots];       // (4,U) h_t likewise
  const Stored* factors[kMaxSlots];  // (4,B,U) from this row on: recurrent factors
  int64_t row[kMaxSlots];
  int64_t position[kMaxSlots];
  int64_t left[kMaxSlots];  // steps to go, this one included
  // Steps computed ahead: the first `ahead` steps from this one on have their projection.
  T* projections[kMaxSlots];                           // (kProjectedSteps) rows
  const Operand* ahead_x[kMaxSlots][kProjectedSteps];  // inputs of the steps to project now
  int64_t to_project[kMaxSlots];                       // how many of them; 0: none
  int64_t ahead[kMaxSlots];
  int active;
  bool more;        // rows of the batch may be left
  bool projecting;  // this phase computes projections, not a step
  bool plain;       // activations are tanh and sigmoid, and there are no recurrent factors
  Activation activation, recurrent_activation;
  int64_t x_gate_stride;  // between the four gates' x of a slot; 0: they share one
  int64_t h_gate_stride;  // ... h
  int64_t factor_stride;  // ... recurrent factors
};

// A slot stands at step k, whose dG is complete: an item computes dh and dG of step k - 1.
template <typename T>
struct alignas(64) BackwardSlots {
  const T* d_gates[kMaxSlots];  // (4U) dG_k
  T* dh[kMaxSlots];             // (U) gradient arriving at h_{k-1}
  T* dc[kMaxSlots];             // (U) ... at c_k through the recurrence
  int64_t row[kMaxSlots];
  int64_t step[kMaxSlots];      // k in processing order
  int64_t position[kMaxSlots];  // of step k, as x is indexed
  int64_t before[kMaxSlots];    // of step k - 1, where k > 0
  // What the gate gradients of step k - 1 will read: (4U) its gates, (U) c_{k-2} and (U) the
  // gradient of its output; memory in use anyway where there is nothing. (Products with factors
  // fetch nothing.)
  const T* saved_gates[kMaxSlots];
  const T* saved_c[kMaxSlots];
  const void* d_output[kMaxSlots];
  int active;
  bool more;  // rows of the batch may be left
};

static_assert(sizeof(ForwardSlots<float, float>) == sizeof(ForwardSlots<double, double>), "");
static_assert(sizeof(BackwardSlots<float>) == sizeof(BackwardSlots<double>), "");

}  // namespace masked_lstm
