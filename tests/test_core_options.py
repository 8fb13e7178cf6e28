"""Activations other than tanh and sigmoid, and factors of x and h (dropout), in the core."""

import ml_dtypes
import numpy as np
import pytest
from problems import ISAS, make_problem, relative_error

from masked_lstm import core, reference

NAMES = ("input_factors", "recurrent_factors")
ACTIVATIONS = ("tanh", "sigmoid", "relu", "hard_sigmoid", "linear", "softsign")


def make_factors(problem, which, dtype, seed=3):
    """Dropout masks as Keras draws them, a fourth of the values 0 and the others 4/3."""
    rng = np.random.default_rng(seed)
    batch, units = problem.d_h.shape
    sizes = {"input_factors": problem.inputs.shape[2], "recurrent_factors": units}
    return {
        name: ((rng.random((4, batch, sizes[name])) < 0.75) / 0.75).astype(dtype) for name in which
    }


def run(module, problem, convert=np.asarray, inputs=None, core_options=None, **options):
    """Results, and gradients of every input."""
    arguments = [convert(a) for a in (problem.inputs if inputs is None else inputs,)]
    arguments += [convert(w) for w in problem.weights()]
    options |= dict(
        mask=problem.mask, initial_state=[convert(state) for state in problem.initial_state]
    )
    more = core_options or {}
    saved = dict(save_reserve=True) if module is core else {}
    result = module.forward(*arguments, **options, **more, **saved)
    upstream = [convert(g) for g in (problem.d_outputs, problem.d_h, problem.d_c)]
    gradients = module.backward(*arguments, result.reserve, *upstream, **options, **more)
    return dict(zip(("outputs", "last_h", "last_c"), result[:3], strict=True)) | gradients._asdict()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation, dtype, isa):
    """As the cell's and as the gates'. Sums of gates that no bounded function keeps small grow, but
    relative_error is relative to the largest value."""
    problem = make_problem(7, 6, 5, 19, "holes", dtype)
    for options in (dict(activation=activation), dict(recurrent_activation=activation)):
        expected = run(reference, problem, **options)
        actual = run(
            core, problem, inputs=problem.poisoned(), core_options=dict(isa=isa), **options
        )
        for name, value in actual.items():
            limit = 3e3 * np.finfo(dtype).eps  # 6 steps of 24 products, grown up to 10-fold each
            assert relative_error(value, expected[name]) <= limit, (name, options)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "which",
    [["input_factors"], ["recurrent_factors"], ["input_factors", "recurrent_factors"]],
    ids="+".join,
)
def test_factors(which, dtype, isa):
    for shape in (
        (5, 7, 3, 5),
        (13, 6, 20, 33),
        (1, 30, 270, 40),  # x.W ahead of the steps
        (2, 1, 9, 70),  # weights read in place
        (3, 3, 530, 20),  # weight gradients in several pieces
        (2, 3, 5, 300),  # several blocks of h
    ):
        problem = make_problem(*shape, "holes" if shape[1] > 1 else "none", dtype)
        factors = make_factors(problem, which, dtype)
        expected = run(reference, problem, go_backwards=True, **factors)
        actual = run(
            core,
            problem,
            inputs=problem.poisoned(),
            core_options=dict(isa=isa, num_threads=2),
            go_backwards=True,
            **factors,
        )
        limit = 32 * np.finfo(dtype).eps * np.sqrt(shape[2] + shape[3]) * shape[1]
        for name, value in actual.items():
            assert relative_error(value, expected[name]) <= limit, (name, shape)
        without = core.forward(problem.inputs, *problem.weights(), mask=problem.mask)
        assert relative_error(without.outputs, expected["outputs"]) > limit


@pytest.mark.parametrize("isa", ISAS)
def test_factors_of_one_change_almost_nothing(isa):
    """All gates' factors 1: the sums of the gates' products are only added in another order."""
    problem = make_problem(9, 5, 12, 33, "holes", "float32")
    plain = run(core, problem, core_options=dict(isa=isa))
    ones = {name: np.ones_like(a) for name, a in make_factors(problem, NAMES, "float32").items()}
    factored = run(core, problem, core_options=dict(isa=isa), **ones)
    for name, value in factored.items():
        assert relative_error(value, plain[name]) <= 1e-5, name
    np.testing.assert_array_equal(factored["outputs"], plain["outputs"])


