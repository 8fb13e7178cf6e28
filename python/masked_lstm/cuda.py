"""The LSTM over arrays on a CUDA device (PyTorch, CuPy); needs no TensorFlow.

What has run on which GPU: docs/gpu.md. Letters as in masked_lstm.core. Everything runs on the
library's current stream; nothing waits for the device, unless MASKED_LSTM_CHECK_LENGTHS=1 asks for
lengths out of range to be reported.
"""

import inspect
import os

from masked_lstm.results import Forward, Gradients

try:
    from masked_lstm import _cuda
except ImportError:  # built without nvcc
    _cuda = None


def available():
    """Whether the package was built with the CUDA kernels (not: whether a GPU is there)."""
    return _cuda is not None


def kernel_calls():
    """Calls through this module, by kernel; masked_lstm.kernel_calls() counts all bindings."""
    return {} if _cuda is None else _cuda.kernel_calls()


# What lengths are clipped to: one that int32 cannot hold stays out of range.
_INT32 = (-1, 2**31 - 1)


class _Torch:
    """What is needed of PyTorch."""

    name = "torch"

    def __init__(self, array):
        import torch

        self.torch, self.device = torch, array.device
        self.float32, self.float64 = torch.float32, torch.float64
        self.uint8, self.int32, self.int64 = torch.uint8, torch.int32, torch.int64

    def on_device(self):
        return self.torch.cuda.device(self.device)

    def stream(self):
        return self.torch.cuda.current_stream(self.device).cuda_stream

    def empty(self, shape, dtype):
        return self.torch.empty(shape, dtype=dtype, device=self.device)

    def capsule(self, array):
        return self.torch.utils.dlpack.to_dlpack(array.detach())

    def bytes(self, mask):
        mask = self.torch.as_tensor(mask)
        mask = mask if mask.dtype == self.torch.bool else mask != 0
        return mask.contiguous().view(self.uint8)

    def integers(self, name, array, dtype):
        array = self.torch.as_tensor(array)
        if array.is_floating_point() or array.is_complex() or array.dtype == self.torch.bool:
            raise TypeError(f"{name}: expected an integer dtype, got {array.dtype}")
        if dtype == self.int32 and array.element_size() >= 4:
            array = array.to(self.int64).clamp(*_INT32)
        return array.to(dtype).contiguous()


class _CuPy:
    """What is needed of CuPy."""

    name = "cupy"

    def __init__(self, array):
        import cupy

        self.cupy, self.device = cupy, array.device
        self.float32, self.float64 = cupy.float32, cupy.float64
        self.uint8, self.int32, self.int64 = cupy.uint8, cupy.int32, cupy.int64

    def on_device(self):
        return self.device

    def stream(self):  # each device has one: ask on the device
        return self.cupy.cuda.get_current_stream().ptr

    def empty(self, shape, dtype):
        return self.cupy.empty(shape, dtype)

    def capsule(self, array):
        return array.__dlpack__(stream=-1)  # all of it runs on one stream: nothing to wait for

    def bytes(self, mask):
        return self.cupy.ascontiguousarray(self.cupy.asarray(mask) != 0).view(self.uint8)

    def integers(self, name, array, dtype):
        array = self.cupy.asarray(array)
        if array.dtype.kind not in "iu":
            raise TypeError(f"{name}: expected an integer dtype, got {array.dtype}")
        if dtype == self.int32 and array.dtype.itemsize >= 4:
            array = self.cupy.clip(array.astype(self.int64), *_INT32)
        return self.cupy.ascontiguousarray(array.astype(dtype))


def _library(array):
    if _cuda is None:
        raise RuntimeError("masked_lstm was built without CUDA: install it again where nvcc is")
    name = type(array).__module__.split(".")[0]
    if name not in ("torch", "cupy"):
        raise TypeError(f"inputs: expected a PyTorch or CuPy array on a GPU, got {name}'s")
    if name == "torch" and array.device.type != "cuda":
        raise ValueError(f"inputs: expected a tensor on a CUDA device, got {array.device}")
    return (_Torch if name == "torch" else _CuPy)(array)


