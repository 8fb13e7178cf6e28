// What the workers of one CPU call share. Plain data: compiled once, used by every instruction set.
#pragma once

#include <cstdint>

#include "lstm.h"
#include "schedule.h"
#include "slots.h"
#include "team.h"

namespace masked_lstm {

// Items taken one by one by whichever workers have started.
struct alignas(64) WorkQueue {
  int64_t size = 0;
  int64_t next = 0;
  int64_t done = 0;

  // The next item, or -1.
  MASKED_LSTM_INLINE int64_t Take() {
    const int64_t item = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED);
    return item < size ? item : -1;
  }
  MASKED_LSTM_INLINE void Finish(int64_t items) {
    __atomic_fetch_add(&done, items, __ATOMIC_RELEASE);
  }

  // The next item, if `ready(item)`, or -1.
  template <typename Ready>
  MASKED_LSTM_INLINE int64_t TakeIf(Ready ready) {
    int64_t item = __atomic_load_n(&next, __ATOMIC_RELAXED);
    while (item < size && ready(item)) {
      if (__atomic_compare_exchange_n(&next, &item, item + 1, false, __ATOMIC_RELAXED,
                                      __ATOMIC_RELAXED)) {
        return item;
      }
    }
    return -1;
  }

  // Takes items while there are any, and returns when all are done, whoever did them.
  template <typename F>
  MASKED_LSTM_INLINE void RunAll(F f) {
    int64_t items = 0;
    for (int64_t item; (item = Take()) >= 0; ++items) f(item);
    Finish(items);
    WaitAll();
  }

  // Returns when every item is done. Only items that some worker has begun can be outstanding, so
  // this cannot wait for a thread that never starts.
  MASKED_LSTM_INLINE void WaitAll() const {
    for (int spins = 0; __atomic_load_n(&done, __ATOMIC_ACQUIRE) < size;) SpinWait(&spins);
  }
};

// Weights of more bytes, read over and over, come from beyond a worker's caches: they are shared.
constexpr int64_t kFarBytes = 3 << 20;

// Weights of more bytes are fetched ahead of their use. With narrow vectors a multiply-add has more
// loads beside it, and asking takes the place of one: only what caches do not hold at all is.
MASKED_LSTM_INLINE constexpr int64_t FetchedBytes(int64_t vector_bytes) {
  return vector_bytes == 64 ? 1 << 20 : kFarBytes;
}

// Whether tiles of weight gradients read x and h where they are, through a table of their rows.
// With narrow vectors they read a copy whose rows are a constant apart: one load less of 8 for 6
// cycles of multiply-adds, and none that waits for L2.
MASKED_LSTM_INLINE constexpr bool ReadsInPlace(int64_t vector_bytes) { return vector_bytes == 64; }

// Copied blocks of steps: where they hold x and h too, one is copied while another is used.
MASKED_LSTM_INLINE constexpr int64_t WeightBlocks(int64_t vector_bytes) {
  return ReadsInPlace(vector_bytes) ? 1 : 2;
}

// How the workers of a call are grouped: worker w is member w / count of team w % count. A team
// shares slots and takes rows of the batch; its members share the panels of each step.
struct Teams {
  int count;
  int members;  // of each team, if all start; workers beyond them have no team
  int slots;    // of each team
  bool large;   // a member's share of the weights comes from beyond its caches in every step
  bool fetch;   // ... or is worth fetching ahead
  bool help;    // who has no team, or none left, joins another: pays off where steps are long
  char* memory;
  size_t bytes;  // of one team
  char* worker_memory;
  size_t worker_bytes;
};

// Calls f(team, member) for the teams in which a worker takes part, its own first.
template <typename F>
MASKED_LSTM_INLINE void ForEachTeam(const Teams& teams, int worker, F&& f) {
  const int member = worker / teams.count;
  if (member < teams.members) f(worker % teams.count, member);
  for (int i = 1; teams.help && i < teams.count; ++i) f((worker + i) % teams.count, member);
}

