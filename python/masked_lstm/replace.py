"""Puts `masked_lstm.LSTM` in the place of `keras.layers.LSTM` in a finished model, and back.

One mechanism: the class of each LSTM found is exchanged, which leaves its weights, state and
place in the model as they are. Where the original model is to stay untouched, it is copied first.
"""

from __future__ import annotations

from typing import NamedTuple

import keras
from keras.src.models import Functional  # `keras.Model(inputs, outputs)` makes one; not public
from keras.src.saving.serialization_lib import SafeModeScope

from .layer import LSTM, check_backend, check_fused, never_fused


def replace_lstm(model: keras.Model, *, in_place: bool = False, backend: str = "auto"):
    """Exchanges every `keras.layers.LSTM` in `model` for `masked_lstm.LSTM`.

    Layers inside Bidirectional, TimeDistributed and nested models are found too; subclasses of
    `keras.layers.LSTM` and `keras.layers.RNN(LSTMCell)` are left alone (`replacement_report`
    lists them).

    Args:
        model: a Sequential or Functional model; with `in_place=True` any model or layer.
        in_place: False returns a new, uncompiled model with the same weights, sharing of layers
            and state, and leaves `model` untouched. True changes `model` itself, keeps its
            optimizer's state, and returns it.
        backend: the `backend` of the new layers: "auto", "fused" or "keras".

    Raises:
        TypeError: `model` is no Keras model or layer.
        ValueError: `model` cannot be copied (subclassed: use `in_place=True`); or
            `backend="fused"` and some layer cannot take the fused path. Nothing is changed then.
    """
    check_backend(backend)
    _check_model(model)
    for layer in _layers(model, keras.layers.LSTM):
        check_fused(layer, backend)
    if not in_place:
        model = _copy(model, "replace_lstm")
    for layer in _layers(model, keras.layers.LSTM):
        layer.__class__ = LSTM
        layer.backend = backend
    _forget_compiled_functions(model)
    return model


def restore_lstm(model: keras.Model, *, in_place: bool = False):
    """The way back: exchanges every `masked_lstm.LSTM` in `model` for `keras.layers.LSTM`.

    Arguments, result and errors as those of `replace_lstm`.
    """
    _check_model(model)
    if not in_place:
        model = _copy(model, "restore_lstm")
    for layer in _layers(model, LSTM):
        layer.__class__ = keras.layers.LSTM
        for name in ("backend", "_call_reason", "_traced"):
            vars(layer).pop(name, None)
    _forget_compiled_functions(model)
    return model


def load_model(filepath, *, backend: str = "auto", **kwargs):
    """`keras.saving.load_model(filepath, **kwargs)`, then `replace_lstm` in place.

    Opens a file saved with stock layers, compiled state and optimizer included. (A
    `custom_objects` entry cannot do this: it does not override a class of Keras.)
    """
    check_backend(backend)
    model = keras.saving.load_model(filepath, **kwargs)
    return replace_lstm(model, in_place=True, backend=backend)


class ReportRow(NamedTuple):
    """One layer in a `replacement_report`."""

    name: str  # the layer's path in the model, or its name before it is built
    type: str  # its class
    replaced: bool  # whether it is a masked_lstm.LSTM
    reason: str | None  # why it is not replaced; if it is, why not fused (None: fused)
    differences: tuple[str, ...]  # where its results differ from those of keras.layers.LSTM


class Report(list):
    """The rows of a `replacement_report`; prints as a table."""

    def __str__(self):
        lines = []
        for row in self:
            state = "replaced" if row.replaced else "kept"
            lines.append(f"{row.name} ({row.type}): {state}{f', {row.reason}' * bool(row.reason)}")
            lines.extend(f"    differs: {difference}" for difference in row.differences)
        return "\n".join(lines)


def replacement_report(model: keras.Model) -> Report:
    """Lists every layer of `model`: replaced or why not, and where results differ from Keras'.

    Use it before or after `replace_lstm`. Not listed as differences, since they hold for every
    layer: results agree within rounding, and NaN or Inf at masked steps does no harm.
    """
    _check_model(model)
    with_state = _called_with_initial_state(model)
    rows = Report()
    for layer in model._flatten_layers(include_self=False):
        if isinstance(layer, keras.layers.LSTMCell):
            continue  # the inside of an LSTM or RNN, which has its own row
        replaced = isinstance(layer, LSTM)
        differences = ()
        if replaced:
            reason = layer.fused_reason
        elif type(layer) is keras.layers.LSTM:
            fallback = never_fused(layer)
            reason = "replace_lstm replaces it"
            if fallback:
                reason += f", to run on Keras' path: {fallback}"
        elif isinstance(layer, keras.layers.LSTM):
            reason = "a subclass of keras.layers.LSTM may change what is computed"
        elif type(layer) is keras.layers.RNN:
            reason = "keras.layers.RNN around a cell: only keras.layers.LSTM is replaced"
        else:
            reason = "not an LSTM"
        if replaced or type(layer) is keras.layers.LSTM:
            differences = tuple(_differences(layer, id(layer) in with_state))
        name = layer.path or layer.name
        rows.append(ReportRow(name, type(layer).__name__, replaced, reason, differences))
    return rows


