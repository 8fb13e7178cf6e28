"""Peak memory of one call: `python bench/memory.py PEER CASE PASS THREADS` prints it in MiB, and
`python bench/memory.py all THREADS` a table of the main cases. `python bench/memory.py kept`:
what is kept between the two passes of a training step, run eagerly, beside the outputs.

A process of its own for each measurement, since every library keeps freed memory in its own way.
The figure of a call is the rise of the process' resident memory from the moment when the case's
arrays exist and the library has served a tiny case, to its peak over building the peer and two
calls. It holds the peer's own copies of inputs and weights, and its compiled code: TensorFlow's
peers and the core take inputs as they are, PyTorch's and ONNX Runtime's want them time-major,
another copy.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from cases import CASES, PASSES, Case, Data, make_data
from peers import load


def measure(peer: str, case: str, pass_name: str, threads: int) -> float | str:
    """MiB, measured in a child process; "" where that fails, as it does where there is no /proc."""
    command = [sys.executable, __file__, peer, case, pass_name, str(threads)]
    child = subprocess.run(command, capture_output=True, text=True, check=False)
    return float(child.stdout.split()[-1]) if child.returncode == 0 else ""


def _resident(field: str) -> int:
    """VmRSS or VmHWM (its peak) of this process, in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def _main(peer_name: str, case_name: str, pass_name: str, threads: str) -> None:
    peer, case = load(peer_name, int(threads)), CASES[case_name]
    tiny = dataclasses.replace(case, batch=3, timesteps=4, input_dim=5, units=6)
    peer.prepare(tiny, make_data(tiny), pass_name).call()
    data = make_data(case)
    if reason := peer.refuses(case, data, pass_name):
        sys.exit(reason)
    ctypes.CDLL(None).malloc_trim(0)  # or what making the arrays left over would be used again
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM; see proc_pid_clear_refs(5)
    call = peer.prepare(case, data, pass_name).call
    call()
    call()
    print(round((_resident("VmHWM") - before) / 1024, 1))


def _with_tensorflow(mode: str, case: Case, data: Data) -> Callable[[], object]:
    import keras
    import tensorflow as tf

    from masked_lstm import ops

    x, weights = tf.constant(data.inputs), [tf.Variable(array) for array in data.weights[0]]
    options = {"sequence_lengths": tf.constant(data.lengths), "recompute": mode == "recompute"}
    layer = keras.layers.LSTM(case.units, return_sequences=True, use_cudnn=False)
    layer.build(data.inputs.shape)

    def forward():
        with tf.GradientTape() as tape:
            tape.watch(x)
            if mode == "keras":
                return tape, layer(x, mask=tf.constant(data.mask))
            return tape, ops.lstm(x, *weights, **options)[0]

    return forward


def _with_torch(case: Case, data: Data) -> Callable[[], object]:
    import torch

    lstm = torch.nn.LSTM(case.input_dim, case.units, batch_first=True)
    x = torch.from_numpy(data.inputs).requires_grad_()
    return lambda: lstm(x)[0]


def _kept(mode: str, case_name: str) -> None:
    """MiB by which resident memory is higher after a forward pass that is to be differentiated,
    less its outputs."""
    case = CASES[case_name]
    # The first one: what the libraries hold however much is computed.
    for at in (dataclasses.replace(case, batch=3, timesteps=4), case):
        data = make_data(at)
        make = _with_torch if mode == "torch" else functools.partial(_with_tensorflow, mode)
        forward = make(at, data)
        ctypes.CDLL(None).malloc_trim(0)
        before = _resident("VmRSS")
        kept = forward()
        ctypes.CDLL(None).malloc_trim(0)
        rise = (_resident("VmRSS") - before) / 1024
        del kept
    print(round(rise - at.batch * at.timesteps * at.units * 4 / 2**20, 1))


def _kept_table() -> None:
    print("case | 5U values per valid step | op | op, recompute | Keras | PyTorch dense")
    for case in (case for case in CASES.values() if case.group == "main"):
        row = [f"{make_data(case).lengths.sum() * 5 * case.units * 4 / 2**20:.1f}"]
        for mode in ("op", "recompute", "keras", "torch"):
            command = [sys.executable, __file__, "kept", mode, case.name]
            child = subprocess.run(command, capture_output=True, text=True, check=True)
            row.append(child.stdout.split()[-1])
        print(f"{case.name} | " + " | ".join(row), flush=True)


def _table(threads: str) -> None:
    peers = "core op layer keras torch torch_packed onnxruntime".split()
    print("case pass | " + " | ".join(peers))
    for case in (name for name, case in CASES.items() if case.group == "main"):
        for pass_name in PASSES:
            row = []
            for peer in peers:
                value = measure(peer, case, pass_name, int(threads))
                row.append("-" if value == "" else f"{value:.1f}")
            print(f"{case} {pass_name} | " + " | ".join(row), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "all":
        _table(*sys.argv[2:])
    elif sys.argv[1] == "kept":
        _kept(*sys.argv[2:]) if sys.argv[2:] else _kept_table()
    else:
        _main(*sys.argv[1:])
