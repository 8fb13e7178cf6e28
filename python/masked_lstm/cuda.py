"""The LSTM over arrays on a CUDA device (PyTorch, CuPy); needs no TensorFlow.

Experimental: the kernels have been tested on a CPU only (tests/cuda_host). Letters as in
masked_lstm.core. Everything runs on the library's current stream; nothing waits for the device.
"""

from masked_lstm.results import Forward, Gradients

try:
    from masked_lstm import _cuda
except ImportError:  # built without nvcc
    _cuda = None


def available():
    """Whether the package was built with the CUDA kernels (not: whether a GPU is there)."""
    return _cuda is not None


class _Torch:
    """What is needed of PyTorch."""

    def __init__(self, array):
        import torch

        self.torch, self.device = torch, array.device
        self.stream = torch.cuda.current_stream(array.device).cuda_stream

    def empty(self, shape, dtype):
        return self.torch.empty(shape, dtype=dtype, device=self.device)

    def compute_dtype(self, dtype):
        return self.torch.float64 if dtype == self.torch.float64 else self.torch.float32

    def byte(self):
        return self.torch.uint8

    def capsule(self, array):
        return None if array is None else self.torch.utils.dlpack.to_dlpack(array.detach())

    def mask(self, mask):
        return None if mask is None else mask.to(self.torch.uint8).contiguous()

    def lengths(self, lengths):
        return None if lengths is None else lengths.to(self.torch.int32).contiguous()


class _CuPy:
    """What is needed of CuPy."""

    def __init__(self, array):
        import cupy

        self.cupy = cupy
        self.stream = cupy.cuda.get_current_stream().ptr

    def empty(self, shape, dtype):
        return self.cupy.empty(shape, dtype)

    def compute_dtype(self, dtype):
        return self.cupy.float64 if dtype == self.cupy.float64 else self.cupy.float32

    def byte(self):
        return self.cupy.uint8

    def capsule(self, array):
        return None if array is None else array.toDlpack()

    def mask(self, mask):
        return None if mask is None else self.cupy.ascontiguousarray(mask.astype(self.cupy.uint8))

    def lengths(self, lengths):
        return (
            None
            if lengths is None
            else self.cupy.ascontiguousarray(lengths.astype(self.cupy.int32))
        )


def _library(array):
    if _cuda is None:
        raise RuntimeError("masked_lstm was built without CUDA: install it again where nvcc is")
    name = type(array).__module__.split(".")[0]
    if name not in ("torch", "cupy"):
        raise TypeError(f"inputs: expected a PyTorch or CuPy array on a GPU, got {name}'s")
    if name == "torch" and array.device.type != "cuda":
        raise ValueError(f"inputs: expected a tensor on a CUDA device, got {array.device}")
    return (_Torch if name == "torch" else _CuPy)(array)


def _arguments(library, arrays, mask, sequence_lengths, initial_state):
    h0, c0 = initial_state if initial_state is not None else (None, None)
    given = (*arrays, h0, c0, library.mask(mask), library.lengths(sequence_lengths))
    # A capsule is used up by one call.
    return given, lambda: tuple(library.capsule(array) for array in given)


def forward(
    inputs,
    kernel,
    recurrent_kernel,
    bias=None,
    *,
    mask=None,
    sequence_lengths=None,
    initial_state=None,
    go_backwards=False,
    zero_output_for_mask=False,
    return_sequences=True,
    activation="tanh",
    recurrent_activation="sigmoid",
    save_reserve=False,
):
    """As masked_lstm.core.forward, with arrays of PyTorch or CuPy on one GPU.

    Lengths outside [0,T] are clamped, since looking at them would mean to wait for the device.

    Raises:
        ValueError, TypeError: a wrong shape, dtype, device or layout. RuntimeError: what CUDA says.
    """
    library = _library(inputs)
    given, arguments = _arguments(
        library, (inputs, kernel, recurrent_kernel, bias), mask, sequence_lengths, initial_state
    )
    options = (go_backwards, zero_output_for_mask, return_sequences, activation)
    options = (*map(bool, options[:3]), options[3], recurrent_activation)
    workspace_bytes = _cuda.forward_workspace(arguments(), options, bool(save_reserve))
    batch, timesteps, _ = inputs.shape
    units, dtype = recurrent_kernel.shape[0], inputs.dtype
    shape = (batch, timesteps, units) if return_sequences else (batch, units)
    results = [library.empty(shape, dtype)]
    results += [library.empty((batch, units), dtype) for _ in range(2)]
    reserve = None
    if save_reserve:
        values = max(1, batch * timesteps * 5 * units)
        reserve = library.empty((values,), library.compute_dtype(dtype))
    workspace = library.empty((max(1, workspace_bytes),), library.byte())
    capsules = tuple(library.capsule(array) for array in (*results, reserve))
    _cuda.forward(
        arguments(), options, capsules, library.capsule(workspace), workspace_bytes, library.stream
    )
    return Forward(*results, reserve)


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
    initial_state=None,
    go_backwards=False,
    zero_output_for_mask=False,
    return_sequences=True,
    activation="tanh",
    recurrent_activation="sigmoid",
):
    """As masked_lstm.core.backward; `reserve` must be that of `forward` and is overwritten."""
    library = _library(inputs)
    given, arguments = _arguments(
        library, (inputs, kernel, recurrent_kernel, bias), mask, sequence_lengths, initial_state
    )
    flags = (bool(go_backwards), bool(zero_output_for_mask), bool(return_sequences))
    options = (*flags, activation, recurrent_activation)
    workspace_bytes = _cuda.backward_workspace(arguments(), options)
    batch, timesteps, input_dim = inputs.shape
    units, dtype = recurrent_kernel.shape[0], inputs.dtype
    shapes = [(batch, timesteps, input_dim), (input_dim, 4 * units), (units, 4 * units)]
    shapes += [(4 * units,), (batch, units), (batch, units)]
    results = [library.empty(shape, dtype) for shape in shapes]
    workspace = library.empty((max(1, workspace_bytes),), library.byte())
    _cuda.backward(
        arguments(),
        options,
        library.capsule(reserve),
        tuple(library.capsule(array) for array in (d_outputs, d_h, d_c)),
        tuple(library.capsule(array) for array in results),
        library.capsule(reserve),
        library.capsule(workspace),
        workspace_bytes,
        library.stream,
    )
    return Gradients(*results)
