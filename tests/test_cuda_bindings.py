"""The GPU op and masked_lstm.cuda without a GPU: their own code, with CUDA's launches run by the
executor of tests/cuda_host; and the kernels that the op library registers for GPUs."""

import ctypes
import importlib.util
import pathlib
import subprocess
import sys
import sysconfig
import types

import numpy as np
import problems
import pytest

from masked_lstm import _build_info, core, cuda, reference

ROOT = pathlib.Path(__file__).resolve().parent.parent
HOST = ROOT / "tests" / "cuda_host"
COMPILE = ["c++", "-std=c++17", f"-I{ROOT}/csrc", f"-I{HOST}", "-O1", "-fPIC"]
COMPILE += ["-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-unknown-pragmas"]


def compile_all(*commands):
    """Runs compilers side by side."""
    running = [subprocess.Popen(list(map(str, command))) for command in commands]
    assert not [process.args for process in running if process.wait() != 0]


@pytest.fixture(scope="module")
def libraries(tmp_path_factory):
    """(the op library's GPU kernels, the Python module): both with the executor for a GPU."""
    tf = pytest.importorskip("tensorflow")
    import pybind11

    build = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}-tf{tf.__version__}"
    shared = [build / "libhost.a", build / "libcore.a"]
    if not all(path.exists() for path in shared):
        pytest.skip("the package was not built in this checkout")
    folder = tmp_path_factory.mktemp("cuda_bindings")
    tf_flags = [flag.replace("-I", "-isystem") for flag in tf.sysconfig.get_compile_flags()]
    python_flags = [f"-I{sysconfig.get_paths()['include']}", f"-I{pybind11.get_include()}"]
    compile_all(
        [*COMPILE, "-xc++", "-c", ROOT / "csrc/cuda/launch.cu", "-o", folder / "launch.o"],
        [*COMPILE, "-c", HOST / "cuda_host.cc", "-o", folder / "cuda_host.o"],
        [*COMPILE, *tf_flags, "-c", HOST / "gpu_op.cc", "-o", folder / "op.o"],
        [*COMPILE, *python_flags, "-c", ROOT / "csrc/python/cuda_module.cc"]
        + ["-o", folder / "module.o"],
    )
    executor = [folder / "launch.o", folder / "cuda_host.o", *shared, "-pthread"]
    compile_all(
        ["c++", "-shared", folder / "op.o", *executor, "-o", folder / "op.so"]
        + tf.sysconfig.get_link_flags(),
        ["c++", "-shared", folder / "module.o", *executor, "-o", folder / "_cuda.so"],
    )
    return folder / "op.so", folder / "_cuda.so"


# ---- TensorFlow ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run_op(libraries):
    """Results and gradients of an op, with kernels of the executor or the CPU's own."""
    import tensorflow as tf

    from masked_lstm import ops

    ops.load()
    tf.load_library(str(libraries[0]))

    def run(problem, executor, function=ops.lstm, wanted=None, **options):
        arguments = [tf.constant(a) for a in (problem.poisoned(), *problem.weights())]
        states = [tf.constant(state) for state in problem.initial_state]
        upstream = [tf.constant(d) for d in (problem.d_outputs, problem.d_h, problem.d_c)]

        @tf.function(autograph=False)
        def traced(arguments, states, upstream):
            labels = dict.fromkeys(("MaskedLstm", "MaskedLstmGrad"), "executor" if executor else "")
            with tf.compat.v1.get_default_graph()._kernel_label_map(labels):
                with tf.GradientTape() as tape:
                    tape.watch([*arguments, *states])
                    results = function(*arguments, initial_state=states, **options)
                gradients = tape.gradient(results, [*arguments, *states], output_gradients=upstream)
            return [*results, *gradients]

        return [result.numpy() for result in traced(arguments, states, upstream)]

    return run


