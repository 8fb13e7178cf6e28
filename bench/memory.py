"""Peak memory of one call: `python bench/memory.py PEER CASE PASS THREADS` prints it in MiB, and
`python bench/memory.py all THREADS` a table of the main cases.

A process of its own for each measurement, since every library keeps freed memory in its own way.
The figure is the rise of the process' resident memory from the moment when the case's arrays exist
and the library has served a tiny case, to its peak over building the peer and two calls. It holds
the peer's own copies of inputs and weights, and its compiled code: TensorFlow's peers and the core
take inputs as they are, PyTorch's and ONNX Runtime's want them time-major, another copy.
"""

from __future__ import annotations

import ctypes
import dataclasses
import subprocess
import sys
from pathlib import Path

from cases import CASES, PASSES, make_data
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
    else:
        _main(*sys.argv[1:])
