"""What people put around an LSTM in Keras and TensorFlow: the same results as with Keras' own.

Models in float64 where that can be had, so that both agree to rounding."""

import threading

import keras
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
    pair,
    random,
    same_weights,
)

from masked_lstm import LSTM

ROWS, VOCABULARY, CLASSES = 24, 20, 3


@pytest.fixture(autouse=True)
def float64():
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_dtype_policy("float32")


def tokens_and_labels(seed=0):
    """Right-padded tokens (0 is padding), of all lengths, the empty one included."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, 12, (ROWS, 1))
    tokens = np.where(np.arange(11) < lengths, rng.integers(1, VOCABULARY, (ROWS, 11)), 0)
    return tokens, rng.integers(0, CLASSES, ROWS)


def classifier(lstm):
    return keras.Sequential(
        [
            keras.Input((None,), dtype="int32"),
            keras.layers.Embedding(VOCABULARY, 6, mask_zero=True),
            keras.layers.Bidirectional(lstm(5, return_sequences=True)),
            lstm(4),
            keras.layers.Dense(CLASSES, activation="softmax"),
        ]
    )


def two(make):
    """The same model with Keras' LSTM (its plain loop) and with ours."""

    def stock(*args, **kwargs):
        return keras.layers.LSTM(*args, use_cudnn=False, **kwargs)

    def ours(*args, **kwargs):
        return LSTM(*args, backend="fused", **kwargs)

    models = make(stock), make(ours)
    same_weights(*models)
    return models


def compiled(model, **kwargs):
    model.compile(
        keras.optimizers.SGD(0.5), "sparse_categorical_crossentropy", metrics=["accuracy"], **kwargs
    )
    return model


def assert_same_training(models, fit):
    """fit(model) -> History; ours runs the fused kernels."""
    stock = fit(models[0])
    before = forward_calls()
    ours = fit(models[1])
    assert forward_calls() > before
    for name, values in stock.history.items():
        np.testing.assert_allclose(ours.history[name], values, rtol=1e-9, err_msg=name)
    assert_all_close(models[1].get_weights(), models[0].get_weights(), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    "options",
    [
        dict(class_weight={0: 1.0, 1: 2.0, 2: 0.5}),
        dict(sample_weight=np.linspace(0.1, 2, ROWS)),
        dict(validation_split=0.25, callbacks=["early", "schedule", "checkpoint"]),
    ],
    ids=["class_weight", "sample_weight", "callbacks"],
)
def test_fit(options, tmp_path):
    x, y = tokens_and_labels()

    def fit(model):
        named = {
            "early": keras.callbacks.EarlyStopping(patience=1),
            "schedule": keras.callbacks.ReduceLROnPlateau(patience=1),
            "checkpoint": keras.callbacks.ModelCheckpoint(tmp_path / "best.keras"),
        }
        given = options | (
            dict(callbacks=[named[name] for name in options["callbacks"]])
            if "callbacks" in options
            else {}
        )
        return compiled(model).fit(x, y, batch_size=8, epochs=3, shuffle=False, verbose=0, **given)

    assert_same_training(two(classifier), fit)


@pytest.mark.parametrize("how", ["padded_batch", "bucket_by_sequence_length"])
def test_tf_data(how):
    x, y = tokens_and_labels()

    def examples():
        for row, label in zip(x, y, strict=True):
            yield row[row > 0], label

    def dataset():
        data = tf.data.Dataset.from_generator(
            examples,
            output_signature=(tf.TensorSpec([None], tf.int32), tf.TensorSpec([], tf.int32)),
        )
        if how == "padded_batch":
            return data.padded_batch(7)
        return data.bucket_by_sequence_length(lambda row, _: tf.size(row), [4, 8], [6, 6, 6])

    assert_same_training(
        two(classifier), lambda model: compiled(model).fit(dataset(), epochs=2, verbose=0)
    )


class Subclassed(keras.Model):
    """Two inputs, one LSTM shared by both, its states handed to another."""

    def __init__(self, lstm):
        super().__init__()
        self.embedding = keras.layers.Embedding(VOCABULARY, 6, mask_zero=True)
        self.shared = lstm(5, return_state=True, return_sequences=True)
        self.second = lstm(5)
        self.head = keras.layers.Dense(CLASSES, activation="softmax")

    def call(self, inputs):
        question, context = inputs
        outputs, *states = self.shared(self.embedding(question))
        others, _, _ = self.shared(self.embedding(context))
        return self.head(self.second(outputs, initial_state=states) + self.second(others))


def test_subclassed_model_with_a_shared_layer_and_two_inputs():
    """The question has no padding: with initial_state Keras drops the mask, which ours does not."""
    (x, y), (context, _) = tokens_and_labels(), tokens_and_labels(1)
    question = np.maximum(x, 1)
    models = []
    for lstm in (lambda *a, **k: keras.layers.LSTM(*a, use_cudnn=False, **k), LSTM):
        models.append(Subclassed(lstm))
        models[-1]([question, context])
    same_weights(*models)
    assert_same_training(
        models,
        lambda model: compiled(model).fit(
            [question, context], y, batch_size=8, epochs=2, shuffle=False, verbose=0
        ),
    )


