"""What a call costs beside its arithmetic, in microseconds: medians, both sides of a difference
measured in turns.

    python bench/overheads.py [--threads N] [--out bench/results/overheads.txt]

Packing of weights and the smallest call, the hand-off to a second thread, the schedule and outputs
of an empty batch, fresh pages, and what the layer adds to a traced function with the op alone:
the median of paired differences there, with its standard error.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from timing import seconds

ROUNDS = 60
PAIR_SECONDS = 30.0  # of each pair of functions that is compared


def difference(first, second) -> tuple[float, float, float]:
    """Microseconds of `first`; what `second` takes more; the standard error of that.

    Medians over as many pairs as PAIR_SECONDS hold, one call after the other in a new order each.
    """
    samples = []
    first(), second()
    end = time.perf_counter() + PAIR_SECONDS
    while time.perf_counter() < end:
        pair = [(0, first), (1, second)]
        random.shuffle(pair)
        times = [0.0, 0.0]
        for index, call in pair:
            times[index] = seconds(call)
        samples.append(times)
    times = 1e6 * np.array(samples)
    more = times[:, 1] - times[:, 0]
    low, high = np.percentile(more, (25, 75))
    # Of a median of normal values is 1.25 of a mean's; the quartiles are 1.35 deviations apart.
    error = 1.25 * (high - low) / 1.35 / np.sqrt(len(more))
    return float(np.median(times[:, 0])), float(np.median(more)), float(error)


def medians(calls: dict) -> dict[str, float]:
    """Microseconds of each call; every round takes all of them, in a new random order."""
    repeats = {name: max(1, int(0.002 / seconds(call, 3))) for name, call in calls.items()}
    samples = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name in random.sample(list(calls), len(calls)):
            calls[name]()
            samples[name].append(seconds(calls[name], repeats[name]))
    return {name: 1e6 * float(np.median(values)) for name, values in samples.items()}


def of_the_core(threads: int):
    """Yields (what, us) for calls of the core."""
    from masked_lstm import _core, core

    rng = np.random.default_rng(0)

    def call(batch, timesteps, width, n=threads, **options):
        x = rng.standard_normal((batch, timesteps, width), dtype=np.float32)
        weights = [
            0.1 * rng.standard_normal(shape, dtype=np.float32)
            for shape in ((width, 4 * width), (width, 4 * width), (4 * width,))
        ]
        return lambda: core.forward(x, *weights, num_threads=n, **options)

    yield "the smallest call: B=1, T=1, D=U=4", medians({"call": call(1, 1, 4)})["call"]
    for width in (128, 512):
        # Up to 3 passes read the weights where they are; one thread, so that only packing differs.
        times = medians({str(t): call(1, t, width, 1) for t in (1, 3, 4, 8)})
        steps = {int(t): us for t, us in times.items()}
        yield f"a step, weights in place: B=1, D=U={width}", (steps[3] - steps[1]) / 2
        yield f"packing the weights: D=U={width}, one thread", 2 * steps[4] - steps[8]

    def region(n):
        return lambda: _core.multiply_add_rate(0.0, n, False, "generic")

    times = medians({"one": region(1), "all": region(threads)})
    yield (
        f"hand-off to {threads - 1} more thread(s) and back, nothing to do",
        (times["all"] - times["one"]),
    )

    empty = np.zeros(64, np.int32)
    for name, sequences in (("last output only", False), ("6.3 MiB of zeros as outputs", True)):
        one = call(64, 200, 128, sequence_lengths=empty, return_sequences=sequences)
        yield f"64 empty rows, T=200, U=128, {name}", medians({"call": one})["call"]

    text = call(64, 200, 128)
    kept = []

    def keep():
        kept.append(text())
        if len(kept) > 20:
            kept.clear()

    times = medians({"dropped": text, "kept": keep})
    yield (
        "fresh pages: outputs of 6.3 MiB kept by the caller, not given back",
        (times["kept"] - times["dropped"]),
    )


def _op(variables):
    import masked_lstm

    return lambda inputs, mask: masked_lstm.lstm(inputs, *variables, mask=mask)[0]


def _layer(layer):
    return lambda inputs, mask: layer(inputs, mask=mask)


def _with_gradients(function, variables):
    import tensorflow as tf

    def step(inputs, mask):
        with tf.GradientTape() as tape:
            tape.watch([inputs, *variables])
            outputs = function(inputs, mask)
        return tape.gradient(outputs, [inputs, *variables])

    return step


def of_the_layer(threads: int):
    """Yields (what, us) for the layer and the op, each alone in a traced function, with a mask."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    from cases import CASES, make_data

    import masked_lstm

    tiny = replace(CASES["qa_small"], name="tiny", batch=2, timesteps=3, input_dim=4, units=4)
    for case in (tiny, CASES["qa_small"], CASES["text"]):
        data = make_data(case)
        x, mask = tf.constant(data.inputs), tf.constant(data.mask)
        layer = masked_lstm.LSTM(case.units, return_sequences=True, backend="fused")
        layer.build(data.inputs.shape)
        layer.set_weights(data.weights[0])
        variables = [variable.value for variable in layer.trainable_variables]

        functions = {"op": _op(variables), "layer": _layer(layer)}
        for kind in ("forward", "training"):
            traced = {}
            for name, function in functions.items():
                whole = function if kind == "forward" else _with_gradients(function, variables)
                traced[name] = tf.function(whole, autograph=False).get_concrete_function(x, mask)
            calls = [lambda f=f, a=(x, mask): f(*a) for f in (traced["op"], traced["layer"])]
            op, more, error = difference(*calls)
            yield f"{case.name} {kind}, traced: the op alone", op
            yield f"{case.name} {kind}, traced: what the layer adds, +- {error:.1f}", more


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    os.environ |= {"CUDA_VISIBLE_DEVICES": "-1", "KERAS_BACKEND": "tensorflow"}
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import machine

    lines = [
        f"bench/overheads.py, commit {machine.commit()}, {machine.cpu()}, "
        f"{options.threads} threads, {time.strftime('%Y-%m-%d')}. Microseconds."
    ]
    print(lines[0])
    for part in (of_the_core, of_the_layer):
        for what, us in part(options.threads):
            lines.append(f"{us:10.1f}  {what}")
            print(lines[-1], flush=True)
    if options.out:
        options.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    sys.exit(main())
