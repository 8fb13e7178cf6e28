// Forward pass of one worker: teams of slots. Each slot holds one sequence at its own step; when a
// sequence ends, the next one moves in, so tiles stay full whatever the lengths are. Panels of
// weights are packed when they are first needed, by the worker that needs them: they are in its
// cache then.
#pragma once

#include "forward_in_place.h"
#include "forward_tile.h"
#include "job.h"
#include "pack.h"
#include "slots.h"
#include "stored.h"

namespace masked_lstm {
namespace MASKED_LSTM_ISA_NAMESPACE {

// How a team computes its slots' sums. This one: x and h in the type of computation, ForwardTile.
// The other one is in bf16_tile.h.
template <typename Stored>
struct VectorProduct {
  using Operand = Compute<Stored>;  // what x and h are multiplied as

  static void Pack(const LstmProblem& p, const CpuLayout& layout, Operand* packed, int64_t begin,
                   int64_t end) {
    PackForwardPanels<Stored>(p, layout, packed, begin, end);
  }
  static void Release() {}
};

// One team's slots, as one of its members sees them: what TeamQueue::Run asks for.
template <typename Stored, typename Product>
class ForwardTeam {
  using T = Compute<Stored>;
  using Operand = typename Product::Operand;
  using Slots = ForwardSlots<T, Stored, Operand>;
  // Slots' rows of x, h and h_next stand one after another, so that tiles can load them.
  static constexpr bool kBf16 = sizeof(Operand) < sizeof(T);

 public:
  ForwardTeam(ForwardJob* job, int team, int worker)
      : job_(*job),
        call_(*job->call),
        p_(job->call->problem),
        layout_{kWidth<T>, kPanelColumns<T>, p_.input_dim, p_.units},
        packed_(reinterpret_cast<Operand*>(job->packed + worker * job->packed_bytes)),
        queue_(reinterpret_cast<TeamQueue*>(job->teams.memory + team * job->teams.bytes)),
        slots_(*reinterpret_cast<Slots*>(queue_ + 1)),
        memory_(reinterpret_cast<T*>(&slots_ + 1)),
        saved_tiles_(
            reinterpret_cast<T*>(job->teams.worker_memory + worker * job->teams.worker_bytes)) {}

  void Run(int member) { queue_->Run(member, this); }

  // Waits for another worker that has begun to.
  void PackOnce(int64_t group) {
    int32_t* state = reinterpret_cast<int32_t*>(reinterpret_cast<char*>(packed_) + job_.states);
    state += group;
    int32_t expected = kUnpacked;
    if (__atomic_load_n(state, __ATOMIC_ACQUIRE) == kPacked) return;
    if (__atomic_compare_exchange_n(state, &expected, kBeingPacked, false, __ATOMIC_RELAXED,
                                    __ATOMIC_RELAXED)) {
      const int64_t begin = job_.first_packed + group * job_.pack_panels;
      const int64_t panels = layout_.forward_panels(), end = begin + job_.pack_panels;
      Product::Pack(p_, layout_, packed_, begin, end < panels ? end : panels);
      __atomic_store_n(state, kPacked, __ATOMIC_RELEASE);
      return;
    }
    for (int spins = 0; __atomic_load_n(state, __ATOMIC_ACQUIRE) != kPacked;) SpinWait(&spins);
  }

  bool Start() {
    if constexpr (kBf16) {
      PlaceBf16Rows();
    } else {
      PlaceRows();
    }
    slots_.activation = p_.activation;
    slots_.recurrent_activation = p_.recurrent_activation;
    slots_.plain = p_.activation == Activation::kTanh &&
                   p_.recurrent_activation == Activation::kSigmoid &&
                   p_.recurrent_factors == nullptr;
    slots_.active = 0;
    slots_.more = true;
    slots_.projecting = false;
    return Refill();
  }

  bool Advance() {
    if (slots_.projecting) {
      for (int s = 0; s < slots_.active; ++s) {
        if (slots_.to_project[s] == 0) continue;
        slots_.ahead[s] = slots_.to_project[s];
        slots_.projection[s] = slots_.projections[s];
      }
      slots_.projecting = false;
      return true;
    }
    for (int s = 0; s < job_.teams.slots; ++s) {
      Swap(slots_.h[s], slots_.h_next[s]);
      Swap(slots_.factored[s], slots_.factored_next[s]);
    }
    for (int s = slots_.active - 1; s >= 0; --s) {
      if (!NextStep(s) && s != --slots_.active) MoveSlot(slots_.active, s);
    }
    return Refill();
  }

