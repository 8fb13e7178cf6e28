"""The Keras layer: `keras.layers.LSTM` that computes only the timesteps that exist.

Two paths lead to a result. The *fused path* is this package's own op. *Keras' path* is the parent
class, for everything the op does not do; `LSTM.fused_reason` says why it was taken. What a mask
means is the same on both (docs/contract.md); where that differs from Keras, a comment says so.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import warnings

import keras
from keras.src.backend import get_keras_mask  # the mask a tensor carries; no public accessor

from . import gpus

_ON_TENSORFLOW = keras.backend.backend() == "tensorflow"
if _ON_TENSORFLOW:
    import tensorflow as tf

_BACKENDS = ("auto", "fused", "keras")
_MANY_UNITS = 512  # their recurrent weights take 4 MiB


@functools.cache
def _missing_library() -> str | None:
    """Loads the native op; says what is wrong (and warns, once) where that fails."""
    from . import ops

    try:
        ops.load()
    except ImportError as error:
        reason = f"the native library of masked_lstm could not be loaded: {error}"
        warnings.warn(f"masked_lstm.LSTM uses Keras' own LSTM: {reason}", stacklevel=2)
        return reason
    return None


def never_fused(layer: keras.layers.LSTM) -> str | None:
    """Why the settings of `layer` rule out the fused path; None if they do not.

    Also answers for a `keras.layers.LSTM` that has not been replaced (yet).
    """
    if not _ON_TENSORFLOW:
        return f"the fused op needs Keras on TensorFlow, got Keras on {keras.backend.backend()}"
    for argument in ("activation", "recurrent_activation"):
        function = getattr(layer, argument)
        if _fused_activation(function) is None:
            known = ", ".join(_activations())
            return f"{argument}: the fused op computes {known}, got {_name(function)}"
    if layer.compute_dtype not in ("float16", "bfloat16", "float32", "float64"):
        return f"dtype: the fused op computes in floating point, got {layer.compute_dtype}"
    return _missing_library()


@functools.cache
def _activations() -> dict:
    """The op's name of each activation it computes: the functions known by it."""
    names = ("tanh", "sigmoid", "relu", "hard_sigmoid", "linear", "softsign")
    functions = {
        name: [getattr(keras.activations, name), getattr(keras.ops, name, None)] for name in names
    }
    for name, function in (
        ("tanh", tf.tanh),
        ("sigmoid", tf.sigmoid),
        ("relu", tf.nn.relu),
        ("softsign", tf.nn.softsign),
        ("linear", tf.identity),
    ):
        functions[name].append(function)
    return functions


def _fused_activation(activation) -> str | None:
    """The op's name of a layer's activation; None if it has none."""
    names = (name for name, functions in _activations().items() if activation in functions)
    return next(names, None)


def _name(activation) -> str:
    return repr(getattr(activation, "__name__", type(activation).__name__))


def check_backend(backend: str) -> None:
    """Raises ValueError unless `backend` is one that `LSTM` knows."""
    if backend not in _BACKENDS:
        raise ValueError(f"backend: expected one of {_BACKENDS}, got {backend!r}")


def check_fused(layer: keras.layers.LSTM, backend: str) -> None:
    """Raises ValueError if `backend` is "fused" and the settings of `layer` rule that out."""
    if backend == "fused" and (reason := never_fused(layer)):
        raise ValueError(f"backend='fused' is not possible for layer '{layer.name}': {reason}")


def _gpu_in_use() -> bool:
    """Whether TensorFlow may place what is computed here on a GPU (a `tf.device` scope counts)."""
    from . import ops

    if not tf.config.list_logical_devices("GPU"):
        return False
    if ops.inside_xla():  # which compiles a whole function for one device, and ignores scopes in it
        return True
    # An eager tensor tells where it was placed, a graph tensor where it was asked to be, if at all.
    return "CPU" not in tf.zeros(()).device.upper()


def _no_xla_reason() -> str | None:
    """Why XLA has no kernel of the fused op for the device in use; None if it has one."""
    from . import ops

    return ops.no_xla_reason(gpu=_gpu_in_use())


@functools.cache
def _capabilities() -> list[str]:
    """The compute capability of each GPU that TensorFlow may use, such as "9.0"."""
    details = map(tf.config.experimental.get_device_details, tf.config.get_visible_devices("GPU"))
    return [".".join(map(str, gpu.get("compute_capability", ["unknown"]))) for gpu in details]


