// Workers that share one set of slots. Each step of the slots is a phase; its items (panels of
// weights) are taken one by one by whichever members have started, everybody's own range first, so
// that a member's share of the weights stays in its cache. Who finishes the last item advances the
// slots and opens the next phase. A member waits only for items that somebody has begun.
#pragma once

#include <sched.h>

#include <cstdint>

#include "force_inline.h"

namespace masked_lstm {

constexpr int kMaxTeam = 16;  // ranges of a queue

// One round of a wait for work that another thread has begun.
MASKED_LSTM_INLINE void SpinWait(int* spins) {
  if (++*spins < 1000) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  } else {
    sched_yield();
  }
}

struct TeamQueue {
  struct alignas(64) Range {
    int64_t ticket;  // phase << 32 | items of this range handed out in that phase
  };

  int64_t items;              // per phase
  int ranges;                 // as many as members
  int32_t claimed;            // set by the first member, who opens phase 1
  alignas(64) int64_t phase;  // 0 before the first one is open, kFinished after the last
  alignas(64) int64_t done;   // items of the phase
  Range range[kMaxTeam];

  static constexpr int64_t kFinished = INT64_MAX;

  MASKED_LSTM_INLINE void Open(int64_t next_phase) {
    __atomic_store_n(&done, 0, __ATOMIC_RELAXED);
    for (int r = 0; r < ranges; ++r) {
      __atomic_store_n(&range[r].ticket, next_phase << 32, __ATOMIC_RELEASE);
    }
    RaisePhase(next_phase);
  }

  // Members find the tickets before they see the phase: they may have finished it, and opened the
  // next one, before this one is announced. The number must never fall.
  MASKED_LSTM_INLINE void RaisePhase(int64_t to) {
    int64_t now = __atomic_load_n(&phase, __ATOMIC_RELAXED);
    while (now < to && !__atomic_compare_exchange_n(&phase, &now, to, false, __ATOMIC_RELEASE,
                                                    __ATOMIC_RELAXED)) {
    }
  }

  // The next item of range r, or -1. Even phases walk a range backwards: what the cache kept of the
  // end of the phase before is used first.
  MASKED_LSTM_INLINE int64_t Take(int r, int64_t* of_phase) {
    const int64_t ticket = __atomic_fetch_add(&range[r].ticket, 1, __ATOMIC_ACQUIRE);
    const int64_t begin = items * r / ranges, end = items * (r + 1) / ranges;
    const int64_t index = ticket & 0xffffffff;
    if (index >= end - begin) return -1;
    *of_phase = ticket >> 32;
    return *of_phase % 2 == 0 ? end - 1 - index : begin + index;
  }

  // What its taker will probably take after `item`.
  MASKED_LSTM_INLINE int64_t LikelyNext(int64_t item) const {
    const int64_t next = __atomic_load_n(&phase, __ATOMIC_RELAXED) % 2 == 0 ? item - 1 : item + 1;
    return next < 0 || next >= items ? item : next;
  }

  MASKED_LSTM_INLINE int64_t WaitForPhaseAfter(int64_t seen) const {
    for (int spins = 0;;) {
      const int64_t now = __atomic_load_n(&phase, __ATOMIC_ACQUIRE);
      if (now > seen) return now;
      SpinWait(&spins);
    }
  }

  // Member `member`'s part of all phases. Work: bool Start() and bool Advance(), run by one member
  // while no item is out, prepare the next phase or return false at the end; void Item(int64_t).
  template <typename Work>
  MASKED_LSTM_INLINE void Run(int member, Work* work) {
    if (__atomic_exchange_n(&claimed, 1, __ATOMIC_RELAXED) == 0) Next(0, work->Start());
    int64_t current = 0;
    while ((current = WaitForPhaseAfter(current)) != kFinished) {
      int64_t taken = 0;
      for (int i = 0; i < ranges; ++i) {
        // Items that this member has taken and not reported keep their phase open, so all items
        // between two reports are of one phase: perhaps a later one than was waited for.
        for (int64_t item; (item = Take((member + i) % ranges, &current)) >= 0; ++taken) {
          work->Item(item);
        }
      }
      if (taken > 0 && __atomic_add_fetch(&done, taken, __ATOMIC_ACQ_REL) == items) {
        Next(current, work->Advance());
      }
    }
  }

 private:
  MASKED_LSTM_INLINE void Next(int64_t current, bool more) {
    if (more) {
      Open(current + 1);
    } else {
      RaisePhase(kFinished);
    }
  }
};

}  // namespace masked_lstm
