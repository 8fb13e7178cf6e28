#include "cpu/cpu_lstm.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "cpu/choose_slots.h"
#include "cpu/float_mode.h"

namespace masked_lstm {
namespace {

// Hands out 64-byte aligned pieces of a buffer; with a null base it only counts.
class Arena {
 public:
  explicit Arena(void* base) {
    if (base != nullptr) at_ = (reinterpret_cast<uintptr_t>(base) + 63) / 64 * 64;
    begin_ = at_;
  }
  template <typename P>
  P* Take(int64_t bytes) {
    P* piece = reinterpret_cast<P*>(at_);
    at_ += CpuLayout::RoundUp(bytes, 64);
    return piece;
  }
  size_t Bytes() const { return at_ - begin_ + 64; }

 private:
  uintptr_t at_ = 0, begin_ = 0;
};

CpuLayout LayoutOf(const LstmProblem& p, const CpuKernels& kernels) {
  const int64_t width = kernels.vector_bytes / ComputeBytes(p.dtype);
  return {width, 4 * width, p.input_dim, p.units};
}

// Multiply-adds of a step from which on another member pays for the meeting at its end.
constexpr int64_t kMemberMultiplyAdds = 32 << 10;

// Slots of a team. More of them share each part of the weights where it comes from farther away.
struct SlotLimits {
  int64_t usual, most;  // where a worker's weights are large; else half of usual, and usual
};
constexpr SlotLimits kVectorLimits = {24, kMaxSlots};

// `weights`: bytes read in each step; `panels`: items of a step; `panel_work`: multiply-adds of one
// panel for one slot. Results depend on none of the choices made here.
Teams ChooseTeams(const LstmProblem& p, int64_t tile, const SlotLimits& limits, int vector_bytes,
                  int workers, int64_t weights, int64_t panels, int64_t panel_work) {
  const int64_t rows = std::max<int64_t>(1, p.batch);
  // So many members that each reads no more than its caches hold (below, steps of its own are
  // cheaper for a worker than steps in company), but so few teams that each has rows enough to fill
  // a tile.
  const int64_t readers = std::min<int64_t>(CpuLayout::Panels(weights, kFarBytes), workers);
  const int64_t count = std::min(std::max<int64_t>(1, rows / tile), workers / readers);
  const int64_t share = CpuLayout::Panels(rows, count);
  const int64_t step = panels * panel_work * std::min(share, tile);
  const int64_t members = std::min<int64_t>({CpuLayout::Panels(workers, count), panels, kMaxTeam,
                                             std::max<int64_t>(1, step / kMemberMultiplyAdds)});
  Teams teams = {};
  teams.large = weights > kFarBytes * members;
  teams.fetch = weights > FetchedBytes(vector_bytes) * members;
  const int64_t most = teams.large ? limits.most : std::min(limits.most, limits.usual);
  teams.count = static_cast<int>(count);
  teams.members = static_cast<int>(members);
  teams.slots = static_cast<int>(std::min(most, CpuLayout::RoundUp(share, tile)));
  teams.help = panels > 1 && panels * panel_work >= 2 * kMemberMultiplyAdds;
  return teams;
}

// The longest row is as many steps as the call will have: with more slots than all rows keep busy
// so long, tiles would be full first and empty later. Whole tiles, unless its steps are so
// few that one more of them would count. In a call long enough another number is looked for.
void UseFewerSlots(const Schedule& schedule, const LstmProblem& p, int64_t tile,
                   const SlotLimits& limits, int vector_bytes, Teams* teams) {
  if (schedule.total == 0) return;
  constexpr int64_t kFewSteps = 4;
  constexpr double kSearchMultiplyAdds = 4e6;  // for each row: a search takes 1 % of their time
  const int64_t longest = schedule.counts[schedule.order[0]], steps = longest * teams->count;
  const int64_t most = teams->slots;
  const int64_t usual = (teams->large ? limits.usual : limits.usual / 2) / tile * tile;
  int64_t needed = CpuLayout::Panels(schedule.total, steps);
  if (schedule.total == longest * p.batch && needed <= std::min(limits.usual, most)) {
    teams->slots = static_cast<int>(needed);  // rows of one length: none is left for a second turn
    return;
  }
  if (longest >= kFewSteps) {
    needed = std::max(tile, (schedule.total / steps + tile / 2) / tile * tile);
  }
  teams->slots = static_cast<int>(std::min({needed, usual, most}));
  const double multiply_adds = 4.0 * static_cast<double>(schedule.total) *
                               static_cast<double>(p.units) *
                               static_cast<double>(p.input_dim + p.units);
  const double workers = static_cast<double>(teams->count) * teams->members;
  if (longest < kFewSteps || limits.most <= limits.usual ||
      multiply_adds < kSearchMultiplyAdds * static_cast<double>(p.batch) * workers) {
    return;
  }
  // A slot's multiply-adds of one row of a panel take 2 cycles; a row of four vectors comes from
  // far away at some 12 bytes a cycle.
  const double read = teams->large ? 4 * vector_bytes / 12.0 / 2 : 0.5;
  teams->slots = ChooseSlots(schedule, p.batch, teams->count, teams->slots, static_cast<int>(most),
                             {tile, read});
}

// Teams with `team_values` values each, workers with `worker_values`. The queues start cleared.
template <typename Slots>
void LayOutTeams(Arena* arena, int workers, int64_t team_values, int64_t worker_values,
                 int64_t item_bytes, int64_t panels, bool clear, Teams* teams) {
  const size_t head = sizeof(TeamQueue) + sizeof(Slots);
  teams->bytes = CpuLayout::RoundUp(head + team_values * item_bytes, 64);
  teams->memory = arena->Take<char>(teams->count * teams->bytes);
  teams->worker_bytes = CpuLayout::RoundUp(worker_values * item_bytes, 64);
  teams->worker_memory = arena->Take<char>(workers * teams->worker_bytes);
  for (int team = 0; clear && team < teams->count; ++team) {
    TeamQueue* queue = reinterpret_cast<TeamQueue*>(teams->memory + team * teams->bytes);
    *queue = TeamQueue();
    queue->items = panels;
    queue->ranges = teams->members;
  }
}

// Handing work to a thread costs some microseconds: about what this many multiply-adds of float32
// take, with vectors of 64 bytes.
constexpr double kMultiplyAddsPerThread = 400e3;
// Waking one that sleeps takes as long as all of a call with less.
constexpr double kMultiplyAddsToWakeFor = 2e6;

// Of the forward pass; packing counts like a step.
double MultiplyAdds(const LstmProblem& p, double steps) {
  return 4.0 * (steps + 1) * static_cast<double>(p.units) *
         static_cast<double>(p.input_dim + p.units);
}

// The most workers that any number of steps can keep busy: others have no room in a layout.
int MostWorkers(const LstmProblem& p, int workers) {
  const double steps = static_cast<double>(p.batch) * static_cast<double>(p.timesteps);
  return static_cast<int>(
      std::min<double>(workers, 1 + MultiplyAdds(p, steps) / kMultiplyAddsPerThread));
}

// passes: 1 forward, 2 backward, in which each step has twice the multiply-adds.
Threads WorthTheWork(const Threads& threads, const LstmProblem& p, int64_t steps,
                     const CpuKernels& kernels, int passes) {
  const double work = MultiplyAdds(p, static_cast<double>(steps));
  Threads used = threads;
  used.workers = static_cast<int>(
      std::min<double>(MostWorkers(p, threads.workers), 1 + work / kMultiplyAddsPerThread));
  const double values_at_once = static_cast<double>(kernels.vector_bytes / ComputeBytes(p.dtype));
  const bool small = passes * work / (values_at_once / 16) < kMultiplyAddsToWakeFor;
  if (used.workers > 1 && small && threads.awake != nullptr) {
    used.workers = std::min(used.workers, std::max(1, threads.awake(threads.context)));
  }
  return used;
}

template <typename Job>
struct Region {
  Job* job;
  void (*worker)(Job*, int);

