"""The TensorFlow ops: loading the library, the functional `lstm`, and its gradient."""

import ctypes
import os
import pathlib
import threading

import tensorflow as tf
from tensorflow.python.eager import record
from tensorflow.python.ops import control_flow_util  # to see XLA while tracing; not public

from masked_lstm import composite

_LIBRARY = pathlib.Path(__file__).parent / "libmasked_lstm_ops.so"
_XLA_LIBRARY = _LIBRARY.with_name("libmasked_lstm_xla.so")
_loading = threading.RLock()  # the thread that loads may come here again, and must not wait
_ops = None  # set last: whoever sees it sees the two reasons
_no_xla = _no_xla_gpu = "the op library is not loaded"


def library_path():
    """Where the op library lies, or would lie."""
    return _LIBRARY


def _check_build():
    """Raises ImportError unless the library was built for the TensorFlow that is loaded."""
    advice = "install masked-lstm again, with `pip install --no-build-isolation .`"
    try:
        from masked_lstm import _build_info
    except ImportError:
        raise ImportError(f"masked_lstm: its native libraries were not built; {advice}") from None
    built = _build_info.TENSORFLOW_VERSION
    if not built:
        raise ImportError(f"masked_lstm was built without TensorFlow's op; {advice}")
    if not _LIBRARY.exists():
        raise ImportError(f"masked_lstm: its op library {_LIBRARY} is missing; {advice}")
    if built.split(".")[:2] != tf.__version__.split(".")[:2]:
        raise ImportError(
            f"masked_lstm: its op library was built for TensorFlow {built} and cannot be loaded "
            f"into TensorFlow {tf.__version__}; {advice}"
        )


def load():
    """Loads the op library (once) and returns its ops.

    Raises:
        ImportError: it was not built, was built for another minor version of TensorFlow, or
            cannot be loaded.
    """
    return _load_once() if _ops is None else _ops


@tf.autograph.experimental.do_not_convert  # AutoGraph would assign to a copy of this module
def _load_once():
    global _ops, _no_xla, _no_xla_gpu
    with _loading:
        if _ops is None:
            _check_build()
            try:
                ops = tf.load_op_library(str(_LIBRARY))
            except tf.errors.OpError as error:
                raise ImportError(
                    f"masked_lstm: TensorFlow cannot load {_LIBRARY}: {error.message}"
                ) from error
            _no_xla, _no_xla_gpu = _load_xla()
            _ops = ops
        return _ops


def _load_xla():
    """Loads the optional library of XLA kernels; why there are none for the CPU, and for a GPU."""
    from masked_lstm import _build_info

    if _build_info.NO_XLA:
        reason = f"not built: {_build_info.NO_XLA}"
        return reason, reason
    try:
        tf.load_op_library(str(_XLA_LIBRARY))
    except (tf.errors.OpError, RuntimeError) as error:
        reason = f"TensorFlow cannot load {_XLA_LIBRARY}: {error}"
        return reason, reason
    library = ctypes.CDLL(str(_XLA_LIBRARY))
    reasons = []
    for read in (library.masked_lstm_xla_error, library.masked_lstm_xla_gpu_error):
        read.restype = ctypes.c_char_p
        reasons.append(read().decode() or None)
    return tuple(reasons)


def no_xla_reason(gpu=False):
    """Why a program that XLA compiles, for the CPU or a GPU, cannot call the op; None when it can.

    Whether a GPU's kernels are to be trusted is another question: see masked_lstm.gpus.
    """
    return _no_xla_gpu if gpu else _no_xla


def inside_xla():
    """Whether what is being traced will be compiled by XLA (`jit_compile=True`)."""
    return not tf.executing_eagerly() and control_flow_util.GraphOrParentsInXlaContext(
        tf.compat.v1.get_default_graph()
    )


def _may_be_clustered():
    """Whether XLA may compile parts of the function that is being traced, unasked."""
    graph = tf.compat.v1.get_default_graph()
    return graph.building_function and bool(
        tf.config.optimizer.get_jit() or "tf_xla_auto_jit" in os.environ.get("TF_XLA_FLAGS", "")
    )


def kernel_calls():
    """Calls through TensorFlow, by kernel; masked_lstm.kernel_calls() counts all bindings."""
    calls = dict(_calls_of(_LIBRARY)) if _ops is not None else {}
    for kernel, count in xla_kernel_calls().items():
        calls[kernel] = calls.get(kernel, 0) + count
    return calls


def xla_kernel_calls():
    """Those of them that programs compiled by XLA made."""
    return {} if _no_xla and _no_xla_gpu else dict(_calls_of(_XLA_LIBRARY))


def _calls_of(library):
    read = ctypes.CDLL(str(library)).masked_lstm_kernel_calls
    read.restype = ctypes.c_int64
    name, index = ctypes.create_string_buffer(64), 0
    while (count := read(index, name, len(name))) >= 0:
        if count:
            yield name.value.decode(), count
        index += 1


