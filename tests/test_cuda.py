"""The CUDA kernels without a GPU: run by an executor on the host, compiled by nvcc where it is."""

import os
import pathlib
import re
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
CUDA = ROOT / "csrc" / "cuda"


def compile_all(folder, sources, flags):
    """Objects of the sources, each compiled with its own flags added."""
    objects = []
    for index, (source, more) in enumerate(sources):
        objects.append(folder / f"{index}.o")
        command = [
            "c++",
            "-std=c++17",
            f"-I{ROOT}/csrc",
            f"-I{ROOT}/tests/cuda_host",
            *flags,
            *more,
        ]
        subprocess.run([*command, "-c", ROOT / source, "-o", objects[-1]], check=True)
    return objects


def test_on_the_host_executor(tmp_path):
    """Parity with the CPU core, whatever the order of the threads, under AddressSanitizer."""
    generic = [
        *("-DMASKED_LSTM_ISA_NAMESPACE=generic", "-DMASKED_LSTM_VECTOR_BYTES=16", "-O2"),
        *("-ffp-contract=off", "-Wno-psabi"),
    ]
    core = [
        (f"csrc/{name}.cc", ["-O1"]) for name in ("lstm", "schedule", "cpu/isa", "cpu/cpu_lstm")
    ]
    checked = ["-O1", "-g1", "-Wall", "-Wextra", "-Wno-unknown-pragmas"]
    sources = [
        *core,
        ("csrc/cpu/kernels.cc", generic),
        ("tests/cuda_host/cuda_host.cc", checked),
        ("tests/cuda_host/check_cuda.cc", [*checked, "-fsanitize=address"]),
    ]
    objects = compile_all(tmp_path, sources, [])
    program = tmp_path / "check_cuda"
    subprocess.run(["c++", "-fsanitize=address", *objects, "-o", program], check=True)
    run = subprocess.run([program], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-4000:]
    assert "0 failures" in run.stdout


def test_every_kernel_is_part_of_a_call():
    """What run.cuh launches is what the executor runs; a kernel beside it would have no test."""
    kernels = set()
    for path in CUDA.glob("*.cuh"):
        declaration = r"__global__ void(?:\s+__launch_bounds__\([\w, ]+\))?\s+(\w+Kernel)\("
        kernels |= set(re.findall(declaration, path.read_text()))
    launched = set(re.findall(r"launch\((\w+Kernel)", (CUDA / "run.cuh").read_text()))
    assert kernels and kernels == launched


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90a"])
def test_nvcc_spills_nothing(architecture, tmp_path):
    nvcc = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if nvcc is None:
        pytest.skip("no nvcc on this machine")
    command = [nvcc, "-std=c++17", f"-arch={architecture}", "-O3", f"-I{ROOT}/csrc", "-Xptxas=-v"]
    command += ["-cubin", CUDA / "launch.cu", "-o", tmp_path / "launch.cubin"]
    run = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "TMPDIR": str(tmp_path)}
    )
    assert run.returncode == 0, run.stderr[-4000:]
    report = re.findall(
        r"Function properties for (\S+)\s+(\d+) bytes stack frame, (\d+) bytes spill stores, "
        r"(\d+) bytes spill loads",
        run.stderr,
    )
    assert len(report) >= 4 * 8, run.stderr[-2000:]
    spilling = [name for name, _, stores, loads in report if int(stores) or int(loads)]
    assert not spilling
