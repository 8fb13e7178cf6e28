"""Two builds of the core against each other, interleaved in one process: did a change help?

    python bench/compare.py OLD/_core.so NEW/_core.so --cases text,speech --passes forward,training
    python bench/compare.py _core.so _core.so --dtypes float32,bfloat16

Every round calls both in a random order, each once to warm up and then timed, and measures the
multiply-adds' rate beside them. Prints medians and their share of that rate; and how many times as
fast the new one is: the median over the rounds, whose two calls see the same neighbours, and by
the best round of each.
"""

from __future__ import annotations

import argparse
import importlib.util
import random
import time
from pathlib import Path

import numpy as np
from cases import make_data, select
from timing import seconds


def load(name: str, path: Path):
    spec = importlib.util.spec_from_file_location(f"{name}._core", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_call(core, case, data, pass_name: str, threads: int, isa: str, dtype: str):
    lengths = data.lengths.astype(np.int32) if data.padded else None
    inputs, *weights, h0, c0, d_outputs = (
        array.astype(dtype)
        for array in (data.inputs, *data.weights[0], data.h0, data.c0, data.d_outputs)
    )
    states = (h0, c0) if case.carry_state else (None, None)
    arguments = (inputs, *weights, *states, None, lengths, None, None, None)  # as core.py has them
    options = (False, False, True, "tanh", "sigmoid", threads, isa)

    def training():
        reserve = core.forward(arguments, options, True)[3]
        return core.backward(arguments, options, reserve, d_outputs, None, None, True)

    if pass_name == "training":
        return training
    return lambda: core.forward(arguments, options, False)


def after_pauses(call, repeats: int, pause: float) -> float:
    """Seconds a call takes, each after `pause` seconds in which this thread is busy."""
    if pause == 0:
        return seconds(call, repeats)
    total = 0.0
    for _ in range(repeats):
        start = time.perf_counter()
        while time.perf_counter() < start + pause:
            pass
        total += seconds(call)
    return total / repeats


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("builds", type=Path, nargs=2, help="native modules: old, new")
    add("--cases", default="main", help="names or groups, comma-separated")
    add("--passes", default="forward,training")
    add("--threads", type=int, default=2)
    add("--dtypes", default="float32,float32", help="of the two builds (bfloat16: with ml_dtypes)")
    add("--isa", help="avx512, avx2 or generic (the best one)")
    add("--pause", type=float, default=0, help="microseconds of other work before each call")
    add("--seconds", type=float, default=3.0, help="for each case and pass")
    options = parser.parse_args()
    builds = dict(zip(("old", "new"), map(load, ("old", "new"), options.builds), strict=True))
    dtypes = dict(zip(builds, options.dtypes.split(","), strict=True))
    if "bfloat16" in dtypes.values():
        import ml_dtypes  # noqa: F401  NumPy knows the name from here on

    isa = options.isa or builds["new"].isa()
    for case in select(options.cases.split(",")):
        data = make_data(case)
        for pass_name in options.passes.split(","):
            calls = {
                name: make_call(core, case, data, pass_name, options.threads, isa, dtypes[name])
                for name, core in builds.items()
            }
            times = {name: [] for name in calls}
            rates = []
            end = time.perf_counter() + options.seconds
            while time.perf_counter() < end or len(rates) < 6:
                rates.append(builds["new"].multiply_add_rate(0.005, options.threads, False, isa))
                for name in random.sample(list(calls), 2):
                    repeats = max(1, int(0.003 / seconds(calls[name])))
                    times[name].append(after_pauses(calls[name], repeats, options.pause / 1e6))
            shortest = case.flops(data.valid_steps, pass_name) / np.median(rates)
            medians = {name: np.median(samples) for name, samples in times.items()}
            ratio = np.median(np.divide(times["old"], times["new"]))
            best = min(times["old"]) / min(times["new"])
            shown = [f"{n} {t * 1e3:.3f} ms ({shortest / t:.0%})" for n, t in medians.items()]
            shown.append(f"{ratio:.3f} times as fast, {best:.3f} by the best of {len(rates)}")
            if pass_name == "forward" and len(set(dtypes.values())) > 1:
                outputs = [call()[0].astype(np.float32) for call in calls.values()]
                error = np.abs(outputs[0] - outputs[1]).max() / np.abs(outputs[0]).max()
                shown.append(f"largest difference {error:.1e} of the largest output")
            print(f"{case.name} {pass_name}: {', '.join(shown)}", flush=True)


if __name__ == "__main__":
    main()
