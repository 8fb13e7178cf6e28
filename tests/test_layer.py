"""masked_lstm.LSTM against keras.layers.LSTM with the same weights.

Mostly in float64, where both agree to 1e-12. Ours always gets NaN in the padding.
"""

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
    padding_and_poison,
    pair,
    random,
    same_weights,
)

from masked_lstm import LSTM


def run(layer, x, mask, states):
    """Outputs, and gradients of a random linear function of them w.r.t. everything."""
    x, mask = tf.constant(x), None if mask is None else tf.constant(mask)
    states = [tf.constant(state) for state in states]
    with tf.GradientTape() as tape:
        tape.watch([x, *states])
        results = layer(x, initial_state=states, mask=mask)
        loss = sum(tf.reduce_sum(y * random(*y.shape, seed=i)) for i, y in enumerate(results))
    gradients = tape.gradient(loss, [x, *states, *layer.trainable_variables])
    return results, [tf.convert_to_tensor(gradient) for gradient in gradients]


@pytest.mark.parametrize("backend", ["fused", "keras"])
@pytest.mark.parametrize("return_sequences", [False, True])
@pytest.mark.parametrize("go_backwards", [False, True])
@pytest.mark.parametrize("zero_output", [False, True])
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS.keys())
def test_results_and_gradients(mask, zero_output, go_backwards, return_sequences, backend):
    stock, ours = pair(
        return_sequences=return_sequences,
        return_state=True,
        go_backwards=go_backwards,
        backend=backend,
        dtype="float64",
    )
    ours.zero_output_for_mask = zero_output  # as Bidirectional does: after construction
    # The last output: ours is the last valid one always, Keras' only without the option.
    stock.zero_output_for_mask = zero_output and return_sequences
    x, poisoned = padding_and_poison(random(BATCH, TIMESTEPS, INPUT_DIM), mask)
    states = random(2, BATCH, UNITS, seed=1)

    before = forward_calls()
    results, gradients = run(ours, poisoned, mask, states)
    assert (forward_calls() > before) == (backend == "fused")
    expected, expected_gradients = run(stock, x, mask, states)
    assert_all_close(results, expected)
    assert_all_close(gradients, expected_gradients)
    if mask is not None:
        assert not gradients[0].numpy()[~mask].any()


@pytest.mark.parametrize("return_sequences", [False, True])
@pytest.mark.parametrize("merge_mode", ["concat", "sum", "ave", "mul", None])
@pytest.mark.parametrize("mask", ["right", "left", "holes", "empty rows", "none"])
def test_bidirectional(mask, merge_mode, return_sequences):
    mask = MASKS[mask]
    x, poisoned = padding_and_poison(random(BATCH, TIMESTEPS, INPUT_DIM), mask)
    kwargs = dict(return_sequences=return_sequences, return_state=True, dtype="float64")
    stock, ours = (
        keras.layers.Bidirectional(layer, merge_mode=merge_mode, dtype="float64")
        for layer in (
            keras.layers.LSTM(UNITS, use_cudnn=False, **kwargs),
            LSTM(UNITS, backend="fused", **kwargs),
        )
    )
    for layer in (stock, ours):
        layer.build(x.shape)
    same_weights(stock, ours)
    before = forward_calls()
    assert_all_close(ours(poisoned, mask=mask), stock(x, mask=mask))
    assert forward_calls() == before + 2


def model_of(lstm):
    inputs = keras.Input((None,), dtype="int32")
    x = keras.layers.Embedding(20, 6, mask_zero=True)(inputs)
    x = lstm(7, return_sequences=True)(x)
    x = lstm(4)(x)
    model = keras.Model(inputs, keras.layers.Dense(3)(x))
    model.compile(keras.optimizers.Adam(0.02), "mse")
    return model


def batches_of_several_lengths():
    rng = np.random.default_rng(3)
    for timesteps in (4, 9, 6, 9):
        tokens = rng.integers(1, 20, (8, timesteps))
        lengths = rng.integers(0, timesteps + 1, (8, 1))
        yield np.where(np.arange(timesteps) < lengths, tokens, 0), rng.uniform(-1, 1, (8, 3))


