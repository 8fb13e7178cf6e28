"""The core over NumPy arrays; needs no TensorFlow.

Letters: B batch, T timesteps as padded, D input_dim, U units, N valid timesteps of the whole batch.
The arithmetic and the meaning of masks: docs/contract.md, and masked_lstm.reference in NumPy.
"""

import os

import numpy as np

from masked_lstm import _core
from masked_lstm.results import Forward, Gradients


def _count(value):
    return f"{len(value)} of them" if isinstance(value, (list, tuple)) else type(value).__name__


def _arguments(
    inputs,
    kernel,
    recurrent_kernel,
    bias,
    mask,
    sequence_lengths,
    initial_state,
    input_factors,
    recurrent_factors,
    row_splits,
):
    """The native call's first argument. Float arrays are checked there."""
    if mask is not None:
        mask = np.asarray(mask)
        if mask.dtype != np.bool_:
            raise TypeError(f"mask: expected dtype bool, got {mask.dtype}")
        # A copy: the core reads it more than once, and another thread may write to the caller's.
        mask = mask.copy(order="C")
    if sequence_lengths is not None:
        sequence_lengths = _lengths_array(sequence_lengths)
    h0 = c0 = None
    if initial_state is not None:
        if not isinstance(initial_state, (list, tuple)) or len(initial_state) != 2:
            raise ValueError(
                f"initial_state: expected two arrays (h, c), got {_count(initial_state)}"
            )
        h0, c0 = initial_state
        if h0 is None or c0 is None:
            raise ValueError("initial_state: expected two arrays (h, c), got None among them")
    if row_splits is not None:
        row_splits = np.asarray(row_splits)
        if row_splits.dtype.kind not in "iu":
            raise TypeError(f"row_splits: expected an integer dtype, got {row_splits.dtype}")
        row_splits = np.array(row_splits, np.int64, order="C")  # a copy, as of the mask
    factors = (input_factors, recurrent_factors)
    masks = (mask, sequence_lengths)
    return inputs, kernel, recurrent_kernel, bias, h0, c0, *masks, *factors, row_splits


def _lengths_array(value):
    """A copy in int32, for the reason the mask is copied."""
    lengths = np.asarray(value)
    if lengths.dtype == np.int32:
        return lengths.copy(order="C")
    if lengths.size == 0:  # an empty list has no dtype to speak of
        return lengths.astype(np.int32)
    if lengths.dtype.kind not in "iu":
        raise TypeError(f"sequence_lengths: expected an integer dtype, got {lengths.dtype}")
    limits = np.iinfo(np.int32)
    # Clipping keeps a length that int32 cannot hold out of range, for the core to refuse.
    return np.ascontiguousarray(np.clip(lengths, limits.min, limits.max).astype(np.int32))


def _options(backwards, zeros, sequences, activation, recurrent_activation, num_threads, isa):
    """The native call's second argument."""
    threads = _thread_count(num_threads)
    return backwards, zeros, sequences, activation, recurrent_activation, threads, isa


_THREAD_COUNTS = range(1, 1025)


