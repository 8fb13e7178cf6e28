"""Inside XLA: the bits of the op outside, whatever surrounds it; and life without XLA kernels."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from pairs import BATCH, INPUT_DIM, MASKS, UNITS, forward_calls, padding_and_poison, pair, random
from problems import make_problem
from tensorflow.python.framework import kernels

import masked_lstm
from masked_lstm import LSTM, _build_info, gpus, ops

ROOT = pathlib.Path(__file__).resolve().parent.parent

# More valid steps than any block of rows of the core, so that no block is the only one.
P = make_problem(9, 24, 5, 7, "holes", "float32")
MASK = tf.constant(P.mask)
X, *WEIGHTS = map(tf.constant, (P.poisoned(), *P.weights()))
STATE = tuple(map(tf.constant, P.initial_state))
ARGUMENTS = (X, *WEIGHTS, *STATE)
PLAIN_X = tf.constant(P.inputs)


def jit(function, **options):
    return tf.function(function, jit_compile=True, **options)


def assert_same(actual, expected):
    """Bit by bit."""
    for a, b in zip(tf.nest.flatten(actual), tf.nest.flatten(expected), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        np.testing.assert_array_equal(a, b)  # shows where, but takes -0 for 0
        assert (a.dtype, a.tobytes()) == (b.dtype, b.tobytes())


def value_and_gradients(inputs, kernel, recurrent_kernel, bias, h0, c0, **options):
    """Results, and gradients of everything; P's upstream gradients arrive."""
    variables = (inputs, kernel, recurrent_kernel, bias, h0, c0)
    with tf.GradientTape() as tape:
        tape.watch(variables)
        results = masked_lstm.lstm(*variables[:4], initial_state=(h0, c0), **options)
        loss = upstream_loss(results)
    return results, tape.gradient(loss, variables)


def upstream_loss(results):
    upstream = [tf.cast(u, results[0].dtype) for u in (P.d_outputs, P.d_h, P.d_c)]
    return tf.add_n([tf.reduce_sum(a * b) for a, b in zip(results, upstream, strict=True)])


@pytest.mark.parametrize(
    "options",
    [
        dict(),
        dict(go_backwards=True, zero_output_for_mask=True),
        dict(recompute=True, activation="softsign", recurrent_activation="hard_sigmoid"),
        dict(dtype="float64"),
        dict(dtype="float16"),
        dict(dtype="bfloat16"),
    ],
    ids=str,
)
def test_the_bits_of_the_op_outside_xla(options):
    options = dict(options)
    dtype = options.pop("dtype", "float32")
    arguments = [tf.cast(a, dtype) for a in ARGUMENTS]
    rng = np.random.default_rng(0)
    options |= dict(
        mask=MASK,
        input_factors=tf.constant(rng.random((4, 9, 5)), dtype),
        recurrent_factors=tf.constant(rng.random((4, 9, 7)), dtype),
    )
    expected = value_and_gradients(*arguments, **options)
    before = sum(ops.xla_kernel_calls().values())
    assert_same(jit(value_and_gradients)(*arguments, **options), expected)
    assert sum(ops.xla_kernel_calls().values()) == before + 2


def test_gradients_outside_of_jit():
    function = jit(lambda *a: masked_lstm.lstm(*a[:4], initial_state=a[4:], mask=MASK))
    expected = value_and_gradients(*ARGUMENTS, mask=MASK)
    for _ in range(2):  # a second tape finds the function traced
        with tf.GradientTape() as tape:
            tape.watch(ARGUMENTS)
            results = function(*ARGUMENTS)
            loss = upstream_loss(results)
        assert_same((results, tape.gradient(loss, ARGUMENTS)), expected)


