"""What XLA compiles for a GPU, run on the CPU: `python xla_cuda_process.py LIBRARY`
(tests/test_cuda_bindings.py).

LIBRARY stands in the place of the XLA library: its programs for the CPU call the CUDA handlers,
over the executor of tests/cuda_host. It has the GPU's op too, under the label "executor".
"""

import ctypes
import os
import pathlib
import re
import sys

import keras
import numpy as np
import tensorflow as tf
from problems import make_problem, relative_error

import masked_lstm
from masked_lstm import ops

LIBRARY = pathlib.Path(sys.argv[1])
P = make_problem(9, 5, 6, 19, "holes", "float32")
RNG = np.random.default_rng(0)
FACTORS = dict(input_factors=RNG.random((4, 9, 6)), recurrent_factors=RNG.random((4, 9, 19)))
LENGTHS = np.array([5, 0, 3, 1, 2, 4, 5, 5, 1], np.int32)


def arguments(dtype, x=None):
    x = P.poisoned() if x is None else x
    return [tf.cast(a, dtype) for a in (x, *P.weights(), *P.initial_state)]


def value_and_gradients(inputs, kernel, recurrent_kernel, bias, h0, c0, **options):
    variables = (inputs, kernel, recurrent_kernel, bias, h0, c0)
    with tf.GradientTape() as tape:
        tape.watch(variables)
        results = masked_lstm.lstm(*variables[:4], initial_state=(h0, c0), **options)
    upstream = [tf.cast(d, inputs.dtype) for d in (P.d_outputs, P.d_h, P.d_c)]
    if not options.get("return_sequences", True):
        upstream[0] = upstream[0][:, 0]
    return *results, *tape.gradient(results, variables, output_gradients=upstream)


def inside(function, *given, **options):
    """Compiled by XLA, with the CUDA handlers; and that it was they."""
    before = calls("cuda-")
    results = tf.function(function, jit_compile=True)(*given, **options)
    assert calls("cuda-") > before
    return results


def outside(function, *given, **options):
    """By the GPU's op, outside of XLA."""
    labels = dict.fromkeys(("MaskedLstm", "MaskedLstmGrad"), "executor")

    @tf.function(autograph=False)
    def labelled():
        with tf.compat.v1.get_default_graph()._kernel_label_map(labels):
            return function(*given, **options)

    return labelled()


def calls(kernel):
    return sum(n for name, n in masked_lstm.kernel_calls().items() if name.startswith(kernel))


