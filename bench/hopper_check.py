"""The Hopper kernels on a Hopper GPU: parity, then times against the other kernels and cuDNN.

    python bench/hopper_check.py parity | short | bench --seconds 60 --out FILE.csv

Part of gpu_check.sh. Shapes are those that csrc/cuda/hopper/plan.h tells apart. float32 is checked
as tf32, with tf32's tolerance.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import os
import sys
import time

import gpu_check
import numpy as np
import torch

from masked_lstm import cuda

SWITCH = "MASKED_LSTM_CUDA_KERNEL"
ASKED, GRID = "hopper-tf32", "hopper-grid"
DTYPES = ("bfloat16", "float16", "float32")
UNITS = {  # on both sides of every step of the rule
    "bfloat16": (1, 33, 128, 130, 256, 300, 384, 400, 512, 600, 768, 769, 1024, 2048, 2112, 2113),
    "float16": (70, 256, 512, 768, 1024),
    "float32": (33, 64, 100, 128, 200, 256, 400, 512, 513, 1024, 1280),
}
# bfloat16, float16 and tf32 round h and dG before every product: 16 times that.
LIMITS = {"bfloat16": 16 * 2**-9, "float16": 16 * 2**-11, "float32": 16 * 2**-11}
# More rows than slots, so that slots take a second row: units, rows.
REFILLED = {
    "bfloat16": ((100, 1200), (256, 300), (512, 300), (1024, 300)),
    "float16": ((512, 300),),
    "float32": ((256, 300), (600, 300)),
}


def parity() -> int:
    gpu_check.LIMITS.update(LIMITS)
    failures = count = 0
    options = (
        {},
        {"go_backwards": True, "return_sequences": False},
        {"zero_output_for_mask": True},
    )
    for dtype in DTYPES:
        for units, option in itertools.product(UNITS[dtype], options):
            shape = (19, 7, 20, units)
            if units > 1024 and option:
                continue
            for mask in ("lengths", "holes") if units < 300 else ("holes",):
                worst = gpu_check.check(shape, dtype, mask, option)
                count += 1
                if not worst <= 1:
                    failures += 1
                    print(f"FAILED {shape} {dtype} {mask} {option}: {worst:.1f} times the limit")
    for dtype, shapes in REFILLED.items():
        for units, batch in shapes:
            worst = gpu_check.check((batch, 5, 12, units), dtype, "holes", {})
            count += 1
            if not worst <= 1:
                failures += 1
                print(f"FAILED refilled {batch} rows, U={units} {dtype}: {worst:.1f} x the limit")
    for dtype, units in (
        ("bfloat16", 200),
        ("float16", 512),
        ("float32", 256),
        ("bfloat16", 1024),
        ("float32", 600),
    ):
        failures += not invariance(dtype, units)
        count += 1
    os.environ[SWITCH] = GRID
    for dtype, units in (("bfloat16", 33), ("float16", 300), ("float32", 512)):
        failures += not gpu_check.check((19, 7, 20, units), dtype, "holes", {}) <= 1
        failures += not invariance(dtype, units)
        count += 2
    os.environ[SWITCH] = ASKED
    for check, units in itertools.product((pair, crossed), (100, 256, 512, 800)):
        failures += not check("bfloat16", units)
        count += 1
    print(f"parity: {'passed' if not failures else 'FAILED'}, {failures} of {count} checks failed")
    return failures


def invariance(dtype, units) -> bool:
    """Rows alone have the bits they have in a batch; twice the same bits."""
    p, mask = gpu_check.problem(300, 9, 24, units), gpu_check.masks(300, 9)["holes"]
    to = gpu_check.DTYPES[dtype]
    whole, again = (gpu_check.run(p, mask, {}, to) for _ in range(2))
    same = all(a.tobytes() == b.tobytes() for a, b in zip(whole, again, strict=True))
    for row in (0, 5, 299):
        part = {
            name: value if "kernel" in name or name == "bias" else value[row : row + 1]
            for name, value in p.items()
            if name != "initial_state"
        }
        part["initial_state"] = tuple(state[row : row + 1] for state in p["initial_state"])
        alone = gpu_check.run(part, {"mask": mask["mask"][row : row + 1]}, {}, to)
        for index in (0, 1, 2, 3, 7, 8):  # outputs, h, c, dx, dh0, dc0
            same &= alone[index].tobytes() == whole[index][row : row + 1].tobytes()
    print(f"{dtype} U={units}: bitwise batch invariance {'passed' if same else 'FAILED'}")
    return same


def arguments(dtype, units, seed=0, timesteps=20):
    p = gpu_check.problem(70, timesteps, 24, units, seed)
    to = gpu_check.DTYPES[dtype]
    x, *weights = (
        gpu_check.on_gpu(p[name], to) for name in ("inputs", "kernel", "recurrent_kernel", "bias")
    )
    lengths = torch.tensor(gpu_check.masks(70, timesteps)["lengths"]["sequence_lengths"])
    names = ("inputs", "kernel", "recurrent_kernel", "bias")
    given = dict(zip(names, (x, *weights), strict=True))
    return given | {"sequence_lengths": lengths.cuda()}, gpu_check.on_gpu(p["d_outputs"], to)


def pair(dtype, units) -> bool:
    """Two directions in one launch have the bits of the calls by themselves."""
    first, d_first = arguments(dtype, units)
    second, d_second = arguments(dtype, units, seed=1)
    second |= {"inputs": first["inputs"], "go_backwards": True}
    upstream = (d_first, d_second)
    calls = (first, second)
    both = cuda.forward_pair(*(call | {"save_reserve": True} for call in calls))
    alone = [cuda.forward(**call, save_reserve=True) for call in calls]
    same = all(
        torch.equal(a, b)
        for one, other in zip(both, alone, strict=True)
        for a, b in zip(one[:3], other[:3], strict=True)
    )
    gradients = cuda.backward_pair(
        *(
            call | {"reserve": result.reserve, "d_outputs": d}
            for call, result, d in zip(calls, both, upstream, strict=True)
        )
    )
    for call, result, d, got in zip(calls, alone, upstream, gradients, strict=True):
        expected = cuda.backward(**call, reserve=result.reserve, d_outputs=d)
        same &= all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    print(f"{dtype} U={units}: two directions in one launch {'passed' if same else 'FAILED'}")
    return same


def crossed(dtype, units) -> bool:
    """The backward pass of one kind of kernel after the forward pass of the other."""
    call, d = arguments(dtype, units)
    results = []
    for forward, backward in itertools.product((ASKED, "groups"), repeat=2):
        os.environ[SWITCH] = forward
        result = cuda.forward(**call, save_reserve=True)
        os.environ[SWITCH] = backward
        results.append(cuda.backward(**call, reserve=result.reserve, d_outputs=d))
    os.environ[SWITCH] = ASKED
    expected = [np.asarray(value.double().cpu()) for value in results[-1]]  # groups alone
    worst = max(
        gpu_check.worst_error([np.asarray(value.double().cpu()) for value in r], expected, dtype)
        for r in results[:-1]
    )
    print(f"{dtype} U={units}: crossed reserves {'passed' if worst <= 1 else 'FAILED'}")
    return worst <= 1


def short() -> int:
    """A few small calls, for compute-sanitizer."""
    gpu_check.LIMITS.update(LIMITS)
    shapes = [(11, 3, 9, 40), (9, 3, 5, 200), (9, 3, 5, 400), (9, 3, 5, 800), (70, 3, 5, 800)]
    return sum(not gpu_check.check(shape, "bfloat16", "holes", {}) <= 1 for shape in shapes)


def median_ms(call, rounds=9) -> float:
    call()
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(rounds)]
    for start, end in events:
        start.record()
        call()
        end.record()
    torch.cuda.synchronize()
    return float(np.median([start.elapsed_time(end) for start, end in events]))


def ours(x, weights, mask, d_outputs, kernel):
    def call():
        os.environ[SWITCH] = kernel
        result = cuda.forward(x, *weights, save_reserve=d_outputs is not None, **mask)
        if d_outputs is not None:
            cuda.backward(x, *weights, result.reserve, d_outputs, **mask)

    return call


def torchs(x, units, dtype, lengths, d_outputs, packed, directions=1):
    lstm = torch.nn.LSTM(
        units,
        units,
        batch_first=True,
        bidirectional=directions == 2,
        device="cuda",
        dtype=dtype,
    )
    x = x.clone().requires_grad_(d_outputs is not None)
    lengths = torch.tensor(lengths)

    def call():
        with torch.set_grad_enabled(d_outputs is not None):
            rows = x
            if packed:
                rows = torch.nn.utils.rnn.pack_padded_sequence(
                    x, lengths, True, enforce_sorted=False
                )
            y, _ = lstm(rows)
            if packed:
                y, _ = torch.nn.utils.rnn.pad_packed_sequence(y, True, total_length=x.shape[1])
        if d_outputs is not None:
            lstm.zero_grad(set_to_none=True)
            x.grad = None
            y.backward(d_outputs)

    return call


def lengths_of(batch, timesteps, fraction):
    if fraction == 1:
        return np.full(batch, timesteps)
    rng = np.random.default_rng(0)
    return np.clip(rng.beta(1.3, 1.95, batch) * timesteps, 1, timesteps).astype(int)


def normal(*shape, dtype, scale=1.0):
    return (torch.randn(shape, device="cuda") * scale).to(dtype)


def point(units, batch, dtype, fraction, training, timesteps=500):
    """Calls to measure, and lengths."""
    to = gpu_check.DTYPES[dtype]
    lengths = lengths_of(batch, timesteps, fraction)
    x, d_outputs = (normal(batch, timesteps, units, dtype=to) for _ in range(2))
    weights = [normal(units, 4 * units, dtype=to, scale=units**-0.5) for _ in range(2)]
    weights.append(normal(4 * units, dtype=to))
    mask = {"sequence_lengths": torch.tensor(lengths, device="cuda", dtype=torch.int32)}
    upstream = d_outputs if training else None
    peers = {
        "hopper": ours(x, weights, mask, upstream, ASKED),
        "grid": ours(x, weights, mask, upstream, GRID),  # the rule's other side
        "groups": ours(x, weights, mask, upstream, "groups"),
        "torch dense": torchs(x, units, to, lengths, upstream, False),
        "torch packed": torchs(x, units, to, lengths, upstream, True),
    }
    if units > 768:
        del peers["grid"]  # hopper is
    return peers, lengths


def bidirectional(units, batch, dtype, fraction, training, timesteps=500):
    """Both directions: as a pair, as two calls, and cuDNN's."""
    to = gpu_check.DTYPES[dtype]
    lengths = lengths_of(batch, timesteps, fraction)
    x, d = (normal(batch, timesteps, units, dtype=to) for _ in range(2))
    names = ("kernel", "recurrent_kernel", "bias")
    calls = []
    for backwards in (False, True):
        weights = [normal(units, 4 * units, dtype=to, scale=units**-0.5) for _ in range(2)]
        weights.append(normal(4 * units, dtype=to))
        calls.append(dict(zip(names, weights, strict=True), inputs=x, go_backwards=backwards))
        calls[-1]["sequence_lengths"] = torch.tensor(lengths, device="cuda", dtype=torch.int32)

    def as_pair():
        os.environ[SWITCH] = ASKED
        results = cuda.forward_pair(*(call | {"save_reserve": training} for call in calls))
        if training:
            both = zip(calls, results, strict=True)
            cuda.backward_pair(*(c | {"reserve": r.reserve, "d_outputs": d} for c, r in both))

    def as_two():
        os.environ[SWITCH] = ASKED
        for call in calls:
            result = cuda.forward(**call, save_reserve=training)
            if training:
                cuda.backward(**call, reserve=result.reserve, d_outputs=d)

    upstream = torch.cat([d, d], -1) if training else None
    return {
        "hopper pair": as_pair,
        "hopper twice": as_two,
        "torch dense": torchs(x, units, to, lengths, upstream, False, directions=2),
        "torch packed": torchs(x, units, to, lengths, upstream, True, directions=2),
    }, lengths