def test_what_nobody_wants_is_not_computed():
    """No reserve without a gradient, no gradient of what no tape watches."""

    def training(x, *weights):
        with tf.GradientTape() as tape:
            tape.watch(weights)
            loss = tf.reduce_sum(masked_lstm.lstm(x, *weights, mask=MASK)[0])
        return tape.gradient(loss, weights)

    def program(function):
        return jit(function).experimental_get_compiler_ir(X, *WEIGHTS)(stage="hlo")

    full = f"u8[{9 * 24 * 5 * 7 * 4}]"
    assert full in program(training)
    assert "u8[0]" in program(lambda *a: masked_lstm.lstm(*a, mask=MASK))
    (gradient_call,) = re.findall(r".*masked_lstm\.backward.*", program(training))
    assert "skip = 49" in gradient_call  # x, h0, c0
    assert_same(jit(training)(X, *WEIGHTS), training(X, *WEIGHTS))

    def penalty(x, kernel):  # a second derivative through a gradient that was not computed
        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as inner:
                inner.watch(kernel)
                loss = tf.reduce_sum(masked_lstm.lstm(x, kernel, *WEIGHTS[1:])[1] ** 2)
            result = tf.reduce_sum(inner.gradient(loss, kernel) ** 2)
        return outer.gradient(result, x)

    both = penalty(PLAIN_X[:2, :3], WEIGHTS[0]), jit(penalty)(PLAIN_X[:2, :3], WEIGHTS[0])
    np.testing.assert_allclose(*both, rtol=1e-4, atol=1e-6)


def test_a_row_has_the_same_bits_in_any_batch():
    together = jit(masked_lstm.lstm)(X, *WEIGHTS, mask=MASK, initial_state=STATE)
    for row in (0, 4):
        alone = jit(masked_lstm.lstm)(
            X[row : row + 1],
            *WEIGHTS,
            mask=MASK[row : row + 1],
            initial_state=[s[row : row + 1] for s in STATE],
        )
        assert_same(alone, [t[row : row + 1] for t in together])


def test_dynamic_batch_and_time_lengths_and_ragged():
    anything = [tf.TensorSpec([None, None, 5]), tf.TensorSpec([None], tf.int32)]

    def by_lengths(x, lengths):
        return masked_lstm.lstm(x, *WEIGHTS, sequence_lengths=lengths)

    function = jit(by_lengths, input_signature=anything)
    for batch, timesteps in ((9, 24), (2, 3), (0, 4), (2, 0)):
        x, lengths = PLAIN_X[:batch, :timesteps], np.minimum(range(batch), timesteps)
        assert_same(function(x, lengths), by_lengths(x, lengths))
    calls = masked_lstm.kernel_calls()
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"sequence_lengths\[1\]: .* got 4"):
        function(PLAIN_X[:2, :3], [0, 4])
    assert masked_lstm.kernel_calls() == calls

    def ragged(values, splits):
        with tf.GradientTape() as tape:
            tape.watch(values)
            outputs, h, _ = masked_lstm.ragged_lstm(values, splits, *WEIGHTS, go_backwards=True)
            loss = tf.reduce_sum(outputs * outputs) + tf.reduce_sum(h)
        return outputs, h, tape.gradient(loss, values)

    splits = tf.constant([0, 7, 7, 24])
    assert_same(jit(ragged)(PLAIN_X[0], splits), ragged(PLAIN_X[0], splits))
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"row_splits\[2\]: .* got 3"):
        jit(ragged)(PLAIN_X[0], tf.constant([0, 7, 3, 24]))
    unknown = jit(masked_lstm.lstm, input_signature=[tf.TensorSpec(None)] * 4)
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"kernel: expected shape .input_dim"):
        unknown(PLAIN_X[:, :, 1:], *WEIGHTS)


@pytest.mark.parametrize("lengths", [None, [0, 1, 2, 3, 4, 5, 6, 7, 8]])
@pytest.mark.parametrize("axis", [0, 1])
def test_sizes_that_only_a_run_shows(axis, lengths):
    """XLA knows a bound of them; what lies behind the size is garbage, never to be seen."""
    keep = tf.constant(np.arange((9, 24)[axis]) % 3 != 1)

    def function(x, mask, keep):
        with tf.GradientTape() as tape:
            tape.watch(WEIGHTS)
            x = tf.boolean_mask(x, keep, axis=axis)
            if lengths is not None:
                some = tf.boolean_mask(lengths, keep) if axis == 0 else lengths
                options = dict(sequence_lengths=some)
            else:
                options = dict(mask=tf.boolean_mask(mask, keep, axis=axis))
            outputs, h, _ = masked_lstm.lstm(x, *WEIGHTS, **options)
            loss = tf.reduce_sum(outputs * outputs) + tf.reduce_sum(h)
        return outputs, h, tape.gradient(loss, WEIGHTS)

    x = PLAIN_X if lengths is not None else X
    assert_same(jit(function)(x, MASK, keep), function(x, MASK, keep))