  void Item(int64_t item) {
    const int64_t panels = layout_.forward_panels();
    int64_t begin = item * job_.item_panels;
    const int64_t end = begin + job_.item_panels < panels ? begin + job_.item_panels : panels;
    for (int64_t panel = begin; panel < end; ++panel) {
      if (panel >= job_.first_packed) PackOnce((panel - job_.first_packed) / job_.pack_panels);
    }
    if constexpr (kBf16) {
      StepBf16(item);
    } else {
      if (begin < job_.first_packed) {
        const int64_t in_place = end < job_.first_packed ? end : job_.first_packed;
        StepInPlace(begin, in_place);
        begin = in_place;
      } else if (StepWide(begin, end)) {
        return;
      }
      const int64_t next = job_.item_panels == 1 ? queue_->LikelyNext(item) : item;
      for (int64_t panel = begin; panel < end; ++panel) {
        if (slots_.projecting) {
          ProjectSlots(View(panel), panel);
        } else {
          const PanelView<T> after = View(next);
          StepSlots(View(panel), panel * layout_.width,
                    job_.projected > 0 ? after.recurrent_kernel : after.kernel);
        }
      }
    }
  }

 private:
  int direction() const { return p_.go_backwards ? -1 : 1; }

  void PlaceRows() {
    const int64_t stride = layout_.slot_stride(), n = job_.teams.slots;
    T* c = memory_;
    T* h = c + n * stride + layout_.kApart;
    T* h_next = h + n * stride + layout_.kApart;
    T* factored = h_next + n * stride + layout_.kApart;
    const int64_t copies = p_.recurrent_factors != nullptr ? 4 * n * stride : 0;
    T* factored_next = factored + copies + layout_.kApart;
    T* projections = factored_next + copies + layout_.kApart;
    T* staged = projections + n * job_.projected * layout_.projection();
    for (int s = 0; s < n; ++s) {
      slots_.c[s] = c + s * stride;
      slots_.h[s] = h + s * stride;
      slots_.h_next[s] = h_next + s * stride;
      slots_.projections[s] = projections + s * job_.projected * layout_.projection();
      slots_.projection[s] = nullptr;
      slots_.staged[s] = staged + s * job_.staged * layout_.staged_input();
      slots_.factored[s] = slots_.factored_next[s] = nullptr;
      if (p_.recurrent_factors != nullptr) {
        slots_.factored[s] = factored + 4 * s * stride;
        slots_.factored_next[s] = factored_next + 4 * s * stride;
      }
    }
    slots_.x_gate_stride = p_.input_factors != nullptr ? layout_.staged_input() : 0;
    slots_.h_gate_stride = p_.recurrent_factors != nullptr ? stride : 0;
    slots_.factor_stride = p_.batch * p_.units;
  }

  void PlaceBf16Rows() {
    const int64_t n = job_.teams.slots, stride = layout_.slot_stride();
    const int64_t h_stride = layout_.bf16_stride(p_.units);
    const int64_t x_stride = layout_.bf16_stride(p_.input_dim);
    const int64_t apart = layout_.kApart * sizeof(T) / sizeof(Operand);
    Operand* h = reinterpret_cast<Operand*>(memory_ + n * stride + layout_.kApart);
    Operand* h_next = h + n * h_stride + apart;
    Operand* x = h_next + n * h_stride + apart;
    // What pads a row to whole blocks is multiplied with zeros: it must be finite.
    std::memset(h, 0, n * h_stride * sizeof(Operand));
    std::memset(h_next, 0, n * h_stride * sizeof(Operand));
    std::memset(x, 0, n * x_stride * sizeof(Operand));
    for (int s = 0; s < n; ++s) {
      slots_.c[s] = memory_ + s * stride;
      slots_.h[s] = h + s * h_stride;
      slots_.h_next[s] = h_next + s * h_stride;
      slots_.staged[s] = x + s * x_stride;
      slots_.projection[s] = nullptr;
      slots_.factored[s] = slots_.factored_next[s] = nullptr;
    }
  }

  void StepBf16(int64_t panel_index) {
    const Operand* biases = packed_ + layout_.forward_panels() * layout_.bf16_panel_size();
    const typename Product::Panel panel = {
        packed_ + panel_index * layout_.bf16_panel_size(),
        reinterpret_cast<const T*>(biases) + panel_index * layout_.panel_columns,
        slots_.staged[0],
        slots_.h[0],
        layout_.bf16_row(p_.input_dim) / CpuLayout::kBf16Block,
        layout_.bf16_row(p_.units) / CpuLayout::kBf16Block,
        layout_.bf16_stride(p_.input_dim),
        layout_.bf16_stride(p_.units)};
    product_.Run(slots_, panel, p_.units, panel_index * layout_.width, saved_tiles_);
  }

