// Forward pass of one worker: a few slots, each with one sequence at its own step. When a sequence
// ends, the next one moves in, so tiles stay full whatever the lengths are.
#pragma once

#include "activations.h"
#include "job.h"
#include "pack.h"
#include "slots.h"
#include "tile.h"

namespace masked_lstm {
namespace MASKED_LSTM_ISA_NAMESPACE {

template <typename T>
struct ForwardSlots {
  const T* x[kMaxSlots];      // (D) this step's input
  T* h[kMaxSlots];            // (U) h_{t-1}
  T* h_next[kMaxSlots];       // (U) h_t
  T* c[kMaxSlots];            // (U)
  T* saved_gates[kMaxSlots];  // (4U) of the reserve, or null
  T* saved_c[kMaxSlots];      // (U) of the reserve, or null
  int64_t row[kMaxSlots];
  int64_t position[kMaxSlots];
  int64_t left[kMaxSlots];  // steps to go, this one included
};

// One tile: units [unit, unit + width) of slots [first, first + S), rows [begin, end) of the panel.
// The last part of the panel finishes the cell in registers: no buffer of gates.
template <typename T, int S>
static MASKED_LSTM_NOINLINE void ForwardTile(const ForwardSlots<T>& slots, int first,
                                             int64_t input_dim, int64_t units, int64_t unit,
                                             const T* panel, const T* bias, int64_t begin,
                                             int64_t end, T* memory) {
  Tile<T, S> tile;
  tile.Fill(begin == 0 ? bias : nullptr);
  const T* rows[S];
  if (begin < input_dim) {
    for (int s = 0; s < S; ++s) rows[s] = slots.x[first + s] + begin;
    const int64_t stop = end < input_dim ? end : input_dim;
    tile.AddRows(panel + begin * kPanelColumns<T>, rows, stop - begin);
  }
  if (end > input_dim) {
    const int64_t start = begin > input_dim ? begin : input_dim;
    for (int s = 0; s < S; ++s) rows[s] = slots.h[first + s] + (start - input_dim);
    tile.AddRows(panel + start * kPanelColumns<T>, rows, end - start);
  }
  if (begin > 0) tile.Add(memory);
  if (end < input_dim + units) {
    tile.Save(memory);
    return;
  }
  const int64_t n = units - unit;
#pragma GCC unroll 6
  for (int s = 0; s < S; ++s) {
    const Vec<T> i = Sigmoid<T>(tile.acc[0][s]);
    const Vec<T> f = Sigmoid<T>(tile.acc[1][s]);
    const Vec<T> g = Tanh<T>(tile.acc[2][s]);
    const Vec<T> o = Sigmoid<T>(tile.acc[3][s]);
    T* c_row = slots.c[first + s] + unit;
    const Vec<T> c = MulAdd<T>(f, Load(c_row), i * g);
    Store(c_row, c);
    Store(slots.h_next[first + s] + unit, o * Tanh<T>(c));
    if (T* gates = slots.saved_gates[first + s]) {
      StoreFirst(gates + unit, i, n);
      StoreFirst(gates + units + unit, f, n);
      StoreFirst(gates + 2 * units + unit, g, n);
      StoreFirst(gates + 3 * units + unit, o, n);
      StoreFirst(slots.saved_c[first + s] + unit, c, n);
    }
  }
}

template <typename T>
class ForwardWorker {
 public:
  ForwardWorker(ForwardJob* job, int worker)
      : job_(*job),
        call_(*job->call),
        p_(job->call->problem),
        layout_{kWidth<T>, kPanelColumns<T>, p_.input_dim, p_.units} {
    T* memory = reinterpret_cast<T*>(job->worker_memory + worker * job->worker_bytes);
    const int64_t stride = layout_.slot_stride();
    for (int s = 0; s < job->slots; ++s) {
      slots_.h[s] = memory + s * stride;
      slots_.h_next[s] = memory + (job->slots + s) * stride;
      slots_.c[s] = memory + (2 * job->slots + s) * stride;
    }
    saved_tiles_ = memory + 3 * job->slots * stride;
  }

  void Run() {
    int64_t packed = 0;
    for (int64_t panel; (panel = job_.pack.Take()) >= 0; ++packed) {
      PackForwardPanel<T>(job_, layout_, panel);
    }
    job_.pack.Finish(packed);
    job_.pack.WaitAll();

    int active = 0;
    bool more = true;
    while (true) {
      while (more && active < job_.slots) more = Begin(active, &active);
      if (active == 0) return;
      Step(active);
      for (int s = active - 1; s >= 0; --s) {
        if (!Advance(s) && s != --active) MoveSlot(active, s);
      }
    }
  }

 private:
  int direction() const { return p_.go_backwards ? -1 : 1; }
  int64_t OutputPosition(int64_t position) const {
    return p_.go_backwards ? p_.timesteps - 1 - position : position;
  }

  // Outputs [begin, end) of a row, in processing order: copies of `value`, or zeros.
  void FillOutputs(int64_t row, int64_t begin, int64_t end, const T* value) {
    T* out = static_cast<T*>(call_.outputs) + (row * p_.timesteps + begin) * p_.units;
    for (int64_t t = begin; t < end; ++t, out += p_.units) {
      if (value != nullptr) {
        std::memcpy(out, value, p_.units * sizeof(T));
      } else {
        std::memset(out, 0, p_.units * sizeof(T));
      }
    }
  }