@pytest.mark.parametrize("axis", [0, 1])
def test_such_sizes_and_a_tape_outside_of_jit(axis):
    """The reserve of one program, made for the bound, is read by another, compiled for the size."""
    keep = tf.constant(np.arange((9, 24)[axis]) % 3 != 1)

    def function(keep, *weights):
        x, mask = (tf.boolean_mask(value, keep, axis=axis) for value in (X, MASK))
        return masked_lstm.lstm(x, *weights, mask=mask)[:2]

    def results_and_gradients(function):
        with tf.GradientTape() as tape:
            tape.watch(WEIGHTS)
            outputs, h = function(keep, *WEIGHTS)
            loss = tf.reduce_sum(outputs * outputs) + tf.reduce_sum(h)
        return outputs, h, tape.gradient(loss, WEIGHTS)

    expected = results_and_gradients(function)
    before = sum(ops.xla_kernel_calls().values())
    assert_same(results_and_gradients(jit(function)), expected)
    assert sum(ops.xla_kernel_calls().values()) == before + 2


def test_such_sizes_refused_in_one_sentence():
    def backwards(keep):
        x = tf.boolean_mask(PLAIN_X, keep, axis=1)
        return masked_lstm.lstm(x, *WEIGHTS, go_backwards=True)

    def weights(keep):
        kernel = tf.boolean_mask(tf.tile(WEIGHTS[0], [5, 1])[:24], keep)
        return masked_lstm.lstm(PLAIN_X, kernel, *WEIGHTS[1:])

    for function, name in ((backwards, "inputs"), (weights, "kernel")):
        sentence = f"{name}: expected dimension .* to have a fixed size inside XLA, got one that"
        with pytest.raises(tf.errors.UnimplementedError, match=sentence):
            jit(function)(tf.constant(np.arange(24) % 3 != 1))


def test_control_flow_around_it():
    def step(x, h, c):
        return masked_lstm.lstm(x, *WEIGHTS, mask=MASK, initial_state=(h, c))[1:]

    def function(x, flag):
        with tf.GradientTape() as tape:
            tape.watch(x)
            h, c = tf.cond(flag, lambda: step(x, *STATE), lambda: STATE)
            h, c = tf.while_loop(
                lambda *_: True, lambda h, c: step(x, h, c), (h, c), maximum_iterations=2
            )
            loss = tf.reduce_sum(h * h)
        return h, tape.gradient(loss, x)

    for flag in (True, False):
        flag = tf.constant(flag)
        assert_same(jit(function)(X, flag), tf.function(function)(X, flag))

    def mapped(xs):
        return tf.vectorized_map(lambda x: masked_lstm.lstm(x, *WEIGHTS)[1], xs)

    xs = tf.stack([PLAIN_X, 2 * PLAIN_X])
    assert_same(jit(mapped)(xs), mapped(xs))

    def jacobian(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            h = masked_lstm.lstm(x, *WEIGHTS)[1]
        return tape.jacobian(h, x)

    assert_same(jit(jacobian)(PLAIN_X[:2, :3]), jacobian(PLAIN_X[:2, :3]))


def test_layer_under_every_mask():
    _, ours = pair(return_sequences=True, return_state=True, stateful=True, batch=BATCH)
    state = [np.float32(random(BATCH, UNITS, seed=seed)) for seed in (1, 2)]
    for mask in MASKS.values():
        _, x = padding_and_poison(np.float32(random(BATCH, 6, INPUT_DIM)), mask)
        outside = ours(x, mask=mask, initial_state=state)
        carried = ours(x, mask=mask)
        ours.reset_states()
        function = jit(lambda x, state=None, mask=mask: ours(x, mask=mask, initial_state=state))
        assert_same(function(x, state), outside)
        assert_same(function(x), carried)  # the state variables were assigned inside
    assert ours.fused_reason is None


def test_layer_with_ragged_input_and_mixed_precision():
    layer = LSTM(4, return_sequences=True)
    x = tf.RaggedTensor.from_row_lengths(np.float32(random(7, INPUT_DIM)), [3, 0, 4])
    assert_same(jit(layer)(x).values, layer(x).values)
    for policy in ("mixed_float16", "mixed_bfloat16"):
        layer = LSTM(4, return_sequences=True, dtype=policy)
        assert_same(jit(layer)(PLAIN_X), layer(PLAIN_X))


def test_compiled_training_is_that_of_keras():
    """Masks, both dropouts, Bidirectional and stacked layers: the same seed, the same run."""
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 20, (20, 7)), rng.standard_normal((20, 1))
    losses, before = [], sum(ops.xla_kernel_calls().values())
    for lstm in (LSTM, keras.layers.LSTM):
        keras.utils.set_random_seed(1)
        deep = lstm(8, return_sequences=True, dropout=0.2, recurrent_dropout=0.2)
        model = keras.Sequential(
            [
                keras.layers.Embedding(20, 6, mask_zero=True),
                keras.layers.Bidirectional(deep),
                lstm(4, dropout=0.2),
                keras.layers.Dense(1),
            ]
        )
        model.compile("adam", "mse", jit_compile=True)
        assert model.jit_compile
        history = model.fit(x, y, epochs=2, batch_size=10, verbose=0)
        losses.append(history.history["loss"])
        if lstm is LSTM:  # two batches, three layers, two passes, two epochs
            assert sum(ops.xla_kernel_calls().values()) == before + 2 * 2 * 3 * 2
            inside = model.predict(x, verbose=0)
            model.compile()
            np.testing.assert_allclose(model.predict(x, verbose=0), inside, atol=1e-6)
    np.testing.assert_allclose(*losses, rtol=1e-5)


