// Backward pass of one worker: the recurrence in slots, each walking its sequence from the last
// valid step to the first; then this worker's share of the weight gradients.
//
// Per step and slot: gate gradients dG (4U) from the saved gates, then one product
// dG . [recurrent_kernel^T | kernel^T] gives dh_{t-1} and dx_t together. dG and h_{t-1} are left
// compact for the weight gradients; h_{t-1} = o * tanh(c) is recomputed, so nothing else was saved.
#pragma once

#include "activations.h"
#include "job.h"
#include "pack.h"
#include "slots.h"
#include "tile.h"
#include "weight_gradients.h"

namespace masked_lstm {
namespace MASKED_LSTM_ISA_NAMESPACE {

template <typename T>
struct BackwardSlots {
  T* dh[kMaxSlots];       // (U) gradient arriving at h_t through the recurrence
  T* dc[kMaxSlots];       // (U) ... at c_t
  T* d_gates[kMaxSlots];  // (4U) dG_t
  T* dx[kMaxSlots];       // (D)
  int64_t row[kMaxSlots];
  int64_t position[kMaxSlots];  // t, as x is indexed
  int64_t next[kMaxSlots];      // where the output range of t ends, in processing order
  int64_t step[kMaxSlots];      // k: t is the row's k-th step in processing order
};

// One tile of the product: columns of one panel, slots [first, first + S), rows [begin, end) of the
// panel (4U in all). The last part writes the first `columns` columns to to[s].
template <typename T, int S>
static MASKED_LSTM_NOINLINE void BackwardTile(const BackwardSlots<T>& slots, int first,
                                              T* const* to, int64_t to_offset, int64_t columns,
                                              const T* panel, int64_t begin, int64_t end,
                                              int64_t depth, T* memory) {
  Tile<T, S> tile;
  tile.Fill(nullptr);
  const T* rows[S];
  for (int s = 0; s < S; ++s) rows[s] = slots.d_gates[first + s] + begin;
  tile.AddRows(panel + begin * kPanelColumns<T>, rows, end - begin);
  if (begin > 0) tile.Add(memory);
  if (end < depth) {
    tile.Save(memory);
    return;
  }
#pragma GCC unroll 4
  for (int v = 0; v < 4; ++v) {
    const int64_t n = columns - v * kWidth<T>;
    if (n <= 0) break;
#pragma GCC unroll 6
    for (int s = 0; s < S; ++s) {
      StoreFirst(to[first + s] + to_offset + v * kWidth<T>, tile.acc[v][s], n);
    }
  }
}

template <typename T>
class BackwardWorker {
 public:
  BackwardWorker(BackwardJob* job, int worker)
      : job_(*job),
        call_(*job->call),
        p_(job->call->problem),
        layout_{kWidth<T>, kPanelColumns<T>, p_.input_dim, p_.units},
        gates_(static_cast<const T*>(job->reserve)),
        cells_(gates_ + job->schedule.total * 4 * p_.units),
        d_gates_(static_cast<T*>(job->call->scratch)),
        h_before_(d_gates_ + job->schedule.total * 4 * p_.units) {
    T* memory = reinterpret_cast<T*>(job->worker_memory + worker * job->worker_bytes);
    const int64_t stride = layout_.slot_stride();
    for (int s = 0; s < job->slots; ++s) {
      slots_.dh[s] = memory + s * stride;
      slots_.dc[s] = memory + (job->slots + s) * stride;
    }
    saved_tiles_ = memory + 2 * job->slots * stride;
    weight_panel_ = saved_tiles_ + layout_.saved_tiles(job->slots);
  }

  void Run() {
    int64_t packed = 0;
    for (int64_t panel; (panel = job_.pack.Take()) >= 0; ++packed) {
      PackBackwardPanel<T>(job_, layout_, panel);
    }
    job_.pack.Finish(packed);
    job_.pack.WaitAll();

    int active = 0;
    bool more = true;
    while (true) {
      while (more && active < job_.slots) more = Begin(active, &active);
      if (active == 0) break;
      for (int s = 0; s < active; ++s) GateGradients(s);
      Multiply(active);
      for (int s = active - 1; s >= 0; --s) {
        if (!Advance(s) && s != --active) MoveSlot(active, s);
      }
    }
    job_.rows.WaitAll();
    WeightGradients<T>(job_, layout_, d_gates_, h_before_, weight_panel_).Run();
  }

