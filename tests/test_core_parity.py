"""masked_lstm.core against the float64 specification, and that against finite differences."""

import numpy as np
import pytest
from problems import ISAS, MASKS, make_problem, relative_error

from masked_lstm import core, reference

SHAPES = {  # batch, timesteps, input_dim, units: below, at and above vectors, tiles and slots
    "one": (1, 1, 1, 1),
    "odd": (5, 7, 3, 5),
    "tiles": (31, 6, 20, 33),
    "vectors": (4, 5, 16, 64),
    "wide": (3, 4, 10, 300),
}
OPTIONS = [
    dict(go_backwards=backwards, zero_output_for_mask=zero, return_sequences=sequences)
    for backwards, zero, sequences in [
        (False, False, True),
        (True, False, True),
        (False, True, True),
        (True, True, False),
    ]
]


def tolerance(dtype, timesteps, depth):
    """Rounding of `timesteps` dependent steps, each a sum of `depth` products, with 8 to spare."""
    return 8 * np.finfo(dtype).eps * np.sqrt(depth) * timesteps


def run(function, problem, inputs, options, **more):
    return function(
        inputs,
        *problem.weights(),
        mask=problem.mask,
        initial_state=problem.initial_state,
        **options,
        **more,
    )


def poison_dropped_gradients(problem, options):
    """d_outputs that nobody may read: at masked steps whose output is a constant zero."""
    d_outputs = problem.d_outputs.copy()
    if problem.mask is not None and options["zero_output_for_mask"] and d_outputs.ndim == 3:
        mask = problem.mask[:, ::-1] if options["go_backwards"] else problem.mask
        d_outputs[~mask] = np.nan
    return d_outputs


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("shape", SHAPES)
def test_parity_with_the_specification(shape, mask, dtype, isa):
    batch, timesteps, input_dim, units = SHAPES[shape]
    limit = tolerance(dtype, timesteps, input_dim + units)
    for options in OPTIONS:
        sequences = options["return_sequences"]
        problem = make_problem(*SHAPES[shape], mask, dtype, return_sequences=sequences)
        expected = run(reference.forward, problem, problem.inputs, options)
        actual = run(core.forward, problem, problem.poisoned(), options, save_reserve=True, isa=isa)
        for name in ("outputs", "h", "c"):
            error = relative_error(getattr(actual, name), getattr(expected, name))
            assert error <= limit, (name, options)

        gradients = (problem.d_outputs, problem.d_h, problem.d_c)
        expected = run(
            lambda *a, d=gradients, **k: reference.backward(*a, None, *d, **k),
            problem,
            problem.inputs,
            options,
        )
        poisoned = (poison_dropped_gradients(problem, options), problem.d_h, problem.d_c)
        for reserve in (actual.reserve, None):  # saved, and computed again
            result = run(
                lambda *a, d=poisoned, r=reserve, **k: core.backward(*a, r, *d, **k),
                problem,
                problem.poisoned(),
                options,
                isa=isa,
            )
            for name, value in result._asdict().items():
                # A weight gradient sums over every valid step of the batch.
                slack = np.sqrt(batch) if "kernel" in name or name == "bias" else 1
                error = relative_error(value, getattr(expected, name))
                assert error <= 4 * limit * slack, (name, options)
            if problem.mask is not None:
                assert not result.inputs[~problem.mask].any()


def test_long_and_large():
    """Depth blocks, weight-gradient blocks and refilled slots all come into play."""
    for shape in [(7, 301, 5, 9), (2, 3, 40, 1000), (40, 20, 300, 70)]:
        problem = make_problem(*shape, "holes")
        options = dict(go_backwards=False, zero_output_for_mask=False, return_sequences=True)
        expected = run(reference.forward, problem, problem.inputs, options)
        actual = run(core.forward, problem, problem.poisoned(), options)
        limit = tolerance("float64", shape[1], shape[2] + shape[3])
        assert relative_error(actual.outputs, expected.outputs) <= limit
        gradients = (None, problem.d_outputs, problem.d_h, problem.d_c)
        expected = run(
            lambda *a, d=gradients, **k: reference.backward(*a, *d, **k),
            problem,
            problem.inputs,
            options,
        )
        actual = run(
            lambda *a, d=gradients, **k: core.backward(*a, *d, **k),
            problem,
            problem.poisoned(),
            options,
        )
        for name, value in actual._asdict().items():
            assert relative_error(value, getattr(expected, name)) <= 40 * limit, name