def test_jit_compile_auto_on_the_cpu():
    """Keras leaves XLA off there; the fused path is taken either way."""
    model = keras.Sequential([keras.Input((None, 3)), LSTM(2)])
    model.compile(loss="mse", jit_compile="auto")
    assert model.layers[0].supports_jit and model.jit_compile in (False, "auto")
    before = forward_calls()
    model.predict(np.ones((1, 2, 3)), verbose=0)
    assert forward_calls() == before + 1


def test_without_kernels_keras_path_is_taken_and_recorded(monkeypatch):
    why = "not built: MASKED_LSTM_XLA=OFF was asked for"
    stock, ours = pair(backend="auto", return_sequences=True)
    strict = pair(backend="fused")[1]
    mask = MASKS["left"]
    x, poisoned = (np.float32(v) for v in padding_and_poison(random(BATCH, 6, INPUT_DIM), mask))
    monkeypatch.setattr(ops, "_no_xla", why)
    function = jit(lambda x: ours(x, mask=mask))
    result = function(poisoned)
    graph = function.get_concrete_function(poisoned).graph
    assert "MaskedLstm" not in {op.type for op in graph.get_operations()}
    np.testing.assert_allclose(result, stock(x, mask=mask), atol=1e-5)
    assert re.search("no XLA kernel: " + why, ours.fused_reason)
    ours(x)
    assert ours.fused_reason is None
    with pytest.raises(ValueError, match="backend='fused' is not possible here: .*" + why):
        jit(strict)(x)
    assert not ours.supports_jit
    assert LSTM(2, backend="keras").supports_jit
    model = keras.Sequential([keras.Input((None, 3)), LSTM(2)])
    with pytest.warns(UserWarning, match="doesn't support `jit_compile=True`"):
        model.compile(loss="mse", jit_compile=True)
    assert not model.jit_compile


def test_keras_path_inside_xla_is_its_plain_loop(monkeypatch):
    """Never cuDNN, of which XLA knows nothing: on a GPU the function would not compile."""
    stock, ours = pair(backend="keras")
    assert ours.use_cudnn == "auto"
    x = tf.constant(np.float32(random(BATCH, 6, INPUT_DIM)))
    expected = stock(x)
    cudnn = []
    monkeypatch.setattr("keras.src.backend.lstm", lambda *a, **k: cudnn.append(a) or NotImplemented)
    np.testing.assert_allclose(jit(ours)(x), expected, atol=1e-6)
    assert not cudnn
    with pytest.raises(TypeError):  # what was put in cuDNN's place
        ours(x)
    assert cudnn


