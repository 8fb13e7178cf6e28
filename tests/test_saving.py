"""Every way a model with masked_lstm.LSTM is written, read, copied and exported."""

import copy
import pickle

import keras
import numpy as np
import pytest
import tensorflow as tf
from pairs import INPUT_DIM, UNITS, forward_calls, random, same_weights

from masked_lstm import LSTM

X = random(2, 6, INPUT_DIM).astype("float32")
X[0, 3:] = 0  # masked


def model_with(lstm, **kwargs):
    return keras.Sequential(
        [
            keras.Input((None, INPUT_DIM)),
            keras.layers.Masking(),
            keras.layers.Bidirectional(
                lstm(UNITS, return_sequences=True, name="lstm", **kwargs), name="both"
            ),
            lstm(4, zero_output_for_mask=True, name="last", **kwargs),
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
        lambda model, folder: pickle.loads(pickle.dumps(model)),
        lambda model, folder: copy.deepcopy(model),
    ],
    ids=["keras file", "weights file", "clone_model", "pickle", "deepcopy"],
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
