"""Which path masked_lstm.LSTM takes, that it says so, and how it refuses bad arguments."""

import pathlib
import re
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import tensorflow as tf
from pairs import (
    BATCH,
    INPUT_DIM,
    MASKS,
    TIMESTEPS,
    UNITS,
    assert_all_close,
    forward_calls,
    padding_and_poison,
    pair,
    random,
)

from masked_lstm import LSTM, gpus, layer
from masked_lstm.layer import _gpu_in_use


@pytest.mark.parametrize(
    "settings, reason",
    [
        (dict(activation="elu"), "activation: the fused op computes tanh, .*, got 'elu'"),
        (dict(recurrent_activation="softmax"), "recurrent_activation: .* got 'softmax'"),
        (dict(activation=lambda x: x / 2), "activation: .* got '<lambda>'"),
    ],
    ids=["elu", "softmax", "lambda"],
)
def test_settings_that_take_keras_path(settings, reason):
    stock, ours = pair(backend="auto", dtype="float64", seed=0, **settings)
    assert_reason(ours, reason)
    x, poisoned = padding_and_poison(random(BATCH, TIMESTEPS, INPUT_DIM), MASKS["holes"])
    before = forward_calls()
    assert_all_close(ours(poisoned, mask=MASKS["holes"]), stock(x, mask=MASKS["holes"]))
    assert forward_calls() == before
    assert ours.supports_jit == stock.supports_jit
    with pytest.raises(ValueError, match="backend='fused' is not possible for layer .*: " + reason):
        LSTM(3, backend="fused", **settings)


def assert_reason(layer, reason):
    assert re.search(reason, layer.fused_reason), layer.fused_reason


def test_backend_keras_is_recorded_as_the_reason():
    _, ours = pair(backend="keras")
    assert ours.fused_reason == "backend='keras' was asked for"
    _, ours = pair(backend="auto")
    assert ours.fused_reason is None


def test_with_a_gpu_in_use_auto_leaves_the_work_to_keras(monkeypatch):
    monkeypatch.setattr("masked_lstm.layer._gpu_in_use", lambda: True)
    _, ours = pair(backend="auto")
    before = forward_calls()
    ours(random(1, 2, INPUT_DIM))
    assert forward_calls() == before
    assert_reason(ours, "a GPU is in use")
    assert pair(backend="fused")[1].fused_reason is None


def test_auto_takes_a_gpu_with_a_passing_record_only(monkeypatch):
    capabilities = ["8.9"]
    monkeypatch.setattr("masked_lstm.layer._gpu_in_use", lambda: True)
    monkeypatch.setattr("masked_lstm.layer._capabilities", lambda: capabilities)
    monkeypatch.setattr("masked_lstm.gpus.built_for", lambda: ["80", "90a"])
    monkeypatch.delenv("MASKED_LSTM_GPU", raising=False)
    auto, fused = LSTM(UNITS), LSTM(UNITS, backend="fused")
    assert_reason(auto, "compute capability 8.9, .* no passing record .* MASKED_LSTM_GPU=1")
    monkeypatch.setenv("MASKED_LSTM_GPU", "1")
    assert auto.fused_reason is None
    monkeypatch.delenv("MASKED_LSTM_GPU")
    monkeypatch.setitem(gpus.QUALIFIED, "8.9", "a log")
    assert auto.fused_reason is None
    capabilities.append("7.5")  # a second GPU
    assert_reason(auto, "built for compute capabilities 80, 90a, and a GPU in use has 7.5")
    with pytest.raises(ValueError, match="GPU in use has 7.5"):
        fused(random(1, 2, INPUT_DIM))
    monkeypatch.setattr("masked_lstm.gpus.built_for", lambda: [])
    assert_reason(auto, "built without CUDA kernels")
    assert LSTM(UNITS, backend="fused").fused_reason is None  # on the CPU


def test_which_gpus_kernels_run_on():
    built = ["75", "80", "90a"]
    runs = {"7.0": False, "7.5": True, "8.6": True, "9.0": True, "10.0": True, "12.0": True}
    assert {capability: gpus.runs_on(capability, built) for capability in runs} == runs
    assert not gpus.runs_on("8.6", ["90a"]) and gpus.runs_on("8.6", ["native"])


def test_a_qualified_gpu_has_its_record():
    root = pathlib.Path(__file__).resolve().parent.parent
    for kind, records in (("", gpus.QUALIFIED), (" inside XLA", gpus.QUALIFIED_XLA)):
        for capability, log in records.items():
            line = f"qualification{kind}: compute capability {capability}: passed"
            assert line in (root / log).read_text().splitlines()


def test_a_gpu_is_in_use_unless_the_cpu_is_asked_for(monkeypatch):
    assert not _gpu_in_use()
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: [kind])
    with tf.Graph().as_default():  # where nothing is placed yet
        assert _gpu_in_use()
        with tf.device("/CPU:0"):
            assert not _gpu_in_use()
    in_use = []

    def function(x):
        with tf.device("/CPU:0"):  # inside XLA it is not heeded
            in_use.append(_gpu_in_use())
            return x

    for compiled in (False, True):
        tf.function(function, jit_compile=compiled)(tf.zeros(()))
    assert in_use == [False, True]


