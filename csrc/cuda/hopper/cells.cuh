// One unit of one slot in one step, in the registers of the thread that updates it: the same in
// every recurrence. The inputs of the next step are read as soon as those of this one are used:
// there is a whole step for them to come.
#pragma once

#include "cuda/backward.cuh"
#include "cuda/hopper/slot_walk.cuh"

namespace masked_lstm {
namespace cuda {
namespace hopper {

// Where rows of h or dG are exchanged through global memory: (groups, 2, slots, a row).
struct Exchange {
  unsigned char* rows;
  unsigned* flags;  // of each group's blocks: how many steps' rows they have written
};

struct ForwardMemory {
  const Words* packed;  // PackForwardKernel's
  float* projection;    // (N,4U) x.W + bias; the reserve's gates, where they are saved
  float* cells;         // (N,U) of the reserve, or null
  bool save;            // activated gates go where the projection stood
  Exchange exchange;    // of the recurrence over the grid
};

struct BackwardMemory {
  const Words* packed;    // PackBackwardKernel's
  const float* gates;     // (N,4U) of the reserve
  const float* cells;     // (N,U)
  const float* d_output;  // (N,U) arriving at each step's output; or null: zeros
  void* d_gates;          // (N,4U) Stored, for the products after the recurrence; may be gates
  void* h_before;         // (N,U) Stored; may be cells
  Exchange exchange;      // of the recurrence over the grid
};

// What one launch computes: one call, or two of the same sizes (the directions of a bidirectional
// LSTM), each by its own clusters: the first half of them the first call's.
template <typename Call, typename Memory>
struct Work {
  Call call;
  DeviceSchedule schedule;
  Memory memory;
};
template <typename Call, typename Memory>
struct Works {
  Work<Call, Memory> of[2];
};
typedef Works<LstmForward, ForwardMemory> ForwardWorks;
typedef Works<LstmBackward, BackwardMemory> BackwardWorks;

// A row of the initial states `from` (B,U), or zeros.
template <typename Stored>
MASKED_LSTM_DEVICE float StateOf(const void* from, int64_t at) {
  return from == nullptr ? 0.0f : Widen(static_cast<const Stored*>(from)[at]);
}

struct ForwardCell {
  float c = 0, xw[4];

  // Of the step that `slot` stands at.
  template <typename Stored>
  MASKED_LSTM_DEVICE void Read(const LstmProblem& p, const ForwardMemory& memory, const Slot& slot,
                               int64_t U, int64_t unit) {
    const bool exists = slot.left > 0 && unit < U;
    const float* const from = memory.projection + int64_t{slot.n} * 4 * U + unit;
#pragma unroll
    for (int v = 0; v < 4; ++v) xw[v] = exists ? from[v * U] : 0.0f;
    if (slot.fresh) c = exists ? StateOf<Stored>(p.c0, int64_t{slot.row} * U + unit) : 0.0f;
  }

  // h of the step; `gates`: the product of h and recurrent_kernel, then the gates.
  MASKED_LSTM_DEVICE float Step(float (&gates)[4]) {
    gates[0] = FastSigmoid(gates[0] + xw[0]);
    gates[1] = FastSigmoid(gates[1] + xw[1]);
    gates[2] = FastTanh(gates[2] + xw[2]);
    gates[3] = FastSigmoid(gates[3] + xw[3]);
    c = MulAdd(gates[1], c, gates[0] * gates[2]);
    return Output(gates);
  }
  MASKED_LSTM_DEVICE float Output(const float (&gates)[4]) const { return gates[3] * FastTanh(c); }
};

// h0 of the row that begins with the step that `slot` stands at; else zero.
template <typename Stored>
MASKED_LSTM_DEVICE float FirstState(const LstmProblem& p, const Slot& slot, int64_t U,
                                    int64_t unit) {
  if (!slot.fresh || unit >= U) return 0.0f;
  return StateOf<Stored>(p.h0, int64_t{slot.row} * U + unit);
}

// The row of x of the step that `slot` stands at, where it will be asked for.
MASKED_LSTM_DEVICE int32_t PositionOf(const LstmProblem& p, const DeviceSchedule& schedule,
                                      const Slot& slot) {
  if (slot.left == 0 || !p.return_sequences) return 0;
  return static_cast<int32_t>(schedule.x_rows[slot.n]);
}

// What the step leaves in the caller's memory. x_row: PositionOf the step.
template <typename Stored>
MASKED_LSTM_DEVICE void WriteForwardStep(const LstmForward& call, const ForwardMemory& memory,
                                         const Slot& slot, int32_t x_row, int64_t U, int64_t unit,
                                         const float (&gates)[4], float c, float h) {
  if (slot.left == 0 || unit >= U) return;
  const LstmProblem& p = call.problem;
  if (memory.save) {
    float* const to = memory.projection + int64_t{slot.n} * 4 * U + unit;
#pragma unroll
    for (int v = 0; v < 4; ++v) to[v * U] = gates[v];
    memory.cells[slot.n * U + unit] = c;
  }
  const bool last = slot.left == 1;
  if (call.outputs != nullptr && (p.return_sequences || last)) {
    const int64_t to = p.return_sequences ? OutputRow(p, slot.row, x_row) : int64_t{slot.row};
    static_cast<Stored*>(call.outputs)[to * U + unit] = Narrow<Stored>(h);
  }
  const int64_t state = int64_t{slot.row} * U + unit;
  if (last && call.h != nullptr) static_cast<Stored*>(call.h)[state] = Narrow<Stored>(h);
  if (last && call.c != nullptr) static_cast<Stored*>(call.c)[state] = Narrow<Stored>(c);
}

struct BackwardCell {
  float dc = 0, c_before = 0, gates[4], c, dy;

