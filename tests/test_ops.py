"""The TensorFlow op: eager, traced, dynamic, in tf.data, saved, from several threads; errors."""

import os
import subprocess
import sys
import textwrap
import threading

import keras
import numpy as np
import pytest
import tensorflow as tf
from problems import FLOAT32_ISA, make_problem, relative_error

import masked_lstm
from masked_lstm import core, ops, reference

P = make_problem(6, 9, 5, 7, "holes", "float32")
ARGUMENTS = tuple(map(tf.constant, (P.poisoned(), *P.weights())))
STATE = tuple(map(tf.constant, P.initial_state))


def value_and_gradients(inputs, kernel, recurrent_kernel, bias, h0, c0, **options):
    """Results, and the gradients of a loss with P's d_outputs, d_h and d_c upstream."""
    variables = (inputs, kernel, recurrent_kernel, bias, h0, c0)
    with tf.GradientTape() as tape:
        tape.watch(variables)
        results = masked_lstm.lstm(*variables[:4], initial_state=(h0, c0), **options)
        upstream = (P.d_outputs, P.d_h, P.d_c)
        loss = tf.add_n([tf.reduce_sum(a * b) for a, b in zip(results, upstream, strict=True)])
    return results, tape.gradient(loss, variables)


def test_dropped_results_leave_their_memory_to_the_next():
    """The next result stands where one stood that was dropped, never where one is held."""
    p = make_problem(4, 70, 5, 64, "holes", "float32")  # outputs of 70 KiB
    arguments = [tf.constant(a) for a in (p.poisoned(), *p.weights())]

    def outputs():
        return masked_lstm.lstm(*arguments, mask=tf.constant(p.mask))[0]

    def address(tensor):
        return np.asarray(memoryview(tensor)).ctypes.data  # no copy

    held = outputs()
    before = held.numpy()
    dropped = outputs()
    where = address(dropped)
    assert where != address(held)
    del dropped
    again = outputs()
    assert address(again) == where
    other = outputs()
    assert len({address(held), address(again), address(other)}) == 3
    for results in (held, again, other):
        np.testing.assert_array_equal(results, before)