@pytest.mark.parametrize("isa", ISAS)
def test_batch_invariance_and_threads(isa):
    problem = make_problem(17, 9, 30, 40, "holes", "float32")
    factors = make_factors(problem, NAMES, "float32")
    options = dict(recurrent_activation="hard_sigmoid", activation="softsign")
    one, two = (
        run(core, problem, core_options=dict(isa=isa, num_threads=n), **factors, **options)
        for n in (1, 2)
    )
    for name, value in one.items():
        assert value.tobytes() == two[name].tobytes(), name
    rows = [11, 3, 4]
    part = problem._replace(
        inputs=problem.inputs[rows],
        initial_state=tuple(state[rows] for state in problem.initial_state),
        mask=problem.mask[rows],
        **{name: getattr(problem, name)[rows] for name in ("d_outputs", "d_h", "d_c")},
    )
    factors = {name: np.ascontiguousarray(value[:, rows]) for name, value in factors.items()}
    alone = run(core, part, core_options=dict(isa=isa), **factors, **options)
    for name in ("outputs", "last_h", "last_c", "inputs", "h0", "c0"):
        assert one[name][rows].tobytes() == alone[name].tobytes(), name


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16], ids=["float16", "bfloat16"])
def test_half_precision_is_float32_rounded_once(dtype):
    problem = make_problem(9, 8, 30, 33, "holes", "float32")
    factors = make_factors(problem, NAMES, dtype)
    half = run(core, problem, lambda a: a.astype(dtype), recurrent_activation="relu", **factors)
    wide = {name: value.astype(np.float32) for name, value in factors.items()}
    float32 = run(
        core,
        problem,
        lambda a: a.astype(dtype).astype(np.float32),
        recurrent_activation="relu",
        **wide,
    )
    for name, value in half.items():
        np.testing.assert_array_equal(value, float32[name].astype(dtype), err_msg=name, strict=True)


@pytest.mark.parametrize("activation", [*ACTIVATIONS, "factors"])
def test_the_specification_against_finite_differences(activation):
    """Central differences in float64; 1e-4 and a seed that keep relu away from its kink."""
    problem = make_problem(3, 3, 2, 3, "holes", seed=5)
    options = make_factors(problem, NAMES, float)
    if activation != "factors":
        options = dict(activation=activation, recurrent_activation=activation)
    names = ("inputs", "kernel", "recurrent_kernel", "bias", "h0", "c0")
    gradients = run(reference, problem, **options)

    def loss(values):
        *arguments, h0, c0 = values
        moved = problem._replace(
            **dict(zip(names[:4], arguments, strict=True)), initial_state=(h0, c0)
        )
        result = reference.forward(
            moved.inputs, *moved.weights(), mask=moved.mask, initial_state=(h0, c0), **options
        )
        upstream = (problem.d_outputs, problem.d_h, problem.d_c)
        return sum(np.sum(a * b) for a, b in zip(result[:3], upstream, strict=True))

    values = [problem.inputs, *problem.weights(), *problem.initial_state]
    for index, name in enumerate(names):
        for at in np.ndindex(values[index].shape):
            sides = []
            for step in (1e-5, -1e-5):
                moved = [value.copy() for value in values]
                moved[index][at] += step
                sides.append(loss(moved))
            numeric = (sides[0] - sides[1]) / 2e-5
            assert abs(numeric - gradients[name][at]) <= 1e-6 * max(1, abs(numeric)), name