 private:
  // Against the processing order.
  int direction() const { return p_.go_backwards ? 1 : -1; }
  int64_t OutputPosition(int64_t position) const {
    return p_.go_backwards ? p_.timesteps - 1 - position : position;
  }

  // Zeroes dx strictly between two positions of a row, given in any order.
  void ZeroInputGradients(int64_t row, int64_t a, int64_t b) {
    if (call_.dx == nullptr) return;
    const int64_t begin = (a < b ? a : b) + 1, end = a < b ? b : a;
    if (begin >= end) return;
    std::memset(static_cast<T*>(call_.dx) + (row * p_.timesteps + begin) * p_.input_dim, 0,
                (end - begin) * p_.input_dim * sizeof(T));
  }

  // Takes the next row into slot s. Rows without steps are finished on the way. False: no rows
  // left.
  bool Begin(int s, int* active) {
    const int64_t item = job_.rows.Take();
    if (item < 0) return false;
    const int64_t row = job_.schedule.order[item], U = p_.units;
    const int64_t count = job_.schedule.counts[row];
    CopyOrZero(slots_.dh[s], call_.d_h, row * U, U);
    CopyOrZero(slots_.dc[s], call_.d_c, row * U, U);
    if (count == 0) {
      ZeroInputGradients(row, -1, p_.timesteps);
      FinishStates(s, row);
      return true;
    }
    const int64_t start = p_.go_backwards ? -1 : p_.timesteps;
    const int64_t position = StepsOfRow(p_, row).Next(start, direction());
    ZeroInputGradients(row, start, position);
    slots_.row[s] = row;
    slots_.position[s] = position;
    slots_.next[s] = p_.timesteps;
    slots_.step[s] = count - 1;
    SetStep(s);
    ++*active;
    return true;
  }

  void SetStep(int s) {
    const int64_t row = slots_.row[s];
    const int64_t n = job_.schedule.first[row] + slots_.step[s];
    job_.x_rows[n] = row * p_.timesteps + slots_.position[s];
    slots_.d_gates[s] = d_gates_ + n * 4 * p_.units;
    if (call_.dx != nullptr)
      slots_.dx[s] = static_cast<T*>(call_.dx) + job_.x_rows[n] * p_.input_dim;
  }

  // Adds what the outputs of this step received: its own position and, where outputs repeat, the
  // masked positions up to the next valid one.
  void AddOutputGradients(int s, bool last) {
    if (call_.d_outputs == nullptr) return;
    const int64_t row = slots_.row[s], U = p_.units;
    const T* from = static_cast<const T*>(call_.d_outputs);
    int64_t begin = row, end = row + (last ? 1 : 0);
    if (p_.return_sequences) {
      begin = row * p_.timesteps + OutputPosition(slots_.position[s]);
      end = p_.zero_output_for_mask ? begin + 1 : row * p_.timesteps + slots_.next[s];
    }
    T* dh = slots_.dh[s];
    for (int64_t at = begin; at < end; ++at) {
      const T* d_output = from + at * U;
      for (int64_t u = 0; u < U; ++u) dh[u] += d_output[u];
    }
  }

  void GateGradients(int s) {
    const int64_t row = slots_.row[s], step = slots_.step[s], U = p_.units;
    const int64_t count = job_.schedule.counts[row];
    const int64_t n = job_.schedule.first[row] + step;
    AddOutputGradients(s, step == count - 1);

    const T* gates = gates_ + n * 4 * U;
    const T* c_row = cells_ + n * U;
    const T* c_before = step > 0 ? c_row - U : nullptr;
    if (step == 0 && p_.c0 != nullptr) c_before = static_cast<const T*>(p_.c0) + row * U;
    T* d_gates = slots_.d_gates[s];
    // h_t is the next step's h_{t-1}. When scratch is the reserve itself this overwrites c of a
    // step that is done, and dG overwrites gates just read.
    T* h_row = step + 1 < count ? h_before_ + (n + 1) * U : nullptr;
    const Vec<T> one = Broadcast<T>(T(1));
    for (int64_t u = 0; u < U; u += kWidth<T>) {
      const int64_t lanes = U - u;
      const Vec<T> i = LoadFirst(gates + u, lanes);
      const Vec<T> f = LoadFirst(gates + U + u, lanes);
      const Vec<T> g = LoadFirst(gates + 2 * U + u, lanes);
      const Vec<T> o = LoadFirst(gates + 3 * U + u, lanes);
      const Vec<T> before = c_before != nullptr ? LoadFirst(c_before + u, lanes) : Vec<T>{};
      const Vec<T> tanh_c = Tanh<T>(LoadFirst(c_row + u, lanes));
      const Vec<T> dh = LoadFirst(slots_.dh[s] + u, lanes);
      Vec<T> dc = LoadFirst(slots_.dc[s] + u, lanes);
      dc = MulAdd<T>(dh * o, one - tanh_c * tanh_c, dc);
      StoreFirst(slots_.dc[s] + u, dc * f, lanes);
      StoreFirst(d_gates + u, dc * g * (i * (one - i)), lanes);
      StoreFirst(d_gates + U + u, dc * before * (f * (one - f)), lanes);
      StoreFirst(d_gates + 2 * U + u, dc * i * (one - g * g), lanes);
      StoreFirst(d_gates + 3 * U + u, dh * tanh_c * (o * (one - o)), lanes);
      if (h_row != nullptr) StoreFirst(h_row + u, o * tanh_c, lanes);
    }
    if (step == 0) CopyOrZero(h_before_ + n * U, p_.h0, row * U, U);
  }

