"""The CUDA kernels on a GPU: parity, a short run for sanitizers, times against PyTorch's cuDNN.

    python bench/gpu_check.py parity | short | bench --out FILE.csv

See gpu_check.sh. Times are medians of CUDA events, our calls and PyTorch's in turn.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import sys
import time

import numpy as np
import torch
from torch.nn.utils import rnn

from masked_lstm import cuda, reference

DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
LIMITS = {"float32": 1e-4, "float64": 1e-11, "float16": 2e-2, "bfloat16": 1e-1}
SECONDS = 240  # of measuring


def problem(batch, timesteps, input_dim, units, seed=0):
    rng = np.random.default_rng(seed)

    def normal(*shape, scale=1.0):
        return scale * rng.standard_normal(shape)

    return dict(
        inputs=normal(batch, timesteps, input_dim),
        kernel=normal(input_dim, 4 * units, scale=max(input_dim, 1) ** -0.5),
        recurrent_kernel=normal(units, 4 * units, scale=units**-0.5),
        bias=normal(4 * units, scale=0.5),
        initial_state=(normal(batch, units, scale=0.5), normal(batch, units)),
        d_outputs=normal(batch, timesteps, units),
        d_h=normal(batch, units),
        d_c=normal(batch, units),
    )


def masks(batch, timesteps, seed=0):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, timesteps + 1, batch)
    lengths[0] = timesteps
    positions = np.arange(timesteps)
    return {
        "none": {},
        "lengths": dict(sequence_lengths=lengths),
        "left": dict(mask=positions >= timesteps - lengths[:, None]),
        "holes": dict(mask=rng.random((batch, timesteps)) < 0.5),
        "empty": dict(mask=np.zeros((batch, timesteps), bool)),
    }


def on_gpu(value, dtype):
    if isinstance(value, tuple):
        return tuple(on_gpu(one, dtype) for one in value)
    return torch.tensor(value, device="cuda").to(dtype)


def run(p, mask, options, dtype):
    """Results and gradients of ours, as float64 on the host; padding is NaN."""
    inputs = p["inputs"].copy()
    if "mask" in mask:
        inputs[~mask["mask"]] = np.nan
    arguments = [on_gpu(inputs, dtype)]
    arguments += [on_gpu(p[name], dtype) for name in ("kernel", "recurrent_kernel", "bias")]
    more = {name: torch.tensor(value, device="cuda") for name, value in mask.items()} | options
    more["initial_state"] = on_gpu(p["initial_state"], dtype)
    result = cuda.forward(*arguments, save_reserve=True, **more)
    upstream = [on_gpu(p[name], dtype) for name in ("d_outputs", "d_h", "d_c")]
    if not options.get("return_sequences", True):
        upstream[0] = upstream[0][:, 0].contiguous()
    gradients = cuda.backward(*arguments, result.reserve, *upstream, **more)
    return [np.asarray(value.double().cpu()) for value in (*result[:3], *gradients)]


def rounded(p, dtype):
    """The problem as the GPU sees it, in float64."""

    def convert(value):
        if isinstance(value, tuple):
            return tuple(map(convert, value))
        return np.asarray(torch.tensor(value).to(dtype).double())

    return {name: convert(value) for name, value in p.items()}


def check(shape, dtype_name, mask_name, options) -> float:
    """Largest error of any result or gradient over the limit."""
    dtype = DTYPES[dtype_name]
    p = rounded(problem(*shape), dtype)
    mask = masks(*shape[:2])[mask_name]
    arguments = [p[name] for name in ("inputs", "kernel", "recurrent_kernel", "bias")]
    more = mask | options | dict(initial_state=p["initial_state"])
    expected = list(reference.forward(*arguments, **more)[:3])
    upstream = [p["d_outputs"], p["d_h"], p["d_c"]]
    if not options.get("return_sequences", True):
        upstream[0] = upstream[0][:, 0]
    expected += reference.backward(*arguments, None, *upstream, **more)
    worst = 0.0
    for got, want in zip(run(p, mask, options, dtype), expected, strict=True):
        if want.size == 0:
            continue
        error = np.abs(got - want).max() / max(1.0, np.abs(want).max())
        worst = max(worst, float("inf") if np.isnan(error) else error / LIMITS[dtype_name])
    return worst


OPTIONS = (
    {},
    dict(go_backwards=True),
    dict(zero_output_for_mask=True, go_backwards=True),
    dict(return_sequences=False),
    dict(activation="softsign", recurrent_activation="hard_sigmoid"),
)


def parity() -> int:
    failures = count = 0
    shapes = [(1, 1, 1, 1), (19, 5, 9, 17), (40, 12, 30, 70), (3, 9, 100, 256), (64, 6, 20, 33)]
    for shape, dtype in itertools.product(shapes, DTYPES):
        for mask, options in itertools.product(masks(*shape[:2]), OPTIONS):
            worst = check(shape, dtype, mask, options)
            count += 1
            if not worst <= 1:
                failures += 1
                print(f"FAILED {shape} {dtype} {mask} {options}: {worst:.1f} times the limit")
    failures += not invariance()
    print(
        f"parity: {'passed' if not failures else 'FAILED'}, {failures} of {count + 1} checks failed"
    )
    return failures


def invariance() -> bool:
    """Rows alone have the bits they have in a batch; twice the same bits."""
    p, mask = problem(37, 20, 24, 80), masks(37, 20)["holes"]
    whole, again = (run(p, mask, {}, torch.float32) for _ in range(2))
    same = all(a.tobytes() == b.tobytes() for a, b in zip(whole, again, strict=True))
    for row in (0, 5, 36):
        part = {
            name: p[name] if "kernel" in name or name == "bias" else p[name][row : row + 1]
            for name in p
            if name != "initial_state"
        }
        part["initial_state"] = tuple(state[row : row + 1] for state in p["initial_state"])
        alone = run(part, {"mask": mask["mask"][row : row + 1]}, {}, torch.float32)
        for index in (0, 1, 2, 3, 7, 8):  # outputs, h, c, dx, dh0, dc0
            same &= alone[index].tobytes() == whole[index][row : row + 1].tobytes()
    print(f"bitwise batch invariance and repeatability: {'passed' if same else 'FAILED'}")
    return same


def short() -> int:
    """A few small calls, for compute-sanitizer."""
    bad = [
        (shape, dtype)
        for shape in [(5, 4, 3, 5), (11, 3, 9, 40)]
        for dtype in ("float32", "bfloat16")
        if not check(shape, dtype, "holes", {}) <= 1
    ]
    return len(bad)


def milliseconds(call, rounds) -> list[float]:
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(rounds)]
    for start, end in events:
        start.record()
        call()
        end.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) for start, end in events]


def calls(batch, timesteps, units, dtype, fraction, training):
    """Ours and PyTorch's: one forward pass, or with all gradients."""
    rng = np.random.default_rng(0)
    lengths = np.clip((rng.beta(1.3, 2.2, batch) / 0.37 * fraction * timesteps), 1, timesteps)
    lengths = np.full(batch, timesteps) if fraction == 1 else lengths.astype(int)
    p = {
        name: on_gpu(value, dtype)
        for name, value in problem(batch, timesteps, units, units).items()
    }
    mask = dict(sequence_lengths=torch.tensor(lengths, device="cuda", dtype=torch.int32))
    weights = [p[name] for name in ("kernel", "recurrent_kernel", "bias")]

    def ours():
        result = cuda.forward(p["inputs"], *weights, save_reserve=training, **mask)
        if training:
            cuda.backward(p["inputs"], *weights, result.reserve, p["d_outputs"], **mask)

    lstm = torch.nn.LSTM(units, units, batch_first=True, device="cuda", dtype=dtype)
    x = p["inputs"].clone().requires_grad_(training)
    host_lengths = torch.tensor(lengths)

    def dense():
        with torch.set_grad_enabled(training):
            y, _ = lstm(x)
        if training:
            lstm.zero_grad(set_to_none=True)
            x.grad = None
            y.backward(p["d_outputs"])

    def packed():
        with torch.set_grad_enabled(training):
            packed_x = rnn.pack_padded_sequence(x, host_lengths, True, enforce_sorted=False)
            y, _ = lstm(packed_x)
            y, _ = rnn.pad_packed_sequence(y, True, total_length=timesteps)
        if training:
            lstm.zero_grad(set_to_none=True)
            x.grad = None
            y.backward(p["d_outputs"])

    return {"ours": ours, "torch dense": dense, "torch packed": packed}, int(lengths.sum())


