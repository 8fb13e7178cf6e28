#include "cpu/choose_slots.h"

#include <algorithm>

namespace masked_lstm {
namespace {

constexpr int kMostRows = 256, kMostTeams = 16, kMostSlots = 32;

// A tile of one or two slots takes as long as one of this many: its loads of weights count.
constexpr int64_t kLeastTile = 2;

// Of one step with n slots, cut into tiles as evenly as slots.h does.
double StepCost(int64_t n, const SlotCosts& costs) {
  const int64_t tiles = (n + costs.tile - 1) / costs.tile;
  if (tiles == 0) return 0;
  const int64_t small = n / tiles, larger = n % tiles;
  return costs.read + static_cast<double>(larger * std::max(small + 1, kLeastTile) +
                                          (tiles - larger) * std::max(small, kLeastTile));
}

struct Team {
  double time = 0;
  int active = 0;
  int32_t left[kMostSlots];  // steps to go, of the slots that have any
};

// When the last team has done its last step.
double Run(const Schedule& schedule, int64_t rows, int teams, int slots, const SlotCosts& costs) {
  Team all[kMostTeams];
  int64_t next = 0;
  const auto take = [&](Team* team) {
    if (next < rows) team->left[team->active++] = schedule.counts[schedule.order[next++]];
  };
  for (int s = 0; s < slots; ++s) {
    for (int t = 0; t < teams; ++t) take(&all[t]);
  }
  double end = 0;
  for (;;) {
    Team* first = nullptr;  // to get to where one of its rows ends
    double at = 0;
    int32_t steps = 0;
    for (int t = 0; t < teams; ++t) {
      Team& team = all[t];
      if (team.active == 0) continue;
      const int32_t until = *std::min_element(team.left, team.left + team.active);
      const double then = team.time + until * StepCost(team.active, costs);
      if (first == nullptr || then < at) {
        first = &team;
        at = then;
        steps = until;
      }
    }
    if (first == nullptr) return end;
    first->time = at;
    end = std::max(end, at);
    int kept = 0;
    for (int s = 0; s < first->active; ++s) {
      if (first->left[s] > steps) first->left[kept++] = first->left[s] - steps;
    }
    first->active = kept;
    while (first->active < slots && next < rows) take(first);
  }
}

}  // namespace

int ChooseSlots(const Schedule& schedule, int64_t rows, int teams, int usual, int most,
                const SlotCosts& costs) noexcept {
  most = std::min(most, kMostSlots);
  if (rows > kMostRows || teams > kMostTeams || usual > most) return usual;
  while (rows > 0 && schedule.counts[schedule.order[rows - 1]] == 0) --rows;
  if (rows == 0) return usual;
  constexpr double kClearly = 0.97;  // of the usual number's time
  double least = kClearly * Run(schedule, rows, teams, usual, costs);
  int best = usual;
  const auto consider = [&](int64_t slots) {
    if (slots < costs.tile || slots > most || slots == usual) return;
    const double time = Run(schedule, rows, teams, static_cast<int>(slots), costs);
    if (time < least) {
      least = time;
      best = static_cast<int>(slots);
    }
  };
  // Whole tiles, and what shares the rows out evenly.
  for (int64_t slots = costs.tile; slots <= most; slots += costs.tile) consider(slots);
  int64_t before = 0;
  for (int64_t turns = 1; turns <= rows; ++turns) {
    const int64_t slots = (rows + turns * teams - 1) / (turns * teams);
    if (slots < costs.tile) break;
    if (slots % costs.tile != 0 && slots != before) consider(slots);
    before = slots;
  }
  return best;
}

}  // namespace masked_lstm
