"""The CUDA kernels without a GPU: run by an executor on the host, compiled by nvcc where it is."""

import ctypes
import os
import pathlib
import re
import shutil
import subprocess

import numpy as np
import pytest

from masked_lstm import cuda

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


def device_capsule(array):
    """A DLPack capsule that says its (host) memory is CUDA's: the binding must not look at it."""
    capsule = array.__dlpack__()
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    # DLTensor: the data pointer, then the device's type.
    ctypes.c_int32.from_address(pointer(capsule, b"dltensor") + 8).value = 2
    return capsule


@pytest.mark.skipif(not cuda.available(), reason="built without nvcc")
@pytest.mark.parametrize(
    "sentence, change",
    [
        ("inputs: expected a CUDA array, got one of another device", {0: None}),
        ("inputs: expected shape (batch, timesteps, input_dim), got (2, 3)", {0: (2, 3)}),
        ("kernel: expected shape (input_dim, 4*units) = (4, 8), got (3, 8)", {1: (3, 8)}),
        ("kernel: expected the dtype of inputs, got another", {1: np.float64}),
        ("bias: expected a C-contiguous array, got a strided one", {3: "strided"}),
        ("mask: expected dtype uint8, got another", {6: (2, 3)}),
        ("CUDA", {}),
    ],
)
def test_one_clear_sentence(sentence, change):
    """Shapes, dtypes, layouts and devices are checked before CUDA is asked for anything; without a
    GPU it is CUDA's own sentence that comes then."""
    if not change and shutil.which("nvidia-smi"):
        pytest.skip("there is a GPU: nothing is wrong")
    shapes = [(2, 3, 4), (4, 8), (2, 8), (8,), None, None, None, None]
    capsules = []
    for index, shape in enumerate(shapes):
        wrong = change.get(index, shape)
        if wrong == "strided":
            array = np.zeros((16,), np.float32)[::2]
        elif wrong is np.float64:
            array = np.zeros(shape, wrong)
        elif wrong is None and shape is None:
            capsules.append(None)
            continue
        else:
            array = np.zeros(shape if wrong is None else wrong, np.float32)
        host = index in change and wrong is None
        capsules.append(array.__dlpack__() if host else device_capsule(array))
    options = (False, False, True, "tanh", "sigmoid")
    with pytest.raises((ValueError, RuntimeError)) as error:
        cuda._cuda.forward_workspace(tuple(capsules), options, False)
    assert sentence in str(error.value)


def test_arrays_of_the_host_are_refused():
    if not cuda.available():
        with pytest.raises(RuntimeError, match="built without CUDA"):
            cuda.forward(np.zeros((1, 1, 1)), None, None)
        return
    with pytest.raises(
        TypeError, match="inputs: expected a PyTorch or CuPy array on a GPU, got nu"
    ):
        cuda.forward(np.zeros((1, 1, 1)), None, None)