@keras.saving.register_keras_serializable(package="masked_lstm")
class LSTM(keras.layers.LSTM):
    """`keras.layers.LSTM` that skips masked timesteps instead of computing and discarding them.

    Arguments, their order and defaults, weights and call are those of `keras.layers.LSTM`, plus:

    Args:
        backend: `"auto"` takes the fused op wherever it can do what is asked, else Keras' own
            implementation (`fused_reason` tells which and why); `"fused"` raises ValueError
            where the fused op cannot be used; `"keras"` never uses it. `unroll` and `use_cudnn`
            concern Keras' implementation only. Where a GPU is in use, `"auto"` takes the fused op
            only if its CUDA kernels have passed on that generation of GPUs, or MASKED_LSTM_GPU=1
            is set.

    Call arguments:
        sequences: `(batch, timesteps, input_dim)`, or a `tf.RaggedTensor` of that shape. Values
            at masked timesteps are never read: NaN there reaches no output and no gradient.
        initial_state: `[h, c]`, each `(batch, units)`. A mask carried by `sequences` is used with
            it too (Keras drops the mask then).
        mask: `(batch, timesteps)`, True (or nonzero) where the step is used, any pattern; also
            `(batch, timesteps, 1)` and `(1, timesteps)`. Default: the mask `sequences` carries.
        training: whether to apply `dropout`.

    Returns:
        As Keras. With `return_sequences=False` the output is that of the last valid timestep
        (zeros if there is none), whatever `zero_output_for_mask` says. No timesteps or an empty
        batch give empty outputs and the initial states.

    Raises:
        ValueError: a bad `backend`, `mask` or `initial_state`, in one sentence.
    """

    # Class attributes, so that an LSTM of Keras turned into one of these by
    # `replace_lstm` has them too.
    backend = "auto"
    _call_reason = None
    _traced = False  # on the fused path

    def __init__(self, units, *args, backend="auto", **kwargs):
        check_backend(backend)
        super().__init__(units, *args, **kwargs)
        self.backend = backend
        check_fused(self, backend)

    @property
    def fused_reason(self) -> str | None:
        """Why the fused path is not taken; None when it is.

        Follows from the layer's settings and the device, and, for what only a call can tell (such
        as XLA), from the latest call - inside a `tf.function`, the latest tracing.
        """
        return self._settings_reason() or self._call_reason

    @property
    def supports_jit(self) -> bool:
        """Whether Keras may compile this layer with XLA.

        On the fused path: where that is taken inside XLA too.
        """
        if self._settings_reason() is None:
            return self._xla_reason() is None
        return self.__dict__.get("supports_jit", True)

    @supports_jit.setter
    def supports_jit(self, value):  # Keras' own answer, kept where its plain attribute would be
        self.__dict__["supports_jit"] = value

    def get_config(self):
        return {
            **super().get_config(),
            "use_cudnn": self.use_cudnn,  # these two are lost by Keras
            "implementation": self.cell.implementation,
            "backend": self.backend,
        }

    def call(self, sequences, initial_state=None, mask=None, training=False):
        if not _ON_TENSORFLOW:
            return super().call(
                sequences, initial_state=initial_state, mask=mask, training=training
            )
        if isinstance(sequences, tf.RaggedTensor):
            return self._call_ragged(sequences, initial_state, mask, training)
        if mask is None:
            # Keras fills in `mask` only for a call with a single tensor, so not with initial_state.
            mask = get_keras_mask(sequences)
        sequences = keras.ops.convert_to_tensor(sequences)
        if sequences.shape.rank != 3:
            raise ValueError(
                "sequences: expected shape (batch, timesteps, input_dim), got "
                f"{tuple(sequences.shape)}"
            )
        mask = _boolean_mask(mask, sequences)
        states = self._initial_states(initial_state, sequences.shape[0])
        call = self._call_fused if self._choose_fused() else self._call_keras
        return call(sequences, states, mask, training)

    def inner_loop(self, sequences, initial_state, mask, training=False):
        """Keras' own loop, with masks meaning what they do on the fused path."""
        if not _ON_TENSORFLOW:
            return super().inner_loop(sequences, initial_state, mask, training=training)
        from . import ops

        loop = super().inner_loop
        unfit = mask is not None or self.cell.implementation == 1 or ops.inside_xla()
        if self.use_cudnn == "auto" and unfit:
            # cuDNN refuses masks that are not right-padded and writes zeros at masked steps, and
            # Keras' way to it fails on one dropout mask per gate; XLA does not know it. Take Keras'
            # plain loop.
            loop = super(keras.layers.LSTM, self).inner_loop
        last_output, outputs, states = loop(sequences, initial_state, mask, training=training)
        if mask is not None and self.zero_output_for_mask and not self.return_sequences:
            # Keras gives zeros if the last step is masked. Here: the last valid output, which is h.
            any_valid = tf.reduce_any(mask, axis=1, keepdims=True)
            last_output = tf.where(any_valid, states[0], tf.zeros_like(states[0]))
        return last_output, outputs, states

    def _choose_fused(self):
        """Whether this call takes the fused path; if not, why is in `fused_reason`."""
        self._call_reason = reason = self._settings_reason() or self._tracing_reason()
        if reason is not None and self.backend == "fused":
            raise ValueError(f"backend='fused' is not possible here: {reason}")
        return reason is None

    def _settings_reason(self):
        """Why not fused, as far as settings and device tell."""
        if self.backend == "keras":
            return "backend='keras' was asked for"
        if reason := never_fused(self):
            return reason
        if not _gpu_in_use():
            return None
        judge = gpus.not_chosen if self.backend == "auto" else gpus.not_possible
        return judge(_capabilities(), gpus.built_for())

    def _tracing_reason(self):
        """Why not fused, as far as the graph being traced tells."""
        from . import ops

        return self._xla_reason() if ops.inside_xla() else None

    def _xla_reason(self):
        """Why XLA makes a difference where settings and device allow the fused path."""
        if reason := _no_xla_reason():
            return f"this call is compiled by XLA and the fused op has no XLA kernel: {reason}"
        if self.backend != "auto" or not _gpu_in_use():
            return None
        return gpus.not_chosen(_capabilities(), gpus.built_for(), xla=True)

    def _initial_states(self, initial_state, batch):
        """`[h, c]` in the compute dtype, or None for zeros."""
        built_for = self._expected_batch_size  # None unless stateful
        if None not in (batch, built_for) and batch != built_for:
            raise ValueError(
                f"sequences: this stateful layer was built for a batch of {built_for}, "
                f"got a batch of {batch}"
            )
        if initial_state is None:
            if not self.stateful:
                return None
            initial_state = self.states
        if not isinstance(initial_state, (list, tuple)) or len(initial_state) != 2:
            got = type(initial_state).__name__
            if isinstance(initial_state, (list, tuple)):
                got += f" of {len(initial_state)}"
            raise ValueError(f"initial_state: expected a list of two tensors [h, c], got a {got}")
        states = [keras.ops.convert_to_tensor(s, dtype=self.compute_dtype) for s in initial_state]
        for state in states:
            if not state.shape.is_compatible_with((batch, self.units)):
                raise ValueError(
                    "initial_state: expected two tensors of shape (batch, units) = "
                    f"{(batch, self.units)}, got {tuple(state.shape)}"
                )
        return states

    def _call_fused(self, sequences, states, mask, training):
        """`sequences`: padded, or a RaggedTensor (mask None), which is computed as it is."""
        from . import ops

        if self.units >= _MANY_UNITS and not self._traced and not tf.executing_eagerly():
            self._traced = True
            _return_freed_memory()
        ragged = isinstance(sequences, tf.RaggedTensor)
        dtype, cell = self.compute_dtype, self.cell
        values = tf.cast(sequences.values if ragged else sequences, dtype)
        keep, input_factors, recurrent_factors = self._draw_dropout(sequences, training)
        if keep is not None:
            keep = tf.gather(keep, sequences.value_rowids()) if ragged else keep[:, tf.newaxis]
            values = values * keep
        options = dict(
            initial_state=states,
            go_backwards=self.go_backwards,
            return_sequences=self.return_sequences,
            activation=_fused_activation(self.activation),
            recurrent_activation=_fused_activation(self.recurrent_activation),
            input_factors=input_factors,
            recurrent_factors=recurrent_factors,
        )
        weights = (cell.kernel, cell.recurrent_kernel, cell.bias)
        weights = [None if w is None else keras.ops.cast(w, dtype) for w in weights]
        if ragged:
            outputs, h, c = ops.ragged_lstm(values, sequences.row_splits, *weights, **options)
            if self.return_sequences:
                outputs = sequences.with_values(outputs)
        else:
            zeros = self.zero_output_for_mask  # read now: Bidirectional sets it after construction
            options["zero_output_for_mask"] = zeros
            outputs, h, c = ops.lstm(values, *weights, mask=mask, **options)
        if self.stateful:
            for variable, value in zip(self.states, (h, c), strict=True):
                variable.assign(value)
        return (outputs, h, c) if self.return_state else outputs

    def _draw_dropout(self, sequences, training):
        """Dropout's factors, each None where there is none: (B,D) of x for all gates; or, with
        implementation 1, the op's factors of x (4,B,D) and h (4,B,U) for each gate.

        The numbers are Keras' own, in its order: it draws on every call, whether they are used or
        not. recurrent_dropout brings implementation 1 with it.
        """
        count = 4 if self.cell.implementation == 1 else 1

        def draw(rate, size):
            if not rate:
                return None
            ragged = isinstance(sequences, tf.RaggedTensor)
            batch = sequences.nrows() if ragged else tf.shape(sequences)[0]
            ones = tf.ones((batch, size), self.compute_dtype)
            seed = self.cell.seed_generator
            masks = [keras.random.dropout(ones, rate, seed=seed) for _ in range(count)]
            return masks if training and rate < 1 else None

        inputs = draw(self.dropout, self.cell.kernel.shape[0])
        recurrent = draw(self.recurrent_dropout, self.units)
        if count == 1:
            return None if inputs is None else inputs[0], None, None
        return (
            None,
            None if inputs is None else tf.stack(inputs),
            None if recurrent is None else tf.stack(recurrent),
        )

    def _call_keras(self, sequences, states, mask, training):
        batch, timesteps, _ = sequences.shape
        if batch == 0 or timesteps == 0:  # Keras raises
            batch, timesteps, _ = tf.unstack(tf.shape(sequences))
            h, c = self.get_initial_state(batch) if states is None else states
            shape = (batch, timesteps) if self.return_sequences else (batch,)
            outputs = tf.zeros((*shape, self.units), self.compute_dtype)
            return (outputs, h, c) if self.return_state else outputs
        if mask is not None:  # else NaN in padding would reach the weights' gradients
            sequences = tf.where(mask[..., tf.newaxis], sequences, tf.zeros_like(sequences))
        try:
            return super().call(sequences, initial_state=states, mask=mask, training=training)
        finally:
            self._maybe_reset_dropout_masks(self.cell)  # Keras keeps them if the call fails

    def _call_ragged(self, sequences, initial_state, mask, training):
        """A ragged batch; `return_sequences` gives a ragged batch back."""
        if mask is not None:
            raise ValueError("mask: expected None for a RaggedTensor (its rows have no padding)")
        if sequences.ragged_rank != 1:
            raise ValueError(
                "sequences: expected a RaggedTensor with ragged timesteps only (ragged_rank 1), "
                f"got ragged_rank {sequences.ragged_rank}"
            )
        if self.activity_regularizer is not None and self.return_sequences:
            raise ValueError(
                "activity_regularizer: Keras cannot regularize a RaggedTensor, which this layer "
                "returns for one with return_sequences=True"
            )
        states = self._initial_states(initial_state, sequences.shape[0])
        if self._choose_fused():
            return self._call_fused(sequences, states, None, training)
        padded = sequences.to_tensor()
        mask = tf.sequence_mask(sequences.row_lengths(), tf.shape(padded)[1])
        result = self._call_keras(padded, states, mask, training)
        if not self.return_sequences:
            return result
        outputs, *states = result if self.return_state else (result,)
        valid = tf.reverse(mask, [1]) if self.go_backwards else mask
        outputs = tf.ragged.boolean_mask(outputs, valid)
        return (outputs, *states) if self.return_state else outputs