  PanelView<T> View(int64_t panel) const {
    const T* kernel = packed_ + panel * layout_.forward_panel_size();
    return {kernel, kernel + p_.input_dim * layout_.panel_columns,
            packed_ + layout_.forward_panels() * layout_.forward_panel_size() +
                panel * layout_.panel_columns};
  }

  // Panels [begin, end), whose weights are read in place.
  void StepInPlace(int64_t begin, int64_t end) {
    if constexpr (!kWidened<Stored>) {
      ForwardInPlace<Stored>(slots_, p_, begin * layout_.width, (end - begin) * layout_.width,
                             saved_tiles_);
    }
  }

  // Panels [begin, end) at once, where a wide tile can. False: nothing was done.
  bool StepWide(int64_t begin, int64_t end) {
    if (end - begin != WidePanels(kTileRows) || slots_.active != 1 || slots_.projecting ||
        slots_.x_gate_stride != 0 || slots_.h_gate_stride != 0) {
      return false;
    }
    ForwardWideTile<Stored>(slots_, p_.input_dim, p_.units, begin * layout_.width, View(begin),
                            layout_.forward_panel_size(), saved_tiles_);
    return true;
  }

  // All slots go through a part of a panel before the next: it is read from far memory once.
  void StepSlots(const PanelView<T>& panel, int64_t unit, const T* next) {
    const int64_t D = job_.projected > 0 ? 0 : p_.input_dim, U = p_.units;
    PanelPart part = {0, 0, 0, 0};
    while (part.h_end < U) {
      part = NextPart(part, D, U);
      const int64_t rows = part.x_end - part.x_begin + part.h_end - part.h_begin;
      // Rows of kernel and recurrent_kernel stand in one packed panel; a projected step reads the
      // latter only.
      const T* from = D > 0 ? panel.kernel : panel.recurrent_kernel;
      const T* after =
          part.h_end < U ? from + (part.x_end + part.h_end) * layout_.panel_columns : next;
      ForEachTile(slots_.active, [&](int64_t first, auto tag, int64_t tile, int64_t tiles) {
        ForwardTile<Stored, decltype(tag)::value>(
            slots_, static_cast<int>(first), U, unit, panel, part,
            saved_tiles_ + first * layout_.panel_columns,
            ShareOfPanel<T>(job_.teams.fetch, after, rows, tile, tiles));
      });
    }
  }

  void ProjectSlots(const PanelView<T>& panel, int64_t panel_index) {
    for (int s = 0; s < slots_.active; ++s) {
      T* to = slots_.projections[s] + panel_index * layout_.panel_columns;
      ForEachTile(slots_.to_project[s], [&](int64_t first, auto tag, int64_t, int64_t) {
        ProjectTile<T, decltype(tag)::value>(slots_.ahead_x[s] + first, slots_.x_gate_stride,
                                             p_.input_dim, panel, to + first * layout_.projection(),
                                             layout_.projection(), saved_tiles_);
      });
    }
  }

  // Gives free slots the next rows and looks whether x.W must be computed ahead. False: all done.
  bool Refill() {
    while (slots_.more && slots_.active < job_.teams.slots) slots_.more = Begin(slots_.active);
    if (job_.projected > 0) {
      slots_.projecting = false;
      for (int s = 0; s < slots_.active; ++s) {
        slots_.to_project[s] = 0;
        if (slots_.ahead[s] > 0) continue;
        PlanProjection(s);
        slots_.projecting = true;
      }
    }
    return slots_.active > 0;
  }

  void PlanProjection(int s) {
    const RowSteps steps = StepsOfRow(p_, slots_.row[s]);
    const int64_t n = slots_.left[s] < job_.projected ? slots_.left[s] : job_.projected;
    int64_t position = slots_.position[s];
    for (int64_t k = 0; k < n; ++k) {
      slots_.ahead_x[s][k] = InputAt(s, k, position);
      position = steps.Next(position, direction());
    }
    slots_.to_project[s] = n;
  }

