"""Several replicas and several workers: the same training as one process with the joint batch."""

import json
import os
import socket
import subprocess
import sys
import textwrap

import numpy as np

MODEL = """
    import keras, numpy as np, tensorflow as tf
    from masked_lstm import LSTM, kernel_calls

    def make_data():
        rng = np.random.default_rng(0)
        lengths = rng.integers(1, 9, (32, 1))
        tokens = np.where(np.arange(8) < lengths, rng.integers(1, 20, (32, 8)), 0)
        return tokens, rng.normal(size=(32, 2)).astype("float32")

    def make_model(lstm=LSTM):
        keras.utils.set_random_seed(1)
        return keras.Sequential([
            keras.Input((8,), dtype="int32"),
            keras.layers.Embedding(20, 6, mask_zero=True),
            keras.layers.Bidirectional(lstm(5, return_sequences=True)),
            lstm(4),
            keras.layers.Dense(2),
        ])

    def fit(model):
        x, y = make_data()
        model.compile(keras.optimizers.SGD(0.3), "mse")
        data = tf.data.Dataset.from_tensor_slices((x, y)).batch(16)
        return model.fit(data, epochs=3, verbose=0).history["loss"]
"""


def start(code, **environment):
    """The code after MODEL, in a process of its own; it writes its result as JSON to stdout."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(MODEL) + textwrap.dedent(code)],
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def result(process, timeout=300):
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        process.kill()
    assert process.returncode == 0, err[-4000:]
    return json.loads(out.strip().splitlines()[-1])


ALONE = """
    import json
    model = make_model()
    losses = fit(model)
    print(json.dumps([losses, [w.tolist() for w in model.get_weights()]]))
"""

MIRRORED = """
    import json
    cpu, = tf.config.list_physical_devices("CPU")
    two = [tf.config.LogicalDeviceConfiguration()] * 2
    tf.config.set_logical_device_configuration(cpu, two)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        model = make_model()
        losses = fit(model)
    assert strategy.num_replicas_in_sync == 2
    assert sum(kernel_calls().values()) >= 2 * 2 * 3 * 3, kernel_calls()
    print(json.dumps([losses, [w.tolist() for w in model.get_weights()]]))
"""

WORKER = """
    import json, os
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    index = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
    x, y = make_data()
    with strategy.scope():
        model = make_model()
        optimizer = keras.optimizers.SGD(0.3)
        optimizer.build(model.trainable_variables)

    @tf.function
    def step(x, y):
        def replica(x, y):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum((model(x, training=True) - y) ** 2) / (16 * 2)
            gradients = tape.gradient(loss, model.trainable_variables)
            gradients = [tf.convert_to_tensor(g) for g in gradients]  # the embedding's is sparse
            context = tf.distribute.get_replica_context()
            gradients = context.all_reduce(tf.distribute.ReduceOp.SUM, gradients)
            for variable, gradient in zip(model.trainable_variables, gradients):
                variable.value.assign_sub(0.3 * gradient)
            return loss
        losses = strategy.run(replica, (x, y))
        return strategy.reduce(tf.distribute.ReduceOp.SUM, losses, axis=None)

    history = []
    for epoch in range(3):
        losses = []
        for begin in (0, 16):  # each worker takes its half of the joint batch
            mine = slice(begin + 8 * index, begin + 8 * index + 8)
            losses.append(float(step(tf.constant(x[mine]), tf.constant(y[mine]))))
        history.append(sum(losses) / 2)
    assert sum(kernel_calls().values()) >= 2 * 3 * 2 * 3, kernel_calls()
    print(json.dumps([history, [w.tolist() for w in model.get_weights()]]))
"""

KERAS_FIT = """
    import json
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    answers = []
    for lstm in (keras.layers.LSTM, LSTM):
        try:
            with strategy.scope():
                fit(make_model(lstm))
            answers.append("")
        except Exception as error:
            answers.append(type(error).__name__)
    print(json.dumps(answers))
"""


def assert_same(actual, expected):
    # float32, sums over the batch in another order, 6 steps of SGD
    np.testing.assert_allclose(actual[0], expected[0], rtol=1e-4)
    for a, b in zip(actual[1], expected[1], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


def two_workers(code):
    ports = []
    sockets = [socket.socket() for _ in range(2)]
    for one in sockets:
        one.bind(("localhost", 0))
        ports.append(one.getsockname()[1])
    for one in sockets:
        one.close()
    cluster = {"worker": [f"localhost:{port}" for port in ports]}
    config = [
        json.dumps({"cluster": cluster, "task": {"type": "worker", "index": i}}) for i in (0, 1)
    ]
    processes = [start(code, TF_CONFIG=each) for each in config]
    return [result(process) for process in processes]


def test_mirrored_strategy_on_two_devices():
    assert_same(result(start(MIRRORED)), result(start(ALONE)))


def test_two_workers_in_a_custom_loop():
    """strategy.run: Keras 3.15.1's own fit cannot, as the next test shows."""
    expected = result(start(ALONE))
    first, second = two_workers(WORKER)
    assert_same(first, expected)
    np.testing.assert_array_equal(first[0], second[0])


def test_fit_on_two_workers_fails_in_keras_itself():
    for stock, ours in two_workers(KERAS_FIT):
        assert stock and ours == stock
