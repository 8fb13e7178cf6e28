"""The CUDA kernels on a GPU: parity with the specification and PyTorch's cuDNN; CUDA graphs,
streams, threads and faults; a short run for sanitizers. TensorFlow is gpu_keras.py's.

    python bench/gpu_check.py parity | short | capability

See gpu_check.sh. What is fast is measured by `python bench/run.py --device cuda`.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import importlib.util
import itertools
import os
import sys

import numpy as np
import torch

from masked_lstm import cuda, reference

DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
LIMITS = {"float32": 1e-4, "float64": 1e-11, "float16": 2e-2, "bfloat16": 1e-1}


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
    lengths[:1] = timesteps
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


def ragged(p, mask):
    """The same problem without its padding, and the row splits."""
    lengths = mask["sequence_lengths"]
    valid = np.arange(p["inputs"].shape[1]) < lengths[:, None]
    whole = p | {name: p[name][valid] for name in ("inputs", "d_outputs")}
    return whole, np.concatenate([[0], np.cumsum(lengths)])


def run(p, mask, options, dtype, recompute=False):
    """Results and gradients of ours, as float64 on the host; padding is NaN."""
    inputs = p["inputs"].copy()
    if "mask" in mask:
        inputs[~mask["mask"]] = np.nan
    arguments = [on_gpu(inputs, dtype)]
    arguments += [on_gpu(p[name], dtype) for name in ("kernel", "recurrent_kernel", "bias")]
    more = {name: torch.tensor(value, device="cuda") for name, value in mask.items()} | options
    for name in ("input_factors", "recurrent_factors"):
        if name in options:
            more[name] = on_gpu(options[name], dtype)
    more["initial_state"] = on_gpu(p["initial_state"], dtype)
    result = cuda.forward(*arguments, save_reserve=not recompute, **more)
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
    options = dict(options)
    recompute = options.pop("recompute", False)
    if options.pop("factors", False):
        rng = np.random.default_rng(1)
        batch, _, input_dim, units = shape
        factors = {
            "input_factors": rng.standard_normal((4, batch, input_dim)),
            "recurrent_factors": rng.standard_normal((4, batch, units)),
        }
        options |= rounded(factors, dtype)
    arguments = [p[name] for name in ("inputs", "kernel", "recurrent_kernel", "bias")]
    more = mask | options | dict(initial_state=p["initial_state"])
    expected = list(reference.forward(*arguments, **more)[:3])
    upstream = [p["d_outputs"], p["d_h"], p["d_c"]]
    if not options.get("return_sequences", True):
        upstream[0] = upstream[0][:, 0]
    expected += reference.backward(*arguments, None, *upstream, **more)
    return worst_error(run(p, mask, options, dtype, recompute), expected, dtype_name)


def worst_error(got, expected, dtype_name) -> float:
    worst = 0.0
    for a, b in zip(got, expected, strict=True):
        if b.size == 0:
            continue
        error = np.abs(a - b).max() / max(1.0, np.abs(b).max())
        worst = max(worst, float("inf") if np.isnan(error) else error / LIMITS[dtype_name])
    return worst


OPTIONS = (
    {},
    dict(go_backwards=True),
    dict(zero_output_for_mask=True, go_backwards=True),
    dict(return_sequences=False),
    dict(activation="softsign", recurrent_activation="hard_sigmoid"),
    dict(factors=True),
    dict(recompute=True, go_backwards=True),
)


def parity() -> int:
    failures = count = 0
    shapes = [(1, 1, 1, 1), (19, 5, 9, 17), (40, 12, 30, 70), (3, 9, 100, 256), (64, 6, 20, 33)]
    # Of 16 bits, a Hopper GPU has two kinds of kernels.
    kinds = [(dtype, "") for dtype in DTYPES] + [("float16", "groups"), ("bfloat16", "groups")]
    for shape, (dtype, kernel) in itertools.product(shapes, kinds):
        os.environ["MASKED_LSTM_CUDA_KERNEL"] = kernel
        for mask, options in itertools.product(masks(*shape[:2]), OPTIONS):
            worst = check(shape, dtype, mask, options)
            count += 1
            if not worst <= 1:
                failures += 1
                print(f"FAILED {shape} {dtype} {kernel} {mask} {options}: {worst:.1f} x the limit")
    del os.environ["MASKED_LSTM_CUDA_KERNEL"]
    checks = (invariance, ragged_batch, empty, wide, cudnn, graph, streams, threads, cupy, faults)
    for function in checks:
        count += 1
        outcome = function()
        print(f"{function.__doc__.splitlines()[0]} {outcome or 'passed'}", flush=True)
        failures += outcome == "FAILED"
    print(f"parity: {'passed' if not failures else 'FAILED'}, {failures} of {count} checks failed")
    return failures


def verdict(good) -> str:
    return "passed" if good else "FAILED"


def invariance() -> str:
    """Rows have their bits alone, in another order, with more padding; twice the same bits:"""
    p, mask = problem(37, 20, 24, 80), masks(37, 20)["holes"]
    whole, again = (run(p, mask, {}, torch.float32) for _ in range(2))
    same = all(a.tobytes() == b.tobytes() for a, b in zip(whole, again, strict=True))
    for rows in ([0], [5], [36], list(range(37))[::-1]):
        for padding in (0, 7):
            part = {name: p[name] for name in p if "kernel" in name or name == "bias"}
            part["initial_state"] = tuple(state[rows] for state in p["initial_state"])
            part |= {name: p[name][rows] for name in ("d_h", "d_c")}
            for name in ("inputs", "d_outputs"):
                part[name] = np.pad(p[name][rows], ((0, 0), (0, padding), (0, 0)))
            valid = np.pad(mask["mask"][rows], ((0, 0), (0, padding)))
            got = run(part, {"mask": valid}, {}, torch.float32)
            for index in (0, 1, 2, 3, 7, 8):  # outputs, h, c, dx, dh0, dc0
                values = got[index][:, :20] if got[index].ndim == 3 else got[index]
                same &= values.tobytes() == whole[index][rows].tobytes()
    return verdict(same)


def ragged_batch() -> str:
    """Row splits give the bits of the padded batch:"""
    p, mask = (
        problem(23, 9, 12, 40),
        {"sequence_lengths": masks(23, 9)["lengths"]["sequence_lengths"]},
    )
    padded = run(p, mask, {}, torch.float32)
    whole, splits = ragged(p, mask)
    # Padding repeats the last output, and with it takes gradient: none arrives there here.
    valid = np.arange(9) < mask["sequence_lengths"][:, None]
    p = p | {"d_outputs": np.where(valid[..., None], p["d_outputs"], 0)}
    padded = run(p, mask, {}, torch.float32)
    alone = run(whole, {"row_splits": splits}, {}, torch.float32)
    same = all(
        (a[valid] if a.ndim == 3 else a).tobytes() == b.tobytes()
        for a, b in zip(padded, alone, strict=True)
    )
    return verdict(same)


def empty() -> str:
    """No timesteps, no rows, no input:"""
    shapes = itertools.product(
        ((3, 0, 2, 5), (0, 3, 2, 5), (2, 3, 0, 5)), ({}, dict(recompute=True))
    )
    kinds = itertools.product(("float32", "bfloat16"), shapes)
    return verdict(all(check(shape, dtype, "holes", more) <= 1 for dtype, (shape, more) in kinds))


def wide() -> str:
    """More tiles of 16 units than a GPU of 148 multiprocessors has blocks for (U = 5000):"""
    return verdict(check((2, 2, 3, 5000), "float32", "lengths", {}) <= 1)


def cudnn() -> str:
    """PyTorch's LSTM (cuDNN), results and all gradients:"""
    p = problem(17, 13, 24, 48)
    lstm = torch.nn.LSTM(24, 48, batch_first=True, device="cuda", dtype=torch.float32)
    with torch.no_grad():
        lstm.weight_ih_l0.copy_(on_gpu(p["kernel"].T, torch.float32))
        lstm.weight_hh_l0.copy_(on_gpu(p["recurrent_kernel"].T, torch.float32))
        lstm.bias_ih_l0.copy_(on_gpu(p["bias"], torch.float32))
        lstm.bias_hh_l0.zero_()
    x = on_gpu(p["inputs"], torch.float32).requires_grad_()
    states = [on_gpu(s, torch.float32)[None].requires_grad_() for s in p["initial_state"]]
    y, (h, c) = lstm(x, tuple(states))
    upstream = [on_gpu(p[name], torch.float32) for name in ("d_outputs", "d_h", "d_c")]
    torch.autograd.backward([y, h, c], [upstream[0], upstream[1][None], upstream[2][None]])
    expected = [y, h[0], c[0], x.grad, lstm.weight_ih_l0.grad.T, lstm.weight_hh_l0.grad.T]
    expected += [lstm.bias_ih_l0.grad, *(state.grad[0] for state in states)]
    expected = [value.detach().double().cpu().numpy() for value in expected]
    return verdict(worst_error(run(p, {}, {}, torch.float32), expected, "float32") <= 1)