  // x of slot s at `position`; widened, or times the gates' factors, or as the rows of a tile, in
  // the slot's memory for its k-th staged step.
  const Operand* InputAt(int s, int64_t k, int64_t position) const {
    const int64_t D = p_.input_dim, row = slots_.row[s];
    const Stored* x = static_cast<const Stored*>(p_.x) + (StartOfRow(p_, row) + position) * D;
    if constexpr (kBf16) {
      std::memcpy(slots_.staged[s], x, D * sizeof(Operand));
      return slots_.staged[s];
    } else if (p_.input_factors != nullptr) {
      T* input = slots_.staged[s] + 4 * k * layout_.staged_input();
      const Stored* factors = static_cast<const Stored*>(p_.input_factors) + row * D;
      for (int gate = 0; gate < 4; ++gate) {
        Multiply(input + gate * layout_.staged_input(), x, factors + gate * p_.batch * D, D);
      }
      return input;
    } else if constexpr (kWidened<Stored>) {
      T* input = slots_.staged[s] + k * layout_.staged_input();
      Convert(input, x, D);
      return input;
    } else {
      return x;
    }
  }

  // Takes the next row into slot s. Rows without steps are finished on the way. False: no rows
  // left.
  bool Begin(int s) {
    const int64_t item = job_.rows.Take();
    if (item < 0) return false;
    const int64_t row = job_.schedule.order[item], U = p_.units;
    const int64_t count = job_.schedule.counts[row];
    ConvertOrZero<Stored>(slots_.h[s], p_.h0, row * U, U);
    ConvertOrZero<Stored>(slots_.c[s], p_.c0, row * U, U);
    // Lanes past the last unit are computed on, never stored.
    std::memset(slots_.c[s] + U, 0, (layout_.slot_stride() - U) * sizeof(T));
    // ... or, here, multiplied with zeros: a NaN of the slot's last row must not stay.
    if (kBf16) std::memset(slots_.h[s] + U, 0, (layout_.bf16_row(U) - U) * sizeof(Operand));
    const RowSteps steps = StepsOfRow(p_, row);
    const int64_t position =
        steps.Next(p_.go_backwards ? TimestepsOfRow(p_, row) : -1, direction());
    if (count == 0) {
      if (call_.outputs != nullptr && !p_.return_sequences) {
        std::memset(static_cast<Stored*>(call_.outputs) + row * U, 0, U * sizeof(Stored));
      }
      FinishStates(s, row, slots_.h[s]);
      return true;
    }
    slots_.row[s] = row;
    slots_.left[s] = count;
    slots_.ahead[s] = 0;
    if (p_.recurrent_factors != nullptr) {
      slots_.factors[s] = static_cast<const Stored*>(p_.recurrent_factors) + row * U;
      for (int gate = 0; gate < 4; ++gate) {
        Multiply(slots_.factored[s] + gate * slots_.h_gate_stride, slots_.h[s],
                 slots_.factors[s] + gate * slots_.factor_stride, U);
      }
    }
    slots_.saved_gates[s] = slots_.saved_c[s] = nullptr;
    if (call_.reserve != nullptr) {
      T* reserve = static_cast<T*>(call_.reserve);
      const int64_t first = job_.schedule.first[row];
      slots_.saved_gates[s] = reserve + first * 4 * U;
      slots_.saved_c[s] = reserve + job_.schedule.total * 4 * U + first * U;
    }
    SetPosition(s, position);
    ++slots_.active;
    return true;
  }

  void SetPosition(int s, int64_t position) {
    const int64_t row = slots_.row[s];
    slots_.position[s] = position;
    if (job_.projected == 0) slots_.x[s] = InputAt(s, 0, position);
    slots_.output[s] = nullptr;
    if (call_.outputs == nullptr) return;
    if (p_.return_sequences) {
      slots_.output[s] = static_cast<Stored*>(call_.outputs) +
                         (StartOfRow(p_, row) + OutputPosition(p_, row, position)) * p_.units;
    } else if (slots_.left[s] == 1) {
      slots_.output[s] = static_cast<Stored*>(call_.outputs) + row * p_.units;
    }
  }

  // Moves to the row's next step. False: the row is done.
  bool NextStep(int s) {
    const Operand* h = slots_.h[s];
    const int64_t row = slots_.row[s], U = p_.units;
    if (--slots_.left[s] == 0) {
      FinishStates(s, row, h);
      return false;
    }
    const int64_t next = StepsOfRow(p_, row).Next(slots_.position[s], direction());
    if (slots_.saved_gates[s] != nullptr) {
      slots_.saved_gates[s] += 4 * U;
      slots_.saved_c[s] += U;
    }
    if (job_.projected > 0) {
      --slots_.ahead[s];
      slots_.projection[s] += layout_.projection();
    }
    SetPosition(s, next);
    return true;
  }