@pytest.mark.parametrize(
    "mask, dtype, options",
    [
        ("holes", "float32", {}),
        ("none", "float32", dict(go_backwards=True, recompute=True)),
        ("left", "float32", dict(activation="softsign", zero_output_for_mask=True)),
        ("right", "float16", dict(return_sequences=False)),
        ("holes", "float32", dict(factors=True)),
    ],
)
def test_gpu_op(run_op, mask, dtype, options):
    """Against the CPU's kernels of the same op."""
    options = dict(options)
    problem = problems.make_problem(
        9, 5, 6, 19, mask, dtype, return_sequences=options.get("return_sequences", True)
    )
    if options.pop("factors", False):
        rng = np.random.default_rng(0)
        options["input_factors"] = rng.standard_normal((4, 9, 6)).astype(dtype)
        options["recurrent_factors"] = rng.standard_normal((4, 9, 19)).astype(dtype)
    if mask == "right":
        options["sequence_lengths"] = problem.mask.sum(1).astype(np.int32)
    else:
        options["mask"] = problem.mask
    expected = run_op(problem, False, **options)
    for got, want in zip(run_op(problem, True, **options), expected, strict=True):
        # Sums of at most 45 terms, in another order; float16 is rounded once more.
        limit = 2e-3 if dtype == "float16" else 1e-5
        assert problems.relative_error(got, want) < limit


def test_gpu_op_on_a_ragged_batch(run_op):
    import tensorflow as tf

    from masked_lstm import ops

    whole = problems.make_problem(1, 11, 4, 17, dtype="float32")
    states = tuple(np.repeat(state, 4, 0) for state in whole.initial_state)
    ragged = whole._replace(
        inputs=whole.inputs[0],
        d_outputs=whole.d_outputs[0],
        initial_state=states,
        d_h=states[1],
        d_c=states[0],
    )
    splits = tf.constant([0, 4, 4, 9, 11], tf.int64)

    def function(x, *weights, **options):
        return ops.ragged_lstm(x, splits, *weights, **options)

    expected = run_op(ragged, False, function)
    for got, want in zip(run_op(ragged, True, function), expected, strict=True):
        assert problems.relative_error(got, want) < 1e-5


def test_gpu_op_clamps_lengths_and_tells_when_asked(run_op, monkeypatch):
    import tensorflow as tf

    problem = problems.make_problem(3, 4, 2, 3, dtype="float32")
    clamped = run_op(problem, True, sequence_lengths=np.array([9, -1, 2], np.int32))
    right = run_op(problem, True, sequence_lengths=np.array([4, 0, 2], np.int32))
    for a, b in zip(clamped, right, strict=True):
        assert a.tobytes() == b.tobytes()
    monkeypatch.setenv("MASKED_LSTM_CHECK_LENGTHS", "1")
    run_op(problem, True, sequence_lengths=np.array([4, 0, 2], np.int32))
    with pytest.raises(
        tf.errors.InvalidArgumentError, match=r"sequence_lengths: expected values in \[0, times"
    ):
        run_op(problem, True, sequence_lengths=np.array([9, -1, 2], np.int32))


def test_gpu_kernels_are_registered():
    """Of every dtype, with no argument in host memory; on this machine too, whatever it has."""
    pytest.importorskip("tensorflow")
    from tensorflow.python.framework import kernels

    from masked_lstm import ops

    ops.load()
    devices = {"CPU", "GPU"} if _build_info.CUDA_ARCHITECTURES else {"CPU"}
    assert cuda.available() == ("GPU" in devices)
    for op in ("MaskedLstm", "MaskedLstmGrad"):
        registered = [k for k in kernels.get_registered_kernels_for_op(op).kernel if not k.label]
        assert {kernel.device_type for kernel in registered} >= devices
        on_gpu = [kernel for kernel in registered if kernel.device_type == "GPU"]
        assert len(on_gpu) == (4 if "GPU" in devices else 0)
        assert not [kernel for kernel in on_gpu if kernel.host_memory_arg]


# ---- DLPack --------------------------------------------------------------------------------------


