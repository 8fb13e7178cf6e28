"""What needs a process of its own: `python xla_process.py THREADS FOLDER` (tests/test_xla.py).

With one thread: a jitted function from a SavedModel. With two: the library is loaded after XLA has
started and after a jit without it has failed; autoclustering. With both: six callers at once.
"""

import pathlib
import sys
import threading

import numpy as np
import tensorflow as tf
from problems import make_problem

THREADS, FOLDER = int(sys.argv[1]), pathlib.Path(sys.argv[2])
tf.config.threading.set_intra_op_parallelism_threads(THREADS)

P = make_problem(16, 40, 16, 48, "right", "float32")
ARGUMENTS = tuple(map(tf.constant, (P.inputs, *P.weights())))
MASK, UPSTREAM = tf.constant(P.mask), tf.constant(P.d_outputs)


def assert_same(actual, expected):
    """Bit by bit."""
    for a, b in zip(tf.nest.flatten(actual), tf.nest.flatten(expected), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        np.testing.assert_array_equal(a, b)  # shows where, but takes -0 for 0
        assert (a.dtype, a.tobytes()) == (b.dtype, b.tobytes())


def saved_model():
    from masked_lstm import LSTM  # noqa: F401, the one import that a model needs

    model = tf.saved_model.load(str(FOLDER / "model"))
    expected = np.load(FOLDER / "expected.npz")
    assert_same(model(expected["inputs"]), expected["outputs"])


def loaded_late():
    from masked_lstm import ops

    assert tf.function(lambda x: x + 1, jit_compile=True)(1) == 2  # XLA has started
    raw = tf.load_op_library(str(ops.library_path()))
    nothing = tf.zeros([0])

    @tf.function(jit_compile=True)
    def function(x, *weights):
        state = tf.zeros([16, 48])
        inputs = (x, *weights, state, state, MASK, nothing, nothing)
        return raw.masked_lstm(*inputs, save_reserve=False)[0]

    try:
        function(*ARGUMENTS)
        raise AssertionError("XLA has compiled what it has no kernel for")
    except tf.errors.InvalidArgumentError as error:
        assert "MaskedLstm" in str(error)
    ops.load()
    assert ops.no_xla_reason() is None
    assert_same(function(*ARGUMENTS), ops.lstm(*ARGUMENTS, mask=MASK)[0])


def autoclustering():
    from masked_lstm import lstm, ops

    def function(x, kernel):
        with tf.GradientTape() as tape:
            tape.watch(kernel)
            outputs = lstm(x, kernel, *ARGUMENTS[2:], mask=MASK)[0]
            loss = tf.reduce_sum(outputs * UPSTREAM)
        return outputs, tape.gradient(loss, kernel)

    inference = tf.function(lambda x: lstm(x, *ARGUMENTS[1:], mask=MASK)[0])
    before = sum(ops.xla_kernel_calls().values())
    outputs = inference(ARGUMENTS[0])
    assert sum(ops.xla_kernel_calls().values()) == before + 1
    graph = inference.get_concrete_function(ARGUMENTS[0]).graph
    (forward,) = (op for op in graph.get_operations() if op.type == "MaskedLstm")
    assert not forward.get_attr("save_reserve")  # nobody has asked for a gradient
    with tf.GradientTape() as tape:
        tape.watch(ARGUMENTS[0])
        assert_same(inference(ARGUMENTS[0]), outputs)
    assert forward.get_attr("save_reserve")
    expected = function(*ARGUMENTS[:2])
    before = sum(ops.xla_kernel_calls().values())
    assert_same(tf.function(function)(*ARGUMENTS[:2]), expected)
    assert sum(ops.xla_kernel_calls().values()) == before + 2


def six_callers():
    """Six programs of several calls each, on one pool of threads: no hang, the same bits."""
    from masked_lstm import core, lstm

    variants = [
        dict(go_backwards=backwards, zero_output_for_mask=zeros)
        for backwards in (False, True)
        for zeros in (False, True)
    ]
    expected = []
    for options in variants:
        options |= dict(mask=P.mask)
        outputs = core.forward(P.inputs, *P.weights(), **options).outputs
        gradients = core.backward(P.inputs, *P.weights(), None, P.d_outputs, **options)
        expected += [outputs, *gradients[:4]]

    @tf.function(jit_compile=True)
    def function(arguments):
        results = []
        for options in variants:
            outputs = lstm(*arguments, **options)[0]
            results += [outputs, *tf.gradients(outputs, list(arguments), UPSTREAM)]
        return results

    function(ARGUMENTS)
    wrong = []

    def call():
        for _ in range(10):
            results = function(ARGUMENTS)
            if not all(np.array_equal(a, b) for a, b in zip(results, expected, strict=True)):
                wrong.append(threading.get_ident())

    threads = [threading.Thread(target=call, daemon=True) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert not any(thread.is_alive() for thread in threads), "a call hangs"
    assert not wrong


if THREADS == 1:
    saved_model()
else:
    loaded_late()
    autoclustering()
six_callers()