// Of a group of panels, which whoever needs it first packs.
enum PackState : int32_t { kUnpacked = 0, kBeingPacked, kPacked };

struct ForwardJob {
  const LstmForward* call;
  Schedule schedule;
  WorkQueue pack;        // groups of panels, where teams share a copy: it is packed beforehand
  WorkQueue rows;        // rows of the batch, longest first
  WorkQueue fill;        // rows of the batch, in `finished`, for the outputs at masked steps
  int32_t* finished;     // (B) rows in the order in which they were done; -1: not yet
  char* packed;          // panels, then packed bias, then int32 PackState of each group of panels
  int64_t packed_bytes;  // from one worker's copy to the next one's; 0: all share one
  int64_t states;        // from a copy's begin to the states: bytes
  int64_t pack_panels;   // panels in a group: neighbours, whose weights share cache lines
  int64_t first_packed;  // panels before it are read where the weights are
  int64_t item_panels;   // of an item of a step
  int64_t projected;     // steps of a slot whose x.W is computed ahead at once; 0: none
  int64_t staged;        // inputs of a slot that are copied at once, one for each gate where they
                         // differ; 0: they are read in place
  Teams teams;
};

struct BackwardJob {
  const LstmBackward* call;
  const void* reserve;  // the call's, or the recomputed one
  Schedule schedule;
  WorkQueue pack;
  WorkQueue rows;
  WorkQueue zeros;        // rows of the batch, for dx at masked steps
  WorkQueue inputs;       // blocks of compact rows of dx
  WorkQueue weights;      // pieces of the weight gradients
  int64_t weight_rows;    // rows of d_kernel or d_recurrent_kernel in one piece
  int64_t weight_panels;  // panels of their columns in one piece
  int64_t weight_parts;   // 4: their gates apart; 1: their columns as one
  int64_t weight_stride;  // between copied rows of x or h; 0: they are read in place
  void* packed;
  int64_t* x_rows;      // (N) of each compact row: its row of x, b*T+t
  int32_t* batch_rows;  // (N) ... b; null where nobody asks
  Teams teams;
};

typedef void (*ForwardFunction)(ForwardJob* job, int worker);

// One instruction set's compiled code. Index of the arrays: DType.
struct CpuKernels {
  const char* name;
  int vector_bytes;
  int tile_rows;
  ForwardFunction forward[kDTypes];
  void (*backward[kDTypes])(BackwardJob* job, int worker);
  // For tests and benchmarks: y[n] = f(x[n]); multiply-adds in registers, returns the flops done.
  void (*sigmoid[kDTypes])(const void* x, void* y, int64_t n);
  void (*tanh[kDTypes])(const void* x, void* y, int64_t n);
  double (*multiply_add_loop[kDTypes])(int64_t iterations);
  // Where bfloat16 is multiplied as such in forward[kBFloat16]: slots of a tile, most of a team,
  // and bytes of weights above which workers share them. Else 0: it is widened.
  int bf16_tile_rows = 0, bf16_slots = 0;
};

// Layout of the packed weights and of a worker's memory; shared by who allocates and who uses.
struct CpuLayout {
  int64_t width;          // values in a vector
  int64_t panel_columns;  // 4 * width
  int64_t input_dim, units;

  MASKED_LSTM_INLINE static int64_t RoundUp(int64_t n, int64_t to) {
    return (n + to - 1) / to * to;
  }
  MASKED_LSTM_INLINE static int64_t Panels(int64_t n, int64_t per_panel) {
    return (n + per_panel - 1) / per_panel;
  }