def _tensor(name, value):
    try:
        return tf.convert_to_tensor(value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name}: expected a tensor, got {type(value).__name__}") from error


def _float_tensor(name, value, dtype):
    """`value` as a tensor, whose dtype must be `dtype`."""
    tensor = _tensor(name, value)
    if tensor.dtype != dtype:
        raise TypeError(f"{name}: expected dtype {dtype.name}, as inputs, got {tensor.dtype.name}")
    return tensor


def _factors_tensor(name, value, dtype):
    factors = _float_tensor(name, value, dtype)
    if factors.shape.rank is None:  # a vector would mean "none are given" to the op
        factors = tf.ensure_shape(factors, [4, None, None])
    return factors


def _mask_tensor(mask, sequence_lengths):
    """The op's one mask input: bool mask, int32 lengths, or a scalar for neither."""
    if mask is not None and sequence_lengths is not None:
        raise ValueError("mask, sequence_lengths: expected at most one of them, got both")
    if mask is not None:
        mask = _tensor("mask", mask)
        if mask.dtype != tf.bool:
            raise TypeError(f"mask: expected dtype bool, got {mask.dtype.name}")
        return mask
    if sequence_lengths is None:
        return tf.constant(0, tf.int32)
    lengths = _tensor("sequence_lengths", sequence_lengths)
    if lengths.shape.rank is None:  # a scalar would mean "no mask" to the op
        lengths = tf.ensure_shape(lengths, [None])
    if lengths.shape == [0]:  # an empty list has no dtype to speak of
        lengths = tf.cast(lengths, tf.int32)
    if not lengths.dtype.is_integer:
        raise TypeError(f"sequence_lengths: expected an integer dtype, got {lengths.dtype.name}")
    if lengths.dtype != tf.int32:
        # Clipping keeps a length that int32 cannot hold out of range, for the op to refuse.
        lengths = tf.clip_by_value(tf.cast(lengths, tf.int64), -1, tf.int32.max)
    return tf.cast(lengths, tf.int32)


def _size(tensor, axis):
    """A dimension: an int where it is known (eagerly every small op costs), else a tensor."""
    known = tensor.shape[axis] if tensor.shape.rank is not None else None
    return tf.shape(tensor)[axis] if known is None else known


def _check_static_shapes(tensors):
    """Raises ValueError where shapes known now do not fit; the op checks the rest when it runs.

    tensors: name -> (tensor, letters of its dimensions), the letters' sizes read in this order.
    """
    sizes = {"4": 4}
    for name, (tensor, letters) in tensors.items():
        if tensor is None or tensor.shape.rank is None:
            continue
        got = tensor.shape.as_list()
        expected = [sizes.get(letter) for letter in letters]
        fits = len(got) == len(letters) and all(
            None in (size, known) or size == known
            for size, known in zip(got, expected, strict=True)
        )
        if not fits:
            known = ", ".join(
                letter if size is None or letter == "4" else f"{letter} = {size}"
                for letter, size in zip(letters, expected, strict=True)
            )
            raise ValueError(f"{name}: expected shape ({known}), got {tuple(got)}")
        for letter, size in zip(letters, got, strict=True):
            if size is not None:
                sizes[letter] = size
                if letter == "units":
                    sizes["4*units"] = 4 * size
                if letter == "batch + 1":
                    sizes["batch"] = size - 1