def bench(path) -> int:
    properties = torch.cuda.get_device_properties(0)
    rows, end = [], time.monotonic() + SECONDS
    grid = itertools.product(
        (256, 512, 1024, 128), (64, 16, 256, 1), ("bfloat16", "float32", "float16"), (0.37, 1.0)
    )
    timesteps = 200
    for units, batch, dtype, fraction in grid:
        for training in (False, True):
            if time.monotonic() > end:
                print("out of time: the rest is not measured")
                break
            table, valid = calls(batch, timesteps, units, DTYPES[dtype], fraction, training)
            times = {name: [] for name in table}
            for call in table.values():
                call()
            for _ in range(3):
                for name, call in table.items():
                    times[name] += milliseconds(call, 3)
            median = {name: float(np.median(values)) for name, values in times.items()}
            flops = 2 * 4 * units * 2 * units * valid * (3 if training else 1)
            for name, value in median.items():
                rows.append(
                    {
                        "date": time.strftime("%Y-%m-%d"),
                        "gpu": properties.name,
                        "torch": torch.__version__,
                        "cudnn": torch.backends.cudnn.version(),
                        "units": units,
                        "input_dim": units,
                        "batch": batch,
                        "timesteps": timesteps,
                        "dtype": dtype,
                        "valid_fraction": round(valid / (batch * timesteps), 4),
                        "pass": "training" if training else "forward",
                        "peer": name,
                        "median_ms": round(value, 5),
                        "us_per_timestep": round(value * 1e3 / timesteps, 4),
                        "valid_tflops": round(flops / value / 1e9, 4),
                    }
                )
            best = min(value for name, value in median.items() if name != "ours")
            title = "training" if training else "forward"
            print(
                f"U={units} B={batch} {dtype} {fraction:.0%} {title}: "
                + ", ".join(f"{name} {value:.3f} ms" for name, value in median.items())
                + f"; {best / median['ours']:.2f}x the best"
            )
            with open(path, "w", newline="") as file:
                writer = csv.DictWriter(file, rows[0])
                writer.writeheader()
                writer.writerows(rows)
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=["parity", "short", "bench"])
    parser.add_argument("--out", default="cuda.csv")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("error: PyTorch sees no GPU")
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    if options.what == "parity":
        return int(parity() > 0)
    return int(short() > 0) if options.what == "short" else bench(options.out)


if __name__ == "__main__":
    sys.exit(main())