  void FinishStates(int s, int64_t row, const Operand* h) {
    const int64_t U = p_.units;
    if (call_.h != nullptr) Convert(static_cast<Stored*>(call_.h) + row * U, h, U);
    if (call_.c != nullptr) Convert(static_cast<Stored*>(call_.c) + row * U, slots_.c[s], U);
    const int64_t done = __atomic_fetch_add(&job_.rows.done, 1, __ATOMIC_RELAXED);
    __atomic_store_n(&job_.finished[done], static_cast<int32_t>(row), __ATOMIC_RELEASE);
  }

  void MoveSlot(int from, int to) {
    if constexpr (kBf16) {
      std::memcpy(slots_.h[to], slots_.h[from], layout_.bf16_row(p_.units) * sizeof(Operand));
      std::memcpy(slots_.staged[to], slots_.staged[from], p_.input_dim * sizeof(Operand));
    } else {
      Swap(slots_.h[from], slots_.h[to]);
      Swap(slots_.h_next[from], slots_.h_next[to]);
      Swap(slots_.staged[from], slots_.staged[to]);
      slots_.x[to] = slots_.x[from];
    }
    Swap(slots_.c[from], slots_.c[to]);
    Swap(slots_.projections[from], slots_.projections[to]);
    Swap(slots_.factored[from], slots_.factored[to]);
    Swap(slots_.factored_next[from], slots_.factored_next[to]);
    slots_.factors[to] = slots_.factors[from];
    slots_.projection[to] = slots_.projection[from];
    slots_.ahead[to] = slots_.ahead[from];
    slots_.output[to] = slots_.output[from];
    slots_.saved_gates[to] = slots_.saved_gates[from];
    slots_.saved_c[to] = slots_.saved_c[from];
    slots_.row[to] = slots_.row[from];
    slots_.position[to] = slots_.position[from];
    slots_.left[to] = slots_.left[from];
  }

  ForwardJob& job_;
  const LstmForward& call_;
  const LstmProblem& p_;
  const CpuLayout layout_;
  Operand* packed_;
  TeamQueue* queue_;
  Slots& slots_;    // shared
  T* memory_;       // shared
  T* saved_tiles_;  // this worker's own
  Product product_;
};

// Outputs at the masked steps of rows that are done: the output before them, or zeros. Only worker
// 0 stays until all rows are.
template <typename Stored>
static void FillMaskedOutputs(ForwardJob* job, bool stay) {
  const LstmProblem& p = job->call->problem;
  const int64_t T_ = p.timesteps, bytes = p.units * sizeof(Stored);
  const auto ready = [&](int64_t item) {
    const auto done = [&] { return __atomic_load_n(&job->finished[item], __ATOMIC_ACQUIRE) >= 0; };
    for (int spins = 0; stay && !done();) SpinWait(&spins);
    return done();
  };
  for (int64_t item; (item = job->fill.TakeIf(ready)) >= 0;) {
    const int64_t row = job->finished[item];
    if (job->schedule.counts[row] == T_) continue;
    const RowSteps steps = StepsOfRow(p, row);
    const int direction = p.go_backwards ? -1 : 1;
    char* outputs = static_cast<char*>(job->call->outputs) + row * T_ * bytes;
    const char* before = nullptr;
    int64_t next = steps.Next(p.go_backwards ? T_ : -1, direction);
    for (int64_t t = 0; t < T_; ++t) {  // in processing order
      char* output = outputs + t * bytes;
      if (next < steps.limit && t == OutputPosition(p, row, next)) {
        if (!p.zero_output_for_mask) before = output;
        next = steps.Next(next, direction);
      } else if (before != nullptr) {
        std::memcpy(output, before, bytes);
      } else {
        std::memset(output, 0, bytes);
      }
    }
  }
}

template <typename Stored, typename Product = VectorProduct<Stored>>
static void RunForward(ForwardJob* job, int worker) {
  using Team = ForwardTeam<Stored, Product>;
  job->pack.RunAll([&](int64_t group) { Team(job, /*team=*/0, worker).PackOnce(group); });
  ForEachTeam(job->teams, worker,
              [&](int team, int member) { Team(job, team, worker).Run(member); });
  Product::Release();
  FillMaskedOutputs<Stored>(job, worker == 0);
}

}  // namespace MASKED_LSTM_ISA_NAMESPACE
}  // namespace masked_lstm