def lstm(
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
    input_factors=None,
    recurrent_factors=None,
    recompute=False,
):
    """Runs an LSTM over the valid timesteps of a padded batch; differentiable in every float input.

    Letters: B batch, T timesteps, D input_dim, U units. Shapes may be dynamic.

    Args:
        inputs: (B,T,D) float32, float64, float16 or bfloat16 tensor. Never read at a masked step.
            With the last two everything is computed in float32 and rounded once at the end.
        kernel: (D,4U), like inputs. Columns in four blocks of U: gates i, f, c, o, as Keras.
        recurrent_kernel: (U,4U), like inputs.
        bias: (4U,), like inputs, or None.
        mask: (B,T) bool, True = use the step; any pattern. None: every step.
        sequence_lengths: (B,) integers in [0,T], the short form of a right-padded mask.
        initial_state: (h, c), each (B,U) like inputs. None: zeros.
        go_backwards: walk the valid steps from the last to the first; outputs stand in that order.
        zero_output_for_mask: outputs at masked steps are zeros, not the previous output.
        return_sequences: outputs of every step, else of the last valid one.
        activation, recurrent_activation: "tanh", "sigmoid", "relu", "hard_sigmoid", "linear" or
            "softsign", of the cell and of the gates i, f, o.
        input_factors: (4,B,D), like inputs: gate g is computed from inputs * input_factors[g], at
            every step. With recurrent_factors, (4,B,U), for h: Keras' dropout. None: ones. They are
            taken as constants: no gradient is computed for them.
        recompute: keep nothing for the gradient (else 5U values per valid step) and run the forward
            pass again there: a third more arithmetic, the same bits.

    Returns:
        (outputs, h, c): outputs (B,T,U), or (B,U) with return_sequences=False; h and c (B,U), the
        states after the last valid step.

    Raises:
        TypeError: a wrong dtype. ValueError: a wrong shape known while tracing, or both mask and
        sequence_lengths. tf.errors.InvalidArgumentError: a wrong shape or length found when run.
    """
    mask = _mask_tensor(mask, sequence_lengths)
    letters = {"inputs": ("batch", "timesteps", "input_dim")}
    if sequence_lengths is not None:
        letters["sequence_lengths"] = ("batch",)
    elif mask.dtype == tf.bool:
        letters["mask"] = ("batch", "timesteps")
    return _call(
        inputs,
        mask,
        letters,
        kernel,
        recurrent_kernel,
        bias,
        initial_state,
        activation,
        recurrent_activation,
        input_factors,
        recurrent_factors,
        recompute,
        go_backwards=bool(go_backwards),
        zero_output_for_mask=bool(zero_output_for_mask),
        return_sequences=bool(return_sequences),
    )


def ragged_lstm(
    values,
    row_splits,
    kernel,
    recurrent_kernel,
    bias=None,
    *,
    initial_state=None,
    go_backwards=False,
    return_sequences=True,
    activation="tanh",
    recurrent_activation="sigmoid",
    input_factors=None,
    recurrent_factors=None,
    recompute=False,
):
    """`lstm` over a ragged batch: no padding anywhere, and the same bits as the padded call.

    Letters as in `lstm`; N values in all.

    Args:
        values: (N,D), like `inputs` of `lstm`: the steps of all rows, one row after another (as
            `tf.RaggedTensor.values`).
        row_splits: (B+1,) integers: row b is values[row_splits[b]:row_splits[b+1]] (as
            `tf.RaggedTensor.row_splits`).
        Others as in `lstm`.

    Returns:
        (outputs, h, c): outputs (N,U), or (B,U) with return_sequences=False; h and c (B,U).

    Raises:
        As `lstm`; tf.errors.InvalidArgumentError also for row_splits that do not rise from 0 to N.
    """
    row_splits = _tensor("row_splits", row_splits)
    if not row_splits.dtype.is_integer:
        raise TypeError(f"row_splits: expected an integer dtype, got {row_splits.dtype.name}")
    if row_splits.shape == [0]:
        raise ValueError("row_splits: expected shape (batch + 1), got (0,)")
    return _call(
        values,
        tf.cast(row_splits, tf.int64),
        {"values": ("values", "input_dim"), "row_splits": ("batch + 1",)},
        kernel,
        recurrent_kernel,
        bias,
        initial_state,
        activation,
        recurrent_activation,
        input_factors,
        recurrent_factors,
        recompute,
        go_backwards=bool(go_backwards),
        zero_output_for_mask=False,
        return_sequences=bool(return_sequences),
    )