def _differences(layer, with_state):
    if layer.zero_output_for_mask and not layer.return_sequences:
        yield "zero_output_for_mask: the last valid output (Keras: 0 if the last step is masked)"
    if with_state:
        yield "initial_state: the mask that the input carries is used (Keras drops it)"
    one_mask_per_gate = layer.cell.implementation == 1 and not layer.recurrent_dropout
    if layer.dropout and one_mask_per_gate and layer.use_cudnn:
        yield "dropout with implementation=1: training works (Keras raises)"


def _called_with_initial_state(model):
    """ids of the layers (with their sublayers) that a Functional model gives `initial_state`."""
    found = set()
    for layer in model._flatten_layers():
        for node in layer._inbound_nodes:
            args, kwargs = node.arguments.args, node.arguments.kwargs
            if isinstance(layer, (keras.layers.RNN, keras.layers.Bidirectional)) and (
                len(args) > 1 or kwargs.get("initial_state") is not None
            ):
                found.update(id(inner) for inner in layer._flatten_layers())
    return found


def _check_model(model):
    if not isinstance(model, keras.Layer):
        raise TypeError(f"model: expected a Keras model, got {type(model).__name__}")


def _layers(model, cls):
    """The layers of `model`, at any depth, whose class is exactly `cls`."""
    return [layer for layer in model._flatten_layers() if type(layer) is cls]


def _forget_compiled_functions(model):
    """Makes Keras trace training, test and predict functions anew, with the exchanged layers."""
    for layer in model._flatten_layers():
        if isinstance(layer, keras.Model):
            layer.train_function = layer.test_function = layer.predict_function = None
            if layer.compiled and layer.jit_compile:
                layer.jit_compile = all(each.supports_jit for each in layer._flatten_layers())


def _copy(model, caller):
    """A new, uncompiled model like the Sequential or Functional `model`, with its own weights.

    `keras.models.clone_model` keeps structure and sharing of layers; what a layer's config does
    not hold is carried over here.
    """
    models = [layer for layer in model._flatten_layers() if isinstance(layer, keras.Model)]
    for each in models or [model]:
        if type(each) not in (keras.Sequential, Functional):
            raise ValueError(
                f"model: expected a Sequential or Functional model, got {type(each).__name__} "
                f"'{each.name}', which cannot be copied; use {caller}(model, in_place=True)"
            )
    compiled = [each for each in models if each.compiled]
    try:
        for each in compiled:
            each.compiled = False  # else clone_model compiles the copy, which can fail
        with SafeModeScope(False):  # a Lambda layer of the caller's own model is no foreign code
            copy = keras.models.clone_model(model, recursive=True)
    except (NotImplementedError, TypeError, ValueError) as error:
        raise ValueError(
            f"model: some layer of '{model.name}' cannot be rebuilt from its config; "
            f"use {caller}(model, in_place=True)"
        ) from error
    finally:
        for each in compiled:
            each.compiled = True
    _carry_over(model, copy, caller)
    return copy


def _carry_over(model, copy, caller):
    """Copies from `model` to `copy` what configs leave out: weights, state, late settings."""
    layers, new_layers = model._flatten_layers(), copy._flatten_layers()
    same = [type(old) for old in layers] == [type(new) for new in new_layers] and all(
        old.name == new.name  # clone_model names an InputLayer after its tensor
        for old, new in zip(layers, new_layers, strict=True)
        if not isinstance(old, keras.layers.InputLayer)
    )
    if not same or len(model.variables) != len(copy.variables):
        raise ValueError(
            f"model: some layer of '{model.name}' is not fully rebuilt from its config; "
            f"use {caller}(model, in_place=True)"
        )
    for old, new in zip(layers, new_layers, strict=True):
        new._path = old.path  # a layer that its config rebuilt does not know its parents
        if new.trainable != old.trainable:
            new.trainable = old.trainable  # and its sublayers', which come later
        if isinstance(old, keras.layers.RNN):
            new.zero_output_for_mask = old.zero_output_for_mask
        if isinstance(old, keras.layers.LSTM):
            new.use_cudnn = old.use_cudnn
            vars(new)["supports_jit"] = vars(old)["supports_jit"]  # it follows from use_cudnn
            new.cell.implementation = old.cell.implementation
            if hasattr(old.cell, "dropout_mask_count"):
                new.cell.dropout_mask_count = old.cell.dropout_mask_count
    for old, new in zip(_all_state(model), _all_state(copy), strict=True):
        new.assign(old)
        new._path = old.path


def _all_state(model):
    """Weights, the state of seed generators, and the states of stateful RNNs."""
    rnns = [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.RNN)]
    states = keras.tree.flatten([rnn.states for rnn in rnns])
    return model.variables + [state for state in states if state is not None]