_NAMES = (
    *("inputs", "kernel", "recurrent_kernel", "bias"),
    *("initial_state[0] (h)", "initial_state[1] (c)", "mask", "sequence_lengths"),
    *("input_factors", "recurrent_factors", "row_splits"),
)


class _Call:
    """A call's arguments, checked, and what its results are made with."""

    def __init__(self, library, arguments):
        def of(*names):
            return [arguments[name] for name in names]

        initial_state = arguments["initial_state"]
        if initial_state is None:
            initial_state = (None, None)
        if not isinstance(initial_state, (list, tuple)) or len(initial_state) != 2:
            got = type(initial_state).__name__
            raise ValueError(f"initial_state: expected two arrays (h, c), got {got}")
        mask = arguments["mask"]
        mask = None if mask is None else library.bytes(mask)
        integers = (("sequence_lengths", library.int32), ("row_splits", library.int64))
        lengths, splits = (
            None if arguments[name] is None else library.integers(name, arguments[name], dtype)
            for name, dtype in integers
        )
        arrays = of("inputs", "kernel", "recurrent_kernel", "bias")
        factors = of("input_factors", "recurrent_factors")
        given = (*arrays, *initial_state, mask, lengths, *factors, splits)
        for name, array in zip(_NAMES, given, strict=True):
            if array is None and name not in ("inputs", "kernel", "recurrent_kernel"):
                continue
            if type(array).__module__.split(".")[0] != library.name:
                got = type(array).__name__
                raise TypeError(f"{name}: expected an array of {library.name}, got {got}")
        self.library, self.keep = library, given
        flags = map(bool, of("go_backwards", "zero_output_for_mask", "return_sequences"))
        activations = map(str, of("activation", "recurrent_activation"))
        self.native = _cuda.Call(self.capsules(given), (*flags, *activations))
        self.inputs, self.units = arrays[0], arrays[2].shape[0]
        self.dtype = self.inputs.dtype
        double = self.dtype == library.float64
        self.compute_dtype = library.float64 if double else library.float32

    def capsules(self, arrays):
        library = self.library
        return tuple(None if array is None else library.capsule(array) for array in arrays)

    def empty(self, *shape, dtype=None):
        return self.library.empty(shape, self.dtype if dtype is None else dtype)

    def reserve(self):
        return self.empty(max(1, self.native.reserve_values), dtype=self.compute_dtype)

    def workspace(self, size):
        return self.library.capsule(self.empty(size, dtype=self.library.uint8)), size


class _Forward(_Call):
    """A forward call, ready to run."""

    def __init__(self, library, arguments):
        super().__init__(library, arguments)
        save_reserve = bool(arguments["save_reserve"])
        workspace = self.workspace(self.native.forward_workspace(save_reserve))
        batch = self.native.batch
        steps = self.inputs.shape[:-1] if arguments["return_sequences"] else (batch,)
        results = [self.empty(*steps, self.units)]
        results += [self.empty(batch, self.units) for _ in range(2)]
        self.results = Forward(*results, self.reserve() if save_reserve else None)
        self.arrays = (self.capsules(self.results), *workspace)


class _Backward(_Call):
    """A backward call, ready to run."""

    def __init__(self, library, arguments):
        super().__init__(library, arguments)
        reserve, units, batch = arguments["reserve"], self.units, self.native.batch
        workspace = self.workspace(self.native.backward_workspace(reserve is not None))
        scratch = self.reserve() if reserve is None else reserve
        input_dim = self.inputs.shape[-1]
        shapes = [self.inputs.shape, (input_dim, 4 * units), (units, 4 * units)]
        shapes += [(4 * units,), (batch, units), (batch, units)]
        self.results = Gradients(*[self.empty(*shape) for shape in shapes])
        reserve, scratch = self.capsules((reserve, scratch))
        upstream = self.capsules([arguments[name] for name in ("d_outputs", "d_h", "d_c")])
        self.arrays = (reserve, upstream, self.capsules(self.results), scratch, *workspace)


