"""replace_lstm, restore_lstm and replacement_report: the same model, other layers."""

import keras
import numpy as np
import pytest
from pairs import INPUT_DIM, UNITS, forward_calls, random

from masked_lstm import LSTM, replace_lstm, replacement_report, restore_lstm
from masked_lstm.replace import load_model

X = random(4, 6, INPUT_DIM).astype("float32")
X[1, 2:] = X[2, :3] = 0  # masked
Y = random(4, 2, seed=1).astype("float32")


def classes(model):
    return [type(layer) for layer in model._flatten_layers()]


def sequential():
    """Sequential with every kind of nesting, and settings that a config does not hold."""
    inner = keras.Sequential(
        [keras.layers.Bidirectional(keras.layers.LSTM(3, use_cudnn=False)), keras.layers.Dense(4)]
    )
    model = keras.Sequential(
        [
            keras.Input((6, INPUT_DIM)),
            keras.layers.Masking(),
            keras.layers.LSTM(UNITS, return_sequences=True, implementation=1),
            keras.layers.LSTM(UNITS, return_sequences=True, dropout=0.3),
            keras.layers.Bidirectional(keras.layers.LSTM(UNITS, return_sequences=True)),
            keras.layers.Lambda(lambda x: x * 2),
            inner,
            keras.layers.Dense(2),
        ]
    )
    model.layers[1].zero_output_for_mask = True
    model.layers[2].cell.trainable = False
    model.layers[3].forward_layer.zero_output_for_mask = False
    return model


def functional():
    """Two inputs through one shared LSTM and one shared nested model."""
    shared = keras.layers.LSTM(UNITS, return_sequences=True)
    inputs = keras.Input((None, UNITS))
    nested = keras.Model(inputs, keras.layers.LSTM(2)(inputs))
    a, b = keras.Input((6, INPUT_DIM)), keras.Input((6, INPUT_DIM))
    ys = [nested(shared(keras.layers.Masking()(x))) for x in (a, b)]
    return keras.Model([a, b], keras.layers.Average()(ys))


def data_for(model):
    return [X, X[::-1].copy()] if len(model.inputs) == 2 else X


@pytest.mark.parametrize("make", [sequential, functional])
def test_a_new_model_with_everything_kept(make):
    model = make()
    model.compile("adam", lambda y, p: keras.ops.sum((y - p) ** 2, -1), run_eagerly=True)
    x = data_for(model)
    model.train_on_batch(x, Y)  # moves weights and seed generators on
    weights, before = model.get_weights(), classes(model)

    ours = replace_lstm(model, backend="auto")
    back = restore_lstm(ours)
    assert classes(model) == before == classes(back) and model.compiled
    assert classes(ours) == [LSTM if c is keras.layers.LSTM else c for c in before]
    assert not ours.compiled and not back.compiled
    assert [w.path for w in ours.weights] == [w.path for w in model.weights]
    assert len(ours.trainable_weights) == len(model.trainable_weights)
    for old, new in zip(model._flatten_layers(), ours._flatten_layers(), strict=True):
        assert (new.path, new.trainable) == (old.path, old.trainable)
        if type(old) is keras.layers.LSTM:
            for name in ("use_cudnn", "zero_output_for_mask", "return_sequences"):
                assert getattr(new, name) == getattr(old, name)
            assert new.cell.implementation == old.cell.implementation

    calls = forward_calls()
    np.testing.assert_allclose(ours(x), model(x), atol=1e-5)
    assert forward_calls() > calls
    np.testing.assert_allclose(back(x), model(x), atol=1e-6)
    ours.compile("adam", "mse", run_eagerly=True)
    ours.train_on_batch(x, Y)
    for old, new in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(new, old)  # the original's weights are its own


def test_the_seed_generators_state_is_kept():
    """`seed=None` draws another seed when a layer is rebuilt from its config."""
    model = keras.Sequential(
        [keras.Input((6, INPUT_DIM)), keras.layers.LSTM(2, dropout=0.4), keras.layers.Dropout(0.3)]
    )
    model.compile("sgd", "mse", run_eagerly=True)
    model.train_on_batch(X, Y)
    ours = replace_lstm(model)
    ours.compile("sgd", "mse", run_eagerly=True)
    runs = [[m.train_on_batch(X, Y) for _ in range(4)] for m in (model, ours)]
    np.testing.assert_allclose(runs[1], runs[0], rtol=1e-5)


def test_states_of_stateful_layers_are_kept():
    model = keras.Sequential(
        [keras.Input(batch_shape=(4, 6, INPUT_DIM)), keras.layers.LSTM(3, stateful=True)]
    )
    model(X)
    for ours in (replace_lstm(model), replace_lstm(model, in_place=True)):
        assert ours.layers[0].states[1].numpy().any()
        copied = keras.models.clone_model(model)  # runs on from the same states
        copied.set_weights(model.get_weights())
        for state, start in zip(copied.layers[0].states, ours.layers[0].states, strict=True):
            state.assign(start)
        np.testing.assert_allclose(ours(X), copied(X), atol=1e-6)


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.blocks = [keras.layers.Masking(), keras.layers.Dense(3)]
        self.named = {"both": keras.layers.Bidirectional(keras.layers.LSTM(1))}

    def call(self, x):
        for layer in self.blocks:
            x = layer(x)
        return self.named["both"](x)