  // Of the step that `slot` stands at. unit: U when there is none.
  template <typename Stored>
  MASKED_LSTM_DEVICE void Read(const LstmProblem& p, const BackwardMemory& memory, const Slot& slot,
                               int U, int unit) {
    if (slot.left == 0 || unit == U) return;
    const int64_t n = slot.n;
    const float* const from = memory.gates + n * 4 * U + unit;
#pragma unroll
    for (int v = 0; v < 4; ++v) gates[v] = from[v * U];
    c = slot.fresh ? memory.cells[n * U + unit] : c_before;
    c_before = slot.left > 1 ? memory.cells[(n - 1) * U + unit]
                             : StateOf<Stored>(p.c0, int64_t{slot.row} * U + unit);
    dy = memory.d_output == nullptr ? 0.0f : memory.d_output[n * U + unit];
  }

  // dh and dc of the unit, after the step before; dG of this one. ended: 1 + the row whose first
  // step was the step before, or 0.
  template <typename Stored>
  MASKED_LSTM_DEVICE void Step(const LstmBackward& call, const BackwardMemory& memory,
                               const Slot& slot, int32_t ended, int U, int unit, float dh,
                               float (&d)[4]) {
#pragma unroll
    for (int v = 0; v < 4; ++v) d[v] = 0;
    if (unit == U) return;
    const LstmProblem& p = call.problem;
    if (ended > 0) {
      const int64_t at = int64_t{ended - 1} * U + unit;
      if (call.dh0 != nullptr) static_cast<Stored*>(call.dh0)[at] = Narrow<Stored>(dh);
      if (call.dc0 != nullptr) static_cast<Stored*>(call.dc0)[at] = Narrow<Stored>(dc);
    }
    if (slot.left == 0) return;
    const int64_t state = int64_t{slot.row} * U + unit;
    if (slot.fresh) {
      dh = StateOf<Stored>(call.d_h, state);
      dc = StateOf<Stored>(call.d_c, state);
    }
    const float in = gates[0], f = gates[1], g = gates[2], o = gates[3];
    const float y = FastTanh(c), arriving = dh + dy;
    const float to_c = MulAdd(arriving * o, 1.0f - y * y, dc);
    dc = to_c * f;
    d[0] = to_c * g * (in * (1.0f - in));
    d[1] = to_c * c_before * (f * (1.0f - f));
    d[2] = to_c * in * (1.0f - g * g);
    d[3] = arriving * y * (o * (1.0f - o));
    const int64_t n = slot.n;
#pragma unroll
    for (int v = 0; v < 4; ++v) {
      static_cast<Stored*>(memory.d_gates)[n * 4 * U + v * U + unit] = Narrow<Stored>(d[v]);
    }
    // As in backward.cuh: where the scratch is the reserve, over a c that is done with.
    Stored* const h_before = static_cast<Stored*>(memory.h_before) + n * U + unit;
    if (!slot.fresh) h_before[U] = Narrow<Stored>(o * y);
    if (slot.left == 1) h_before[0] = Narrow<Stored>(StateOf<Stored>(p.h0, state));
  }
};

}  // namespace hopper
}  // namespace cuda
}  // namespace masked_lstm
