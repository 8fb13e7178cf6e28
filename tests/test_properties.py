"""Random problems (hypothesis) against the specification; what fails is shrunk to its smallest.

Repeatable: the same 500 problems in every run. A failure found elsewhere belongs here, with
@example."""

import ml_dtypes
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import relative_error

from masked_lstm import core, reference

DTYPES = [np.dtype(d) for d in (np.float32, np.float64, np.float16, ml_dtypes.bfloat16)]
ACTIVATIONS = sorted(reference.ACTIVATIONS)
GATES = ["hard_sigmoid", "sigmoid", "softsign", "tanh"]  # bounded: others let errors grow at will
# Half precision: one rounding of the result. The others: 9 steps of up to 90 products, and
# activations that let numbers grow.
LIMITS = dict(zip(DTYPES, (2e-4, 4e-13, 2.0**-10, 2.0**-7), strict=True))


@st.composite
def problems(draw):
    """Arguments and options of core.forward, gradients arriving at its results, a dtype."""
    batch, timesteps = draw(st.integers(0, 9)), draw(st.integers(0, 9))
    input_dim = draw(st.integers(0, 20))
    units = draw(st.one_of(st.integers(1, 9), st.sampled_from([15, 16, 17, 33, 70])))
    dtype = draw(st.sampled_from(DTYPES))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))

    def normal(*shape, scale=1.0):
        return (scale * rng.standard_normal(shape)).astype(dtype)

    options = {
        name: draw(st.booleans())
        for name in ("go_backwards", "zero_output_for_mask", "return_sequences")
    }
    options["activation"] = draw(st.sampled_from(ACTIVATIONS))
    options["recurrent_activation"] = draw(st.sampled_from(GATES))
    kind = draw(st.sampled_from(["none", "mask", "lengths"]))
    valid = np.ones((batch, timesteps), bool)
    if kind == "mask":
        row = st.lists(st.booleans(), min_size=timesteps, max_size=timesteps)
        rows = draw(st.lists(row, min_size=batch, max_size=batch))
        options["mask"] = valid = np.array(rows, bool).reshape(batch, timesteps)
    elif kind == "lengths":
        lengths = draw(st.lists(st.integers(0, timesteps), min_size=batch, max_size=batch))
        options["sequence_lengths"] = np.array(lengths, np.int32)
        valid = np.arange(timesteps) < np.array(lengths).reshape(batch, 1)
    if draw(st.booleans()):
        options["initial_state"] = (normal(batch, units, scale=0.5), normal(batch, units))
    for name, size in (("input_factors", input_dim), ("recurrent_factors", units)):
        if draw(st.booleans()):
            options[name] = (rng.random((4, batch, size)) < 0.7).astype(dtype)
    arguments = [
        normal(batch, timesteps, input_dim),
        normal(input_dim, 4 * units, scale=max(input_dim, 1) ** -0.5),
        normal(units, 4 * units, scale=0.7 * units**-0.5),
        normal(4 * units, scale=0.5) if draw(st.booleans()) else None,
    ]
    outputs = (batch, timesteps, units) if options["return_sequences"] else (batch, units)
    upstream = [
        normal(*shape) if draw(st.booleans()) else None
        for shape in (outputs, (batch, units), (batch, units))
    ]
    return arguments, options, upstream, valid, dtype


def check(arguments, options, upstream, valid, dtype, threads):
    expected = reference.forward(*arguments, **options)
    expected_gradients = reference.backward(*arguments, None, *upstream, **options)
    poisoned = arguments[0].copy()
    poisoned[~valid] = np.nan
    arguments = [poisoned, *arguments[1:]]
    options = options | dict(num_threads=threads)
    with np.errstate(all="ignore"):
        result = core.forward(*arguments, save_reserve=True, **options)
        gradients = core.backward(*arguments, result.reserve, *upstream, **options)
    for name in ("outputs", "h", "c"):
        assert getattr(result, name).dtype == dtype
        assert relative_error(getattr(result, name), getattr(expected, name)) <= LIMITS[dtype], name
    for name, value in gradients._asdict().items():
        right = getattr(expected_gradients, name)
        assert value.shape == right.shape and value.dtype == dtype
        assert relative_error(value, right) <= 8 * LIMITS[dtype], name
    assert not gradients.inputs[~valid].any()


@settings(max_examples=500, deadline=None, derandomize=True)
@given(problem=problems(), threads=st.integers(1, 3))
def test_core_computes_what_the_specification_says(problem, threads):
    check(*problem, threads)