def _thread_count(num_threads):
    if num_threads is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        count = int(num_threads)
        known = count in _THREAD_COUNTS and bool(count == num_threads)
    except (TypeError, ValueError, OverflowError):  # text, arrays, NaN, infinity
        known = False
    if not known:
        raise ValueError(f"num_threads: expected a whole number from 1 to 1024, got {num_threads}")
    return count


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
    num_threads=None,
    isa=None,
):
    """Runs the LSTM over the valid timesteps of a padded batch.

    Args:
        inputs: (B,T,D) float32, float64, float16 or bfloat16 (of ml_dtypes). Never read at a masked
            step. With the last two everything is computed in float32 and rounded once at the end.
        kernel: (D,4U), like inputs. Columns in four blocks of U: gates i, f, c, o.
        recurrent_kernel: (U,4U), like inputs.
        bias: (4U,), like inputs, or None.
        mask: (B,T) bool, True = use the step; any pattern. None: every step.
        sequence_lengths: (B,) integers in [0,T], the short form of a right-padded mask.
        row_splits: (B+1,) integers: a ragged batch, without padding. inputs are (values, D), row b
            inputs[row_splits[b]:row_splits[b+1]], outputs (values, U), gradients likewise.
        initial_state: (h, c), each (B,U) like inputs. None: zeros.
        go_backwards: walk the valid steps from the last to the first; outputs stand in that order.
        zero_output_for_mask: outputs at masked steps are zeros, not the previous output.
        return_sequences: outputs of every step, else of the last valid one.
        activation, recurrent_activation: "tanh", "sigmoid", "relu", "hard_sigmoid", "linear" or
            "softsign", of the cell and of the gates i, f, o.
        input_factors: (4,B,D), like inputs: gate g is computed from inputs * input_factors[g], at
            every step. With recurrent_factors, (4,B,U), for h: Keras' dropout. None: ones.
        save_reserve: keep what `backward` needs.
        num_threads: threads to use; None: as many as this process may run on. Changes no bit.
        isa: "generic", "avx2", "avx512", "avx512_bf16" or "amx_bf16"; None: MASKED_LSTM_ISA from
            the environment, else the widest this CPU has.

    Returns:
        Forward(outputs, h, c, reserve), of the inputs' dtype; the reserve's is that of computation.

    Raises:
        TypeError: a wrong dtype. ValueError: a wrong shape, length or option. Nothing has been
        computed then.
    """
    arguments = _arguments(
        inputs,
        kernel,
        recurrent_kernel,
        bias,
        mask,
        sequence_lengths,
        initial_state,
        input_factors,
        recurrent_factors,
        row_splits,
    )
    options = _options(
        go_backwards,
        zero_output_for_mask,
        return_sequences,
        activation,
        recurrent_activation,
        num_threads,
        isa,
    )
    return Forward(*_core.forward(arguments, options, save_reserve))


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
    overwrite_reserve=False,
    num_threads=None,
    isa=None,
):
    """Gradients of every float input of `forward`, called with the same arguments and options.

    Args:
        reserve: from forward(..., save_reserve=True); None: the forward pass is computed again.
        overwrite_reserve: saves memory and time by computing in the reserve, which is of no use
            afterwards.
        d_outputs, d_h, d_c: gradients arriving at forward's results, in their shapes; None: zeros.

    Returns:
        Gradients(inputs, kernel, recurrent_kernel, bias, h0, c0). The gradient of inputs is exactly
        0 at masked steps. Weight gradients are summed in an order that depends on the batch alone.

    Raises:
        TypeError, ValueError: as `forward`.
    """
    arguments = _arguments(
        inputs,
        kernel,
        recurrent_kernel,
        bias,
        mask,
        sequence_lengths,
        initial_state,
        input_factors,
        recurrent_factors,
        row_splits,
    )
    options = _options(
        go_backwards,
        zero_output_for_mask,
        return_sequences,
        activation,
        recurrent_activation,
        num_threads,
        isa,
    )
    gradients = (reserve, d_outputs, d_h, d_c)
    return Gradients(*_core.backward(arguments, options, *gradients, overwrite_reserve))


def library_path():
    """Where the native module lies."""
    return _core.__file__


def isa():
    """The instruction set in use: "amx_bf16", "avx512_bf16", "avx512", "avx2" or "generic"."""
    return _core.isa()


def isas():
    """Those this CPU (and this build) can run, narrowest first."""
    return list(_core.isas())


def kernel_calls():
    """Calls through this module, by kernel; masked_lstm.kernel_calls() counts all bindings."""
    return dict(_core.kernel_calls())


def fma_peak(seconds=0.2, num_threads=None, dtype="float32", isa=None):
    """Measured rate of independent multiply-adds in registers, in flop/s: any kernel's ceiling.

    Args:
        seconds: how long to measure. num_threads, isa: as in `forward`. dtype: float32 or float64.
    """
    name = np.dtype(dtype).name
    if name not in ("float32", "float64"):
        raise TypeError(f"dtype: expected float32 or float64, got {dtype}")
    return _core.multiply_add_rate(
        float(seconds), _thread_count(num_threads), name == "float64", isa or _core.isa()
    )