def test_sequence_lengths_are_a_right_padded_mask():
    problem = make_problem(6, 9, 4, 5, dtype="float32")
    lengths = np.array([9, 0, 3, 1, 8, 5], np.int64)
    mask = np.arange(9) < lengths[:, None]
    for backwards in (False, True):
        arguments = (problem.inputs, *problem.weights())
        by_lengths = core.forward(*arguments, sequence_lengths=lengths, go_backwards=backwards)
        by_mask = core.forward(*arguments, mask=mask, go_backwards=backwards)
        for a, b in zip(by_lengths[:3], by_mask[:3], strict=True):
            np.testing.assert_array_equal(a, b)


def test_go_backwards_turns_right_padding_into_left_padding():
    problem = make_problem(1, 5, 2, 3)
    mask = np.array([[True, True, True, False, False]])
    arguments = (problem.inputs, *problem.weights())
    outputs = core.forward(*arguments, mask=mask, go_backwards=True).outputs[0]
    flipped = core.forward(problem.inputs[:, 2::-1], *problem.weights()).outputs[0]
    np.testing.assert_array_equal(outputs, np.concatenate([np.zeros((2, 3)), flipped]))


def test_row_without_steps():
    """Outputs 0 even though h0 is not, states unchanged, gradients handed through."""
    problem = make_problem(2, 3, 2, 4, "empty")
    h0, c0 = problem.initial_state
    arguments = (problem.poisoned(), *problem.weights())
    options = dict(mask=problem.mask, initial_state=(h0, c0))
    for sequences in (True, False):
        result = core.forward(*arguments, return_sequences=sequences, **options)
        assert not result.outputs.any()
        np.testing.assert_array_equal(result.h, h0)
        np.testing.assert_array_equal(result.c, c0)
    upstream = (problem.d_outputs, problem.d_h, problem.d_c)
    gradients = core.backward(*arguments, None, *upstream, **options)
    np.testing.assert_array_equal(gradients.h0, problem.d_h)
    np.testing.assert_array_equal(gradients.c0, problem.d_c)
    for name in ("inputs", "kernel", "recurrent_kernel", "bias"):
        assert not getattr(gradients, name).any(), name


@pytest.mark.parametrize("shape", [(0, 4, 3, 2), (3, 0, 3, 2), (3, 4, 0, 2)])
def test_empty_batch_time_and_input(shape):
    problem = make_problem(*shape)
    arguments = (problem.inputs, *problem.weights())
    result = core.forward(*arguments, initial_state=problem.initial_state)
    expected = reference.forward(*arguments, initial_state=problem.initial_state)
    for a, b in zip(result[:3], expected[:3], strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, atol=1e-14)
    gradients = core.backward(*arguments, None, problem.d_outputs, problem.d_h, problem.d_c)
    assert gradients.inputs.shape == shape[:3]
    assert gradients.kernel.shape == (shape[2], 4 * shape[3])


def test_the_specification_against_finite_differences():
    """Central differences in float64: truncation h^2, rounding eps/h, best near h = 1e-5."""
    step = 1e-5
    problem = make_problem(3, 4, 2, 3, "holes")
    options = dict(mask=problem.mask, go_backwards=True)
    arguments = [problem.inputs, *problem.weights(), *problem.initial_state]

    def loss(values):
        *tensors, h0, c0 = values
        result = reference.forward(*tensors, initial_state=(h0, c0), **options)
        upstream = (problem.d_outputs, problem.d_h, problem.d_c)
        return sum(np.sum(a * b) for a, b in zip(result[:3], upstream, strict=True))

    gradients = reference.backward(
        *arguments[:4],
        None,
        problem.d_outputs,
        problem.d_h,
        problem.d_c,
        initial_state=problem.initial_state,
        **options,
    )
    for index, gradient in enumerate(gradients):
        numeric = np.zeros_like(gradient)
        for at in np.ndindex(gradient.shape):
            moved = []
            for sign in (1, -1):
                values = [a.copy() for a in arguments]
                values[index][at] += sign * step
                moved.append(loss(values))
            numeric[at] = (moved[0] - moved[1]) / (2 * step)
        np.testing.assert_allclose(gradient, numeric, atol=1e-8)
