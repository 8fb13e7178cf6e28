// Backward pass of one worker. First the recurrence, in teams of slots, each walking its sequence
// from the last valid step to the first; then, over the N compact rows, dx and the weight
// gradients.
//
// Per step and slot: dG_t . recurrent_kernel^T gives dh_{t-1}; with it, in the same item, the gate
// gradients dG_{t-1} of the same units. dG and h_{t-1} are left compact for what follows; h_{t-1} =
// o * tanh(c) (or another activation) is recomputed, so nothing else was saved.
#pragma once

#include "activations.h"
#include "input_gradients.h"
#include "job.h"
#include "pack.h"
#include "slots.h"
#include "stored.h"
#include "weight_gradients.h"

namespace masked_lstm {
namespace MASKED_LSTM_ISA_NAMESPACE {

template <typename Stored>
class BackwardTeam {
  using T = Compute<Stored>;

 public:
  BackwardTeam(BackwardJob* job, int team, int worker)
      : job_(*job),
        call_(*job->call),
        p_(job->call->problem),
        layout_{kWidth<T>, kPanelColumns<T>, p_.input_dim, p_.units},
        gates_(static_cast<const T*>(job->reserve)),
        cells_(gates_ + job->schedule.total * 4 * p_.units),
        d_gates_(static_cast<T*>(job->call->scratch)),
        h_before_(d_gates_ + job->schedule.total * 4 * p_.units),
        queue_(reinterpret_cast<TeamQueue*>(job->teams.memory + team * job->teams.bytes)),
        slots_(*reinterpret_cast<BackwardSlots<T>*>(queue_ + 1)),
        memory_(reinterpret_cast<T*>(&slots_ + 1)),
        saved_tiles_(
            reinterpret_cast<T*>(job->teams.worker_memory + worker * job->teams.worker_bytes)) {}

  void Run(int member) { queue_->Run(member, this); }

  bool Start() {
    const int64_t stride = layout_.slot_stride();
    for (int s = 0; s < job_.teams.slots; ++s) {
      slots_.dh[s] = memory_ + 2 * s * stride;
      slots_.dc[s] = slots_.dh[s] + stride;
    }
    slots_.active = 0;
    slots_.more = true;
    return Refill();
  }

  bool Advance() {
    for (int s = slots_.active - 1; s >= 0; --s) {
      if (!StepBefore(s) && s != --slots_.active) MoveSlot(slots_.active, s);
    }
    return Refill();
  }

  // Columns [column, column + 4*width) of all slots.
  void Item(int64_t panel_index) {
    const int64_t column = panel_index * layout_.panel_columns;
    const int64_t end =
        column + layout_.panel_columns < p_.units ? column + layout_.panel_columns : p_.units;
    const T* packed = static_cast<const T*>(job_.packed);
    const T* panel = packed + panel_index * layout_.backward_panel_size();
    if (p_.recurrent_factors == nullptr) {
      const ReadAfter<T> read = {slots_.saved_gates, slots_.saved_c, slots_.d_output, p_.units,
                                 sizeof(Stored)};
      MultiplyPanel(panel, packed + queue_->LikelyNext(panel_index) * layout_.backward_panel_size(),
                    job_.teams.fetch, 4 * p_.units, slots_.d_gates, slots_.active, column,
                    p_.units - column, slots_.dh, saved_tiles_, &read);
    } else {
      const Stored* factors[kMaxSlots];
      for (int s = 0; s < slots_.active; ++s) {
        factors[s] = static_cast<const Stored*>(p_.recurrent_factors) + slots_.row[s] * p_.units;
      }
      MultiplyGatesPanel(panel, p_.units, slots_.d_gates, factors, p_.batch * p_.units,
                         slots_.active, column, p_.units - column, slots_.dh, saved_tiles_);
    }
    for (int s = 0; s < slots_.active; ++s) {
      if (slots_.step[s] > 0) {
        GateGradients(s, slots_.step[s] - 1, slots_.before[s], slots_.position[s], column, end);
      }
    }
  }

 private:
  // Against the processing order.
  int direction() const { return p_.go_backwards ? 1 : -1; }

  bool Refill() {
    while (slots_.more && slots_.active < job_.teams.slots) slots_.more = Begin(slots_.active);
    return slots_.active > 0;
  }

  // Takes the next row into slot s, its last step's gates done. Rows without steps are finished on
  // the way. False: no rows left.
  bool Begin(int s) {
    const int64_t item = job_.rows.Take();
    if (item < 0) return false;
    const int64_t row = job_.schedule.order[item], U = p_.units;
    const int64_t count = job_.schedule.counts[row];
    ConvertOrZero<Stored>(slots_.dh[s], call_.d_h, row * U, U);
    ConvertOrZero<Stored>(slots_.dc[s], call_.d_c, row * U, U);
    if (count == 0) {
      FinishStates(s, row);
      return true;
    }
    const int64_t start = p_.go_backwards ? -1 : TimestepsOfRow(p_, row);
    const int64_t position = StepsOfRow(p_, row).Next(start, direction());
    slots_.row[s] = row;
    GateGradients(s, count - 1, position, start, 0, U);
    SetStep(s, count - 1, position);
    ++slots_.active;
    return true;
  }