def test_training_a_stacked_model_matches():
    stock, ours = model_of(keras.layers.LSTM), model_of(LSTM)
    same_weights(stock, ours)
    before = forward_calls()
    losses = []
    for model in (stock, ours):
        losses.append([model.train_on_batch(x, y) for x, y in batches_of_several_lengths()])
    assert forward_calls() == before + 4 * 2
    # float32 and Adam, which divides by the gradient's size: agreement to about 1e-5
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)
    tokens, _ = next(batches_of_several_lengths())
    longer = np.pad(tokens, ((0, 0), (0, 20)))  # longer than any trained on
    np.testing.assert_allclose(
        ours.predict_on_batch(longer), stock.predict_on_batch(longer), atol=1e-4
    )


def test_stateful_keeps_the_masked_states():
    stock, ours = pair(batch=BATCH, stateful=True, return_sequences=True, dtype="float64")
    for seed, mask in enumerate([MASKS["right"], MASKS["empty rows"], None]):
        x, poisoned = padding_and_poison(random(BATCH, TIMESTEPS, INPUT_DIM, seed=seed), mask)
        assert_all_close(ours(poisoned, mask=mask), stock(x, mask=mask))
        assert_all_close([s.value for s in ours.states], [s.value for s in stock.states])
    assert len(ours.weights) == 3
    ours.reset_state()
    assert not any(state.numpy().any() for state in ours.states)
    with pytest.raises(ValueError, match="batch of 4, got a batch of 2"):
        ours(x[:2])


def test_initial_state_keeps_the_implicit_mask():
    """A documented difference: with initial_state, Keras drops the mask that the input carries."""
    sequences = keras.Input((None, INPUT_DIM), dtype="float64")
    h, c = keras.Input((UNITS,), dtype="float64"), keras.Input((UNITS,), dtype="float64")
    stock, ours = pair(return_sequences=True, dtype="float64")
    both = keras.layers.Bidirectional(ours, dtype="float64")
    masked = keras.layers.Masking(-9.0, dtype="float64")(sequences)
    model = keras.Model(
        [sequences, h, c],
        [
            ours(masked, initial_state=[h, c]),
            stock(masked, initial_state=[h, c]),
            both(masked, initial_state=[h, c, h, c]),
        ],
    )
    mask = MASKS["left"]
    x = np.where(mask[..., None], random(BATCH, TIMESTEPS, INPUT_DIM), -9.0)
    states = [*random(2, BATCH, UNITS, seed=1)]
    x, *states = (value.astype("float32") for value in (x, *states))  # as predict does
    ours_y, stock_y, both_y = model.predict([x, *states], verbose=0)
    assert_all_close(ours_y, stock(x, initial_state=states, mask=mask))
    assert np.abs(ours_y - stock_y)[0].max() > 0.01
    assert_all_close(both_y, both(x, initial_state=[*states, *states], mask=mask))
    assert not both_y[~mask].any()


@pytest.mark.parametrize(
    "settings",
    [
        dict(dropout=0.4),
        dict(dropout=1.0),
        dict(dropout=0.4, implementation=1),
        dict(recurrent_dropout=0.3),
        dict(dropout=0.4, recurrent_dropout=0.3, go_backwards=True),
        dict(dropout=1.0, recurrent_dropout=1.0),
    ],
    ids=str,
)
@pytest.mark.parametrize("backend", ["fused", "keras"])
def test_dropout_gives_the_training_run_of_keras(settings, backend):
    layers = pair(seed=7, backend=backend, dtype="float64", **settings)
    mask, x, y = MASKS["right"], random(BATCH, TIMESTEPS, INPUT_DIM), random(BATCH, UNITS)
    before, losses = forward_calls(), []
    for layer in layers:
        inputs = keras.Input((TIMESTEPS, INPUT_DIM), dtype="float64")
        masks = keras.Input((TIMESTEPS,), dtype="bool")
        model = keras.Model([inputs, masks], layer(inputs, mask=masks))
        model.compile(keras.optimizers.SGD(0.5), "mse")
        predicted = model.predict([x, mask], verbose=0)  # Keras draws dropout masks here too
        losses.append([model.train_on_batch([x, mask], y) for _ in range(4)] + [predicted.sum()])
    stock, ours = layers
    assert (forward_calls() > before) == (backend == "fused") == (ours.fused_reason is None)
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-6)
    assert_all_close(ours.get_weights(), stock.get_weights(), rtol=1e-6, atol=1e-9)
    np.testing.assert_array_equal(
        ours.cell.seed_generator.state.numpy(), stock.cell.seed_generator.state.numpy()
    )


