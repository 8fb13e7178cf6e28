"""The GPU op, inside XLA and outside, and masked_lstm.cuda without a GPU: their own code, with CUDA
launches run by the executor of tests/cuda_host; and the kernels that are registered for GPUs."""

import contextlib
import ctypes
import gc
import importlib.util
import os
import pathlib
import subprocess
import sys
import sysconfig
import threading
import time
import types
from typing import NamedTuple

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


class Libraries(NamedTuple):
    """With the executor for a GPU."""

    op: pathlib.Path  # the op library's GPU kernels
    python: pathlib.Path  # the Python module
    xla: pathlib.Path | None  # the library of XLA kernels, and with it what `op` has


@pytest.fixture(scope="module")
def libraries(tmp_path_factory):
    tf = pytest.importorskip("tensorflow")
    import pybind11

    build = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}-tf{tf.__version__}"
    shared = [build / "libhost.a", build / "libcore.a"]
    if not all(path.exists() for path in shared):
        pytest.skip("the package was not built in this checkout")
    # The kernels as they were built: they take a minute or two to compile.
    kernels = build / "CMakeFiles/xla_kernels.dir/csrc/tensorflow/xla_kernels.cc.o"
    folder = tmp_path_factory.mktemp("cuda_bindings")
    tf_flags = [flag.replace("-I", "-isystem") for flag in tf.sysconfig.get_compile_flags()]
    python_flags = [f"-I{sysconfig.get_paths()['include']}", f"-I{pybind11.get_include()}"]
    sources = {
        "launch": [*COMPILE, "-xc++", "-c", ROOT / "csrc/cuda/launch.cu"],
        "cuda_host": [*COMPILE, "-c", HOST / "cuda_host.cc"],
        "op": [*COMPILE, *tf_flags, "-c", HOST / "gpu_op.cc"],
        "module": [*COMPILE, *python_flags, "-c", ROOT / "csrc/python/cuda_module.cc"],
        "xla": [*COMPILE, *tf_flags, "-c", HOST / "xla_executor.cc"],
        "xla_workspace": [*COMPILE, "-c", ROOT / "csrc/tensorflow/xla_cuda_workspace.cc"],
        "exports": [*COMPILE, "-c", ROOT / "csrc/tensorflow/exports.cc"],
    }
    objects = {name: folder / f"{name}.o" for name in sources}
    compile_all(*[[*command, "-o", objects[name]] for name, command in sources.items()])
    executor = [objects["launch"], objects["cuda_host"], *shared, "-pthread"]
    link = tf.sysconfig.get_link_flags()
    made = Libraries(
        folder / "op.so", folder / "_cuda.so", None if _build_info.NO_XLA else folder / "xla.so"
    )
    commands = [
        ["c++", "-shared", objects["op"], *executor, "-o", made.op, *link],
        ["c++", "-shared", objects["module"], *executor, "-o", made.python],
    ]
    if made.xla:
        inputs = [objects[name] for name in ("xla", "xla_workspace", "exports", "op")]
        link = [*link, "-l:libtensorflow_cc.so.2"]
        commands.append(["c++", "-shared", *inputs, kernels, *executor, "-o", made.xla, *link])
    compile_all(*commands)
    return made


# ---- TensorFlow ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run_op(libraries):
    """Results and gradients of an op, with kernels of the executor or the CPU's own."""
    import tensorflow as tf

    from masked_lstm import ops

    ops.load()
    tf.load_library(str(libraries.op))

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


def test_gpu_op_refuses_sizes_that_overflow(libraries):
    """B*T*U of outputs would not fit 64 bits: an error, where TensorFlow ends the process."""
    import tensorflow as tf

    from masked_lstm import ops

    ops.load()
    tf.load_library(str(libraries[0]))

    @tf.function(autograph=False)
    def traced(x):
        with tf.compat.v1.get_default_graph()._kernel_label_map({"MaskedLstm": "executor"}):
            return ops.lstm(x, tf.zeros((0, 64)), tf.zeros((16, 64)))

    for shape in ((1, 2**60, 0), (4, 2**32, 0)):
        with pytest.raises(tf.errors.InvalidArgumentError, match="a reserve below 2.56 values"):
            traced(tf.zeros(shape))