# Directions, units, batch, dtype, in the order of worth: time may run out.
POINTS = [
    *((1, units, batch, "bfloat16") for units in (512, 1024, 256, 768, 128) for batch in (64, 16)),
    *((2, units, batch, "bfloat16") for units in (256, 512) for batch in (64, 16)),
    *((1, units, 64, "float32") for units in (512, 256, 1024)),
    *((1, 2048, batch, "bfloat16") for batch in (16, 64)),
    *((1, units, batch, "bfloat16") for units in (512, 1024, 256, 768, 128) for batch in (256, 1)),
    *((1, units, batch, "float32") for units in (512, 256, 1024) for batch in (16, 256, 1)),
]


def bench(path, seconds) -> int:
    """Until the time is up."""
    rows, end, timesteps = [], time.monotonic() + seconds, 500
    for (directions, *shape), fraction, training in itertools.product(
        POINTS, (1.0, 0.4), (False, True)
    ):
        if time.monotonic() > end:
            print(f"out of time after {len(rows)} rows: the rest is not measured")
            return 0
        units, batch, dtype = shape
        peers, lengths = (point, bidirectional)[directions - 1](*shape, fraction, training)
        times = {name: median_ms(call) for name, call in peers.items()}
        for name, value in times.items():
            rows.append(
                {
                    "date": time.strftime("%Y-%m-%d"),
                    "gpu": torch.cuda.get_device_properties(0).name,
                    "torch": torch.__version__,
                    "cudnn": torch.backends.cudnn.version(),
                    "directions": directions,
                    "units": units,
                    "batch": batch,
                    "timesteps": timesteps,
                    "dtype": dtype,
                    "valid_fraction": round(float(lengths.sum()) / (batch * timesteps), 4),
                    "pass": "training" if training else "forward",
                    "peer": name,
                    "median_ms": round(value, 5),
                    "us_per_timestep": round(value * 1e3 / timesteps, 4),
                }
            )
        title = "training" if training else "forward"
        print(
            f"{directions} x U={units} B={batch} {dtype} {fraction:.0%} {title}: "
            + ", ".join(f"{name} {value:.3f} ms" for name, value in times.items())
        )
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=["parity", "short", "bench"])
    parser.add_argument("--out", default="hopper.csv")
    parser.add_argument("--seconds", type=float, default=60, help="of measuring (60)")
    options = parser.parse_args()
    if not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] != 9:
        sys.exit("error: expected a GPU of compute capability 9.0")
    os.environ[SWITCH] = ASKED
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    if options.what == "bench":
        return bench(options.out, options.seconds)
    return int((parity if options.what == "parity" else short)() > 0)


if __name__ == "__main__":
    sys.exit(main())