@pytest.mark.parametrize("name", ["relu", "hard_sigmoid", "linear", "softsign", "sigmoid", "tanh"])
def test_activations(name):
    """The fused path's, in both places, with their gradients."""
    settings = dict(return_sequences=True, return_state=True, dtype="float64")
    mask = MASKS["holes"]
    x, poisoned = padding_and_poison(random(BATCH, TIMESTEPS, INPUT_DIM), mask)
    for place in ("activation", "recurrent_activation"):
        stock, ours = pair(**{place: name}, **settings)
        states = random(2, BATCH, UNITS, seed=1)
        assert ours.fused_reason is None
        expected, actual = run(stock, x, mask, states), run(ours, poisoned, mask, states)
        assert_all_close(actual[0], expected[0])
        assert_all_close(actual[1], expected[1], rtol=1e-11, atol=1e-11)


def test_an_activation_as_a_function():
    for activation in (None, tf.nn.relu, keras.ops.softsign, keras.activations.hard_sigmoid):
        stock, ours = pair(activation=activation, dtype="float64")
        x = random(BATCH, TIMESTEPS, INPUT_DIM)
        assert_all_close(ours(x), stock(x))


def test_dropout_with_implementation_1_trains_where_keras_raises():
    """A documented difference: Keras' way to cuDNN takes one dropout mask, not one per gate."""
    kwargs = dict(dropout=0.5, implementation=1, seed=1)
    x = random(BATCH, TIMESTEPS, INPUT_DIM)
    with pytest.raises(Exception, match="dimension|rank|shape|broadcast"):
        keras.layers.LSTM(UNITS, **kwargs)(x, training=True)
    assert LSTM(UNITS, **kwargs)(x, training=True).shape == (BATCH, UNITS)


def test_nan_in_padding_is_harmless_where_it_ruins_keras():
    """A documented difference: in Keras, NaN at masked steps reaches the weights' gradients."""
    stock, ours = pair(return_state=True, dtype="float64")
    _, x = padding_and_poison(random(BATCH, TIMESTEPS, INPUT_DIM), MASKS["right"])
    states = random(2, BATCH, UNITS)
    _, gradients = run(stock, x, MASKS["right"], states)
    assert np.isnan(gradients[3]).any()
    results, gradients = run(ours, x, MASKS["right"], states)
    assert all(np.isfinite(value).all() for value in [*results, *gradients])


@pytest.mark.parametrize("backend", ["fused", "keras"])
def test_zero_output_for_mask_returns_the_last_valid_output(backend):
    """A documented difference (keras#17596): Keras returns zeros if the last step is masked."""
    stock, ours = pair(zero_output_for_mask=True, dtype="float64", backend=backend)
    x, mask = random(1, 4, INPUT_DIM), np.array([[True, True, False, False]])
    assert not stock(x, mask=mask).numpy().any()
    assert_all_close(ours(x, mask=mask), stock(x[:, :2]))


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float16", "bfloat16"])
def test_half_precision(policy):
    kwargs = dict(return_sequences=True, return_state=True)
    # Keras cannot make the default orthogonal initial value in bfloat16.
    stock, ours = pair(dtype=policy, recurrent_initializer="zeros", **kwargs)
    exact, _ = pair(dtype="float64", **kwargs)
    exact.set_weights([w.numpy().astype("float64") for w in stock.weights])
    mask = MASKS["holes"]
    x, poisoned = padding_and_poison(random(BATCH, TIMESTEPS, INPUT_DIM), mask)
    before = forward_calls()
    results = ours(tf.constant(poisoned, "float32"), mask=mask)
    assert forward_calls() == before + 1
    expected, rounded = exact(x, mask=mask), stock(x, mask=mask)
    assert {y.dtype for y in results} == {tf.as_dtype(ours.compute_dtype)}
    epsilon = np.finfo("float32").eps * 2 ** (23 - (7 if "bfloat16" in policy else 10))
    for mine, theirs, y in zip(results, rounded, expected, strict=True):
        error = np.abs(np.asarray(mine, "float64") - y).max()
        # No worse than Keras, which rounds after every operation.
        assert error <= np.abs(np.asarray(theirs, "float64") - y).max() + epsilon / 2


