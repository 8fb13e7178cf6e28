"""Every way a model with masked_lstm.LSTM is written, read, copied and exported."""

import copy
import pathlib
import pickle
import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest
import tensorflow as tf
from pairs import INPUT_DIM, UNITS, forward_calls, random, same_weights
from tensorflow.python.tools import saved_model_utils

import masked_lstm
from masked_lstm import LSTM, ops

SERVER = pathlib.Path(__file__).parent / "native" / "serve.cc"
X = random(2, 6, INPUT_DIM).astype("float32")
X[0, 3:] = 0  # masked


def model_with(lstm, zero_output_for_mask=True, **kwargs):
    return keras.Sequential(
        [
            keras.Input((None, INPUT_DIM)),
            keras.layers.Masking(),
            keras.layers.Bidirectional(
                lstm(UNITS, return_sequences=True, name="lstm", **kwargs), name="both"
            ),
            lstm(4, zero_output_for_mask=zero_output_for_mask, name="last", **kwargs),
        ],
        name="model",
    )


def through_keras_file(model, folder):
    model.save(folder / "model.keras")
    return keras.saving.load_model(folder / "model.keras")


def through_weights_file(model, folder):
    model.save_weights(folder / "model.weights.h5")
    fresh = model_with(LSTM, use_cudnn=False, implementation=1)
    fresh.load_weights(folder / "model.weights.h5")
    return fresh


def through_json(model, folder):
    again = keras.models.model_from_json(model.to_json())
    again.set_weights(model.get_weights())
    return again


def through_clone(model, folder):
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    return clone


@pytest.mark.parametrize(
    "round_trip",
    [
        through_keras_file,
        through_weights_file,
        through_clone,
        through_json,
        lambda model, folder: pickle.loads(pickle.dumps(model)),
        lambda model, folder: copy.deepcopy(model),
    ],
    ids=["keras file", "weights file", "clone_model", "JSON", "pickle", "deepcopy"],
)
def test_round_trip(round_trip, tmp_path):
    model = model_with(LSTM, use_cudnn=False, implementation=1)
    again = round_trip(model, tmp_path)
    before = forward_calls()
    np.testing.assert_array_equal(again(X), model(X))
    assert forward_calls() == before + 6
    layer = again.get_layer("last")
    assert type(layer) is LSTM and type(again.get_layer("both").backward_layer) is LSTM
    assert (layer.use_cudnn, layer.cell.implementation, layer.backend) == (False, 1, "auto")
    assert layer.zero_output_for_mask


def test_weights_files_are_those_of_keras_both_ways(tmp_path):
    stock, ours = model_with(keras.layers.LSTM), model_with(LSTM)
    assert [w.path for w in ours.weights] == [w.path for w in stock.weights]
    same_weights(stock, ours, seed=1)
    for source, target in ((stock, ours), (ours, stock)):
        source.save_weights(tmp_path / "model.weights.h5")
        expected = source.get_weights()
        target.set_weights([np.zeros_like(w) for w in expected])
        target.load_weights(tmp_path / "model.weights.h5")
        for got, weight in zip(target.get_weights(), expected, strict=True):
            np.testing.assert_array_equal(got, weight)


def test_config_holds_every_argument():
    layer = LSTM(
        3, "relu", use_cudnn=False, implementation=1, backend="keras", dropout=0.25, seed=3
    )
    config = layer.get_config()
    again = LSTM.from_config(config)
    assert again.get_config() == config
    assert set(config) - set(keras.layers.LSTM(3).get_config()) == {
        "backend",
        "use_cudnn",
        "implementation",
    }


def test_exported_model_runs_the_fused_op(tmp_path):
    model = model_with(LSTM)
    model.export(tmp_path / "exported", verbose=False)
    loaded = tf.saved_model.load(tmp_path / "exported")
    before = forward_calls()
    np.testing.assert_array_equal(loaded.serve(X), model(X))
    assert forward_calls() == before + 6


def test_exported_model_in_a_fresh_python_process(tmp_path):
    """After nothing but `from masked_lstm import LSTM`, without Keras' layer being built again."""
    model = model_with(LSTM)
    model.export(tmp_path / "exported", verbose=False)
    np.save(tmp_path / "x.npy", X)
    code = f"""
        import numpy as np, tensorflow as tf
        from masked_lstm import LSTM, kernel_calls
        loaded = tf.saved_model.load(r"{tmp_path / "exported"}")
        np.save(r"{tmp_path / "y.npy"}", loaded.serve(np.load(r"{tmp_path / "x.npy"}")))
        assert sum(kernel_calls().values()) == 3, kernel_calls()
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), model(X))


def test_exported_model_served_from_cpp(tmp_path):
    """A C++ program, TensorFlow's C API and our op library; no Python in it."""
    model = model_with(LSTM)
    model.export(tmp_path / "exported", verbose=False)
    signature = saved_model_utils.get_meta_graph_def(str(tmp_path / "exported"), "serve")
    signature = signature.signature_def["serving_default"]
    (source,), (target,) = signature.inputs.values(), signature.outputs.values()
    libraries = pathlib.Path(tf.sysconfig.get_lib())
    server = tmp_path / "serve"
    compile_command = [
        *("c++", "-O1", "-std=c++17", SERVER, "-o", server, f"-I{tf.sysconfig.get_include()}"),
        *(f"-L{libraries}", f"-Wl,-rpath,{libraries}"),
        *("-l:libtensorflow_cc.so.2", "-l:libtensorflow_framework.so.2"),
    ]
    subprocess.run(compile_command, check=True)
    served = subprocess.run(
        [server, ops.library_path(), tmp_path / "exported", source.name, target.name]
        + [str(size) for size in X.shape],
        input=X.tobytes(),
        capture_output=True,
    )
    assert served.returncode == 0, served.stderr.decode()[-2000:]
    outputs = np.frombuffer(served.stdout, np.float32).reshape(2, 4)
    np.testing.assert_array_equal(outputs, model(X))


def test_a_stock_files_last_line_changed(tmp_path):
    """The way people move: a stock model's file, opened, trained and exported with ours."""
    # Zeros for a masked last step are Keras' alone.
    stock = model_with(keras.layers.LSTM, zero_output_for_mask=False)
    stock.compile("sgd", "mse")
    stock.save(tmp_path / "stock.keras")
    opened = masked_lstm.load_model(tmp_path / "stock.keras")
    before = forward_calls()
    np.testing.assert_allclose(opened(X), stock(X), atol=1e-6)
    assert forward_calls() > before
    opened.compile("sgd", "mse")
    y = random(2, 4).astype("float32")
    losses = [model.train_on_batch(X, y) for model in (stock, opened) for _ in range(2)]
    np.testing.assert_allclose(losses[2:], losses[:2], rtol=1e-5)
    opened.export(tmp_path / "exported", verbose=False)
    again = tf.saved_model.load(tmp_path / "exported")
    np.testing.assert_array_equal(again.serve(X), opened(X))
    restored = masked_lstm.restore_lstm(opened)  # nobody is locked in
    np.testing.assert_allclose(restored(X), opened(X), atol=1e-6)
    assert type(restored.get_layer("last")) is keras.layers.LSTM