def _run_forward(*calls):
    """Results of one call or two, each given by its arguments."""
    library = _library(calls[0]["inputs"])
    with library.on_device():
        ready = [_Forward(library, arguments) for arguments in calls]
        check = os.environ.get("MASKED_LSTM_CHECK_LENGTHS", "0") not in ("", "0")
        names = ("sequence_lengths", "row_splits")
        checked = check and any(call[name] is not None for call in calls for name in names)
        flag = library.capsule(ready[0].empty(1, dtype=library.int32)) if checked else None
        natives, arrays = ([getattr(r, of) for r in ready] for of in ("native", "arrays"))
        run = _cuda.Call.forward_pair if len(ready) == 2 else _cuda.Call.forward
        run(*natives, *arrays, flag, library.stream())
    return tuple(one.results for one in ready)


def _run_backward(*calls):
    library = _library(calls[0]["inputs"])
    with library.on_device():
        ready = [_Backward(library, arguments) for arguments in calls]
        natives, arrays = ([getattr(r, of) for r in ready] for of in ("native", "arrays"))
        run = _cuda.Call.backward_pair if len(ready) == 2 else _cuda.Call.backward
        run(*natives, *arrays, library.stream())
    return tuple(one.results for one in ready)


def _bound(function, arguments):
    """All of a call's arguments, as `locals()` in the function would have them."""
    bound = inspect.signature(function).bind(**arguments)
    bound.apply_defaults()
    return bound.arguments


def forward(
    inputs,
    kernel,
    recurrent_kernel,
    bias=None,
    *,
    mask=None,
    sequence_lengths=None,
    row_splits=None,
    initial_state=None,
    go_backwards=False,
    zero_output_for_mask=False,
    return_sequences=True,
    activation="tanh",
    recurrent_activation="sigmoid",
    input_factors=None,
    recurrent_factors=None,
    save_reserve=False,
):
    """As masked_lstm.core.forward, with arrays of PyTorch or CuPy on one GPU.

    Lengths outside [0,T] are clamped and row_splits made to rise from 0 to the values, since to
    look at them would mean to wait for the device. MASKED_LSTM_CHECK_LENGTHS=1 in the environment
    waits, and raises ValueError for them.

    The reserve has room for every timestep, masked or not: how many are valid is not known here.

    Raises:
        ValueError, TypeError: a wrong shape, dtype, device or layout. MemoryError, RuntimeError:
        what CUDA says, perhaps of an earlier call.
    """
    return _run_forward(locals())[0]


def backward(
    inputs,
    kernel,
    recurrent_kernel,
    bias=None,
    reserve=None,
    d_outputs=None,
    d_h=None,
    d_c=None,
    *,
    mask=None,
    sequence_lengths=None,
    row_splits=None,
    initial_state=None,
    go_backwards=False,
    zero_output_for_mask=False,
    return_sequences=True,
    activation="tanh",
    recurrent_activation="sigmoid",
    input_factors=None,
    recurrent_factors=None,
):
    """As masked_lstm.core.backward; `reserve` must be that of `forward` and is overwritten. None:
    the forward pass is computed again, with the same bits."""
    return _run_backward(locals())[0]


def forward_pair(first, second):
    """(forward(**first), forward(**second)): the directions of a bidirectional LSTM.

    Each result has the bits of the call by itself. Where the Hopper kernels serve both calls, and
    dtype, batch and units are the same, both recurrences are one launch and run side by side; else
    one after the other.

    Args:
        first, second: the arguments of `forward` by name, with as many timesteps, on one GPU.
    """
    return _run_forward(_bound(forward, first), _bound(forward, second))


def backward_pair(first, second):
    """(backward(**first), backward(**second)), as forward_pair."""
    return _run_backward(_bound(backward, first), _bound(backward, second))