def _return_freed_memory() -> None:
    """Returns to the system what making and setting the weights has freed, but glibc keeps.

    Decomposing a matrix for orthogonal weights takes some times their size (docs/performance.md).
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):  # other C libraries
        ctypes.CDLL(None).malloc_trim(0)


def _boolean_mask(mask, sequences):
    """`mask` in any of the accepted forms as a bool tensor `(batch, timesteps)`, or None."""
    if mask is None:
        return None
    mask = tf.convert_to_tensor(mask)
    shape = mask.shape
    if shape.rank is None:
        mask = tf.ensure_shape(mask, (None, None))
    elif shape.rank == 3 and shape[2] in (1, None):
        mask = tf.squeeze(mask, 2)
    batch, timesteps, _ = sequences.shape
    one_row = mask.shape.rank == 2 and mask.shape[0] == 1
    expected = (1 if one_row else batch, timesteps)
    if not mask.shape.is_compatible_with(expected):
        hint = ""
        if shape.rank == 1:
            hint = "; TimeDistributed hands on such slices: mask the innermost timesteps instead"
        raise ValueError(
            f"mask: expected shape (batch, timesteps) = {(batch, timesteps)}, (batch, timesteps, 1)"
            f" or (1, timesteps), got {tuple(shape)}{hint}"
        )
    mask = tf.cast(mask, tf.bool)
    if one_row and batch != 1:
        mask = tf.repeat(mask, tf.shape(sequences)[0], axis=0)
    return mask


if _ON_TENSORFLOW:
    _missing_library()  # a saved model finds the op once this module is imported
