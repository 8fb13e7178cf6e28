// How many slots each team gets: found by running the schedule, step by step, with the cost of a
// step for a model. Results never depend on it.
#pragma once

#include <cstdint>

#include "schedule.h"

namespace masked_lstm {

struct SlotCosts {
  int64_t tile;  // slots of a full tile
  double read;   // of a step, whatever its slots: in multiply-adds of one slot
};

// Slots of each of `teams` teams, which take the schedule's rows as theirs end: `usual`, unless
// another number up to `most` takes clearly less time. Few rows, teams and slots only: else
// `usual`.
int ChooseSlots(const Schedule& schedule, int64_t rows, int teams, int usual, int most,
                const SlotCosts& costs) noexcept;

}  // namespace masked_lstm