def device_capsule(array, device=0):
    """A DLPack capsule that says its (host) memory is CUDA's."""
    capsule = np.asarray(array).view(np.ndarray).__dlpack__()
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    # DLTensor: the data pointer, then the device's type.
    ctypes.c_int32.from_address(pointer(capsule, b"dltensor") + 8).value = 2
    ctypes.c_int32.from_address(pointer(capsule, b"dltensor") + 12).value = device
    return capsule


class Device:
    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


class FakeArray(np.ndarray):
    """An array as CuPy's, in host memory."""

    device = Device()

    def __dlpack__(self, stream=None):
        return device_capsule(self)


class OfAnotherGpu(FakeArray):
    def __dlpack__(self, stream=None):
        return device_capsule(self, device=1)


FakeArray.__module__ = OfAnotherGpu.__module__ = "cupy"


def fake(array):
    return np.ascontiguousarray(array).view(FakeArray)


@pytest.fixture(scope="module")
def python_module(libraries):
    spec = importlib.util.spec_from_file_location("_cuda", libraries[1])
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def fake_gpu(python_module, monkeypatch):
    """masked_lstm.cuda, with the executor for CUDA and NumPy for CuPy."""
    monkeypatch.setattr(cuda, "_cuda", python_module)

    def empty(shape, dtype):
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        memory = np.full(size + 256, 0x7F, np.uint8)  # garbage
        start = -memory.ctypes.data % 256  # device memory is aligned
        return memory[start : start + size].view(dtype).reshape(shape).view(FakeArray)

    stream = types.SimpleNamespace(get_current_stream=lambda: types.SimpleNamespace(ptr=0))
    names = ("float32", "float64", "uint8", "int32", "int64", "clip")
    cupy = types.SimpleNamespace(
        cuda=stream,
        empty=empty,
        asarray=lambda array: np.asarray(array).view(FakeArray),
        ascontiguousarray=fake,
        **{name: getattr(np, name) for name in names},
    )
    monkeypatch.setitem(sys.modules, "cupy", cupy)


@pytest.mark.parametrize(
    "mask, options, recompute",
    [
        ("holes", {}, False),
        ("right", dict(go_backwards=True), True),
        ("none", dict(recurrent_activation="hard_sigmoid", return_sequences=False), False),
        ("ragged", {}, False),
        ("left", dict(factors=True, zero_output_for_mask=True), True),
    ],
)
def test_arrays_of_a_gpu(fake_gpu, mask, options, recompute):
    """Against the specification, in float64."""
    options = dict(options)
    sequences = options.get("return_sequences", True)
    problem = problems.make_problem(
        9, 4, 5, 18, "none" if mask == "ragged" else mask, return_sequences=sequences
    )
    inputs, upstream = problem.poisoned(), [problem.d_outputs, problem.d_h, problem.d_c]
    shape = {}
    if mask == "ragged":
        inputs, upstream[0] = inputs.reshape(36, 5), upstream[0].reshape(36, 18)
        shape["row_splits"] = np.array([0, 3, 3, 9, 12, 18, 20, 21, 30, 36])
    elif mask == "right":
        shape["sequence_lengths"] = problem.mask.sum(1)
    elif mask != "none":
        shape["mask"] = problem.mask
    if options.pop("factors", False):
        rng = np.random.default_rng(0)
        shape["input_factors"] = rng.standard_normal((4, 9, 5))
        shape["recurrent_factors"] = rng.standard_normal((4, 9, 18))
    arguments = (inputs, *problem.weights())
    more = dict(initial_state=problem.initial_state, **shape, **options)
    specification = core if mask == "ragged" else reference  # which knows no ragged batch
    want = list(specification.forward(*arguments, **more)[:3])
    want += specification.backward(*arguments, None, *upstream, **more)
    given = [fake(array) for array in arguments]
    more |= {name: fake(array) for name, array in shape.items()}
    more["initial_state"] = tuple(map(fake, problem.initial_state))
    result = cuda.forward(*given, save_reserve=not recompute, **more)
    got = [*result[:3], *cuda.backward(*given, result.reserve, *map(fake, upstream), **more)]
    for a, b in zip(got, want, strict=True):
        assert problems.relative_error(a, b) < 1e-12
    assert cuda.kernel_calls()["cuda-groups-float64-backward"] > 0