def test_a_subclassed_model_in_place_trains_on_with_its_optimizer():
    models = [Subclassed(), Subclassed()]
    for model, eagerly in zip(models, (True, False), strict=True):
        model.compile(keras.optimizers.Adam(0.01), "mse", run_eagerly=eagerly)
        model(X)
    models[1].set_weights(models[0].get_weights())
    for model in models:
        model.train_on_batch(X, Y)
    stock, ours = models
    with pytest.raises(ValueError, match=r"Subclassed.* use replace_lstm\(model, in_place=True\)"):
        replace_lstm(ours)
    assert replace_lstm(ours, in_place=True) is ours
    assert classes(ours).count(LSTM) == 2
    calls = forward_calls()
    for _ in range(3):
        losses = [model.train_on_batch(X, Y) for model in models]
        np.testing.assert_allclose(*losses, rtol=1e-5)
    assert forward_calls() == calls + 6
    assert ours.optimizer.iterations == 4
    restore_lstm(ours, in_place=True)
    losses = [model.train_on_batch(X, Y) for model in models]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    assert forward_calls() == calls + 6
    assert classes(ours) == classes(stock)


def test_time_distributed_lstm():
    model = keras.Sequential(
        [keras.Input((2, 6, INPUT_DIM)), keras.layers.TimeDistributed(keras.layers.LSTM(3))]
    )
    x = np.stack([X, X], 1)
    for ours in (replace_lstm(model), replace_lstm(model, in_place=True)):
        assert type(ours.layers[0].layer) is LSTM
        calls = forward_calls()
        np.testing.assert_allclose(ours(x), restore_lstm(ours)(x), atol=1e-6)
        assert forward_calls() == calls + 2


def test_load_model_opens_a_stock_file(tmp_path):
    model = functional()
    model.compile("adam", "mse", run_eagerly=True)
    model.train_on_batch(data_for(model), Y)
    model.save(tmp_path / "stock.keras")
    ours = load_model(tmp_path / "stock.keras")
    assert keras.layers.LSTM not in classes(ours) and ours.optimizer.iterations == 1
    x = data_for(model)
    np.testing.assert_allclose(ours(x), model(x), atol=1e-5)


def test_a_layer_that_its_config_does_not_rebuild_is_refused():
    class Forgetful(keras.layers.Layer):
        inner = None

        def call(self, x):
            return x if self.inner is None else self.inner(x)

    layer = Forgetful()
    layer.inner = keras.layers.LSTM(3)  # no constructor argument, so in no config
    model = keras.Sequential([keras.Input((6, INPUT_DIM)), layer])
    with pytest.raises(ValueError, match="not fully rebuilt .* replace_lstm"):
        replace_lstm(model)
    assert type(replace_lstm(model, in_place=True).layers[0].inner) is LSTM

    class Unconfigurable(keras.layers.Layer):
        def __init__(self, inner):
            super().__init__()

        def call(self, x):
            return x

    x = keras.Input((6, INPUT_DIM))
    model = keras.Model(x, keras.layers.Bidirectional(keras.layers.LSTM(2))(Unconfigurable([])(x)))
    with pytest.raises(ValueError, match="cannot be rebuilt .* replace_lstm"):
        replace_lstm(model)


class OwnLSTM(keras.layers.LSTM):
    pass


def test_report():
    sequences, state = keras.Input((6, INPUT_DIM)), keras.Input((3,))
    x = keras.layers.LSTM(3, return_sequences=True, name="started")(
        sequences, initial_state=[state, state]
    )
    x = keras.layers.LSTM(3, return_sequences=True, activation="elu", name="elu")(x)
    x = keras.layers.RNN(keras.layers.LSTMCell(3), return_sequences=True, name="cell")(x)
    x = OwnLSTM(3, return_sequences=True, name="own")(x)
    x = keras.layers.LSTM(3, zero_output_for_mask=True, name="zero")(x)
    model = keras.Model([sequences, state], keras.layers.Dense(2, name="dense")(x))
    before = {row.name: row for row in replacement_report(model)}
    after = {row.name: row for row in replacement_report(replace_lstm(model))}
    assert [name for name, row in after.items() if row.replaced] == ["started", "elu", "zero"]
    assert not any(row.replaced for row in before.values())
    assert after["started"].reason is None and after["zero"].reason is None
    assert "softsign, got 'elu'" in after["elu"].reason
    assert "softsign, got 'elu'" in before["elu"].reason
    assert "RNN around a cell" in after["cell"].reason
    assert "subclass" in after["own"].reason
    assert after["dense"].reason == "not an LSTM"
    for rows in (before, after):
        assert rows["elu"].differences == ()
        assert "mask that the input carries" in rows["started"].differences[0]
        assert "last valid output" in rows["zero"].differences[0]
    assert "zero (LSTM): replaced\n    differs: zero_output" in str(
        replacement_report(replace_lstm(model))
    )


def test_bad_arguments_change_nothing():
    model = keras.Sequential(
        [
            keras.Input((6, INPUT_DIM)),
            keras.layers.LSTM(3, return_sequences=True),
            keras.layers.LSTM(3, activation="elu", name="elu"),
        ]
    )
    with pytest.raises(ValueError, match="'fused' is not possible for layer 'elu': activation"):
        replace_lstm(model, in_place=True, backend="fused")
    assert LSTM not in classes(model)
    with pytest.raises(ValueError, match="backend: expected one of"):
        replace_lstm(model, backend="gpu")
    with pytest.raises(TypeError, match="model: expected a Keras model, got str"):
        replace_lstm("model.keras")