  // dh of the step before, and dx of this one.
  void Multiply(int active) {
    MultiplyPanels(active, 0, layout_.recurrent_panels(), slots_.dh, p_.units);
    if (call_.dx != nullptr) {
      MultiplyPanels(active, layout_.recurrent_panels(), layout_.input_panels(), slots_.dx,
                     p_.input_dim);
    }
  }

  void MultiplyPanels(int active, int64_t first_panel, int64_t panels, T* const* to,
                      int64_t columns) {
    const int64_t depth = 4 * p_.units;
    const T* packed = static_cast<const T*>(job_.packed);
    for (int64_t i = 0; i < panels; ++i) {
      const T* panel = packed + (first_panel + i) * layout_.backward_panel_size();
      const int64_t offset = i * layout_.panel_columns;
      for (int64_t begin = 0; begin < depth; begin += kDepthBlock) {
        const int64_t end = begin + kDepthBlock < depth ? begin + kDepthBlock : depth;
        for (int first = 0; first < active; first += kTileRows) {
          const int rows = active - first < kTileRows ? active - first : kTileRows;
          WithTileRows(rows, [&](auto tag) {
            BackwardTile<T, decltype(tag)::value>(slots_, first, to, offset, columns - offset,
                                                  panel, begin, end, depth,
                                                  saved_tiles_ + first * layout_.panel_columns);
          });
        }
      }
    }
  }

  // To the step before this one. False: the row is done.
  bool Advance(int s) {
    const int64_t row = slots_.row[s], position = slots_.position[s];
    const int64_t before = StepsOfRow(p_, row).Next(position, direction());
    if (slots_.step[s] == 0) {
      ZeroInputGradients(row, position, p_.go_backwards ? p_.timesteps : -1);
      FinishStates(s, row);
      return false;
    }
    ZeroInputGradients(row, position, before);
    slots_.next[s] = OutputPosition(position);
    slots_.position[s] = before;
    --slots_.step[s];
    SetStep(s);
    return true;
  }

  void FinishStates(int s, int64_t row) {
    const int64_t U = p_.units;
    if (call_.dh0 != nullptr) {
      std::memcpy(static_cast<T*>(call_.dh0) + row * U, slots_.dh[s], U * sizeof(T));
    }
    if (call_.dc0 != nullptr) {
      std::memcpy(static_cast<T*>(call_.dc0) + row * U, slots_.dc[s], U * sizeof(T));
    }
    job_.rows.Finish(1);
  }

  void MoveSlot(int from, int to) {
    Swap(slots_.dh[from], slots_.dh[to]);
    Swap(slots_.dc[from], slots_.dc[to]);
    slots_.d_gates[to] = slots_.d_gates[from];
    slots_.dx[to] = slots_.dx[from];
    slots_.row[to] = slots_.row[from];
    slots_.position[to] = slots_.position[from];
    slots_.next[to] = slots_.next[from];
    slots_.step[to] = slots_.step[from];
  }

  BackwardJob& job_;
  const LstmBackward& call_;
  const LstmProblem& p_;
  const CpuLayout layout_;
  const T* gates_;  // (N,4U) of the reserve
  const T* cells_;  // (N,U)
  T* d_gates_;      // (N,4U) of the scratch; may be gates_
  T* h_before_;     // (N,U); may be cells_
  BackwardSlots<T> slots_;
  T* saved_tiles_;
  T* weight_panel_;
};

}  // namespace MASKED_LSTM_ISA_NAMESPACE
}  // namespace masked_lstm
