"""What the benchmark runs on: commit, CPU, and the rates that bound every LSTM on it."""

from __future__ import annotations

import platform
import time
from pathlib import Path

import numpy as np
import tensorflow as tf
from commit import commit  # noqa: F401  a fact like the others

try:
    from masked_lstm import core
except ImportError:
    core = None


def cpu() -> str:
    """The CPU's name; family and model too, since a hypervisor may shorten the name."""
    if not Path("/proc/cpuinfo").exists():
        return platform.processor() or platform.machine()
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    facts = dict(map(str.strip, line.split(":", 1)) for line in lines if ":" in line)
    name = facts.get("model name", platform.machine())
    return f"{name} (family {facts.get('cpu family', '?')}, model {facts.get('model', '?')})"


def isa() -> str:
    """The instruction set our core uses."""
    return core.isa() if core else "unknown"


class Limits:
    """The highest rates seen so far in this run, in GFLOP/s: FMA peak and a large sgemm.

    Both are measured again before each case and the best is kept, since another process or a
    lower clock can only make them look smaller, and every share of them larger than it is.
    """

    def __init__(self, threads: int):
        self.threads = threads
        self.peak = 0.0  # stays 0 when our core is not there to measure it
        self.sgemm = 0.0
        rng = np.random.default_rng(0)
        self._matrices = [rng.standard_normal((2048, 2048), dtype=np.float32) for _ in range(2)]

    def measure(self) -> None:
        flops = 2.0 * 2048**3
        for matmul, convert in ((np.matmul, np.asarray), (tf.matmul, tf.constant)):
            a, b = map(convert, self._matrices)
            for _ in range(3):
                start = time.perf_counter()
                matmul(a, b)
                self.sgemm = max(self.sgemm, flops / (time.perf_counter() - start) / 1e9)
        if hasattr(core, "fma_peak"):
            rate = core.fma_peak(seconds=0.2, num_threads=self.threads, dtype="float32")
            self.peak = max(self.peak, rate / 1e9)
