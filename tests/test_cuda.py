"""The CUDA kernels without a GPU: run by an executor on the host; what the binding refuses."""

import ctypes
import pathlib
import shutil
import subprocess

import cuda_kernels
import numpy as np
import pytest

from masked_lstm import cuda

ROOT = pathlib.Path(__file__).resolve().parent.parent
CUDA = ROOT / "csrc" / "cuda"


HOST = ROOT / "tests" / "cuda_host"
INCLUDES = [f"-I{ROOT}/csrc", f"-I{HOST}"]
DEVICE_FLAGS = ["-O1", "-g1", "-Wall", "-Wextra", "-Wno-unknown-pragmas", "-fPIC"]


def compile_all(folder, sources):
    """{source: more flags} -> their objects, compiled side by side."""
    running, objects = [], []
    for index, (source, flags) in enumerate(sources.items()):
        objects.append(folder / f"{index}.o")
        command = ["c++", "-std=c++17", *INCLUDES, *flags, "-c", ROOT / source, "-o", objects[-1]]
        running.append(subprocess.Popen(command))
    assert not [process.args for process in running if process.wait() != 0]
    return objects


@pytest.fixture(scope="module")
def executor(tmp_path_factory):
    """The executor's object; it is not itself checked by AddressSanitizer."""
    folder = tmp_path_factory.mktemp("executor")
    return compile_all(folder, {"tests/cuda_host/cuda_host.cc": DEVICE_FLAGS})[0]


def test_on_the_host_executor(executor, tmp_path):
    """Parity with the CPU core whatever the order of the threads, every fault of the runtime, under
    AddressSanitizer; and no kernel is left out."""
    sanitize = "-fsanitize=address"
    checked = [*DEVICE_FLAGS, sanitize]
    sources = {
        # With the tests' runtime in CUDA's place: its launches run on the executor.
        "csrc/cuda/launch.cu": [*checked, '-DMASKED_LSTM_CUDA_ARCHITECTURES="80,90a"', "-xc++"],
        "csrc/cpu/kernels.cc": [
            *("-DMASKED_LSTM_ISA_NAMESPACE=generic", "-DMASKED_LSTM_VECTOR_BYTES=16", "-O2"),
            *("-ffp-contract=off", "-Wno-psabi"),
        ],
        "tests/cuda_host/check_cuda.cc": checked,
    }
    core = ("lstm", "schedule", "cpu/isa", "cpu/choose_slots", "cpu/cpu_lstm")
    objects = compile_all(tmp_path, sources | {f"csrc/{name}.cc": ["-O1"] for name in core})
    program = tmp_path / "check_cuda"
    link = ["c++", "-no-pie", sanitize, *objects, executor, "-o", program]
    subprocess.run(link, check=True)
    run = subprocess.run([program], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-4000:]
    assert "0 failures" in run.stdout
    compiled, ran = cuda_kernels.compiled_and_ran(program, run.stdout, "masked_lstm::cuda")
    assert len(compiled) > 40
    assert compiled == ran
    names = {name.split("<")[0] for name in compiled}
    assert names == cuda_kernels.declared(CUDA.glob("*.cu*"))


def test_kernels_stand_where_they_are_checked():
    """Those of csrc/cuda: see above. Those of hopper in it: see test_cuda_hopper.py."""
    folders = {path.parent.name for path in CUDA.rglob("*.cu*") if cuda_kernels.declared([path])}
    assert folders == {"cuda", "hopper"}


def test_the_executor_finds_what_it_is_for(executor, tmp_path):
    """A missing barrier, shared memory that nobody wrote, barriers that not all threads reach."""
    (source,) = compile_all(tmp_path, {"tests/cuda_host/check_executor.cc": DEVICE_FLAGS})
    program = tmp_path / "check_executor"
    subprocess.run(["c++", source, executor, "-o", program], check=True)

    def run(case):
        return subprocess.run([program, case], capture_output=True, text=True)

    assert run("right").stdout == "same\n"
    assert run("missing-barrier").stdout == "different\n"
    assert run("unwritten").stdout == "nan\n"
    for case, words in (("not-all", "threads never reach"), ("deadlock", "wait for each other")):
        assert run(case).returncode < 0 and words in run(case).stderr


def device_capsule(array, device=0):
    """A DLPack capsule that says its (host) memory is CUDA's: the binding must not look at it."""
    capsule = array.__dlpack__()
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    # DLTensor: the data pointer, then the device's type.
    tensor = pointer(capsule, b"dltensor")
    ctypes.c_int32.from_address(tensor + 8).value = 2
    ctypes.c_int32.from_address(tensor + 12).value = device
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
        (
            "bias: expected memory aligned to its values, got a misaligned address",
            {3: "misaligned"},
        ),
        ("bias: expected the device of inputs, got another", {3: "elsewhere"}),
        ("mask: expected dtype uint8, got another", {6: (2, 3)}),
        ("mask: expected a CUDA array, got one of another device", {6: None}),
        ("inputs: expected shape (values, input_dim) with row_splits", {10: "splits"}),
        ("row_splits: expected dtype int64, got another", {10: (3,)}),
        ("CUDA", {}),
    ],
)
def test_one_clear_sentence(sentence, change):
    """Shapes, dtypes, layouts and devices are checked before CUDA is asked for anything; without a
    GPU it is CUDA's own sentence that comes then."""
    if not change and shutil.which("nvidia-smi"):
        pytest.skip("there is a GPU: nothing is wrong")
    shapes = [(2, 3, 4), (4, 8), (2, 8), (8,), *[None] * 7]
    capsules = []
    for index, shape in enumerate(shapes):
        wrong = change.get(index, shape)
        if wrong == "strided":
            array = np.zeros((16,), np.float32)[::2]
        elif wrong == "misaligned":
            array = np.zeros(36, np.uint8)[2:34].view(np.float32)
        elif wrong == "splits":
            array = np.zeros(3, np.int64)
        elif wrong is np.float64:
            array = np.zeros(shape, wrong)
        elif wrong is None and shape is None and index not in change:
            capsules.append(None)
            continue
        else:
            given = wrong if isinstance(wrong, tuple) else shape or (2, 3)
            array = np.zeros(given, np.float32)
        host = index in change and wrong is None
        capsules.append(
            array.__dlpack__() if host else device_capsule(array, int(wrong == "elsewhere"))
        )
    options = (False, False, True, "tanh", "sigmoid")
    with pytest.raises((ValueError, RuntimeError)) as error:
        cuda._cuda.Call(tuple(capsules), options).forward_workspace(False)
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