def gpu_arguments(p):
    names = ("inputs", "kernel", "recurrent_kernel", "bias")
    return [on_gpu(p[name], torch.float32) for name in names]


def both_passes(arguments, d_outputs, lengths):
    result = cuda.forward(*arguments, save_reserve=True, sequence_lengths=lengths)
    gradients = cuda.backward(*arguments, result.reserve, d_outputs, sequence_lengths=lengths)
    return [*result[:3], *gradients]


def equal(got, expected):
    return all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def graph() -> str:
    """Captured into a CUDA graph and replayed with other inputs, again and again:"""
    lengths = torch.tensor(masks(9, 12)["lengths"]["sequence_lengths"], device="cuda").int()
    problems = [problem(9, 12, 16, 40, seed) for seed in range(4)]
    arguments = gpu_arguments(problems[0])
    d_outputs = on_gpu(problems[0]["d_outputs"], torch.float32)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        both_passes(arguments, d_outputs, lengths)  # kernels are loaded before the capture
    torch.cuda.current_stream().wait_stream(stream)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        results = both_passes(arguments, d_outputs, lengths)
    same = True
    for other in problems[1:]:
        for target, value in zip(arguments, gpu_arguments(other), strict=True):
            target.copy_(value)
        lengths.copy_(lengths.roll(1))
        captured.replay()
        torch.cuda.synchronize()
        same &= equal(results, both_passes(arguments, d_outputs, lengths))
    return verdict(same)