def test_mask_forms():
    _, ours = pair(return_sequences=True, dtype="float64")
    x, mask = random(BATCH, TIMESTEPS, INPUT_DIM), MASKS["left"]
    expected = ours(x, mask=mask)
    for form in (mask[..., None], mask.astype("int32"), mask.astype("float32") * 0.5):
        assert_all_close(ours(x, mask=form), expected, rtol=0)
    assert_all_close(ours(x, mask=mask[:1]), ours(x, mask=np.repeat(mask[:1], BATCH, 0)), rtol=0)
    dynamic = tf.function(
        lambda x, mask: ours(x, mask=mask),
        input_signature=[tf.TensorSpec((None, None, INPUT_DIM), "float64"), tf.TensorSpec(None)],
    )
    assert_all_close(dynamic(x, mask.astype("float32")), expected, rtol=0)


@pytest.mark.parametrize("backend", ["fused", "keras"])
@pytest.mark.parametrize("batch, timesteps", [(3, 0), (0, 4), (0, 0)])
@pytest.mark.parametrize("return_sequences", [False, True])
def test_empty_batch_or_time(batch, timesteps, return_sequences, backend):
    """A documented difference: Keras raises."""
    _, ours = pair(return_sequences=return_sequences, return_state=True, backend=backend)
    x = np.zeros((batch, timesteps, INPUT_DIM), "float32")
    states = random(2, batch, UNITS).astype("float32")
    shape = (batch, timesteps, UNITS) if return_sequences else (batch, UNITS)
    for mask in (None, np.ones((batch, timesteps), bool)):
        outputs, h, c = ours(x, initial_state=[*states], mask=mask)
        assert outputs.shape == shape and not outputs.numpy().any()
        assert_all_close([h, c], [*states], rtol=0)
    assert_all_close(ours(x)[1:], [*np.zeros_like(states)], rtol=0)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_empty_batch_or_time_in_a_graph(dropout):
    _, ours = pair(return_sequences=True, dropout=dropout, seed=1)
    call = tf.function(
        lambda x: ours(x, training=True),
        input_signature=[tf.TensorSpec((None, None, INPUT_DIM), "float32")],
    )
    for batch, timesteps in ((3, 0), (0, 4), (2, 3)):
        assert call(tf.zeros((batch, timesteps, INPUT_DIM))).shape == (batch, timesteps, UNITS)


@pytest.mark.parametrize("backend", ["fused", "keras"])
@pytest.mark.parametrize("go_backwards", [False, True])
def test_ragged(go_backwards, backend):
    stock, ours = pair(
        return_sequences=True,
        return_state=True,
        go_backwards=go_backwards,
        dtype="float64",
        backend=backend,
    )
    rows = [random(length, INPUT_DIM, seed=length) for length in (3, 0, 5)]
    x = tf.RaggedTensor.from_row_lengths(np.concatenate(rows), [len(row) for row in rows])
    outputs, h, c = ours(x)
    assert isinstance(outputs, tf.RaggedTensor)
    for i in (0, 2):
        assert_all_close([outputs[i], h[i], c[i]], [y[0] for y in stock(rows[i][None])])
    assert outputs[1].shape[0] == 0 and not h[1].numpy().any()
    with pytest.raises(ValueError, match="mask: expected None for a RaggedTensor"):
        ours(x, mask=np.ones((3, 5), bool))