  static void Body(void* argument, int index) {
    const Region& region = *static_cast<Region*>(argument);
    const ScopedFloatMode mode;
    region.worker(region.job, index);
  }
  void Run(const Threads& threads) {
    if (threads.run == nullptr) {
      Body(this, 0);
    } else {
      threads.run(threads.context, threads.workers, Body, this);
    }
  }
};

// Calls that read the weights so few times do not pay for packing them: more where vectors are as
// wide as a cache line, the weights in reach of the caches, and no x.W could be computed ahead.
int64_t UnpackedPasses(int vector_bytes, bool few_rows, int64_t weights) {
  return vector_bytes == 64 && !few_rows && weights <= kFarBytes ? 8 : 3;
}

// Units whose sums a worker keeps in the first-level cache, for all slots, where weights are read
// in place.
constexpr int64_t kInPlaceUnits = 64;
// Units that are packed together.
constexpr int64_t kPackUnits = 64;
// Weights of up to so many bytes, and so many in all copies, are packed by each worker for itself:
// the next call packs into the same lines, and one that another core has read meanwhile takes
// longer to be written than to be packed.
constexpr int64_t kCopiedBytes = 1 << 20, kAllCopiesBytes = 8 << 20;

size_t LayOutForward(const LstmProblem& p, const CpuKernels& kernels, int workers, void* workspace,
                     ForwardJob* job) {
  workers = MostWorkers(p, workers);
  const CpuLayout layout = LayoutOf(p, kernels);
  const int64_t bytes = ComputeBytes(p.dtype), panels = layout.forward_panels();
  const bool bf16 = p.dtype == DType::kBFloat16 && kernels.bf16_tile_rows > 0;
  const int64_t weights = bf16 ? layout.bf16_packed_bytes() : layout.forward_packed() * bytes;
  const int64_t tile = bf16 ? kernels.bf16_tile_rows : kernels.tile_rows;
  Arena arena(workspace);
  void* schedule = arena.Take<void>(ScheduleBytes(p));
  // Tiles of matrix registers are as large as all slots: no other number of them is looked for.
  const SlotLimits limits =
      bf16 ? SlotLimits{kernels.bf16_slots, kernels.bf16_slots} : kVectorLimits;
  job->teams = ChooseTeams(p, tile, limits, kernels.vector_bytes, workers, weights, panels,
                           layout.forward_panel_size());
  const bool widened = StoredBytes(p.dtype) != bytes;
  const bool factors = p.input_factors != nullptr || p.recurrent_factors != nullptr;
  const int64_t passes = p.timesteps * CpuLayout::Panels(p.batch, kernels.tile_rows);
  const bool few_rows = p.timesteps > 1 && CpuLayout::Panels(p.batch, job->teams.count) < tile;
  const bool in_place =
      passes <= UnpackedPasses(kernels.vector_bytes, few_rows, weights) && !widened && !factors;
  job->first_packed = in_place ? p.units / layout.width : 0;
  // With few slots per step, x.W of several steps at once fills tiles, and halves what a step
  // reads.
  const bool thin = !bf16 && job->first_packed == 0 && few_rows;
  job->projected = thin ? kProjectedSteps : 0;
  const int64_t copies = p.input_factors != nullptr ? 4 : widened ? 1 : 0;
  job->staged = copies * (thin ? kProjectedSteps : 1);
  const int64_t states = p.recurrent_factors != nullptr ? 3 + 2 * 4 : 3;
  const int64_t team_values =
      bf16 ? layout.bf16_forward_team(job->teams.slots)
           : layout.forward_team(job->teams.slots, states, job->projected, job->staged);
  job->item_panels = 1;
  int64_t worker_values = layout.saved_tiles(job->teams.slots);
  if (job->first_packed > 0) {
    job->item_panels = std::min(std::max<int64_t>(1, kInPlaceUnits / layout.width),
                                CpuLayout::Panels(panels, job->teams.members));
    worker_values += 2 * job->teams.slots * job->item_panels * layout.panel_columns;
  } else if (!bf16 && p.batch == 1) {
    job->item_panels = WidePanels(kernels.tile_rows);
  }
  // All workers are to have some.
  job->pack_panels =
      bf16 ? 1 : std::max<int64_t>(1, std::min(kPackUnits / layout.width, panels / (2 * workers)));
  const int64_t groups = CpuLayout::Panels(panels - job->first_packed, job->pack_panels);
  const bool own = groups > 0 && weights <= kCopiedBytes && workers * weights <= kAllCopiesBytes;
  job->states = CpuLayout::RoundUp(weights, 64);
  const int64_t copy = CpuLayout::RoundUp(job->states + groups * 4, 64);
  job->packed_bytes = own ? copy : 0;
  job->packed = arena.Take<char>(own ? workers * copy : copy);
  for (int w = 0; workspace != nullptr && w < (own ? workers : 1); ++w) {
    std::memset(job->packed + w * copy + job->states, 0, groups * 4);
  }
  job->pack.size = own || job->teams.count == 1 ? 0 : groups;
  job->finished = arena.Take<int32_t>(p.batch * sizeof(int32_t));
  if (workspace != nullptr) std::fill_n(job->finished, p.batch, -1);
  LayOutTeams<ForwardSlots<float, float>>(&arena, workers, team_values, worker_values, bytes,
                                          CpuLayout::Panels(panels, job->item_panels),
                                          workspace != nullptr, &job->teams);
  job->rows.size = p.batch;
  if (workspace != nullptr) {
    job->schedule = BuildSchedule(p, schedule);
    UseFewerSlots(job->schedule, p, tile, limits, kernels.vector_bytes, &job->teams);
  }
  return arena.Bytes();
}

// Rows and columns of a piece of weight gradients: what is copied for it (AVX2: twice) stays in
// the second level of the cache (float32). Rows read in place may be more.
constexpr int64_t kFewestWeightRows = 32, kMostWeightRows = 256, kMostWeightColumns = 128;
constexpr int64_t kMostRowsInPlace = 512;

// Pieces of the weight gradients: large, since a piece of r rows and c columns copies 1/r + 1/c
// values for each multiply-add (in place: 1/r), but enough of them that workers finish together.
void PlanPieces(const LstmProblem& p, const CpuKernels& kernels, const CpuLayout& layout,
                int workers, BackwardJob* job) {
  job->weight_parts = p.input_factors != nullptr || p.recurrent_factors != nullptr ? 4 : 1;
  const bool in_place = ReadsInPlace(kernels.vector_bytes) && job->weight_parts == 1 &&
                        StoredBytes(p.dtype) == ComputeBytes(p.dtype);
  const int64_t panels = CpuLayout::Panels(4 * p.units / job->weight_parts, layout.panel_columns);
  const int64_t enough = workers == 1 ? 1 : 2 * workers;
  const int64_t longest = std::max(p.input_dim, p.units);
  double least = std::numeric_limits<double>::infinity();
  const int64_t most_columns = in_place ? layout.panel_columns : kMostWeightColumns;
  const int64_t most_rows = in_place ? kMostRowsInPlace : kMostWeightRows;
  for (int64_t columns = most_columns; columns >= layout.panel_columns; columns /= 2) {
    const int64_t together = std::min(panels, columns / layout.panel_columns);
    for (int64_t most = most_rows; most >= kFewestWeightRows; most -= 32) {
      const int64_t even = CpuLayout::Panels(longest, CpuLayout::Panels(longest, most));
      const int64_t rows = CpuLayout::RoundUp(even, 16);  // whole lines
      const int64_t pieces =
          job->weight_parts * CpuLayout::Panels(panels, together) *
          (CpuLayout::Panels(p.input_dim, rows) + CpuLayout::Panels(p.units, rows));
      // Without enough pieces: what gives most of them.
      const double cost = pieces >= enough ? 1.0 / rows + 1.0 / columns : 1.0 + 1.0 / pieces;
      if (cost >= least) continue;
      least = cost;
      job->weight_panels = together;
      job->weight_rows = rows;
      job->weights.size = pieces;
    }
  }
  job->weight_stride = in_place ? 0 : CpuLayout::copied_stride(job->weight_rows);
}

size_t LayOutBackward(const LstmProblem& p, int64_t steps, bool with_dx, const CpuKernels& kernels,
                      int workers, void* workspace, BackwardJob* job) {
  workers = MostWorkers(p, workers);
  const CpuLayout layout = LayoutOf(p, kernels);
  const int64_t bytes = ComputeBytes(p.dtype), recurrent_panels = layout.recurrent_panels();
  Arena arena(workspace);
  void* schedule = arena.Take<void>(ScheduleBytes(p));
  job->teams = ChooseTeams(p, kernels.tile_rows, kVectorLimits, kernels.vector_bytes, workers,
                           recurrent_panels * layout.backward_panel_size() * bytes,
                           recurrent_panels, layout.backward_panel_size());
  job->pack.size = recurrent_panels + (with_dx ? layout.input_panels() : 0);
  job->packed = arena.Take<void>(job->pack.size * layout.backward_panel_size() * bytes);
  PlanPieces(p, kernels, layout, workers, job);
  LayOutTeams<BackwardSlots<float>>(&arena, workers, layout.backward_team(job->teams.slots),
                                    layout.backward_worker(*job, WeightBlocks(kernels.vector_bytes),
                                                           StoredBytes(p.dtype) != bytes),
                                    bytes, recurrent_panels, workspace != nullptr, &job->teams);
  job->x_rows = arena.Take<int64_t>(steps * 8);
  job->rows.size = p.batch;
  job->batch_rows = job->weight_parts > 1 ? arena.Take<int32_t>(steps * 4) : nullptr;
  job->zeros.size = HasMaskedSteps(p, steps) ? p.batch : 0;
  job->inputs.size = CpuLayout::Panels(steps, kRowBlock);
  if (workspace != nullptr) {
    job->schedule = BuildSchedule(p, schedule);
    UseFewerSlots(job->schedule, p, kernels.tile_rows, kVectorLimits, kernels.vector_bytes,
                  &job->teams);
  }
  return arena.Bytes();
}

}  // namespace

size_t CpuForwardWorkspaceBytes(const LstmProblem& p, const CpuKernels& kernels, int workers) {
  ForwardJob job = {};
  return LayOutForward(p, kernels, workers, nullptr, &job);
}

size_t CpuBackwardWorkspaceBytes(const LstmProblem& p, int64_t steps, const CpuKernels& kernels,
                                 int workers) {
  BackwardJob job = {};
  return LayOutBackward(p, steps, /*with_dx=*/true, kernels, workers, nullptr, &job);
}

void CpuForward(const LstmForward& call, int64_t steps, const CpuKernels& kernels,
                const Threads& threads) {
  const LstmProblem& p = call.problem;
  ForwardJob job = {};
  job.call = &call;
  LayOutForward(p, kernels, threads.workers, call.workspace, &job);
  const bool fill = call.outputs != nullptr && p.return_sequences && HasMaskedSteps(p, steps);
  job.fill.size = fill ? p.batch : 0;
  Region<ForwardJob>{&job, kernels.forward[static_cast<int>(p.dtype)]}.Run(
      WorthTheWork(threads, p, steps, kernels, 1));
}

void CpuBackward(const LstmBackward& call, int64_t steps, const CpuKernels& kernels,
                 const Threads& threads) {
  const LstmProblem& p = call.problem;
  BackwardJob job = {};
  job.call = &call;
  job.reserve = call.reserve;
  LayOutBackward(p, steps, call.dx != nullptr, kernels, threads.workers, call.workspace, &job);
  Region<BackwardJob>{&job, kernels.backward[static_cast<int>(p.dtype)]}.Run(
      WorthTheWork(threads, p, steps, kernels, 2));
}

}  // namespace masked_lstm