def test_off_tensorflow_everything_is_left_to_the_parent(monkeypatch):
    monkeypatch.setattr("masked_lstm.layer._ON_TENSORFLOW", False)
    stock, ours = pair(backend="auto", zero_output_for_mask=True)
    x, mask = random(BATCH, TIMESTEPS, INPUT_DIM), MASKS["right"]
    assert_all_close(ours(x, mask=mask), stock(x, mask=mask), rtol=0)  # 0 where Keras gives 0
    assert_reason(ours, "needs Keras on TensorFlow")


def test_without_the_native_library_keras_takes_over_and_one_warning_says_so(monkeypatch):
    from masked_lstm import layer as module
    from masked_lstm import ops

    def load():
        raise ImportError("libmasked_lstm_ops.so: not found")

    stock, ours = pair(backend="auto", dtype="float64")
    monkeypatch.setattr(ops, "load", load)
    module._missing_library.cache_clear()
    try:
        x = random(BATCH, TIMESTEPS, INPUT_DIM)
        with pytest.warns(UserWarning, match="Keras' own LSTM: .*not found") as warned:
            assert_all_close(ours(x), stock(x))
            ours(x)
        assert len(warned) == 1
        assert_reason(ours, "native library .* not found")
    finally:
        module._missing_library.cache_clear()


@pytest.mark.parametrize("backend", ["fused", "keras"])
def test_bad_arguments_raise_one_clear_sentence(backend):
    _, ours = pair(backend=backend)
    x = random(BATCH, TIMESTEPS, INPUT_DIM)

    def refuses(match, **kwargs):
        with pytest.raises(ValueError, match=match):
            ours(x, **kwargs)

    refuses(r"mask: expected .*\(4, 6\).* got \(4, 5\)", mask=np.ones((4, 5), bool))
    refuses(r"mask: expected .* got \(3, 6\)", mask=np.ones((3, 6), bool))
    refuses(r"mask: expected .* got \(4,\); TimeDistributed", mask=np.ones(4, bool))
    refuses(r"mask: expected .* got \(4, 6, 2\)", mask=np.ones((4, 6, 2), bool))
    h = np.zeros((BATCH, UNITS))
    refuses("initial_state: expected a list of two tensors .* got a list of 1", initial_state=[h])
    refuses("initial_state: expected a list of two tensors .* got a Eager", initial_state=h)
    refuses(r"initial_state: .* = \(4, 5\), got \(4, 7\)", initial_state=[h, np.zeros((BATCH, 7))])
    with pytest.raises(ValueError, match=r"sequences: expected shape .* got \(4, 6\)"):
        ours.call(tf.zeros((4, 6)))
    with pytest.raises(ValueError, match="backend: expected one of .* got 'cudnn'"):
        LSTM(3, backend="cudnn")


def test_memory_freed_by_large_weights_is_returned_once(monkeypatch):
    """Before the first traced call; not for small layers; and without glibc it is left alone."""
    monkeypatch.setattr(layer.ctypes, "CDLL", lambda _: object())  # has no malloc_trim
    layer._return_freed_memory()
    returned = []
    monkeypatch.setattr(layer, "_return_freed_memory", lambda: returned.append(True))
    small, large = LSTM(8), LSTM(512)
    for lstm in (small, large):
        lstm(tf.zeros((1, 2, 3)))
    assert not returned
    for lstm in (small, large):
        call = tf.function(lstm)
        call(tf.zeros((1, 2, 3)))
        call(tf.zeros((2, 2, 3)))
    assert returned == [True]


def test_a_failed_call_leaves_no_dropout_mask_behind():
    _, ours = pair(backend="keras", dropout=0.5, seed=3)
    with pytest.raises(tf.errors.InvalidArgumentError):
        ours(random(2, 3, INPUT_DIM + 1), training=True)
    ours.call(tf.zeros((2, 3, INPUT_DIM)), training=True)
    assert ours.cell._dropout_mask is None


def test_on_pytorch_it_is_keras_own_layer():
    """Keras' other backends: the same results, and the reason recorded."""
    pytest.importorskip("torch")
    code = """
        import os
        os.environ["KERAS_BACKEND"] = "torch"
        import keras, numpy as np
        from masked_lstm import LSTM
        layers = keras.layers.LSTM(3, return_state=True), LSTM(3, return_state=True)
        x, mask = np.random.rand(2, 5, 4).astype("float32"), np.ones((2, 5), bool)
        mask[0, 3:] = False
        for layer in layers:
            layer.build(x.shape)
        layers[1].set_weights(layers[0].get_weights())
        for a, b in zip(*(layer(x, mask=mask) for layer in layers)):
            assert (keras.ops.convert_to_numpy(a) == keras.ops.convert_to_numpy(b)).all()
        assert "Keras on torch" in layers[1].fused_reason
    """
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True)
    assert run.returncode == 0, run.stderr.decode()[-2000:]