  // Forward: a panel holds `width` units of all four gates, D + U rows.
  MASKED_LSTM_INLINE int64_t forward_panels() const { return Panels(units, width); }
  MASKED_LSTM_INLINE int64_t forward_panel_size() const {
    return (input_dim + units) * panel_columns;
  }
  MASKED_LSTM_INLINE int64_t forward_packed() const {
    return forward_panels() * (forward_panel_size() + panel_columns);
  }
  // ... with products of bfloat16: rows padded to whole blocks, two bytes a value, then the bias.
  static constexpr int64_t kBf16Block = 32;
  MASKED_LSTM_INLINE static int64_t bf16_row(int64_t n) { return RoundUp(n, kBf16Block); }
  MASKED_LSTM_INLINE int64_t bf16_panel_size() const {
    return (bf16_row(input_dim) + bf16_row(units)) * panel_columns;
  }
  MASKED_LSTM_INLINE int64_t bf16_packed_bytes() const {
    return forward_panels() * (bf16_panel_size() * 2 + panel_columns * 4);
  }
  // Backward: a panel holds 4*width columns of recurrent_kernel^T, or of kernel^T for dx; 4U rows.
  MASKED_LSTM_INLINE int64_t recurrent_panels() const { return Panels(units, panel_columns); }
  MASKED_LSTM_INLINE int64_t input_panels() const { return Panels(input_dim, panel_columns); }
  MASKED_LSTM_INLINE int64_t backward_panel_size() const { return 4 * units * panel_columns; }

  // A slot's row of h, c, dh or dc. The odd cache line keeps rows off each other's L1 sets.
  MASKED_LSTM_INLINE int64_t slot_stride() const { return RoundUp(units, panel_columns) + 64 / 4; }
  // x.W of one step of one slot.
  MASKED_LSTM_INLINE int64_t projection() const { return forward_panels() * panel_columns; }
  // x of one step of one slot, for one gate or all.
  MASKED_LSTM_INLINE int64_t staged_input() const { return RoundUp(input_dim, panel_columns) + 16; }
  // States: rows of slot_stride: h, h_next and c, and copies of the first two for each gate.
  MASKED_LSTM_INLINE int64_t forward_team(int slots, int64_t states, int64_t projected,
                                          int64_t staged) const {
    return slots * (states * slot_stride() + projected * projection() + staged * staged_input()) +
           5 * kApart;
  }
  // Values between rows that one worker writes and rows that all of them read. The hardware fetches
  // more than is read, up to the end of the page: it would take lines from the worker that is
  // about to write them.
  static constexpr int64_t kApart = 4096 / 4;
  // One slot's row of x or h as bfloat16; all slots' stand one after another. An odd line again.
  MASKED_LSTM_INLINE static int64_t bf16_stride(int64_t n) { return bf16_row(n) + 32; }
  // c, and as bfloat16 h, h_next and x: in values of 4 bytes.
  MASKED_LSTM_INLINE int64_t bf16_forward_team(int slots) const {
    return slots * (slot_stride() + bf16_stride(units) + bf16_stride(input_dim) / 2) + 3 * kApart;
  }
  MASKED_LSTM_INLINE int64_t backward_team(int slots) const { return 2 * slots * slot_stride(); }
  MASKED_LSTM_INLINE int64_t saved_tiles(int slots) const { return slots * panel_columns; }
  // One worker's: tiles between two parts of a panel, blocks of dG and of x or h, and the sums of a
  // piece of weight gradients, where results are half precision.
  MASKED_LSTM_INLINE int64_t backward_worker(const BackwardJob& job, int64_t blocks,
                                             bool sums) const {
    const int64_t columns = job.weight_panels * panel_columns;
    return saved_tiles(kMaxSlots) + blocks * kWeightBlock * (columns + job.weight_stride) +
           (sums ? (job.weight_rows + 1) * columns : 0);
  }
  // Between rows of a block of x or h: an odd number of lines, so that one column of them meets all
  // sets of L1.
  MASKED_LSTM_INLINE static int64_t copied_stride(int64_t rows) { return RoundUp(rows, 32) + 16; }

  // Valid steps summed in registers before a weight gradient is added to; part of the result's
  // definition (the order of summation), so it must not depend on the threads.
  static constexpr int64_t kWeightBlock = 128;
};

}  // namespace masked_lstm
