"""The Hopper kernels without a GPU: on the host executor of clusters."""

import pathlib
import subprocess

import cuda_kernels
import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
HOST = ROOT / "tests" / "cuda_host"
FLAGS = ["-std=c++17", f"-I{ROOT}/csrc", f"-I{HOST}", "-O1"]
CHECKED = ["-g1", "-Wall", "-Wextra", "-Wno-unknown-pragmas"]


def without_float16(folder):
    """launch_hopper.cu with bfloat16's kernels in place of float16's, which differ in the
    multiplication's name alone: quicker to compile."""
    text = (ROOT / "csrc/cuda/hopper/launch_hopper.cu").read_text()
    assert "f(Float16())" in text
    source = folder / "launch_hopper.cu"
    source.write_text(text.replace("f(Float16())", "f(BFloat16())"))
    return source


@pytest.fixture(scope="module")
def check(tmp_path_factory):
    """The program check_hopper, under AddressSanitizer; the executor and the core are not. With the
    tests' runtime in CUDA's place launch_hopper.cu's launches run on the executor."""
    folder = tmp_path_factory.mktemp("hopper")
    generic = ["-DMASKED_LSTM_ISA_NAMESPACE=generic", "-DMASKED_LSTM_VECTOR_BYTES=16"]
    generic += ["-ffp-contract=off", "-Wno-psabi"]
    core = ("lstm", "schedule", "cpu/isa", "cpu/choose_slots", "cpu/cpu_lstm")
    sources = [(ROOT / "csrc" / f"{name}.cc", []) for name in core]
    sources += [(ROOT / "csrc/cpu/kernels.cc", generic)]
    sources += [(HOST / f"{name}.cc", CHECKED) for name in ("cuda_host", "cluster_host")]
    sanitized = [*CHECKED, "-fsanitize=address"]
    sources = [(HOST / "check_hopper.cc", sanitized), *sources]
    sources += [(without_float16(folder), [*sanitized, "-xc++"])]
    objects, running = [], []
    for index, (source, flags) in enumerate(sources):
        objects.append(folder / f"{index}.o")
        command = ["c++", *FLAGS, *flags, "-c", source, "-o", objects[-1]]
        running.append(subprocess.Popen(command))
    assert not [process.args for process in running if process.wait() != 0]
    program = folder / "check_hopper"
    link = ["c++", "-no-pie", "-fsanitize=address", *objects, "-o", program]
    subprocess.run(link, check=True)
    return program


def test_on_the_host_executor(check):
    """Parity with the CPU core and the same bits, whatever the order of threads and messages; and
    no kernel is left out."""
    run = subprocess.run([check], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-4000:]
    assert "0 failures" in run.stdout
    _, ran = cuda_kernels.compiled_and_ran(check, run.stdout, "masked_lstm::cuda::hopper")
    names = {name.split("<")[0] for name in ran}
    assert names == cuda_kernels.declared((ROOT / "csrc/cuda/hopper").glob("*.cu*"))


def test_the_executor_notices_what_is_left_out(check):
    """A wait for h or for parts of dh, the barrier of a block, that of a cluster, 8 bytes, a wait
    for copies; the order of rows and flag in global memory."""
    faults = {
        "clusters": ("wait", "block", "cluster", "bytes", "copies"),
        "grid": ("wait", "block", "release"),
    }
    for kind, broken in faults.items():
        for name in ("nothing", *broken):
            run = subprocess.run([check, kind, name], capture_output=True)
            assert (run.returncode == 0) == (name == "nothing"), (kind, name)