def test_gpu_op_inside_xla(libraries):
    """tests/xla_cuda_process.py: the bits of the op outside XLA, and all that surrounds it."""
    if libraries.xla is None:
        pytest.skip("XLA kernels: not built")
    script = pathlib.Path(__file__).with_name("xla_cuda_process.py")
    environment = {name: value for name, value in os.environ.items() if name != "TF_XLA_FLAGS"}
    command = [sys.executable, script, libraries.xla]
    run = subprocess.run(command, env=environment, capture_output=True, timeout=240, check=False)
    assert run.returncode == 0, run.stderr.decode()[-3000:]


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


def device_capsule(array, device=2, number=0):
    """A DLPack capsule that says its (host) memory is CUDA's."""
    return mark(np.asarray(array).view(np.ndarray).__dlpack__(), device, number)


def mark(capsule, device, number=0):
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    # DLTensor: the data pointer, then the device's type.
    ctypes.c_int32.from_address(pointer(capsule, b"dltensor") + 8).value = device
    ctypes.c_int32.from_address(pointer(capsule, b"dltensor") + 12).value = number
    return capsule


class Device:
    entered = 0

    def __enter__(self):
        Device.entered += 1

    def __exit__(self, *_):
        Device.entered -= 1


class FakeArray(np.ndarray):
    """An array as CuPy's, in host memory."""

    device = Device()

    def __dlpack__(self, stream=None):
        return device_capsule(self)


class OfAnotherGpu(FakeArray):
    def __dlpack__(self, stream=None):
        return device_capsule(self, number=1)


FakeArray.__module__ = OfAnotherGpu.__module__ = "cupy"


def fake(array):
    return np.ascontiguousarray(array).view(FakeArray)


@pytest.fixture(scope="module")
def python_module(libraries):
    spec = importlib.util.spec_from_file_location("_cuda", libraries.python)
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

    def current_stream():
        assert Device.entered, "the stream of another device"
        return types.SimpleNamespace(ptr=0)

    stream = types.SimpleNamespace(get_current_stream=current_stream)
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


@pytest.mark.parametrize("dtype", [np.float64, np.int64])
def test_any_nonzero_mask_and_any_integer_lengths(fake_gpu, dtype):
    problem = problems.make_problem(3, 4, 2, 3, "holes")
    given = [fake(array) for array in (problem.poisoned(), *problem.weights())]
    want = cuda.forward(*given, mask=fake(problem.mask)).outputs
    # Values that a cast to uint8 would make 0.
    mask = (problem.mask * (0.25 if dtype == np.float64 else 256)).astype(dtype)
    assert cuda.forward(*given, mask=fake(mask)).outputs.tobytes() == want.tobytes()
    lengths = np.array([4, 0, 2])
    given[0] = fake(problem.inputs)
    want = cuda.forward(*given, sequence_lengths=fake(lengths)).outputs
    for narrow in (np.int8, np.uint8, np.uint32, np.uint64):
        got = cuda.forward(*given, sequence_lengths=fake(lengths.astype(narrow))).outputs
        assert got.tobytes() == want.tobytes()
    with pytest.raises(TypeError, match="sequence_lengths: expected an integer dtype, got float"):
        cuda.forward(*given, sequence_lengths=fake(lengths.astype(np.float32)))


def test_torch_masks_and_lengths():
    """As above, of what PyTorch's part makes of them."""
    torch = pytest.importorskip("torch")
    library = cuda._Torch(torch.zeros(1))
    for mask in ([0.0, 0.25], [0, 256], [False, True]):
        assert library.bytes(torch.tensor(mask)).tolist() == [0, 1]
    for dtype in (torch.int8, torch.uint8, torch.int32, torch.int64):
        got = library.integers("sequence_lengths", torch.tensor([3, 0], dtype=dtype), torch.int32)
        assert got.dtype == torch.int32 and got.tolist() == [3, 0]
    far = library.integers("sequence_lengths", torch.tensor([2**40, -5]), torch.int32)
    assert far.tolist() == [2**31 - 1, -1]
    with pytest.raises(TypeError, match="row_splits: expected an integer dtype"):
        library.integers("row_splits", torch.zeros(2), torch.int64)