  void SetStep(int s, int64_t step, int64_t position) {
    const int64_t row = slots_.row[s];
    const int64_t n = job_.schedule.first[row] + step;
    job_.x_rows[n] = StartOfRow(p_, row) + position;
    if (job_.batch_rows != nullptr) job_.batch_rows[n] = static_cast<int32_t>(row);
    slots_.d_gates[s] = d_gates_ + n * 4 * p_.units;
    slots_.step[s] = step;
    slots_.position[s] = position;
    slots_.saved_gates[s] = slots_.d_gates[s];
    slots_.saved_c[s] = slots_.dh[s];
    slots_.d_output[s] = slots_.dh[s];
    if (step == 0) return;
    slots_.before[s] = StepsOfRow(p_, row).Next(position, direction());
    slots_.saved_gates[s] = gates_ + (n - 1) * 4 * p_.units;
    if (step > 1) slots_.saved_c[s] = cells_ + (n - 2) * p_.units;
    if (call_.d_outputs != nullptr && p_.return_sequences) {
      const int64_t at = StartOfRow(p_, row) + OutputPosition(p_, row, slots_.before[s]);
      slots_.d_output[s] = static_cast<const Stored*>(call_.d_outputs) + at * p_.units;
    }
  }

  // Adds to dh[u, end) what the outputs of a step received: its own position and, where outputs
  // repeat, the masked ones up to the step after it.
  void AddOutputGradients(int s, int64_t step, int64_t position, int64_t after, int64_t u,
                          int64_t end) {
    if (call_.d_outputs == nullptr) return;
    const int64_t row = slots_.row[s], U = p_.units;
    int64_t first = row, last = row;
    if (p_.return_sequences) {
      const int64_t start = StartOfRow(p_, row);
      first = start + OutputPosition(p_, row, position);
      last = p_.zero_output_for_mask ? first : start + OutputPosition(p_, row, after) - 1;
    } else if (step != job_.schedule.counts[row] - 1) {
      return;
    }
    T* dh = slots_.dh[s];
    for (int64_t at = first; at <= last; ++at) {
      const Stored* d_output = static_cast<const Stored*>(call_.d_outputs) + at * U;
      for (int64_t i = u; i < end; i += kWidth<T>) {
        StoreFirst(dh + i, LoadFirst(dh + i, end - i) + LoadFirst(d_output + i, end - i), end - i);
      }
    }
  }

  void GateGradients(int s, int64_t step, int64_t position, int64_t after, int64_t begin,
                     int64_t end) {
    // Inlined once with constants, which leave nothing to be chosen for each vector.
    if (p_.activation == Activation::kTanh && p_.recurrent_activation == Activation::kSigmoid) {
      GateGradientsOf(s, step, position, after, begin, end, Activation::kTanh,
                      Activation::kSigmoid);
    } else {
      GateGradientsOf(s, step, position, after, begin, end, p_.activation, p_.recurrent_activation);
    }
  }