  // Takes the next row into slot s. Rows without steps are finished on the way. False: no rows
  // left.
  bool Begin(int s, int* active) {
    const int64_t item = job_.rows.Take();
    if (item < 0) return false;
    const int64_t row = job_.schedule.order[item], U = p_.units;
    const int64_t count = job_.schedule.counts[row];
    CopyOrZero(slots_.h[s], p_.h0, row * U, U);
    CopyOrZero(slots_.c[s], p_.c0, row * U, U);
    // Lanes past the last unit are computed on, never stored.
    std::memset(slots_.c[s] + U, 0, (layout_.slot_stride() - U) * sizeof(T));
    const RowSteps steps = StepsOfRow(p_, row);
    const int64_t position = steps.Next(p_.go_backwards ? p_.timesteps : -1, direction());
    const int64_t leading = count == 0 ? p_.timesteps : OutputPosition(position);
    if (call_.outputs != nullptr && p_.return_sequences) FillOutputs(row, 0, leading, nullptr);
    if (count == 0) {
      if (call_.outputs != nullptr && !p_.return_sequences) {
        std::memset(static_cast<T*>(call_.outputs) + row * U, 0, U * sizeof(T));
      }
      FinishStates(s, row, slots_.h[s]);
      return true;
    }
    slots_.row[s] = row;
    slots_.left[s] = count;
    slots_.saved_gates[s] = slots_.saved_c[s] = nullptr;
    if (call_.reserve != nullptr) {
      T* reserve = static_cast<T*>(call_.reserve);
      const int64_t first = job_.schedule.first[row];
      slots_.saved_gates[s] = reserve + first * 4 * U;
      slots_.saved_c[s] = reserve + job_.schedule.total * 4 * U + first * U;
    }
    SetPosition(s, position);
    ++*active;
    return true;
  }

  void SetPosition(int s, int64_t position) {
    slots_.position[s] = position;
    slots_.x[s] =
        static_cast<const T*>(p_.x) + (slots_.row[s] * p_.timesteps + position) * p_.input_dim;
  }

  // Writes what the step just done gives and moves to the row's next step. False: the row is done.
  bool Advance(int s) {
    T* h = slots_.h_next[s];
    slots_.h_next[s] = slots_.h[s];
    slots_.h[s] = h;
    const int64_t row = slots_.row[s], U = p_.units;
    const bool last = --slots_.left[s] == 0;
    const int64_t next = last ? 0 : StepsOfRow(p_, row).Next(slots_.position[s], direction());
    if (call_.outputs != nullptr && p_.return_sequences) {
      const int64_t begin = OutputPosition(slots_.position[s]);
      const int64_t end = last ? p_.timesteps : OutputPosition(next);
      FillOutputs(row, begin, begin + 1, h);
      FillOutputs(row, begin + 1, end, p_.zero_output_for_mask ? nullptr : h);
    }
    if (last) {
      if (call_.outputs != nullptr && !p_.return_sequences) {
        std::memcpy(static_cast<T*>(call_.outputs) + row * U, h, U * sizeof(T));
      }
      FinishStates(s, row, h);
      return false;
    }
    if (slots_.saved_gates[s] != nullptr) {
      slots_.saved_gates[s] += 4 * U;
      slots_.saved_c[s] += U;
    }
    SetPosition(s, next);
    return true;
  }

  void FinishStates(int s, int64_t row, const T* h) {
    const int64_t U = p_.units;
    if (call_.h != nullptr) std::memcpy(static_cast<T*>(call_.h) + row * U, h, U * sizeof(T));
    if (call_.c != nullptr) {
      std::memcpy(static_cast<T*>(call_.c) + row * U, slots_.c[s], U * sizeof(T));
    }
  }

  void MoveSlot(int from, int to) {
    Swap(slots_.h[from], slots_.h[to]);
    Swap(slots_.h_next[from], slots_.h_next[to]);
    Swap(slots_.c[from], slots_.c[to]);
    slots_.x[to] = slots_.x[from];
    slots_.saved_gates[to] = slots_.saved_gates[from];
    slots_.saved_c[to] = slots_.saved_c[from];
    slots_.row[to] = slots_.row[from];
    slots_.position[to] = slots_.position[from];
    slots_.left[to] = slots_.left[from];
  }

  // Panels outside, slots inside: a part of a panel is read from far memory once for all slots.
  void Step(int active) {
    const int64_t depth = p_.input_dim + p_.units;
    const T* packed = static_cast<const T*>(job_.packed);
    const T* biases = packed + layout_.forward_panels() * layout_.forward_panel_size();
    for (int64_t panel = 0; panel < layout_.forward_panels(); ++panel) {
      for (int64_t begin = 0; begin < depth; begin += kDepthBlock) {
        const int64_t end = begin + kDepthBlock < depth ? begin + kDepthBlock : depth;
        for (int first = 0; first < active; first += kTileRows) {
          const int rows = active - first < kTileRows ? active - first : kTileRows;
          WithTileRows(rows, [&](auto tag) {
            ForwardTile<T, decltype(tag)::value>(slots_, first, p_.input_dim, p_.units,
                                                 panel * layout_.width,
                                                 packed + panel * layout_.forward_panel_size(),
                                                 biases + panel * layout_.panel_columns, begin, end,
                                                 saved_tiles_ + first * layout_.panel_columns);
          });
        }
      }
    }
  }

  ForwardJob& job_;
  const LstmForward& call_;
  const LstmProblem& p_;
  const CpuLayout layout_;
  ForwardSlots<T> slots_;
  T* saved_tiles_;
};

}  // namespace MASKED_LSTM_ISA_NAMESPACE
}  // namespace masked_lstm
