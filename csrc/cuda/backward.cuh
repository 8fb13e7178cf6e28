// The backward recurrence: as the forward one, from the last step of each sequence to the first.
#pragma once

#include "cuda/group.cuh"

namespace masked_lstm {
namespace cuda {

template <typename T>
struct BackwardBuffers {
  const T* gates;       // (N,4U) of the reserve
  const T* cells;       // (N,U)
  T* d_gates;           // (N,4U) of the scratch; may be gates
  T* h_before;          // (N,U); may be cells
  const T* transposed;  // (4U,U) recurrent_kernel^T
  T* dh;                // (groups, kGroupSlots, U), each value its own thread's
  T* dc;                // likewise
};

template <typename T>
constexpr size_t kBackwardShared = kProductShared<T, kGroupUnits> + sizeof(Slots);

// transposed[k][u] = recurrent_kernel[u][k], one thread for each.
template <typename Stored, typename T = Compute<Stored>>
static __global__ void TransposeKernel(LstmProblem p, T* transposed) {
  const int64_t U = p.units, i = int64_t{BlockIndex()} * BlockSize() + ThreadIndex();
  if (i >= 4 * U * U) return;
  transposed[i] = Widen(static_cast<const Stored*>(p.recurrent_kernel)[i % U * 4 * U + i / U]);
}

// Gradient arriving at the output of the step that reads x_row: its own and, where outputs repeat,
// those of the masked steps up to the step after it (`next_x_row`, or -1: the end of the row).
template <typename Stored, typename T = Compute<Stored>>
MASKED_LSTM_DEVICE T OutputGradient(const LstmBackward& call, int64_t row, int64_t x_row,
                                    int64_t next_x_row, bool last, int64_t unit) {
  const LstmProblem& p = call.problem;
  const Stored* d_outputs = static_cast<const Stored*>(call.d_outputs);
  if (d_outputs == nullptr) return T(0);
  if (!p.return_sequences) return last ? Widen(d_outputs[row * p.units + unit]) : T(0);
  const int64_t from = OutputRow(p, row, x_row);
  int64_t end = from + 1;
  if (!p.zero_output_for_mask) {
    end = next_x_row < 0 ? StartOfRow(p, row) + TimestepsOfRow(p, row)
                         : OutputRow(p, row, next_x_row);
  }
  T sum = T(0);
  for (int64_t at = from; at < end; ++at) sum += Widen(d_outputs[at * p.units + unit]);
  return sum;
}

// Grid: groups * blocks blocks of kGroupThreads, cooperative. kFactors: with recurrent_factors.
template <typename Stored, bool kFactors, typename T = Compute<Stored>>
static __global__ void __launch_bounds__(kGroupThreads, 1)
    BackwardKernel(LstmBackward call, DeviceSchedule schedule, Groups groups,
                   BackwardBuffers<T> buffers) {
  const LstmProblem& p = call.problem;
  const int64_t U = p.units;
  const int group = BlockIndex() / groups.blocks, member = BlockIndex() % groups.blocks;
  const Stored* factors = static_cast<const Stored*>(p.recurrent_factors);
  Slots& slots = *SharedMemory<Slots>();
  T* const shared = reinterpret_cast<T*>(&slots + 1);
  T* const dh = buffers.dh + int64_t{group} * kGroupSlots * U;
  T* const dc = buffers.dc + int64_t{group} * kGroupSlots * U;
  const int own = ThreadIndex(), s = own / kGroupUnits;

  if (own == 0) {
    ClearSlots(&slots);
    RefillSlots(p, schedule, groups, group, /*last_first=*/true, &slots);
  }
  for (unsigned round = 1;; ++round) {
    BlockBarrier();
    if (slots.active == 0) return;
    for (int tile = member; tile < groups.tiles; tile += groups.blocks) {
      const int64_t unit = int64_t{tile} * kGroupUnits + own % kGroupUnits;
      if (s >= kGroupSlots || unit >= U || slots.row[s] < 0) continue;
      const int64_t n = slots.n[s], row = slots.row[s], at = row * U + unit;
      const bool is_last = slots.fresh[s], is_first = slots.left[s] == 1;
      T dh_after, dc_after;
      if (is_last) {
        const Stored* d_h = static_cast<const Stored*>(call.d_h);
        const Stored* d_c = static_cast<const Stored*>(call.d_c);
        dh_after = d_h == nullptr ? T(0) : Widen(d_h[at]);
        dc_after = d_c == nullptr ? T(0) : Widen(d_c[at]);
      } else {
        dh_after = dh[s * U + unit];
        dc_after = dc[s * U + unit];
      }
      const T* const gates = buffers.gates + n * 4 * U + unit;
      const Activation gate = p.recurrent_activation, inner = p.activation;
      const T saved[4] = {gates[0], gates[U], gates[2 * U], gates[3 * U]};
      const T i = ValueOf(gate, saved[0]), f = ValueOf(gate, saved[1]);
      const T g = ValueOf(inner, saved[2]), o = ValueOf(gate, saved[3]);
      const Stored* c0 = static_cast<const Stored*>(p.c0);
      const Stored* h0 = static_cast<const Stored*>(p.h0);
      T c_before = c0 == nullptr ? T(0) : Widen(c0[at]);
      if (!is_first) c_before = buffers.cells[(n - 1) * U + unit];
      const T c = buffers.cells[n * U + unit], y = Activate(inner, c);
      const T arriving =
          dh_after + OutputGradient<Stored>(call, row, schedule.x_rows[n],
                                            is_last ? -1 : schedule.x_rows[n + 1], is_last, unit);
      const T to_c = MulAdd(arriving * o, Derivative(inner, Saved(inner, c, y)), dc_after);
      dc[s * U + unit] = to_c * f;
      T* const d_gates = buffers.d_gates + n * 4 * U + unit;
      d_gates[0] = to_c * g * Derivative(gate, saved[0]);
      d_gates[U] = to_c * c_before * Derivative(gate, saved[1]);
      d_gates[2 * U] = to_c * i * Derivative(inner, saved[2]);
      d_gates[3 * U] = arriving * y * Derivative(gate, saved[3]);
      // h of this step is the next step's h_{t-1}. Where the scratch is the reserve this takes the
      // place of the next step's c, which is done.
      if (!is_last) buffers.h_before[(n + 1) * U + unit] = o * y;
      if (is_first) buffers.h_before[n * U + unit] = h0 == nullptr ? T(0) : Widen(h0[at]);
    }
    GroupBarrier(groups.counters + group, groups.blocks, round);
    for (int tile = member; tile < groups.tiles; tile += groups.blocks) {
      const int64_t first_unit = int64_t{tile} * kGroupUnits;
      const int64_t unit = first_unit + own % kGroupUnits;
      const bool owns = s < kGroupSlots && unit < U && slots.row[s] >= 0;
      // With factors each gate's share is scaled by itself.
      const int64_t depth = kFactors ? U : 4 * U;
      T dh_before = T(0);
      for (int gate = 0; gate < (kFactors ? 4 : 1); ++gate) {
        const int64_t first_k = gate * U;
        const T* sums = SlotProduct<T, kGroupUnits, 1>(
            shared, slots, depth,
            [&](int, int slot, int64_t k) {
              return buffers.d_gates[slots.n[slot] * 4 * U + first_k + k];
            },
            [&](int64_t k, int column) {
              return first_unit + column < U
                         ? buffers.transposed[(first_k + k) * U + first_unit + column]
                         : T(0);
            });
        if (!owns) continue;
        const T sum = sums[s * kGroupUnits + own % kGroupUnits];
        if (kFactors) {
          const T factor = Widen(factors[(gate * p.batch + slots.row[s]) * U + unit]);
          dh_before = MulAdd(sum, factor, dh_before);
        } else {
          dh_before = sum;
        }
      }
      if (!owns) continue;
      dh[s * U + unit] = dh_before;
      if (slots.left[s] > 1) continue;
      const int64_t at = slots.row[s] * U + unit;
      if (call.dh0 != nullptr) static_cast<Stored*>(call.dh0)[at] = Narrow<Stored>(dh_before);
      if (call.dc0 != nullptr) {
        static_cast<Stored*>(call.dc0)[at] = Narrow<Stored>(dc[s * U + unit]);
      }
    }
    BlockBarrier();
    if (own == 0) {
      for (int slot = 0; slot < kGroupSlots; ++slot) {
        --slots.n[slot];
        if (slots.row[slot] >= 0 && --slots.left[slot] == 0) slots.row[slot] = -1;
      }
      RefillSlots(p, schedule, groups, group, /*last_first=*/true, &slots);
    }
  }
}

// Rows without steps hand their states' gradients through. One thread for each value of (B,U).
template <typename Stored, typename T = Compute<Stored>>
static __global__ void PassStatesKernel(LstmBackward call, DeviceSchedule schedule) {
  const LstmProblem& p = call.problem;
  const int64_t i = int64_t{BlockIndex()} * BlockSize() + ThreadIndex();
  if (i >= p.batch * p.units || schedule.counts[i / p.units] > 0) return;
  const Stored zero = Narrow<Stored>(T(0));
  const Stored* d_h = static_cast<const Stored*>(call.d_h);
  const Stored* d_c = static_cast<const Stored*>(call.d_c);
  if (call.dh0 != nullptr) static_cast<Stored*>(call.dh0)[i] = d_h == nullptr ? zero : d_h[i];
  if (call.dc0 != nullptr) static_cast<Stored*>(call.dc0)[i] = d_c == nullptr ? zero : d_c[i];
}

}  // namespace cuda
}  // namespace masked_lstm
