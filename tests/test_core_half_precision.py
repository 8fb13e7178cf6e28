"""float16 and bfloat16: what float32 gives for the same numbers, rounded once at the end."""

import ml_dtypes
import numpy as np
import pytest
from problems import ISAS, make_problem, relative_error

from masked_lstm import core, reference

DTYPES = [np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)]


def run(problem, convert, isa, **options):
    """Results and gradients, every array of the problem converted first."""
    inputs = problem.poisoned()
    with np.errstate(invalid="ignore"):
        arguments = [convert(array) for array in (inputs, *problem.weights())]
    options |= dict(mask=problem.mask, isa=isa, num_threads=2)
    options["initial_state"] = [convert(state) for state in problem.initial_state]
    result = core.forward(*arguments, save_reserve=True, **options)
    upstream = [convert(g) for g in (problem.d_outputs, problem.d_h, problem.d_c)]
    gradients = core.backward(*arguments, result.reserve, *upstream, **options)
    return [*result[:3], *gradients]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape",
    [
        (5, 7, 3, 5),
        (31, 6, 20, 33),
        (1, 30, 70, 96),  # x.W ahead of the steps
        (9, 2, 530, 40),  # weight gradients in more than one piece
        (3, 150, 5, 20),  # ... and block
    ],
)
# Gradients so large that they overflow, and so small that they are denormal halves.
@pytest.mark.parametrize("scale", [1, 1e4, 1e-5])
def test_half_precision_is_float32_rounded_once(dtype, shape, scale, isa):
    problem = make_problem(*shape, "holes", "float32")
    scaled = {name: getattr(problem, name) * np.float32(scale) for name in ("d_outputs", "d_h")}
    problem = problem._replace(**scaled)
    with np.errstate(over="ignore"):
        half = run(problem, lambda a: a.astype(dtype), isa, go_backwards=scale > 1)
        float32 = run(
            problem, lambda a: a.astype(dtype).astype(np.float32), isa, go_backwards=scale > 1
        )
        for actual, expected in zip(half, float32, strict=True):
            assert actual.dtype == dtype
            np.testing.assert_array_equal(actual, expected.astype(dtype), strict=True)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_half_is_read_and_rounded_as_numpy_does(dtype, isa):
    """Through tanh: its float32 values for all 65,536 numbers, denormals, infinities and NaN."""
    from masked_lstm import _core

    every = np.arange(65536).astype(np.uint16).view(dtype)
    with np.errstate(invalid="ignore"):
        expected = _core.activation("tanh", every.astype(np.float32), isa).astype(dtype)
    actual = _core.activation("tanh", every, isa)
    tiny = np.abs(every.astype(np.float32)) < np.finfo(np.float32).tiny  # flushed, in bfloat16 only
    assert tiny.sum() == (2 if dtype == np.float16 else 256)
    # In float32, whose NaNs NumPy knows to be equal.
    actual, expected = actual.astype(np.float32), expected.astype(np.float32)
    np.testing.assert_array_equal(actual[~tiny], expected[~tiny])
    assert not actual[tiny].any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_cell_state_is_not_rounded_between_steps(dtype):
    """300 steps that each add less than half a unit in the last place of c."""
    shape = (2, 300, 1, 1)
    problem = make_problem(*shape)
    weights = [np.zeros((1, 4)), np.zeros((1, 4)), np.array([-7.5, 30.0, 30.0, 30.0])]
    arguments = [a.astype(dtype) for a in (problem.inputs, *weights)]
    state = (np.zeros((2, 1), dtype), np.ones((2, 1), dtype))
    actual = core.forward(*arguments, initial_state=state)
    expected = reference.forward(*[np.asarray(a, float) for a in arguments], initial_state=state)
    assert expected.c[0, 0] > 1.15
    limit = 2.0 ** -(8 if dtype != np.float16 else 11)  # one rounding
    assert relative_error(actual.c, expected.c) <= limit


@pytest.mark.parametrize(
    "isa",
    [
        pytest.param(isa, marks=pytest.mark.skipif(isa not in core.isas(), reason="CPU lacks it"))
        for isa in ("avx512_bf16", "amx_bf16")
    ],
)
@pytest.mark.parametrize("shape", [(37, 6, 20, 33), (3, 9, 70, 96)])
def test_products_of_bfloat16(isa, shape):
    """h is rounded to bfloat16 (2**-9) before each step; a row alone has the same bits."""
    problem = make_problem(*shape, "holes", "float32")
    arrays = [
        array.astype(ml_dtypes.bfloat16)
        for array in (problem.poisoned(), *problem.weights(), *problem.initial_state)
    ]
    x, weights, state = arrays[0], arrays[1:4], arrays[4:]

    def forward(rows):
        options = dict(mask=problem.mask[rows], isa=isa, num_threads=2)
        states = tuple(s[rows] for s in state)
        return core.forward(x[rows], *weights, initial_state=states, **options)

    every = forward(slice(None))
    exact = [array.astype(np.float64) for array in arrays]
    expected = reference.forward(
        np.where(problem.mask[..., None], exact[0], 0),
        *exact[1:4],
        initial_state=tuple(exact[4:]),
        mask=problem.mask,
    )
    for actual, want in zip(every[:3], expected[:3], strict=True):
        assert (
            np.abs(actual.astype(np.float64) - want).max() < 2**-9 * shape[1] * np.abs(want).max()
        )
    for row in (0, shape[0] - 1):
        for actual, want in zip(forward(slice(row, row + 1))[:3], every[:3], strict=True):
            np.testing.assert_array_equal(actual[0].view(np.uint16), want[row].view(np.uint16))