def test_without_a_kernel_for_the_gpu_in_use(monkeypatch):
    _, ours = pair(backend="fused")
    monkeypatch.setattr("masked_lstm.layer._gpu_in_use", lambda: True)
    monkeypatch.setattr(ops, "_no_xla_gpu", "XLA compiles it for the CPU only")
    assert not ours.supports_jit
    with pytest.raises(ValueError, match="not possible here: .* XLA compiles it for the CPU only"):
        jit(ours)(np.float32(random(BATCH, 6, INPUT_DIM)))


def test_a_gpu_is_taken_inside_xla_where_it_is_outside(monkeypatch):
    """By itself only with passing records of both, or where somebody asks for it."""
    monkeypatch.setattr("masked_lstm.layer._gpu_in_use", lambda: True)
    monkeypatch.setattr("masked_lstm.layer._capabilities", lambda: ["9.0"])
    monkeypatch.setattr("masked_lstm.gpus.built_for", lambda: ["80", "90a"])
    monkeypatch.setattr(ops, "_no_xla_gpu", None)
    monkeypatch.delenv("MASKED_LSTM_GPU", raising=False)
    x = tf.constant(np.float32(random(BATCH, 6, INPUT_DIM)))

    def fused(layer):
        graph = jit(lambda x: layer(x)).get_concrete_function(x).graph
        return "MaskedLstm" in {op.type for op in graph.get_operations()}

    _, auto = pair(backend="auto")
    assert not fused(auto) and re.search("9.0, .* no passing record", auto.fused_reason)
    assert auto.supports_jit  # Keras' own answer, where it sees no GPU
    assert fused(pair(backend="fused")[1])
    monkeypatch.setitem(gpus.QUALIFIED, "9.0", "a log that has not checked XLA")
    assert not auto.supports_jit  # Keras leaves XLA off and takes the fused path
    assert not fused(auto) and re.search("no passing record inside XLA", auto.fused_reason)
    assert fused(pair(backend="fused")[1])
    monkeypatch.setitem(gpus.QUALIFIED_XLA, "9.0", "a log")
    assert fused(auto) and auto.fused_reason is None and auto.supports_jit
    monkeypatch.delitem(gpus.QUALIFIED, "9.0")  # of XLA alone: not enough
    assert not fused(auto) and re.search("9.0, .* no passing record yet", auto.fused_reason)
    monkeypatch.setenv("MASKED_LSTM_GPU", "1")
    assert fused(auto) and auto.fused_reason is None and auto.supports_jit


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_what_is_compiled_for_a_gpu(dtype, monkeypatch):
    """The program, which needs no GPU; what it calls is run in test_cuda_bindings.py."""
    registered = kernels.get_registered_kernels_for_op("MaskedLstm").kernel
    assert {"XLA_CPU_JIT", "XLA_GPU_JIT"} <= {kernel.device_type for kernel in registered}
    arguments = [tf.cast(a, dtype) for a in ARGUMENTS]

    def calls(platform):
        function = jit(lambda *a: value_and_gradients(*a, sequence_lengths=tf.range(9)))
        program = function.experimental_get_compiler_ir(*arguments)
        hlo = program(stage="hlo", platform_name=platform)
        return [
            re.search(rf".*\"masked_lstm.{name}\".*", hlo)[0] for name in ("forward", "backward")
        ]

    without = "masked_lstm was built without CUDA kernels, so XLA compiles it for the CPU only"
    assert not any("cuda_choice" in call for call in calls("CPU"))
    if not _build_info.CUDA_ARCHITECTURES:
        assert ops.no_xla_reason(gpu=True) == without
        with pytest.raises(ValueError, match=without):
            calls("GPU")
        return
    assert ops.no_xla_reason(gpu=True) is None

    def workspaces():
        for call, other in zip(calls("GPU"), calls("CPU"), strict=True):
            results = [re.search(r"= \((.*?)\) custom-call", c)[1] for c in (call, other)]
            assert results[0].startswith(results[1])  # the CPU's, and the workspace
            (size,) = re.fullmatch(r", u8\[(\d+)\]\{0\}", results[0][len(results[1]) :]).groups()
            layouts = re.search(r"operand_layout_constraints=\{(.*?)\}, api_version", call)[1]
            for layout in re.findall(r"\[[\d,]+\]\{([\d,]+)\}", layouts):
                assert layout in ("2,1,0", "1,0", "0")
            yield int(size), re.search(r"cuda_choice = (\d) : i32", call)[1]

    chosen = list(workspaces())
    monkeypatch.setenv("MASKED_LSTM_CUDA_KERNEL", "groups")  # read when it is compiled
    plain = list(workspaces())
    # 9 rows of 24 steps, in 2 groups of 8 slots; everything is computed in float32.
    schedule = [9 * 4, 10 * 8, 9 * 4, 9 * 24 * 8, 9 * 24 * 4]
    counters, h, c = 2 * 4, 2 * 16 * 7 * 4, 16 * 7 * 4  # h: of this step and of the last
    pieces = [-(-size // 256) * 256 for size in (*schedule, counters, h, c)]
    assert plain[0][0] == sum(pieces) + 64  # and the flag
    assert [choice for _, choice in plain] == ["0", "0"]
    assert [choice for _, choice in chosen] == ["1", "1"]
    larger = [h > p for (h, _), (p, _) in zip(chosen, plain, strict=True)]
    has_hopper = "90a" in _build_info.CUDA_ARCHITECTURES.split(",")
    assert larger == [dtype == "float16" and has_hopper] * 2
    monkeypatch.setenv("MASKED_LSTM_CUDA_KERNEL", "hoper")
    with pytest.raises(ValueError, match="hopper, hopper-tf32 or hopper-grid, got 'hoper'"):
        calls("GPU")


@pytest.mark.parametrize(
    "options, reason",
    [
        (["TF_VERSION=2.21.1"], ""),
        (["TF_VERSION=2.19.0"], "tested with TensorFlow .* only, this is 2.19.0 .*=ON tries it"),
        (["TF_VERSION=2.19.0", "XLA=ON"], ""),
        (["TF_VERSION=2.21.0", "XLA=OFF"], "MASKED_LSTM_XLA=OFF was asked for"),
    ],
    ids=str,
)
def test_building_the_kernels_or_not_is_a_reported_decision(tmp_path, options, reason):
    definitions = ["TF_COMPILE_FLAGS=-I/nowhere", "PYTHON=OFF", "CUDA=OFF", *options]
    cmake = shutil.which("cmake", path=str(pathlib.Path(sys.executable).parent)) or "cmake"
    command = [cmake, "-S", ROOT, "-B", tmp_path]
    command += [f"-DMASKED_LSTM_{definition}" for definition in definitions]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert re.search(f"XLA kernels {'OFF: ' + reason if reason else 'ON'}", run.stdout)
    written = (tmp_path / "no_xla.txt").read_text()
    assert re.search(reason, written) and bool(reason) == bool(written)


@pytest.mark.parametrize("threads", [1, 2])
def test_in_a_process_of_its_own(threads, tmp_path):
    """tests/xla_process.py: loaded late, autoclustering, SavedModel, six callers at once."""

    class Module(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None, None, 5])], jit_compile=True)
        def __call__(self, inputs):
            return masked_lstm.lstm(inputs, *WEIGHTS)[0]

    module = Module()
    tf.saved_model.save(module, str(tmp_path / "model"))
    np.savez(tmp_path / "expected.npz", inputs=PLAIN_X, outputs=module(PLAIN_X))
    environment = {
        **os.environ,
        "TF_XLA_FLAGS": "--tf_xla_auto_jit=2 --tf_xla_cpu_global_jit --tf_xla_min_cluster_size=1",
    }
    script = pathlib.Path(__file__).with_name("xla_process.py")
    command = [sys.executable, script, str(threads), tmp_path]
    run = subprocess.run(command, env=environment, capture_output=True, timeout=240, check=False)
    assert run.returncode == 0, run.stderr.decode()[-3000:]