def test_two_directions_at_once(fake_gpu):
    """The bits of the calls by themselves; what must agree is told in one sentence."""
    problem = problems.make_problem(9, 4, 5, 18, "holes")
    shared = {
        "initial_state": tuple(map(fake, problem.initial_state)),
        "mask": fake(problem.mask),
        "inputs": fake(problem.poisoned()),
    }
    weights = dict(
        zip(("kernel", "recurrent_kernel", "bias"), map(fake, problem.weights()), strict=True)
    )
    first = shared | weights
    second = first | {"kernel": fake(weights["kernel"] * 0.5), "go_backwards": True}
    both = cuda.forward_pair(first | {"save_reserve": True}, second | {"save_reserve": True})
    upstream = {"d_outputs": fake(problem.d_outputs)}
    backward = [
        call | upstream | {"reserve": result.reserve}
        for call, result in zip((first, second), both, strict=True)
    ]
    gradients = cuda.backward_pair(*backward)
    for call, result, gradient in zip((first, second), both, gradients, strict=True):
        alone = cuda.forward(**call)
        assert [a.tobytes() for a in result[:3]] == [a.tobytes() for a in alone[:3]]
        alone = cuda.backward(**call, **upstream)
        assert [a.tobytes() for a in gradient] == [a.tobytes() for a in alone]
    longer = second | {"inputs": fake(np.zeros((9, 5, 5))), "mask": None}
    with pytest.raises(ValueError, match="second: expected as many timesteps as the first call"):
        cuda.forward_pair(first, longer)
    there = {
        name: second[name].view(OfAnotherGpu) for name in ("inputs", "kernel", "recurrent_kernel")
    }
    with pytest.raises(ValueError, match="second: expected arrays on the first call's device"):
        cuda.forward_pair(first, there)
    with pytest.raises(TypeError, match="missing a required argument: 'kernel'"):
        cuda.forward_pair({"inputs": first["inputs"]}, second)


def test_lengths_of_a_gpu_are_checked_when_asked(fake_gpu, monkeypatch):
    problem = problems.make_problem(2, 3, 2, 2)
    given = [fake(array) for array in (problem.inputs, *problem.weights())]
    lengths = fake(np.array([2**40, -5]))
    cuda.forward(*given, sequence_lengths=lengths)
    monkeypatch.setenv("MASKED_LSTM_CHECK_LENGTHS", "1")
    with pytest.raises(ValueError, match="sequence_lengths: expected values in"):
        cuda.forward(*given, sequence_lengths=lengths)
    monkeypatch.setenv("MASKED_LSTM_CUDA_KERNEL", "hoper")
    with pytest.raises(ValueError, match="groups, hopper, hopper-tf32 or hopper-grid, got 'hoper'"):
        cuda.forward(*given)
    monkeypatch.setenv("MASKED_LSTM_CUDA_KERNEL", "hopper")  # not with float64: served by groups
    with pytest.raises(ValueError, match="reserve: expected the array that forward gave"):
        cuda.backward(*given, fake(np.zeros(7)), sequence_lengths=lengths)
    with pytest.raises(ValueError, match="reserve: expected dtype float64"):
        cuda.backward(*given, fake(np.zeros(70, np.float32)))
    with pytest.raises(TypeError, match="bias: expected an array of cupy, got ndarray"):
        cuda.forward(*given[:3], np.zeros(8))
    with pytest.raises(ValueError, match="row_splits: expected neither mask nor sequence_lengths"):
        cuda.forward(*given, sequence_lengths=lengths, row_splits=lengths)
