"""Our float32 error against that of Keras' own float32 loop, both measured from the float64 oracle.

The oracle is Keras' loop too, in float64: here the specification is tied to Keras.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf
from problems import make_problem

import masked_lstm
from masked_lstm import reference

NAMES = ("outputs", "h", "c", "dx", "dkernel", "drecurrent", "dbias", "dh0", "dc0")


def keras_results(problem, dtype, go_backwards, zero_output_for_mask):
    """Outputs, states and all gradients of keras.layers.LSTM's generic loop."""
    layer = keras.layers.LSTM(
        problem.recurrent_kernel.shape[0],
        return_sequences=True,
        return_state=True,
        go_backwards=go_backwards,
        zero_output_for_mask=zero_output_for_mask,
        use_cudnn=False,
        dtype=dtype,
    )
    layer.build(problem.inputs.shape)
    layer.set_weights([w.astype(dtype) for w in problem.weights()])
    inputs = tf.constant(problem.inputs.astype(dtype))
    states = [tf.constant(state.astype(dtype)) for state in problem.initial_state]
    mask = None if problem.mask is None else tf.constant(problem.mask)
    with tf.GradientTape() as tape:
        tape.watch([inputs, states])
        results = layer(inputs, initial_state=states, mask=mask)
        loss = upstream_loss(results, problem, dtype)
    variables = [inputs, *[w.value for w in layer.trainable_weights], *states]
    return [np.asarray(r, np.float64) for r in [*results, *tape.gradient(loss, variables)]]


def our_results(problem, go_backwards, zero_output_for_mask):
    arguments = [tf.constant(a) for a in (problem.poisoned(), *problem.weights())]
    states = [tf.constant(state) for state in problem.initial_state]
    with tf.GradientTape() as tape:
        tape.watch([arguments, states])
        results = masked_lstm.lstm(
            *arguments,
            mask=problem.mask,
            initial_state=states,
            go_backwards=go_backwards,
            zero_output_for_mask=zero_output_for_mask,
        )
        loss = upstream_loss(results, problem, "float32")
    gradients = tape.gradient(loss, [*arguments, *states])
    return [np.asarray(r, np.float64) for r in [*results, *gradients]]


def upstream_loss(results, problem, dtype):
    upstream = (problem.d_outputs, problem.d_h, problem.d_c)
    products = [r * u.astype(dtype) for r, u in zip(results, upstream, strict=True)]
    return tf.add_n([tf.reduce_sum(product) for product in products])


@pytest.mark.parametrize("options", [(False, False), (True, True)])
@pytest.mark.parametrize(
    "shape,mask",
    [
        ((8, 30, 12, 1), "right"),
        ((8, 30, 12, 33), "right"),
        ((8, 30, 7, 64), "left"),
        ((8, 30, 40, 20), "holes"),
        ((3, 6, 50, 300), "full"),
        ((2, 3, 10, 1000), "none"),
        ((4, 5, 3, 2), "empty"),
    ],
)
def test_as_close_to_the_oracle_as_keras(shape, mask, options):
    problem = make_problem(*shape, mask, "float32")
    oracle = keras_results(problem, "float64", *options)
    theirs = keras_results(problem, "float32", *options)
    ours = our_results(problem, *options)
    for name, right, their, our in zip(NAMES, oracle, theirs, ours, strict=True):
        size = max(1.0, np.max(np.abs(right)))
        # A few eps: where Keras happens to be exact (a state handed through, say).
        limit = 4 * np.max(np.abs(their - right)) + 4 * np.finfo(np.float32).eps * size
        assert np.max(np.abs(our - right)) <= limit, name


@pytest.mark.parametrize("mask", ["none", "right", "left", "holes", "empty"])
def test_the_specification_is_keras_in_float64(mask):
    problem = make_problem(5, 8, 4, 6, mask, "float64")
    for go_backwards in (False, True):
        for zero_output_for_mask in (False, True):
            options = dict(
                mask=problem.mask,
                initial_state=problem.initial_state,
                go_backwards=go_backwards,
                zero_output_for_mask=zero_output_for_mask,
            )
            arguments = (problem.inputs, *problem.weights())
            upstream = (None, problem.d_outputs, problem.d_h, problem.d_c)
            ours = [
                *reference.forward(*arguments, **options)[:3],
                *reference.backward(*arguments, *upstream, **options),
            ]
            oracle = keras_results(problem, "float64", go_backwards, zero_output_for_mask)
            for name, a, b in zip(NAMES, ours, oracle, strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12, err_msg=name)