def test_time_distributed_over_static_time():
    stock, ours = pair(dtype="float64")
    x = random(2, 3, TIMESTEPS, INPUT_DIM)
    wrapped = [keras.layers.TimeDistributed(layer, dtype="float64") for layer in (stock, ours)]
    assert_all_close(wrapped[1](x), wrapped[0](x))


@pytest.mark.parametrize(
    "settings",
    [
        dict(use_bias=False),
        dict(unroll=True),
        dict(implementation=1),
        dict(unit_forget_bias=False, kernel_initializer="he_normal"),
        dict(recurrent_dropout=0.3, dropout=0.2),  # not training: drawn, not applied
    ],
    ids=str,
)
def test_settings_that_change_nothing_about_the_path(settings):
    stock, ours = pair(dtype="float64", return_sequences=True, return_state=True, **settings)
    mask = MASKS["holes"]
    x, poisoned = padding_and_poison(random(BATCH, TIMESTEPS, INPUT_DIM), mask)
    states = random(2, BATCH, UNITS, seed=1)
    before = forward_calls()
    (actual, gradients), (expected, right) = (
        run(ours, poisoned, mask, states),
        run(stock, x, mask, states),
    )
    assert forward_calls() == before + 1
    assert_all_close(actual, expected)
    assert_all_close(gradients, right)


@pytest.mark.parametrize("go_backwards", [False, True])
@pytest.mark.parametrize("return_sequences", [False, True])
def test_masks_of_the_results_are_those_of_keras(return_sequences, go_backwards):
    """The mask goes on with a sequence, unflipped; a last output and states have none."""
    mask = tf.constant(MASKS["right"])
    settings = dict(return_sequences=return_sequences, go_backwards=go_backwards)
    for return_state in (False, True):
        stock, ours = pair(return_state=return_state, **settings)
        assert ours.supports_masking == stock.supports_masking
        theirs, mine = (layer.compute_mask(None, mask) for layer in (stock, ours))
        if return_state:
            assert mine[1:] == theirs[1:] == [None, None]
            theirs, mine = theirs[0], mine[0]
        assert mine is theirs is (mask if return_sequences else None)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_dropout_in_mixed_precision_is_that_of_keras(policy):
    """The same masks; Keras rounds after every operation, ours once."""
    settings = dict(dropout=0.3, recurrent_dropout=0.3, seed=5, dtype=policy)
    stock, ours = pair(return_sequences=True, **settings)
    x = random(BATCH, TIMESTEPS, INPUT_DIM).astype("float32")
    mask = MASKS["right"]
    actual, expected = (np.float32(layer(x, mask=mask, training=True)) for layer in (ours, stock))
    assert ours.fused_reason is None
    epsilon = 2.0 ** (-7 if policy == "mixed_bfloat16" else -10)
    np.testing.assert_allclose(actual, expected, atol=4 * epsilon)
    assert np.abs(actual - np.float32(ours(x, mask=mask))).max() > 8 * epsilon


def test_dropout_where_the_width_is_unknown_until_run():
    ours = LSTM(2, dropout=0.5, seed=1)
    x = random(BATCH, TIMESTEPS, INPUT_DIM).astype("float32")
    expected = ours(x)
    traced = tf.function(ours, input_signature=[tf.TensorSpec([None, None, None])])
    assert_all_close(traced(x), expected, rtol=0)


def test_a_ragged_result_cannot_be_regularized():
    x = tf.RaggedTensor.from_row_lengths(random(5, INPUT_DIM).astype("float32"), [2, 3])
    assert LSTM(2, activity_regularizer="l2")(x).shape == (2, 2)
    with pytest.raises(ValueError, match="activity_regularizer: Keras cannot regularize a Ragged"):
        LSTM(2, activity_regularizer="l2", return_sequences=True)(x)