  // dG of units [begin, end) of step `step`, from what arrives at its h and c. `after` is the
  // position of the step after it, or the end of the row. `cell` and `gate`: the activations.
  MASKED_LSTM_INLINE void GateGradientsOf(int s, int64_t step, int64_t position, int64_t after,
                                          int64_t begin, int64_t end, Activation cell,
                                          Activation gate) {
    const int64_t row = slots_.row[s], U = p_.units;
    const int64_t n = job_.schedule.first[row] + step;
    AddOutputGradients(s, step, position, after, begin, end);

    const T* gates = gates_ + n * 4 * U;
    const T* c_row = cells_ + n * U;
    const Stored* c0 = p_.c0 == nullptr ? nullptr : static_cast<const Stored*>(p_.c0) + row * U;
    const Stored* h0 = p_.h0 == nullptr ? nullptr : static_cast<const Stored*>(p_.h0) + row * U;
    T* d_gates = d_gates_ + n * 4 * U;
    // h_t is the next step's h_{t-1}. When scratch is the reserve itself this overwrites c of a
    // step that is done, and dG overwrites gates just read.
    T* h_row = step + 1 < job_.schedule.counts[row] ? h_before_ + (n + 1) * U : nullptr;
    T* dh_row = slots_.dh[s];
    T* dc_row = slots_.dc[s];
    for (int64_t u = begin; u < end; u += kWidth<T>) {
      const int64_t lanes = end - u;
      const Vec<T> saved_i = LoadFirst(gates + u, lanes);
      const Vec<T> saved_f = LoadFirst(gates + U + u, lanes);
      const Vec<T> saved_g = LoadFirst(gates + 2 * U + u, lanes);
      const Vec<T> saved_o = LoadFirst(gates + 3 * U + u, lanes);
      const Vec<T> i = ValueOf<T>(gate, saved_i), f = ValueOf<T>(gate, saved_f);
      const Vec<T> g = ValueOf<T>(cell, saved_g), o = ValueOf<T>(gate, saved_o);
      Vec<T> before = {};  // c_{t-1}
      if (step > 0) {
        before = LoadFirst(c_row - U + u, lanes);
      } else if (c0 != nullptr) {
        before = LoadFirst(c0 + u, lanes);
      }
      const Vec<T> c = LoadFirst(c_row + u, lanes);
      const Vec<T> y = Activate<T>(cell, c);
      const Vec<T> dh = LoadFirst(dh_row + u, lanes);
      Vec<T> dc = LoadFirst(dc_row + u, lanes);
      dc = MulAdd<T>(dh * o, Derivative<T>(cell, Saved<T>(cell, c, y)), dc);
      StoreFirst(dc_row + u, dc * f, lanes);
      StoreFirst(d_gates + u, dc * g * Derivative<T>(gate, saved_i), lanes);
      StoreFirst(d_gates + U + u, dc * before * Derivative<T>(gate, saved_f), lanes);
      StoreFirst(d_gates + 2 * U + u, dc * i * Derivative<T>(cell, saved_g), lanes);
      StoreFirst(d_gates + 3 * U + u, dh * y * Derivative<T>(gate, saved_o), lanes);
      if (h_row != nullptr) StoreFirst(h_row + u, o * y, lanes);
      if (step == 0) {
        StoreFirst(h_before_ + n * U + u, h0 != nullptr ? LoadFirst(h0 + u, lanes) : Vec<T>{},
                   lanes);
      }
    }
  }

  // To the step before this one. False: the row is done.
  bool StepBefore(int s) {
    if (slots_.step[s] == 0) {
      FinishStates(s, slots_.row[s]);
      return false;
    }
    SetStep(s, slots_.step[s] - 1, slots_.before[s]);
    return true;
  }

  void FinishStates(int s, int64_t row) {
    const int64_t U = p_.units;
    if (call_.dh0 != nullptr) Convert(static_cast<Stored*>(call_.dh0) + row * U, slots_.dh[s], U);
    if (call_.dc0 != nullptr) Convert(static_cast<Stored*>(call_.dc0) + row * U, slots_.dc[s], U);
    job_.rows.Finish(1);
  }

  void MoveSlot(int from, int to) {
    Swap(slots_.dh[from], slots_.dh[to]);
    Swap(slots_.dc[from], slots_.dc[to]);
    slots_.d_gates[to] = slots_.d_gates[from];
    slots_.row[to] = slots_.row[from];
    slots_.step[to] = slots_.step[from];
    slots_.position[to] = slots_.position[from];
    slots_.before[to] = slots_.before[from];
    slots_.saved_gates[to] = slots_.saved_gates[from];
    slots_.saved_c[to] = slots_.saved_c[from];
    slots_.d_output[to] = slots_.d_output[from];
  }

  BackwardJob& job_;
  const LstmBackward& call_;
  const LstmProblem& p_;
  const CpuLayout layout_;
  const T* gates_;  // (N,4U) of the reserve
  const T* cells_;  // (N,U)
  T* d_gates_;      // (N,4U) of the scratch; may be gates_
  T* h_before_;     // (N,U); may be cells_
  TeamQueue* queue_;
  BackwardSlots<T>& slots_;  // shared
  T* memory_;                // shared
  T* saved_tiles_;           // this worker's own
};

template <typename Stored>
static void RunBackward(BackwardJob* job, int worker) {
  using T = Compute<Stored>;
  const LstmProblem& p = job->call->problem;
  const CpuLayout layout = {kWidth<T>, kPanelColumns<T>, p.input_dim, p.units};
  job->pack.RunAll([&](int64_t panel) { PackBackwardPanel<Stored>(*job, layout, panel); });

  ForEachTeam(job->teams, worker,
              [&](int team, int member) { BackwardTeam<Stored>(job, team, worker).Run(member); });
  job->rows.WaitAll();

  T* memory = reinterpret_cast<T*>(job->teams.worker_memory + worker * job->teams.worker_bytes);
  InputGradients<Stored>(job, layout, memory).Run();
  WeightGradients<Stored>(job, layout, memory).Run();
}

}  // namespace MASKED_LSTM_ISA_NAMESPACE
}  // namespace masked_lstm