@pytest.mark.parametrize("function", [core.forward, core.backward])
@pytest.mark.parametrize(
    "sentence, options",
    [
        (
            "activation: expected tanh, sigmoid, relu, hard_sigmoid, linear or softsign, got 'elu'",
            dict(activation="elu"),
        ),
        (
            "recurrent_activation: expected tanh, sigmoid, relu, hard_sigmoid, linear or softsign, "
            "got 'None'",
            dict(recurrent_activation=None),
        ),
        (
            "input_factors: expected shape (4, batch, input_dim) = (4, 3, 4), got (3, 4)",
            dict(input_factors=np.ones((3, 4), "f")),
        ),
        (
            "recurrent_factors: expected shape (4, batch, units) = (4, 3, 2), got (4, 3, 4)",
            dict(recurrent_factors=np.ones((4, 3, 4), "f")),
        ),
        (
            "recurrent_factors: expected dtype float32, as inputs, got float64",
            dict(recurrent_factors=np.ones((4, 3, 2))),
        ),
    ],
    ids=str,
)
def test_one_clear_sentence(sentence, options, function):
    problem = make_problem(3, 5, 4, 2, dtype="float32")
    with pytest.raises((ValueError, TypeError)) as error:
        function(problem.inputs, *problem.weights(), **options)
    assert str(error.value) == sentence


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("go_backwards", [False, True])
@pytest.mark.parametrize("with_factors", [False, True])
def test_ragged_is_the_padded_call_bit_by_bit(with_factors, go_backwards, isa):
    problem = make_problem(9, 8, 5, 20, "right", "float32")
    mask = problem.mask
    lengths = mask.sum(axis=1)
    splits = np.concatenate([[0], np.cumsum(lengths)])
    options = dict(initial_state=problem.initial_state, go_backwards=go_backwards, isa=isa)
    if with_factors:
        options |= make_factors(problem, NAMES, "float32")
    at_outputs = mask[:, ::-1] if go_backwards else mask
    d_outputs = np.where(at_outputs[..., None], problem.d_outputs, 0)  # nothing at repeated outputs
    for sequences in (True, False):
        options["return_sequences"] = sequences
        arguments = (problem.poisoned(), *problem.weights())
        padded = core.forward(*arguments, mask=mask, save_reserve=True, **options)
        upstream = (d_outputs if sequences else problem.d_outputs[:, 0], problem.d_h, problem.d_c)
        padded_gradients = core.backward(
            *arguments, padded.reserve, *upstream, mask=mask, **options
        )
        arguments = (problem.inputs[mask], *problem.weights())
        options["num_threads"] = 2
        ragged = core.forward(*arguments, row_splits=splits, save_reserve=True, **options)
        upstream = (d_outputs[at_outputs], *upstream[1:]) if sequences else upstream
        gradients = core.backward(
            *arguments, ragged.reserve, *upstream, row_splits=splits, **options
        )
        expected = padded.outputs[at_outputs] if sequences else padded.outputs
        assert ragged.outputs.tobytes() == expected.tobytes()
        for name in ("h", "c"):
            assert getattr(ragged, name).tobytes() == getattr(padded, name).tobytes(), name
        assert gradients.inputs.tobytes() == padded_gradients.inputs[mask].tobytes()
        for name in ("kernel", "recurrent_kernel", "bias", "h0", "c0"):
            a, b = getattr(gradients, name), getattr(padded_gradients, name)
            assert a.tobytes() == b.tobytes(), name


@pytest.mark.parametrize(
    "sentence, options",
    [
        ("row_splits[1]: expected numbers that rise from 0 to values = 7, got 8", [0, 8, 7]),
        ("row_splits[2]: expected numbers that rise from 0 to values = 7, got 3", [0, 4, 3, 7]),
        ("row_splits[0]: expected numbers that rise from 0 to values = 7, got 1", [1, 7]),
        ("row_splits[0]: expected numbers that rise from 0 to values = 7, got -1", [-1, 7]),
        ("row_splits[2]: expected numbers that rise from 0 to values = 7, got 6", [0, 2, 6]),
        ("row_splits: expected shape (batch + 1,), got (0,)", np.zeros(0, int)),
        ("row_splits: expected shape (batch + 1,), got (1, 2)", [[0, 7]]),
        ("row_splits: expected an integer dtype, got float64", [0.0, 7.0]),
    ],
    ids=str,
)
def test_bad_row_splits(sentence, options):
    problem = make_problem(1, 7, 4, 2, dtype="float32")
    with pytest.raises((ValueError, TypeError)) as error:
        core.forward(problem.inputs[0], *problem.weights(), row_splits=options)
    assert str(error.value) == sentence
    with pytest.raises(
        ValueError, match="inputs: expected shape .values, input_dim. with row_spl.*got .1, 7, 4"
    ):
        core.forward(problem.inputs, *problem.weights(), row_splits=[0, 7])
    with pytest.raises(ValueError, match="row_splits: expected neither mask nor"):
        core.forward(problem.inputs[0], *problem.weights(), row_splits=[0, 7], sequence_lengths=[7])


@pytest.mark.parametrize("place", ["activation", "recurrent_activation"])
def test_softsign_keeps_its_derivative_far_out(place):
    """1 - |softsign(z)| has lost it at z = 1e5; the gradients are still right to a few ulp."""
    one = np.ones((1, 1, 1), np.float32)
    kernel = np.array([[1e5, 1e5, 1e5, 1e5]], np.float32)
    arguments = (one, kernel, np.zeros((1, 4), np.float32))
    options = {place: "softsign"}
    result = core.forward(*arguments, save_reserve=True, **options)
    actual = core.backward(*arguments, None, result.reserve, one, **options)
    expected = reference.backward(*arguments, None, None, one, **options)
    for name in ("kernel", "inputs"):
        np.testing.assert_allclose(getattr(actual, name), getattr(expected, name), rtol=2e-6)
