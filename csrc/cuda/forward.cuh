// The forward recurrence: one cooperative launch walks all sequences, in groups of blocks.
#pragma once

#include "cuda/group.cuh"

namespace masked_lstm {
namespace cuda {

template <typename T>
struct ForwardBuffers {
  T* projection;  // (N,4U) x.W + bias; the reserve's gates, where they are saved
  T* cells;       // (N,U) of the reserve, or null
  T* h;           // (groups, 2, kGroupSlots, U)
  T* c;           // (groups, kGroupSlots, U), each value its own thread's
  bool save;      // activated gates go where the projection stood
};

template <typename T>
constexpr size_t kForwardShared = kProductShared<T, 4 * kGroupUnits> + sizeof(Slots);

// Grid: groups * blocks blocks of kGroupThreads, cooperative. kFactors: with recurrent_factors.
template <typename Stored, bool kFactors, typename T = Compute<Stored>>
static __global__ void __launch_bounds__(kGroupThreads, 1)
    ForwardKernel(LstmForward call, DeviceSchedule schedule, Groups groups,
                  ForwardBuffers<T> buffers) {
  const LstmProblem& p = call.problem;
  const int64_t U = p.units;
  const int group = BlockIndex() / groups.blocks, member = BlockIndex() % groups.blocks;
  const Stored* recurrent_kernel = static_cast<const Stored*>(p.recurrent_kernel);
  const Stored* factors = static_cast<const Stored*>(p.recurrent_factors);
  Slots& slots = *SharedMemory<Slots>();
  T* const shared = reinterpret_cast<T*>(&slots + 1);
  T* h = buffers.h + int64_t{group} * 2 * kGroupSlots * U;
  T* h_next = h + kGroupSlots * U;
  T* const cells = buffers.c + int64_t{group} * kGroupSlots * U;
  // This thread's own slot, and unit of each tile; the upper threads only multiply.
  const int own = ThreadIndex(), s = own / kGroupUnits;

  if (own == 0) {
    ClearSlots(&slots);
    RefillSlots(p, schedule, groups, group, /*last_first=*/false, &slots);
  }
  for (unsigned round = 1;; ++round) {
    BlockBarrier();
    if (slots.active == 0) return;
    for (int tile = member; tile < groups.tiles; tile += groups.blocks) {
      const int64_t unit = int64_t{tile} * kGroupUnits + own % kGroupUnits;
      if (s >= kGroupSlots || unit >= U || slots.row[s] < 0 || !slots.fresh[s]) continue;
      const int64_t at = slots.row[s] * U + unit;
      h[s * U + unit] = p.h0 == nullptr ? T(0) : Widen(static_cast<const Stored*>(p.h0)[at]);
      cells[s * U + unit] = p.c0 == nullptr ? T(0) : Widen(static_cast<const Stored*>(p.c0)[at]);
    }
    GroupBarrier(groups.counters + group, groups.blocks, round);
    for (int tile = member; tile < groups.tiles; tile += groups.blocks) {
      const int64_t first_unit = int64_t{tile} * kGroupUnits;
      const T* sums = SlotProduct<T, 4 * kGroupUnits, kFactors ? 4 : 1>(
          shared, slots, U,
          [&](int gate, int slot, int64_t k) {
            const T value = h[slot * U + k];
            if (!kFactors) return value;
            return value * Widen(factors[(gate * p.batch + slots.row[slot]) * U + k]);
          },
          [&](int64_t k, int column) {
            const int64_t u = first_unit + column % kGroupUnits;
            if (u >= U) return T(0);
            return Widen(recurrent_kernel[(k * 4 + column / kGroupUnits) * U + u]);
          });
      const int64_t unit = first_unit + own % kGroupUnits;
      if (s >= kGroupSlots || unit >= U || slots.row[s] < 0) continue;
      const int64_t n = slots.n[s], row = slots.row[s];
      T* const gates = buffers.projection + n * 4 * U + unit;
      const T* const sum = sums + s * 4 * kGroupUnits + own % kGroupUnits;
      T y[4];
#pragma unroll
      for (int v = 0; v < 4; ++v) {
        const Activation activation = v == 2 ? p.activation : p.recurrent_activation;
        const T x = gates[v * U] + sum[v * kGroupUnits];
        y[v] = Activate(activation, x);
        if (buffers.save) gates[v * U] = Saved(activation, x, y[v]);
      }
      const T c = MulAdd(y[1], cells[s * U + unit], y[0] * y[2]);
      const T new_h = y[3] * Activate(p.activation, c);
      cells[s * U + unit] = c;
      h_next[s * U + unit] = new_h;
      if (buffers.save) buffers.cells[n * U + unit] = c;
      const bool last = slots.left[s] == 1;
      if (call.outputs != nullptr && (p.return_sequences || last)) {
        const int64_t to = p.return_sequences ? OutputRow(p, row, schedule.x_rows[n]) : row;
        static_cast<Stored*>(call.outputs)[to * U + unit] = Narrow<Stored>(new_h);
      }
      if (last && call.h != nullptr) {
        static_cast<Stored*>(call.h)[row * U + unit] = Narrow<Stored>(new_h);
      }
      if (last && call.c != nullptr) {
        static_cast<Stored*>(call.c)[row * U + unit] = Narrow<Stored>(c);
      }
    }
    BlockBarrier();
    if (own == 0) {
      for (int slot = 0; slot < kGroupSlots; ++slot) {
        ++slots.n[slot];
        if (slots.row[slot] >= 0 && --slots.left[slot] == 0) slots.row[slot] = -1;
      }
      RefillSlots(p, schedule, groups, group, /*last_first=*/false, &slots);
    }
    T* const swap = h;
    h = h_next;
    h_next = swap;
  }
}

// One thread for each unit of each row: rows without steps keep their states; outputs at masked
// steps repeat the one before, or are zeros.
template <typename Stored>
static __global__ void FillKernel(LstmForward call, DeviceSchedule schedule) {
  const LstmProblem& p = call.problem;
  const int64_t U = p.units, row = BlockIndex();
  const int64_t unit = int64_t{BlockIndexY()} * BlockSize() + ThreadIndex();
  if (unit >= U) return;
  const int64_t count = schedule.counts[row], first = schedule.first[row];
  Stored* const outputs = static_cast<Stored*>(call.outputs);
  const Stored zero = Narrow<Stored>(Compute<Stored>(0));
  if (count == 0) {
    const int64_t at = row * U + unit;
    const Stored *h0 = static_cast<const Stored*>(p.h0), *c0 = static_cast<const Stored*>(p.c0);
    if (call.h != nullptr) static_cast<Stored*>(call.h)[at] = h0 == nullptr ? zero : h0[at];
    if (call.c != nullptr) static_cast<Stored*>(call.c)[at] = c0 == nullptr ? zero : c0[at];
    if (outputs != nullptr && !p.return_sequences) outputs[at] = zero;
  }
  if (outputs == nullptr || !p.return_sequences) return;
  const int64_t start = StartOfRow(p, row), end = start + TimestepsOfRow(p, row);
  if (start + count == end) return;
  // From each step's output to the next's, and from the row's begin (k = -1). Looked up several at
  // once: a look-up takes as long as many writes.
  constexpr int kAhead = 8;
  for (int64_t begin = -1; begin < count; begin += kAhead) {
    int64_t at[kAhead + 1];
#pragma unroll
    for (int i = 0; i <= kAhead; ++i) {
      const int64_t k = begin + i;
      at[i] = k < 0 ? start - 1 : k < count ? OutputRow(p, row, schedule.x_rows[first + k]) : end;
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (at[i + 1] - at[i] < 2) continue;
      const bool repeat = at[i] >= start && !p.zero_output_for_mask;
      const Stored value = repeat ? outputs[at[i] * U + unit] : zero;
      for (int64_t to = at[i] + 1; to < at[i + 1]; ++to) outputs[to * U + unit] = value;
    }
  }
}

}  // namespace cuda
}  // namespace masked_lstm
