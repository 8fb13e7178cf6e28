"""Measures our CUDA kernels and every installed peer on a GPU: `run.py --device cuda`.

Forward and training step over a grid of units, batch, dtype and valid fraction. The points that
matter most come first, the rest in a fixed random order until the time is up. At every point all
peers are called in turn, in a new random order each round; a time is the median of CUDA events (for
TensorFlow, which has streams of its own: of a synchronized clock) around as many calls as take a
millisecond. What bounds everybody is measured first on the same GPU: a large matrix product in each
dtype, and a copy of memory. Before timing, outputs are compared with PyTorch's in float64.

Our float32 is exact: at "tf32" peers may round products to TF32 and we do not.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import itertools
import random
import signal
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from commit import commit

UNITS = (128, 256, 512, 768, 1024, 2048)
BATCH = (1, 16, 64, 256)
DTYPES = ("bfloat16", "float16", "tf32", "float32")
FRACTIONS = (0.4, 1.0, 0.1, 0.25, 0.7)
PASSES = ("forward", "training")
TIMESTEPS = 200
CENTER = (512, 64, "bfloat16", 0.4)
BYTES = {"bfloat16": 2, "float16": 2, "tf32": 4, "float32": 4}
# Largest error of outputs, which are below 1: rounding of the dtype over a few hundred steps.
ERROR_LIMITS = {"bfloat16": 5e-2, "float16": 1e-2, "tf32": 1e-2, "float32": 1e-4}

COLUMNS = (
    "date commit gpu capability driver torch cudnn pass units input_dim batch timesteps dtype "
    "valid_steps valid_fraction peer version clock rounds median_us low_us high_us us_per_step "
    "valid_tflops tensor_peak_tflops tensor_share valid_gbs memory_peak_gbs memory_share "
    "best_peer ratio_to_best_peer error"
).split()


class Point(NamedTuple):
    units: int
    batch: int
    dtype: str
    fraction: float
    pass_name: str
    timesteps: int = TIMESTEPS

    def __str__(self):
        return (
            f"U={self.units} B={self.batch} {self.dtype} {self.fraction:.0%} valid {self.pass_name}"
        )

    def lengths(self) -> np.ndarray:
        """(B,) int32 with the fraction as their mean; one row is full, where there are several."""
        if self.fraction == 1 or self.batch == 1:
            length = max(1, round(self.fraction * self.timesteps))
            return np.full(self.batch, length, np.int32)
        rng = np.random.default_rng(0)
        lengths = rng.beta(1.3, 1.3 / self.fraction - 1.3, self.batch) * self.timesteps
        lengths = np.clip(np.round(lengths), 1, self.timesteps).astype(np.int32)
        lengths[0] = self.timesteps
        wanted = round(self.fraction * self.batch * self.timesteps)
        wanted = max(wanted, self.timesteps + self.batch - 1)
        while (left := wanted - int(lengths.sum())) != 0:  # the mean is the same for every peer
            row = 1 + rng.integers(self.batch - 1)
            lengths[row] = np.clip(lengths[row] + np.sign(left), 1, self.timesteps)
        return lengths

    def flops(self, valid_steps: int) -> float:
        passes = 3 if self.pass_name == "training" else 1  # all gradients: twice the forward's
        return passes * 2.0 * 4 * self.units * 2 * self.units * valid_steps

    def least_bytes(self, valid_steps: int) -> float:
        """What must cross the memory once: weights, x of valid steps, all outputs; in training also
        the gradients of all three."""
        values = 8 * self.units**2 + valid_steps * self.units
        values += self.batch * self.timesteps * self.units
        return (2.0 if self.pass_name == "training" else 1.0) * values * BYTES[self.dtype]


def grid() -> list[Point]:
    """Every point once: those that differ from the center in one thing first."""
    axes = (UNITS, BATCH, DTYPES, FRACTIONS)
    everything = list(itertools.product(*axes))
    near, far = [], []
    for point in everything:
        (near if sum(a != b for a, b in zip(point, CENTER, strict=True)) <= 1 else far).append(
            point
        )
    near.sort(key=lambda point: point != CENTER)
    random.Random(0).shuffle(far)
    return [Point(*point, pass_name) for point in near + far for pass_name in PASSES]


class Peaks:
    """Measured rates of this GPU: TFLOP/s of a matrix product in each dtype, GB/s of a copy."""

    def __init__(self, clock, torch, size=8192):
        self.tflops = {}
        for dtype in DTYPES:
            set_tf32(torch, dtype == "tf32")
            a = torch.randn(size, size, device="cuda", dtype=getattr(torch, storage(dtype)))
            times = [clock(lambda a=a: a @ a, 1) for _ in range(6)]
            self.tflops[dtype] = 2.0 * size**3 / min(times[1:]) / 1e6
        source = torch.empty(1 << 30, device="cuda", dtype=torch.uint8)
        target = torch.empty_like(source)
        times = [clock(lambda: target.copy_(source), 1) for _ in range(6)]
        self.gbs = 2.0 * source.numel() / min(times[1:]) / 1e3


def storage(dtype: str) -> str:
    return "float32" if dtype == "tf32" else dtype


def set_tf32(torch, allowed: bool) -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed


def event_clock(torch):
    """clock(call, count): microseconds of one of `count` calls, by CUDA events."""

    def clock(call, count):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(count):
            call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1e3 / count

    return clock


def measure(prepared, seconds=0.4):
    """prepared: name -> (call, clock). name -> times in microseconds of one call, in turns."""
    shuffle = random.Random(0).shuffle
    counts, times = {}, {name: [] for name in prepared}
    for name, (call, clock) in prepared.items():
        clock(call, 1)  # warm-up: autotuning, lazily loaded kernels
        counts[name] = max(1, min(50, round(1000 / max(clock(call, 1), 1.0))))
    once = sum(clock(call, counts[n]) * counts[n] for n, (call, clock) in prepared.items())
    rounds = max(3, min(15, round(seconds * 1e6 / once)))
    for _ in range(rounds):
        names = list(prepared)
        shuffle(names)
        for name in names:
            call, clock = prepared[name]
            times[name].append(clock(call, counts[name]))
    return times


def rows_of(point, times, errors, peers, facts, peaks):
    """CSV rows of one point. Peers whose results are wrong have no time."""
    valid = int(point.lengths().sum())
    medians = {name: float(np.median(values)) for name, values in times.items()}
    others = {name: value for name, value in medians.items() if not peers[name].ours}
    best = min(others, key=others.get) if others else ""
    rows = []
    for name, median in medians.items():
        tflops, gbs = point.flops(valid) / median / 1e6, point.least_bytes(valid) / median / 1e3
        peak = peaks.tflops[point.dtype]
        values = {
            "pass": point.pass_name,
            "units": point.units,
            "input_dim": point.units,
            "batch": point.batch,
            "timesteps": point.timesteps,
            "dtype": point.dtype,
            "valid_steps": valid,
            "valid_fraction": round(valid / (point.batch * point.timesteps), 4),
            "peer": name,
            "version": peers[name].version,
            "clock": peers[name].clock_name,
            "rounds": len(times[name]),
            "median_us": round(median, 2),
            "low_us": round(float(np.percentile(times[name], 10)), 2),
            "high_us": round(float(np.percentile(times[name], 90)), 2),
            "us_per_step": round(median / point.timesteps, 4),
            "valid_tflops": round(tflops, 4),
            "tensor_peak_tflops": round(peak, 1),
            "tensor_share": round(tflops / peak, 5),
            "valid_gbs": round(gbs, 2),
            "memory_peak_gbs": round(peaks.gbs, 1),
            "memory_share": round(gbs / peaks.gbs, 5),
            "best_peer": best,
            "ratio_to_best_peer": round(others[best] / median, 4) if best else "",
            "error": f"{errors[name]:.1e}",
        }
        rows.append({column: (facts | values).get(column, "") for column in COLUMNS})
    return rows


def write(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


class TooSlowError(Exception):
    """A peer has taken longer to prepare (to compile kernels, say) than it may."""


@contextlib.contextmanager
def at_most(seconds):
    def stop(*_):
        raise TooSlowError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def measure_point(point, peers, note, seconds=60):
    """(times, errors, broken): of every peer that can do the point with right results; and which of
    ours cannot. A peer of others that takes longer than `seconds` to prepare is taken from `peers`.
    """
    from gpu_peers import Problem

    prepared, errors, broken = {}, {}, []
    problem = None
    for name, peer in list(peers.items()):
        if reason := peer.refuses(point):
            note(f"  {name}: {reason}")
            continue
        try:
            problem = problem or Problem(point)
            with contextlib.nullcontext() if peer.ours else at_most(seconds):
                call, outputs = peer.prepare(problem)
                errors[name] = problem.error(outputs())
        except TooSlowError:
            note(f"  {name}: not prepared in {seconds:.0f} s: left out (--seconds gives it more)")
            del peers[name]
        except Exception as error:  # of any library; a missing peer must not end the run
            first = (str(error).splitlines() or [""])[0][:200]
            note(f"  {name} failed: {type(error).__name__}: {first}")
            if peer.ours and "out of memory" not in str(error).lower():
                broken.append(name)
        else:
            if errors[name] <= ERROR_LIMITS[point.dtype]:
                prepared[name] = (call, peer.clock)
                continue
            note(f"  {name}: WRONG RESULTS, error {errors[name]:.1e}: not timed")
            if peer.ours:
                broken.append(name)
    return (measure(prepared) if prepared else {}), errors, broken


def run(options) -> int:
    try:
        import torch
    except ImportError:
        sys.exit("error: --device cuda: expected PyTorch with CUDA, found none")
    if not torch.cuda.is_available():
        sys.exit("error: --device cuda: expected a GPU, PyTorch sees none")
    import gpu_peers

    peers = gpu_peers.load(options.peers, event_clock(torch), print)
    properties = torch.cuda.get_device_properties(0)
    facts = {
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit(),
        "gpu": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "driver": gpu_peers.driver(),
        "torch": torch.__version__,
        "cudnn": torch.backends.cudnn.version(),
    }
    print(", ".join(f"{name} {value}" for name, value in facts.items()), flush=True)
    stem = f"cuda-{properties.name}-{facts['date']}".lower().replace(" ", "-").replace("/", "-")
    path = options.out or Path(__file__).resolve().parent / "results" / f"{stem}.csv"
    end = time.monotonic() + (min(options.seconds, 40) if options.quick else options.seconds)
    peaks = Peaks(event_clock(torch), torch)
    rates = ", ".join(f"{dtype} {rate:.0f}" for dtype, rate in peaks.tflops.items())
    print(f"matrix product, TFLOP/s: {rates}; copy {peaks.gbs:.0f} GB/s", flush=True)
    points, rows, done, wrong = grid(), [], 0, []
    for point in points:
        if time.monotonic() > end:
            break
        set_tf32(torch, point.dtype == "tf32")
        note = functools.partial(print, flush=True)
        times, errors, broken = measure_point(point, peers, note, options.seconds / 4)
        wrong += broken
        new = rows_of(point, times, errors, peers, facts, peaks)
        rows += new
        done += 1
        write(path, rows)
        medians = ", ".join(f"{row['peer']} {row['us_per_step']:.3g}" for row in new)
        ratios = [row["ratio_to_best_peer"] for row in new if row["peer"] == "ours"]
        ratio = f"; ours {ratios[0]:.2f}x {new[0]['best_peer']}" if ratios and ratios[0] else ""
        print(f"{point}: us per step: {medians}{ratio}", flush=True)
    print(f"{done} of {len(points)} points in the time given, {len(rows)} rows in {path}")
    try:
        import gpu_charts
    except ImportError:
        print("no charts: matplotlib is not installed")
    else:
        for chart in gpu_charts.draw_all(rows, path):
            print(f"chart {chart}")
    if wrong:
        print(f"FAILED: {len(wrong)} times ours failed or was wrong, see above")
    expected = not options.peers or "ours" in options.peers
    return int(bool(wrong) or expected and not any(row["peer"] == "ours" for row in rows))