def concurrent_calls():
    """(arguments, what they give alone, a stream) of eight calls that fill the GPU."""
    calls = []
    for seed in range(8):
        p = problem(40, 20, 16, 200, seed)
        lengths = torch.tensor(masks(40, 20, seed)["lengths"]["sequence_lengths"], device="cuda")
        arguments = (gpu_arguments(p), on_gpu(p["d_outputs"], torch.float32), lengths.int())
        calls.append((arguments, both_passes(*arguments), torch.cuda.Stream()))
    torch.cuda.synchronize()
    return calls


def streams() -> str:
    """Eight calls at once on eight streams, beside products of matrices:"""
    calls, again = concurrent_calls(), []
    busy, matrix = torch.cuda.Stream(), torch.randn(2048, 2048, device="cuda")
    torch.cuda.synchronize()
    for _ in range(5):
        with torch.cuda.stream(busy):
            for _ in range(10):
                matrix @ matrix
        for arguments, expected, stream in calls:
            with torch.cuda.stream(stream):
                again.append((both_passes(*arguments), expected))
    torch.cuda.synchronize()
    return verdict(all(equal(got, want) for got, want in again))


def threads() -> str:
    """Eight threads with a stream each:"""
    calls = concurrent_calls()

    def work(call):
        arguments, expected, stream = call
        with torch.cuda.stream(stream):
            results = [both_passes(*arguments) for _ in range(5)]
            stream.synchronize()
            return all(equal(got, expected) for got in results)

    with concurrent.futures.ThreadPoolExecutor(len(calls)) as pool:
        return verdict(all(pool.map(work, calls)))


def cupy() -> str:
    """CuPy's arrays on a stream of CuPy's have the bits of PyTorch's:"""
    if importlib.util.find_spec("cupy") is None:
        return "not checked, CuPy is not installed"
    import cupy as cp

    p = problem(19, 12, 16, 40)
    lengths = masks(19, 12)["lengths"]["sequence_lengths"]
    arguments, d_outputs = gpu_arguments(p), on_gpu(p["d_outputs"], torch.float32)
    expected = both_passes(arguments, d_outputs, torch.tensor(lengths, device="cuda"))
    with cp.cuda.Stream(non_blocking=True) as stream:
        given = [cp.asarray(value.cpu().numpy()) for value in (*arguments, d_outputs)]
        results = both_passes(given[:-1], given[-1], cp.asarray(lengths))
        results = [torch.tensor(cp.asnumpy(value)) for value in results]
        stream.synchronize()
    return verdict(equal(results, [value.cpu() for value in expected]))


def faults() -> str:
    """Bad arguments are refused in one sentence each:"""
    p = problem(3, 4, 5, 6)
    x, *weights = gpu_arguments(p)
    d_outputs = on_gpu(p["d_outputs"], torch.float32)
    wrong = [
        (ValueError, lambda: cuda.forward(x.cpu(), *weights)),
        (ValueError, lambda: cuda.forward(x, weights[0].cpu(), *weights[1:])),
        (ValueError, lambda: cuda.forward(x.transpose(0, 1), *weights)),
        (ValueError, lambda: cuda.forward(x, weights[0].double(), *weights[1:])),
        (ValueError, lambda: cuda.forward(x, *weights, mask=torch.ones(3, 4, dtype=torch.bool))),
        (ValueError, lambda: cuda.backward(x, *weights, weights[2], d_outputs)),
    ]
    refused = 0
    for kind, call in wrong:
        try:
            call()
        except kind:
            refused += 1
        except Exception as error:
            print(f"FAILED: {type(error).__name__}: {error}")
    return verdict(refused == len(wrong))


def short() -> int:
    """A few small calls, for compute-sanitizer: all kernels of two dtypes but Hopper's."""
    cases = [
        ((5, 4, 3, 5), "float32", "holes", {}),
        ((11, 3, 9, 40), "bfloat16", "lengths", dict(recompute=True, go_backwards=True)),
        ((11, 3, 9, 40), "float32", "lengths", dict(factors=True)),
    ]
    wrong = [case for case in cases if not check(*case) <= 1]
    p, lengths = problem(5, 4, 3, 20), masks(5, 4)["lengths"]
    whole, splits = ragged(p, lengths)
    run(whole, {"row_splits": splits}, {}, torch.float32)
    for case in wrong:
        print(f"FAILED {case}")
    return len(wrong)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=["parity", "short", "capability"])
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("error: PyTorch sees no GPU")
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    if options.what == "capability":
        print("{}.{}".format(*torch.cuda.get_device_capability()))
        return 0
    if options.what == "parity":
        return int(parity() > 0)
    os.environ["MASKED_LSTM_CUDA_KERNEL"] = "groups"
    return int(short() > 0)


if __name__ == "__main__":
    sys.exit(main())