def assert_same(actual, expected):
    """Bit by bit."""
    for a, b in zip(tf.nest.flatten(actual), tf.nest.flatten(expected), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        np.testing.assert_array_equal(a, b)  # shows where, but takes -0 for 0
        assert (a.dtype, a.tobytes()) == (b.dtype, b.tobytes())


def refused(error, words, function, *given, **options):
    try:
        tf.function(function, jit_compile=True)(*given, **options)
    except error as raised:
        assert re.search(words, raised.message), raised.message
    else:
        raise AssertionError(f"not refused: {words}")


def bits_of_the_gpu_op():
    for dtype, options in (
        ("float32", dict(mask=P.mask)),
        ("float32", dict(mask=P.mask, go_backwards=True, recompute=True, **FACTORS)),
        ("float32", dict(mask=P.mask, zero_output_for_mask=True, activation="softsign")),
        ("float16", dict(sequence_lengths=LENGTHS, return_sequences=False)),
    ):
        options = {
            name: value.astype(dtype) if name in FACTORS else value
            for name, value in options.items()
        }
        given = arguments(dtype, P.inputs if "sequence_lengths" in options else None)
        results = inside(value_and_gradients, *given, **options)
        assert_same(results, outside(value_and_gradients, *given, **options))


def other_dtypes_and_devices():
    """Against the CPU's op; on devices that run one block, or three, at once."""
    for device, dtype, limit in (
        (0, "float64", 1e-12),
        (1, "bfloat16", 2e-2),
        (2, "float32", 1e-5),
    ):
        executor.executor_device(device)
        given = arguments(dtype)
        expected = value_and_gradients(*given, mask=P.mask)  # eagerly: the CPU's kernels
        results = inside(value_and_gradients, *given, mask=P.mask)
        for a, b in zip(results, expected, strict=True):
            assert relative_error(np.float64(a), np.float64(b)) < limit, dtype
    executor.executor_device(0)


def a_row_alone():
    given = arguments("float32")
    together = inside(value_and_gradients, *given, mask=P.mask)

    def row_4(x, kernel, recurrent_kernel, bias, h0, c0):
        states = h0[4:5], c0[4:5]
        weights = (kernel, recurrent_kernel, bias)
        return masked_lstm.lstm(x[4:5], *weights, initial_state=states, mask=P.mask[4:5])

    assert_same(inside(row_4, *given), [result[4:5] for result in together[:3]])


def ragged(splits, values):
    _, *weights = arguments("float32")[:4]
    with tf.GradientTape() as tape:
        tape.watch(values)
        outputs, h, _ = masked_lstm.ragged_lstm(values, splits, *weights, go_backwards=True)
        loss = tf.reduce_sum(outputs * outputs) + tf.reduce_sum(h)
    return outputs, h, tape.gradient(loss, values)


def ragged_batches_and_lengths():
    """Never read by the host: clamped on the device, refused only where that is asked for."""
    values = tf.constant(P.inputs.reshape(45, 6)[:11])
    splits = tf.constant([0, 4, 4, 9, 11], tf.int64)
    expected = outside(ragged, splits, values)
    assert_same(inside(ragged, splits, values), expected)
    x, *weights = arguments("float32", P.inputs)[:4]

    def by_lengths(lengths):
        return masked_lstm.lstm(x, *weights, sequence_lengths=lengths)

    wrong = tf.constant(np.where(LENGTHS == 0, -7, np.where(LENGTHS == 5, 99, LENGTHS)))
    assert_same(inside(by_lengths, wrong), outside(by_lengths, LENGTHS))
    falling = tf.constant([-3, 4, 2, 9, 20], tf.int64)
    assert_same(inside(ragged, falling, values), expected)
    os.environ["MASKED_LSTM_CHECK_LENGTHS"] = "1"
    inside(by_lengths, tf.constant(LENGTHS))
    bad = tf.errors.InvalidArgumentError
    refused(bad, r"sequence_lengths: expected values in \[0, timesteps = 5\]", by_lengths, wrong)
    refused(bad, "row_splits: expected them to rise from 0", ragged, falling, values)

    def some_steps(keep, lengths):
        few = tf.boolean_mask(x, keep, axis=1)
        return masked_lstm.lstm(few, *weights, sequence_lengths=lengths)

    keep = tf.constant(np.arange(5) != 3)  # 4 steps, of which XLA knows that they are 5 at most
    compiled = tf.function(some_steps, jit_compile=True)
    fitting = np.minimum(LENGTHS, 4)
    assert_same(compiled(keep, fitting), outside(some_steps, keep, fitting))
    for length in (5, 6, 99):
        too_long = np.where(LENGTHS == 3, np.int32(length), fitting)
        refused(bad, r"sequence_lengths: expected values in \[0, ", some_steps, keep, too_long)
    del os.environ["MASKED_LSTM_CHECK_LENGTHS"]
    try:  # by this program still
        compiled(keep, too_long)
        raise AssertionError("not refused: a program that was compiled to check")
    except bad:
        pass
    assert_same(inside(some_steps, keep, too_long), outside(some_steps, keep, too_long))


def sizes_that_only_a_run_shows():
    x, *weights = arguments("float32", P.inputs)[:4]
    lengths = tf.constant(LENGTHS + 3)  # some above any number of timesteps
    for axis in (0, 1):
        keep = tf.constant(np.arange((9, 5)[axis]) % 3 != 1)
        for masked in (True, False):

            def function(keep, axis=axis, masked=masked):
                some = {"mask": P.mask} if masked else {"sequence_lengths": lengths}
                if masked or axis == 0:
                    some = {n: tf.boolean_mask(v, keep, axis=axis) for n, v in some.items()}
                with tf.GradientTape() as tape:
                    tape.watch(weights)
                    few = tf.boolean_mask(x, keep, axis=axis)
                    outputs, h, _ = masked_lstm.lstm(few, *weights, **some)
                    loss = tf.reduce_sum(outputs * outputs) + tf.reduce_sum(h)
                return outputs, h, tape.gradient(loss, weights)

            for a, b in zip(
                tf.nest.flatten(inside(function, keep)),
                tf.nest.flatten(outside(function, keep)),
                strict=True,
            ):  # the sum of the loss is XLA's own
                np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def such_sizes_and_a_tape_outside():
    """The gradient is another program, compiled for the size itself: right, or refused."""
    x, *weights = arguments("float32")[:4]
    keep = tf.constant(np.arange(9) % 3 != 1)

    def function(keep, *weights, recompute=False):
        few, mask = (tf.boolean_mask(value, keep) for value in (x, P.mask))
        return masked_lstm.lstm(few, *weights, mask=mask, recompute=recompute)[0]

    def gradients(function):
        with tf.GradientTape() as tape:
            tape.watch(weights)
            outputs = function(keep, *weights)
            loss = tf.reduce_sum(outputs * outputs)
        return tape.gradient(loss, weights)

    def assert_right(results):
        for a, b in zip(results, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)

    expected = outside(gradients, function)

    def without_reserve(keep, *weights):
        return function(keep, *weights, recompute=True)

    assert_right(gradients(tf.function(without_reserve, jit_compile=True)))
    before = calls("cuda-")
    try:
        results = gradients(tf.function(function, jit_compile=True))
    except tf.errors.InvalidArgumentError as error:
        # 6 rows, and the 9 that there are at most, of 5 steps and 19 units.
        needed, got = (rows * 5 * 5 * 19 * 4 for rows in (6, 9))
        words = "reserve: expected {} bytes as MaskedLstm gave for the same inputs, got {}"
        assert words.format(needed, got) in error.message, error.message
        assert calls("cuda-") == before + 1
    else:
        assert calls("cuda-") == before + 2
        assert_right(results)


def control_flow():
    """Gradients through a branch that may not be taken, and through a loop that keeps reserves."""
    x, *weights = arguments("float32")[:4]
    states = tuple(arguments("float32")[4:])

    def step(x, h, c):
        return masked_lstm.lstm(x, *weights, mask=P.mask, initial_state=(h, c))[1:]

    def function(x, flag):
        with tf.GradientTape() as tape:
            tape.watch(x)
            h, c = tf.cond(flag, lambda: step(x, *states), lambda: states)
            h, _ = tf.while_loop(
                lambda *_: True, lambda h, c: step(x, h, c), (h, c), maximum_iterations=2
            )
        return h, tape.gradient(h, x, output_gradients=tf.constant(P.d_h))

    for flag in (True, False):
        flag = tf.constant(flag)
        for a, b in zip(inside(function, x, flag), tf.function(function)(x, flag), strict=True):
            assert relative_error(a, b) < 1e-5  # of the CPU's kernels


def faults():
    """What CUDA says reaches the caller; the next call is right again."""
    x, *weights = arguments("float32", P.inputs)[:4]

    def function(x):
        return masked_lstm.lstm(x, *weights)

    expected = inside(function, x)
    for code, error, words in (
        (2, tf.errors.ResourceExhaustedError, "CUDA: out of memory"),
        (209, tf.errors.UnimplementedError, "CUDA: no kernel image .* were compiled for unknown"),
        (700, tf.errors.InternalError, "CUDA: an illegal memory access was encountered"),
    ):
        executor.executor_fails(code)
        refused(error, words, function, x)
        executor.executor_fails(0)
    assert_same(inside(function, x), expected)
    os.environ["MASKED_LSTM_CUDA_KERNEL"] = "hoper"
    refused(tf.errors.InvalidArgumentError, "groups, hopper, .* got 'hoper'", function, x)
    del os.environ["MASKED_LSTM_CUDA_KERNEL"]


def training():
    """Keras' own loop of the same model, both compiled by XLA."""
    from masked_lstm import LSTM  # not earlier: this loads the libraries

    x, y = RNG.integers(0, 20, (20, 7)), RNG.standard_normal((20, 1))
    losses = []
    for lstm in (LSTM, keras.layers.LSTM):
        keras.utils.set_random_seed(1)
        model = keras.Sequential(
            [
                keras.layers.Embedding(20, 3, mask_zero=True),
                keras.layers.Bidirectional(lstm(5, dropout=0.2, recurrent_dropout=0.2)),
                keras.layers.Dense(1),
            ]
        )
        model.compile("adam", "mse", jit_compile=True)
        before = calls("cuda-groups-float32-backward")
        losses.append(model.fit(x, y, epochs=1, batch_size=10, verbose=0).history["loss"])
        # Two batches, two layers.
        count = calls("cuda-groups-float32-backward") - before
        assert count == (4 if lstm is LSTM else 0), count
    np.testing.assert_allclose(*losses, rtol=1e-5)


ops._XLA_LIBRARY = LIBRARY
# The first call of all, in a function that AutoGraph rewrites.
tf.function(masked_lstm.lstm, jit_compile=True)(*arguments("float32")[:4])
assert calls("cuda-") == 1 and ops.no_xla_reason() is None and ops.no_xla_reason(gpu=True) is None
executor = ctypes.CDLL(str(LIBRARY))
bits_of_the_gpu_op()
other_dtypes_and_devices()
a_row_alone()
ragged_batches_and_lengths()
sizes_that_only_a_run_shows()
such_sizes_and_a_tape_outside()
control_flow()
faults()
training()
