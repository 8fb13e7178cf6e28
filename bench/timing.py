"""Times several calls against each other in one process."""

from __future__ import annotations

import gc
import math
import random
import time
from collections.abc import Callable

SETTLE_SECONDS = 0.1  # after a call PyTorch's threads spin for 15 ms, ONNX Runtime's for 75 ms
WARM_SECONDS = 0.1  # a sample warms up at least so long: caches, clocks, sleeping processors
SAMPLE_SECONDS = 0.005  # ... and lasts at least so long

Call = Callable[[], object]


def seconds(call: Call, repeats: int = 1) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def estimate(call: Call) -> float:
    """Seconds of the best of three calls (of one, when that takes long)."""
    first = seconds(call)
    return first if first > 0.5 else min(first, seconds(call), seconds(call))


def interleave(
    calls: dict[str, Call],
    estimates: dict[str, float],
    rounds: int,
    seed: int,
    on_round: Callable[[int, int], None],
) -> dict[str, list[float]]:
    """`rounds` samples of each call; every round takes them all, in a new random order.

    Short calls are repeated within a sample, so that neither the clock nor cold caches count.
    """
    order = random.Random(seed)
    repeats = {name: math.ceil(SAMPLE_SECONDS / estimates[name]) for name in calls}
    warm_up = {name: math.ceil(WARM_SECONDS / estimates[name]) for name in calls}
    samples: dict[str, list[float]] = {name: [] for name in calls}
    gc.disable()
    try:
        for done in range(1, rounds + 1):
            for name in order.sample(list(calls), len(calls)):
                time.sleep(SETTLE_SECONDS)
                seconds(calls[name], warm_up[name])
                samples[name].append(seconds(calls[name], repeats[name]))
            gc.collect()
            on_round(done, rounds)
    finally:
        gc.enable()
    return samples