def test_nested_model_in_a_time_distributed_layer():
    def make(lstm):
        words = keras.Sequential([keras.Input((5, 4)), keras.layers.Masking(), lstm(3)])
        inputs = keras.Input((4, 5, 4))
        x = keras.layers.TimeDistributed(words)(inputs)
        return keras.Model(inputs, keras.layers.Dense(CLASSES, activation="softmax")(lstm(4)(x)))

    x = random(ROWS, 4, 5, 4)
    x[:, :, 3:] = 0
    _, y = tokens_and_labels()
    assert_same_training(
        two(make), lambda model: compiled(model).fit(x, y, epochs=2, shuffle=False, verbose=0)
    )


def test_custom_loop_recompute_grad_and_regularizers():
    """A custom training loop; tf.recompute_grad around the layer; losses of its regularizers."""
    mask, x = MASKS["holes"], tf.constant(random(BATCH, TIMESTEPS, INPUT_DIM))
    options = dict(
        kernel_regularizer="l2",
        recurrent_regularizer=keras.regularizers.L1(0.01),
        bias_regularizer="l2",
        activity_regularizer=keras.regularizers.L2(0.1),
        kernel_constraint="max_norm",
        recurrent_constraint="non_neg",
    )
    results = []
    for layer in pair(return_sequences=True, dtype="float64", **options):
        optimizer = keras.optimizers.SGD(0.1)

        @tf.function
        def step(layer=layer, optimizer=optimizer):
            with tf.GradientTape() as tape:
                outputs = tf.recompute_grad(lambda x: layer(x, mask=mask))(x)
                loss = tf.reduce_sum(outputs**2) + tf.add_n(layer.losses[:3])
            optimizer.apply(tape.gradient(loss, layer.trainable_weights), layer.trainable_weights)
            return loss

        optimizer.build(layer.trainable_weights)
        results.append([[step().numpy() for _ in range(3)], layer.get_weights()])
        assert len(layer.losses) == 4
    assert_all_close(results[1], results[0], rtol=1e-10, atol=1e-12)


def test_with_op_determinism():
    """Seeds and deterministic ops on: allowed, and twice the same."""
    code = """
        import keras, numpy as np, tensorflow as tf
        from masked_lstm import LSTM, kernel_calls
        tf.config.experimental.enable_op_determinism()
        def train():
            keras.utils.set_random_seed(3)
            model = keras.Sequential([LSTM(8, dropout=0.2, recurrent_dropout=0.2, backend="fused")])
            model.compile("adam", "mse")
            x = np.random.rand(16, 9, 3)
            model.fit(x, x[:, 0, :1], epochs=2, verbose=0)
            return np.concatenate([w.ravel() for w in model.get_weights()]).tobytes()
        assert train() == train() and kernel_calls()
    """
    import subprocess
    import sys
    import textwrap

    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)


def test_one_layer_called_from_several_threads():
    _, ours = pair(return_sequences=True, dtype="float64")
    xs = [random(BATCH, TIMESTEPS, INPUT_DIM, seed=i) for i in range(6)]
    expected = [ours(x, mask=MASKS["right"]).numpy() for x in xs]
    function = tf.function(lambda x: ours(x, mask=MASKS["right"]))
    wrong = []

    def call(x, right):
        for _ in range(20):
            for layer in (function, lambda x: ours(x, mask=MASKS["right"])):
                if not np.array_equal(layer(tf.constant(x)), right):
                    wrong.append(right)

    threads = [
        threading.Thread(target=call, args=arguments)
        for arguments in zip(xs, expected, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert not any(thread.is_alive() for thread in threads) and not wrong


def test_rnn_wrappers_are_left_alone():
    """keras.layers.RNN over a stock LSTMCell, and stacked cells, beside our layer."""
    x = random(BATCH, TIMESTEPS, INPUT_DIM)
    cells = keras.layers.RNN([keras.layers.LSTMCell(UNITS), keras.layers.LSTMCell(3)])
    model = keras.Sequential([LSTM(UNITS, return_sequences=True), cells])
    assert model(x).shape == (BATCH, 3)


@pytest.mark.parametrize("seed", [0, 1])
def test_initializers_are_those_of_keras(seed):
    for options in (dict(), dict(unit_forget_bias=False), dict(use_bias=False)):
        weights = []
        for lstm in (keras.layers.LSTM, LSTM):
            keras.utils.set_random_seed(seed)
            layer = lstm(UNITS, **options)
            layer.build((None, None, INPUT_DIM))
            weights.append(layer.get_weights())
        assert_all_close(weights[1], weights[0], rtol=0)