def _call(
    inputs,
    mask,
    letters,
    kernel,
    recurrent_kernel,
    bias,
    initial_state,
    activation,
    recurrent_activation,
    input_factors,
    recurrent_factors,
    recompute,
    **options,
):
    """Checks what both kinds of batches share and calls the op.

    letters: the names that a caller knows `inputs` and (if there is one) `mask` by, and their
        dimensions.
    """
    ops = load()
    inputs_name, *mask_name = letters
    inputs = _tensor(inputs_name, inputs)
    dtype = inputs.dtype
    if dtype not in (tf.float32, tf.float64, tf.float16, tf.bfloat16):
        expected = "float32, float64, float16 or bfloat16"
        raise TypeError(f"{inputs_name}: expected dtype {expected}, got {dtype.name}")
    kernel = _float_tensor("kernel", kernel, dtype)
    recurrent_kernel = _float_tensor("recurrent_kernel", recurrent_kernel, dtype)
    if bias is not None:
        bias = _float_tensor("bias", bias, dtype)
    h0 = c0 = None
    if initial_state is not None:
        if not isinstance(initial_state, (list, tuple)) or len(initial_state) != 2:
            got = type(initial_state).__name__
            if isinstance(initial_state, (list, tuple)):
                got = f"{len(initial_state)} of them"
            raise ValueError(f"initial_state: expected two tensors (h, c), got {got}")
        h0 = _float_tensor("initial_state[0] (h)", initial_state[0], dtype)
        c0 = _float_tensor("initial_state[1] (c)", initial_state[1], dtype)
    if input_factors is not None:
        input_factors = _factors_tensor("input_factors", input_factors, dtype)
    if recurrent_factors is not None:
        recurrent_factors = _factors_tensor("recurrent_factors", recurrent_factors, dtype)
    for name, value in (
        ("activation", activation),
        ("recurrent_activation", recurrent_activation),
    ):
        if not isinstance(value, str) or value not in composite.ACTIVATIONS:
            expected = ", ".join(composite.ACTIVATIONS)
            raise ValueError(f"{name}: expected one of {expected}, got {value!r}")
    _check_static_shapes(
        {
            inputs_name: (inputs, letters[inputs_name]),
            "recurrent_kernel": (recurrent_kernel, ("units", "4*units")),
            "kernel": (kernel, ("input_dim", "4*units")),
            "bias": (bias, ("4*units",)),
            **{name: (mask, letters[name]) for name in mask_name},
            "initial_state[0] (h)": (h0, ("batch", "units")),
            "initial_state[1] (c)": (c0, ("batch", "units")),
            "input_factors": (input_factors, ("4", "batch", "input_dim")),
            "recurrent_factors": (recurrent_factors, ("4", "batch", "units")),
        }
    )
    units = _size(recurrent_kernel, 0)
    if bias is None:
        bias = tf.zeros([4 * units], dtype)
    if initial_state is None:
        ragged = mask.dtype == tf.int64
        batch = tf.maximum(_size(mask, 0) - 1, 0) if ragged else _size(inputs, 0)
        h0 = c0 = tf.zeros([batch, units], dtype)
    none = tf.zeros([0], dtype)
    on_demand = not recompute and (inside_xla() or _may_be_clustered())
    outputs, h, c, reserve = ops.masked_lstm(
        inputs=inputs,
        kernel=kernel,
        recurrent_kernel=recurrent_kernel,
        bias=bias,
        h0=h0,
        c0=c0,
        mask=mask,
        input_factors=none if input_factors is None else input_factors,
        recurrent_factors=none if recurrent_factors is None else recurrent_factors,
        activation=activation,
        recurrent_activation=recurrent_activation,
        # In a graph the op sees whether a gradient reads the reserve; eagerly the tapes tell. XLA
        # does not say: there the gradient asks for it (_ask_for_reserve).
        save_reserve=not (recompute or on_demand)
        and (not tf.executing_eagerly() or record.could_possibly_record()),
        **options,
    )
    if on_demand:
        reserve.op._set_attr(_ON_DEMAND, tf.compat.v1.AttrValue(b=True))
    return outputs, h, c


# An attribute of the forward op's node: its gradient may set save_reserve.
_ON_DEMAND = "_masked_lstm_reserve_on_demand"


def _ask_for_reserve(reserve):
    """Has the op that `reserve` comes from save it, if it waits to be asked."""
    forward = getattr(reserve, "op", None)  # an eager tensor has none
    if forward is not None and forward.type == "MaskedLstm" and _ON_DEMAND in forward.node_def.attr:
        forward._set_attr("save_reserve", tf.compat.v1.AttrValue(b=True))


def _options(op):
    flags = ("go_backwards", "zero_output_for_mask", "return_sequences")
    names = ("activation", "recurrent_activation")
    return {name: op.get_attr(name) for name in flags} | {
        # Eagerly a str, in a graph bytes.
        name: tf.compat.as_str(op.get_attr(name))
        for name in names
    }


@tf.RegisterGradient("MaskedLstm")
def _lstm_gradient(op, d_outputs, d_h, d_c, _):
    """Gradients of the op's inputs; see masked_lstm.core.backward."""
    reserve = op.outputs[3]
    _ask_for_reserve(reserve)
    # Inputs that a tape does not watch; in a graph the op sees which results are read, but XLA's
    # does not.
    skip = [i for i in getattr(op, "skip_input_indices", None) or () if i < 6]
    gradients = load().masked_lstm_grad(
        *op.inputs, reserve, d_outputs, d_h, d_c, skip=skip, **_options(op)
    )
    gradients = [None if i in skip else gradient for i, gradient in enumerate(gradients)]
    return [*gradients, None, None, None]


@tf.RegisterGradient("MaskedLstmGrad")
def _lstm_gradient_gradient(op, *upstream):
    """Second order, and with it forward mode: exact, through TensorFlow's own ops."""
    *inputs, mask, input_factors, recurrent_factors, _, d_outputs, d_h, d_c = op.inputs
    upstream = list(upstream)
    for i in op.get_attr("skip"):
        upstream[i] = tf.zeros_like(inputs[i])
    gradients = composite.gradient_of_gradient(
        inputs,
        mask,
        (input_factors, recurrent_factors),
        upstream,
        (d_outputs, d_h, d_c),
        **_options(op),
    )
    return [*gradients[:6], None, None, None, None, *gradients[6:]]