def test_other_threads_run_while_it_launches(fake_gpu, python_module, monkeypatch):
    """A callback in the stream may need Python, and the launch a place in the stream."""
    launching = threading.Event()

    class Call(python_module.Call):
        def forward(self, *arguments):
            launching.set()
            super().forward(*arguments)
            launching.clear()

    monkeypatch.setattr(cuda, "_cuda", types.SimpleNamespace(Call=Call))
    problem = problems.make_problem(16, 60, 16, 48)
    given = [fake(array) for array in (problem.inputs, *problem.weights())]

    thread = threading.Thread(target=cuda.forward, args=given)
    thread.start()
    launching.wait()
    turns = 0
    while launching.is_set():
        time.sleep(0.001)  # gives the lock away: it comes back once the launches let go of it
        turns += 1
    thread.join()
    assert turns > 5


def test_empty_arrays_have_any_strides(python_module):
    """NumPy's and PyTorch's of no timesteps differ."""
    x = np.lib.stride_tricks.as_strided(np.zeros(6, np.float32), (3, 0, 2), (8, 8, 4))
    given = [x, *(np.zeros(shape, np.float32) for shape in ((2, 20), (5, 20)))]
    capsules = tuple(map(device_capsule, given)) + (None,) * 8
    call = python_module.Call(capsules, (False, False, True, "tanh", "sigmoid"))
    assert (call.batch, call.reserve_values) == (3, 0)


def test_every_array_is_given_back_once(python_module):
    """Whether it was taken or refused: who made it frees it then. Managed memory is taken too."""
    arrays = [np.zeros(shape, np.float32) for shape in ((2, 3, 4), (4, 8), (2, 8), (8,))]
    options = (False, False, True, "tanh", "sigmoid")

    def call(change, device=2):
        capsules = [device_capsule(array, device) for array in arrays] + [None] * 7
        change(capsules)
        return python_module.Call(tuple(capsules), options)

    before = [sys.getrefcount(array) for array in arrays]
    kept = call(lambda capsules: None)
    assert kept.forward_workspace(False) == call(lambda capsules: None, 13).forward_workspace(False)
    assert [sys.getrefcount(array) for array in arrays] == [count + 1 for count in before]
    del kept
    refused = {
        "inputs: expected a CUDA array": lambda capsules: None,
        "bias: expected a CUDA array": lambda c: c.__setitem__(3, arrays[3].__dlpack__()),
        "kernel: expected shape": lambda c: c.__setitem__(1, device_capsule(arrays[0])),
    }
    for sentence, change in refused.items():
        with pytest.raises(ValueError, match=sentence):
            call(change, 1 if sentence.startswith("inputs") else 2)
    gc.collect()
    assert [sys.getrefcount(array) for array in arrays] == before


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


def test_gpu_check_itself(python_module, monkeypatch):
    """bench/gpu_check.py with PyTorch's tensors in host memory and the executor for a GPU."""
    torch = pytest.importorskip("torch")
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    monkeypatch.setattr(cuda, "_cuda", python_module)

    class HostTorch(cuda._Torch):
        def on_device(self):
            return contextlib.nullcontext()

        def stream(self):
            return 0

        def capsule(self, array):
            return mark(super().capsule(array), 2)

        def empty(self, shape, dtype):
            size = int(np.prod(shape)) * dtype.itemsize
            memory = torch.full((size + 256,), 0x7F, dtype=torch.uint8)  # garbage
            start = -memory.data_ptr() % 256
            return memory[start : start + size].view(dtype).reshape(shape)

    monkeypatch.setattr(cuda, "_library", HostTorch)
    tensor = torch.tensor
    monkeypatch.setattr(torch, "tensor", lambda value, device=None: tensor(value))
    gpu_check = importlib.import_module("gpu_check")
    try:
        for options in gpu_check.OPTIONS:
            assert gpu_check.check((5, 4, 3, 17), "bfloat16", "holes", options) <= 1
        for function in (gpu_check.ragged_batch, gpu_check.invariance, gpu_check.empty):
            assert function() == "passed", function.__doc__
        monkeypatch.setenv("MASKED_LSTM_CUDA_KERNEL", "groups")
        assert gpu_check.short() == 0
    finally:
        del sys.modules["gpu_check"]
