"""Promises that hold bit by bit: what the padding, the batch and the threads do not change."""

import ctypes
import ctypes.util
import platform

import numpy as np
import pytest
from problems import ISAS, make_problem

from masked_lstm import core

PER_ROW = ("inputs", "h0", "c0")  # gradients that belong to one sequence


def run(problem, rows=None, inputs=None, threads=1, isa=None):
    """Results and gradients of some rows of a problem."""
    rows = slice(None) if rows is None else rows
    mask = None if problem.mask is None else problem.mask[rows]
    arguments = ((problem.inputs if inputs is None else inputs)[rows], *problem.weights())
    options = dict(
        mask=mask,
        initial_state=tuple(state[rows] for state in problem.initial_state),
        num_threads=threads,
        isa=isa,
    )
    result = core.forward(*arguments, save_reserve=True, **options)
    gradients = core.backward(
        *arguments,
        result.reserve,
        problem.d_outputs[rows],
        problem.d_h[rows],
        problem.d_c[rows],
        **options,
    )
    return result, gradients


def assert_same_bits(a, b):
    assert a.tobytes() == b.tobytes()


def assert_same_rows(whole, rows, part):
    (result, gradients), (part_result, part_gradients) = whole, part
    for name in ("outputs", "h", "c"):
        assert_same_bits(getattr(result, name)[rows], getattr(part_result, name))
    for name in PER_ROW:
        assert_same_bits(getattr(gradients, name)[rows], getattr(part_gradients, name))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "shape",
    [
        (29, 11, 7, 20),
        (9, 5, 300, 33),
        (55, 2, 300, 40),  # a row alone: weights not packed, two blocks
        (13, 2, 300, 272),  # no weights packed, of any row; panels together
        (12, 4, 300, 40),  # a row alone: packed, x.W ahead of the steps; all: not packed
        (9, 30, 270, 272),  # a row alone: x.W ahead of the steps, in two blocks
    ],
)
def test_batch_invariance(shape, dtype, isa):
    problem = make_problem(*shape, "holes", dtype)
    whole = run(problem, threads=2, isa=isa)
    for row in range(0, shape[0], 4):
        assert_same_rows(whole, [row], run(problem, [row], isa=isa))
    shuffled = np.random.default_rng(1).permutation(shape[0])
    assert_same_rows(whole, shuffled, run(problem, shuffled, threads=2, isa=isa))


# The second one's weights are so large that threads share them.
@pytest.mark.parametrize("shape", [(37, 40, 30, 50), (14, 5, 300, 500)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_number_of_threads_changes_nothing(dtype, shape):
    problem = make_problem(*shape, "right", dtype)
    results = [run(problem, threads=threads) for threads in (1, 2, 4, 2)]
    for result, gradients in results[1:]:
        for a, b in zip(results[0][0], result, strict=True):
            assert_same_bits(a, b)
        for a, b in zip(results[0][1], gradients, strict=True):  # weight gradients included
            assert_same_bits(a, b)


def test_padding_changes_nothing():
    """More padding, on either side, and whatever stands in it."""
    problem = make_problem(6, 8, 5, 12, "holes", "float32")
    result, gradients = run(problem)
    more = [(0, 0), (3, 9), (0, 0)]
    padded = problem._replace(
        inputs=np.pad(problem.poisoned(), more, constant_values=np.nan),
        mask=np.pad(problem.mask, more[:2]),
        # The outputs of padding repeat, so a gradient arriving there would count: none does.
        d_outputs=np.pad(problem.d_outputs, more),
    )
    padded_result, padded_gradients = run(padded)
    assert_same_bits(result.outputs, np.ascontiguousarray(padded_result.outputs[:, 3:11]))
    assert_same_bits(gradients.inputs, np.ascontiguousarray(padded_gradients.inputs[:, 3:11]))
    for name in ("h", "c"):
        assert_same_bits(getattr(result, name), getattr(padded_result, name))
    for name in ("kernel", "recurrent_kernel", "bias", "h0", "c0"):
        assert_same_bits(getattr(gradients, name), getattr(padded_gradients, name))


def test_overwriting_the_reserve_changes_nothing():
    problem = make_problem(9, 6, 5, 12, "holes", "float32")
    options = dict(mask=problem.mask, initial_state=problem.initial_state)
    arguments = (problem.inputs, *problem.weights())
    result = core.forward(*arguments, save_reserve=True, **options)
    given = (result.reserve, problem.d_outputs, problem.d_h, problem.d_c)
    kept = core.backward(*arguments, *given, **options)
    for a, b in zip(
        kept, core.backward(*arguments, *given, overwrite_reserve=True, **options), strict=True
    ):
        assert_same_bits(a, b)


def test_results_keep_their_memory():
    """Memory of dropped arrays is used again, memory of others is not."""
    problem = make_problem(20, 80, 5, 12, "right", "float32")  # outputs: 75 KiB, large enough
    results = [run(problem) for _ in range(3)]
    expected = [array.copy() for array in (*results[1][0], *results[1][1])]
    view = results[1][0].outputs[3:]
    del results[0]
    run(problem, inputs=problem.inputs + 1)
    for array, copy in zip((*results[0][0], *results[0][1]), expected, strict=True):
        assert_same_bits(array, copy)
    del results
    run(problem, inputs=problem.inputs + 1)
    assert_same_bits(view, expected[0][3:])


def test_poison_changes_nothing():
    problem = make_problem(9, 6, 5, 12, "holes", "float32")
    clean, poisoned = run(problem), run(problem, inputs=problem.poisoned())
    for a, b in zip([*clean[0], *clean[1]], [*poisoned[0], *poisoned[1]], strict=True):
        assert_same_bits(a, b)


def test_nan_stays_in_its_row():
    problem = make_problem(9, 6, 5, 12, "right", "float32")
    inputs = problem.inputs.copy()
    inputs[4, 0] = np.nan  # a valid step of row 4 (if it has one)
    rows = [row for row in range(9) if row != 4]
    assert problem.mask[4, 0]
    result, gradients = run(problem, inputs=inputs)
    assert np.isnan(result.h[4]).all()
    assert_same_rows((result, gradients), rows, run(problem, rows))


@pytest.mark.skipif(platform.machine() != "x86_64", reason="FE_UPWARD's value is x86's")
def test_the_callers_rounding_does_not_matter():
    """Whatever rounding the calling thread is set to, results are the same and it stays set."""
    libm = ctypes.CDLL(ctypes.util.find_library("m"))
    upward = 0x800  # FE_UPWARD on x86
    problem = make_problem(4, 30, 3, 8, dtype="float32")
    expected = run(problem)
    assert libm.fesetround(upward) == 0
    try:
        actual = run(problem)
        assert libm.fegetround() == upward
    finally:
        libm.fesetround(0)
    for a, b in zip([*expected[0], *expected[1]], [*actual[0], *actual[1]], strict=True):
        assert_same_bits(a, b)


def test_denormals_are_flushed_in_the_kernels_only():
    tiny = np.float32(1e-39)
    assert tiny * np.float32(0.5) != 0
    problem = make_problem(4, 30, 3, 8, dtype="float32")
    tiny_problem = problem._replace(
        d_outputs=problem.d_outputs * tiny, d_h=problem.d_h * tiny, d_c=problem.d_c * tiny
    )
    one, two = run(tiny_problem, threads=1), run(tiny_problem, threads=2)
    for a, b in zip(one[1], two[1], strict=True):
        assert_same_bits(a, b)
    assert not one[1].inputs.any()
    assert tiny * np.float32(0.5) != 0