@pytest.mark.parametrize("mode", ["eager", "graph", "dynamic"])
def test_results_and_gradients_are_the_cores(mode):
    """Bit by bit: the op adds nothing to the core, which is held to the specification elsewhere."""
    function = value_and_gradients
    if mode == "graph":
        function = tf.function(function)
    if mode == "dynamic":
        anything = tf.TensorSpec(None, tf.float32)
        mask_spec = tf.TensorSpec(None, tf.bool)
        inner = function
        function = tf.function(
            lambda x, w, r, b, h, c, mask: inner(x, w, r, b, h, c, mask=mask),
            input_signature=[anything] * 6 + [mask_spec],
        )
        results, gradients = function(*ARGUMENTS, *STATE, tf.constant(P.mask))
    else:
        results, gradients = function(*ARGUMENTS, *STATE, mask=P.mask)
    options = dict(mask=P.mask, initial_state=P.initial_state)
    expected = core.forward(P.inputs, *P.weights(), **options)
    for a, b in zip(results, expected[:3], strict=True):
        np.testing.assert_array_equal(a, b)
    upstream = (None, P.d_outputs, P.d_h, P.d_c)
    expected = core.backward(P.inputs, *P.weights(), *upstream, **options)
    for a, b in zip(gradients, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_factors_and_activations_are_the_cores():
    """Bit by bit, and recomputed too."""
    rng = np.random.default_rng(0)
    factors = dict(
        input_factors=rng.random((4, 6, 5), "f"), recurrent_factors=rng.random((4, 6, 7), "f")
    )
    options = dict(activation="softsign", recurrent_activation="hard_sigmoid", mask=P.mask)
    core_options = dict(initial_state=P.initial_state, **options, **factors)
    expected = core.forward(P.inputs, *P.weights(), **core_options)[:3]
    upstream = (None, P.d_outputs, P.d_h, P.d_c)
    expected += core.backward(P.inputs, *P.weights(), *upstream, **core_options)
    tensors = {name: tf.constant(value) for name, value in factors.items()}
    for recompute in (False, True):
        for function in (value_and_gradients, tf.function(value_and_gradients)):
            actual = function(*ARGUMENTS, *STATE, recompute=recompute, **options, **tensors)
            for a, b in zip(tf.nest.flatten(actual), expected, strict=True):
                np.testing.assert_array_equal(a, b)


def test_ragged_lstm():
    """Results and gradients bit by bit those of the core, dynamic shapes, second order, errors."""
    splits = [0, 4, 4, 9]
    x, arguments = P.inputs[0], ARGUMENTS[1:]
    state = tuple(s[:3] for s in STATE)

    def function(values, row_splits):
        with tf.GradientTape() as tape:
            tape.watch([values, *arguments])
            outputs, h, _ = masked_lstm.ragged_lstm(
                values, row_splits, *arguments, initial_state=state, go_backwards=True
            )
            loss = tf.reduce_sum(outputs * outputs) + tf.reduce_sum(h)
        return outputs, tape.gradient(loss, [values, *arguments])

    options = dict(row_splits=splits, initial_state=[s.numpy() for s in state], go_backwards=True)
    result = core.forward(x, *P.weights(), **options)
    ones = np.ones_like(result.h)
    expected = core.backward(x, *P.weights(), None, 2 * result.outputs, ones, **options)
    specs = [tf.TensorSpec([None, None]), tf.TensorSpec([None], tf.int32)]
    for traced in (function, tf.function(function, input_signature=specs)):
        outputs, gradients = traced(tf.constant(x), tf.constant(splits))
        np.testing.assert_array_equal(outputs, result.outputs)
        for a, b in zip(gradients, expected, strict=False):
            np.testing.assert_array_equal(a, b)
    for sentence, bad in {
        "values: expected shape (values, input_dim), got (6, 9, 5)": (P.inputs, splits),
        "row_splits: expected an integer dtype, got float32": (x, [0.0, 9.0]),
        "row_splits[1]: expected numbers that rise from 0 to values = 9, got 10": (x, [0, 10]),
        "row_splits: expected shape (batch + 1), got ()": (x, 9),
        "row_splits: expected shape (batch + 1), got (0,)": (x, np.zeros(0, int)),
    }.items():
        with pytest.raises((ValueError, TypeError, tf.errors.InvalidArgumentError)) as error:
            masked_lstm.ragged_lstm(*bad, *arguments)
        assert sentence in str(error.value)
    with pytest.raises(ValueError, match="expected shape .batch = 2, units = 7., got .3, 7."):
        masked_lstm.ragged_lstm(x, [0, 4, 9], *arguments, initial_state=state)
    with pytest.raises(ValueError, match="activation: expected one of tanh.* got .1."):
        masked_lstm.lstm(*ARGUMENTS, activation=[1])


def test_shapes_that_only_a_run_shows():
    """Second order with factors, all ranks unknown; a vector of factors is not taken for none."""
    problem = make_problem(3, 3, 2, 4, "holes")
    weights = tuple(map(tf.constant, problem.weights()))
    rng = np.random.default_rng(0)
    factors = [rng.random((4, 3, 2)), rng.random((4, 3, 4))]

    def penalty(x, mask, input_factors, recurrent_factors):
        options = dict(input_factors=input_factors, recurrent_factors=recurrent_factors)
        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as inner:
                inner.watch(x)
                outputs, _, _ = masked_lstm.lstm(x, *weights, mask=mask, **options)
                loss = tf.reduce_sum(tf.sin(outputs))
            result = tf.reduce_sum(inner.gradient(loss, x) ** 2)
        return outer.gradient(result, x)

    arguments = [tf.constant(a) for a in (problem.inputs, problem.mask, *factors)]
    anything = [tf.TensorSpec(None, a.dtype) for a in arguments]
    traced = tf.function(penalty, input_signature=anything)
    np.testing.assert_allclose(traced(*arguments), penalty(*arguments), rtol=1e-10, atol=1e-12)
    with pytest.raises(tf.errors.InvalidArgumentError):
        traced(*arguments[:2], tf.ones([7], tf.float64), arguments[3])
    with pytest.raises(ValueError, match="input_factors: expected shape .4, batch = 3, input_dim"):
        penalty(*arguments[:2], tf.ones([7], tf.float64), arguments[3])


@pytest.mark.parametrize("go_backwards", [False, True])
def test_second_order_of_ragged_lstm(go_backwards):
    problem = make_problem(3, 5, 2, 4, "right")
    splits = np.concatenate([[0], np.cumsum(problem.mask.sum(axis=1))])

    def penalty(lstm, values, **options):
        values = tf.constant(values)
        weights = tuple(map(tf.constant, problem.weights()))
        with tf.GradientTape() as outer:
            outer.watch(weights)
            with tf.GradientTape() as inner:
                inner.watch(values)
                outputs, _, _ = lstm(values, *weights, go_backwards=go_backwards, **options)
                loss = tf.reduce_sum(tf.sin(outputs))
            result = tf.reduce_sum(inner.gradient(loss, values) ** 2)
        return outer.gradient(result, weights)

    padded = penalty(masked_lstm.lstm, problem.inputs, mask=problem.mask, zero_output_for_mask=True)
    ragged = penalty(
        lambda values, *weights, **options: masked_lstm.ragged_lstm(
            values, splits, *weights, **options
        ),
        problem.inputs[problem.mask],
    )
    for a, b in zip(ragged, padded, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("traced", [False, True])
def test_recompute_changes_no_bit(traced):
    """And keeps nothing: the op's reserve is empty."""
    function = tf.function(value_and_gradients) if traced else value_and_gradients
    kept = function(*ARGUMENTS, *STATE, mask=P.mask)
    again = function(*ARGUMENTS, *STATE, mask=P.mask, recompute=True)
    for a, b in zip(tf.nest.flatten(kept), tf.nest.flatten(again), strict=True):
        np.testing.assert_array_equal(a, b)
    graph = tf.function(masked_lstm.lstm).get_concrete_function(*ARGUMENTS, recompute=True).graph
    (op,) = [op for op in graph.get_operations() if op.type == "MaskedLstm"]
    assert not op.get_attr("save_reserve")


def test_gradients_of_some_results_only():
    """Unused results send no gradient; a tape used twice gives the same twice."""
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(ARGUMENTS)
        _, h, _ = masked_lstm.lstm(*ARGUMENTS, mask=P.mask, return_sequences=False)
        loss = tf.reduce_sum(h * P.d_h)
    first, second = tape.gradient(loss, ARGUMENTS), tape.gradient(loss, ARGUMENTS)
    expected = reference.backward(P.inputs, *P.weights(), None, None, P.d_h, mask=P.mask)
    for a, b, right in zip(first, second, expected, strict=False):
        np.testing.assert_array_equal(a, b)
        assert relative_error(a, right) < 1e-5


def gradient_penalty(layer, inputs, mask):
    """Second order: gradient, with respect to the weights, of the size of the input's gradient."""
    with tf.GradientTape() as outer:
        with tf.GradientTape() as inner:
            inner.watch(inputs)
            loss = tf.reduce_sum(tf.sin(layer(inputs, mask=mask, training=True)))
        penalty = tf.reduce_sum(inner.gradient(loss, inputs) ** 2)
    return outer.gradient(penalty, layer.trainable_weights)


def forward_mode(layer, inputs, mask):
    with tf.autodiff.ForwardAccumulator(inputs, tf.cos(inputs)) as accumulator:
        outputs = layer(inputs, mask=mask, training=True)
    return [accumulator.jvp(outputs)]


def jacobian(layer, inputs, mask):
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        outputs = layer(inputs, mask=mask, training=True)
    return [tape.jacobian(outputs, inputs)]


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("derivative", [gradient_penalty, forward_mode, jacobian])
def test_higher_derivatives_are_those_of_keras(derivative, traced):
    problem = make_problem(3, 5, 2, 4, "holes")
    for options in (
        dict(return_sequences=True),
        dict(return_sequences=True, zero_output_for_mask=True, go_backwards=True),
        dict(activation="sigmoid", recurrent_activation="hard_sigmoid"),
        dict(dropout=0.3, recurrent_dropout=0.3, seed=1),
    ):
        ours = masked_lstm.LSTM(4, dtype="float64", **options)
        theirs = keras.layers.LSTM(4, dtype="float64", use_cudnn=False, **options)
        for layer in (ours, theirs):
            layer.build(problem.inputs.shape)
            layer.set_weights(problem.weights())
        arguments = (tf.constant(problem.inputs), tf.constant(problem.mask))
        function = tf.function(derivative) if traced else derivative
        expected = derivative(theirs, *arguments)  # traced, forward mode fails in Keras' loop
        for a, b in zip(function(ours, *arguments), expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


def test_static_shapes_are_inferred():
    @tf.function(input_signature=[tf.TensorSpec([None, None, 5]), tf.TensorSpec([None], tf.int32)])
    def trace(inputs, lengths):
        results = masked_lstm.lstm(inputs, *ARGUMENTS[1:], sequence_lengths=lengths)
        assert [r.shape.as_list() for r in results] == [[None, None, 7], [None, 7], [None, 7]]
        gradients = tf.gradients(results[0], [inputs])
        assert gradients[0].shape.as_list() == [None, None, 5]
        return results[1]

    assert trace(P.inputs, np.full(6, 9, np.int32)).shape == (6, 7)


def test_tf_data():
    def batches():
        for timesteps in (3, 9, 5):
            yield P.inputs[:, :timesteps]

    spec = tf.TensorSpec([None, None, 5])
    dataset = tf.data.Dataset.from_generator(batches, output_signature=spec)
    dataset = dataset.map(lambda x: masked_lstm.lstm(x, *ARGUMENTS[1:])[1], num_parallel_calls=2)
    for h, inputs in zip(dataset, batches(), strict=True):
        np.testing.assert_array_equal(h, core.forward(inputs, *P.weights()).h)


def test_saved_model_in_a_fresh_process(tmp_path):
    class Module(tf.Module):
        def __init__(self):
            super().__init__()
            self.kernel = tf.Variable(ARGUMENTS[1])

        @tf.function(input_signature=[tf.TensorSpec([None, None, 5])])
        def __call__(self, inputs):
            return masked_lstm.lstm(inputs, self.kernel, *ARGUMENTS[2:])[0]

    module = Module()
    tf.saved_model.save(module, str(tmp_path / "model"))
    np.save(tmp_path / "inputs.npy", P.inputs)
    code = f"""
        import numpy as np, tensorflow as tf
        from masked_lstm import LSTM
        model = tf.saved_model.load(r"{tmp_path / "model"}")
        np.save(r"{tmp_path / "outputs.npy"}", model(np.load(r"{tmp_path / "inputs.npy"}")))
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)
    np.testing.assert_array_equal(np.load(tmp_path / "outputs.npy"), module(P.inputs))


def test_many_threads_at_once():
    """More callers than cores, who share the op's threads: nobody waits forever, same bits."""
    problem = make_problem(16, 40, 16, 48, "right", "float32")
    arguments = tuple(map(tf.constant, (problem.inputs, *problem.weights())))
    mask, upstream = tf.constant(problem.mask), tf.constant(problem.d_outputs)
    expected = core.forward(problem.inputs, *problem.weights(), mask=problem.mask).outputs
    expected_gradients = core.backward(
        problem.inputs, *problem.weights(), None, problem.d_outputs, mask=problem.mask
    )

    @tf.function
    def function(arguments, mask, upstream):
        outputs = masked_lstm.lstm(*arguments, mask=mask)[0]
        return outputs, tf.gradients(outputs, list(arguments), upstream)

    function(arguments, mask, upstream)
    name, before = f"cpu-{FLOAT32_ISA}-float32-backward", masked_lstm.kernel_calls()
    wrong = []

    def call():
        for _ in range(20):
            outputs, gradients = function(arguments, mask, upstream)
            same = [np.array_equal(a, b) for a, b in zip(gradients, expected_gradients)]  # noqa: B905
            if not (np.array_equal(outputs, expected) and all(same)):
                wrong.append(threading.get_ident())

    threads = [threading.Thread(target=call) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert not any(thread.is_alive() for thread in threads)
    assert not wrong
    assert masked_lstm.kernel_calls()[name] == before[name] + 6 * 20


def test_changed_weights_are_seen():
    kernel = tf.Variable(ARGUMENTS[1])
    function = tf.function(
        lambda: masked_lstm.lstm(ARGUMENTS[0], kernel, *ARGUMENTS[2:], mask=P.mask)
    )
    before = function()[1]
    kernel.assign(2 * kernel)
    expected = core.forward(P.inputs, 2 * P.kernel, *P.weights()[1:], mask=P.mask).h
    np.testing.assert_array_equal(function()[1], expected)
    assert not np.array_equal(before, expected)


def test_kernel_calls_are_counted():
    name = f"cpu-{FLOAT32_ISA}-float32-"
    before = masked_lstm.kernel_calls()
    value_and_gradients(*ARGUMENTS, *STATE, mask=P.mask)
    after = masked_lstm.kernel_calls()
    assert after[name + "forward"] == before.get(name + "forward", 0) + 1
    assert after[name + "backward"] == before.get(name + "backward", 0) + 1


@pytest.mark.parametrize(
    "error,sentence,options",
    [
        (ValueError, "mask: expected shape (batch = 6, timesteps = 9), got (6, 8)",
         dict(mask=P.mask[:, 1:])),
        (TypeError, "mask: expected dtype bool, got float32", dict(mask=np.ones((6, 9), "f"))),
        (ValueError, "mask, sequence_lengths: expected at most one of them, got both",
         dict(mask=P.mask, sequence_lengths=[1] * 6)),
        (ValueError, "sequence_lengths: expected shape (batch = 6), got (0,)",
         dict(sequence_lengths=np.zeros(0, int))),
        (ValueError, "initial_state[1] (c): expected shape (batch = 6, units = 7), got (6, 6)",
         dict(initial_state=(P.d_h, P.d_h[:, 1:]))),
        (ValueError, "kernel: expected shape (input_dim = 5, 4*units = 28), got (4, 28)",
         dict(kernel=P.kernel[1:])),
        (TypeError, "kernel: expected dtype float32, as inputs, got float64",
         dict(kernel=P.kernel.astype(float))),
        (ValueError, "inputs: expected shape (batch, timesteps, input_dim), got (6, 9)",
         dict(inputs=P.inputs[:, :, 0])),
        (TypeError, "inputs: expected dtype float32, float64, float16 or bfloat16, got int32",
         dict(inputs=np.ones((6, 9, 5), np.int32))),
    ],
)  # fmt: skip
def test_bad_arguments(error, sentence, options):
    names = ("inputs", "kernel", "recurrent_kernel", "bias")
    arguments = {**dict(zip(names, (P.inputs, *P.weights()), strict=True)), **options}
    with pytest.raises(error) as raised:
        masked_lstm.lstm(**arguments)
    assert str(raised.value) == sentence
    # Unknown shapes: the op itself says it, before it computes.
    if error is ValueError and "both" not in sentence:
        tensors = {
            key: tuple(map(tf.constant, value)) if isinstance(value, tuple) else tf.constant(value)
            for key, value in arguments.items()
        }

        def spec(tensor):
            return tf.TensorSpec(None, tensor.dtype)

        function = tf.function(
            lambda values: masked_lstm.lstm(**values),
            input_signature=[tf.nest.map_structure(spec, tensors)],
        )
        name = sentence.split(":")[0]
        with pytest.raises(tf.errors.InvalidArgumentError) as raised:
            function(tensors)
        assert f"{name}: expected shape (" in str(raised.value)


def test_bad_lengths_are_refused_before_anything_is_computed():
    before = masked_lstm.kernel_calls()
    with pytest.raises(tf.errors.InvalidArgumentError) as raised:
        masked_lstm.lstm(*ARGUMENTS, sequence_lengths=[0, 1, 2, 3, 4, 10])
    sentence = "sequence_lengths[5]: expected a length from 0 to timesteps = 9, got 10"
    assert sentence in str(raised.value)
    assert masked_lstm.kernel_calls() == before


def test_a_scalar_of_unknown_rank_is_no_length():
    function = tf.function(
        lambda x, lengths: masked_lstm.lstm(x, *ARGUMENTS[1:], sequence_lengths=lengths),
        input_signature=[tf.TensorSpec(None), tf.TensorSpec(None, tf.int32)],
    )
    with pytest.raises(tf.errors.InvalidArgumentError):
        function(P.inputs, 3)


def test_another_tensorflow_is_refused(monkeypatch):
    monkeypatch.setattr(ops, "_ops", None)
    monkeypatch.setattr("masked_lstm._build_info.TENSORFLOW_VERSION", "2.1.0")
    with pytest.raises(ImportError, match="built for TensorFlow 2.1.0 and cannot be loaded"):
        ops.load()


def test_empty_batch_and_time():
    for inputs in (P.inputs[:0], P.inputs[:, :0]):
        tensors = (tf.constant(inputs), *ARGUMENTS[1:])
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            outputs, h, c = masked_lstm.lstm(*tensors)
            loss = tf.reduce_sum(outputs) + tf.reduce_sum(h)
        assert outputs.shape == (*inputs.shape[:2], 7) and not np.any(h) and not np.any(c)
        for gradient, tensor in zip(tape.gradient(loss, tensors), tensors, strict=True):
            assert gradient.shape == tensor.shape and not np.any(gradient)


@pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2,
    reason="threads are kept apart on Linux, with two CPUs or more",
)
@pytest.mark.parametrize("intra_op", [1, 3])
def test_as_many_threads_as_the_intra_op_pool(intra_op):
    """... less one, the caller, whose CPU they keep off."""
    code = f"""
        import os
        import numpy as np
        import tensorflow as tf
        import masked_lstm
        tf.config.threading.set_intra_op_parallelism_threads({intra_op})
        weights = [np.full(shape, 0.1, "f") for shape in ((64, 256), (64, 256))]
        masked_lstm.lstm(np.ones((32, 50, 64), "f"), *weights)
        allowed = os.sched_getaffinity(0)
        masks = [os.sched_getaffinity(int(thread)) for thread in os.listdir("/proc/self/task")]
        ours = [mask for mask in masks if mask != allowed]
        assert len(ours) == {intra_op} - 1, masks
        assert all(mask < allowed and len(mask) == len(allowed) - 1 for mask in ours), masks
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)
