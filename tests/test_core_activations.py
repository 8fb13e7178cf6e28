"""sigmoid and tanh of the kernels: within 4 ulp of the exact value, in both precisions."""

import numpy as np
import pytest
from problems import ISAS

from masked_lstm import _core


def exact(name, x):
    x = x.astype(np.longdouble)
    if name == "tanh":
        return np.tanh(x)
    small = np.exp(-np.abs(x))
    return np.where(x < 0, small, 1) / (1 + small)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["sigmoid", "tanh"])
def test_within_four_ulp(name, dtype, isa):
    # Up to where sigmoid(-x) is still a normal number; below that it is flushed to 0.
    largest = 87 if dtype == "float32" else 708
    decades = 10.0 ** np.linspace(-30, np.log10(largest), 100_001)
    x = np.concatenate([np.linspace(-largest, largest, 100_001), decades, -decades]).astype(dtype)
    expected = exact(name, x)
    ulp = np.spacing(np.abs(expected).astype(dtype)).astype(np.longdouble)
    assert np.max(np.abs(_core.activation(name, x, isa) - expected) / ulp) <= 4


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_ends(dtype, isa):
    x = np.array([-np.inf, -1e4, -0.0, 0.0, 1e4, np.inf, np.nan], dtype)
    sigmoid, tanh = (_core.activation(name, x, isa) for name in ("sigmoid", "tanh"))
    np.testing.assert_array_equal(sigmoid, np.array([0, 0, 0.5, 0.5, 1, 1, np.nan], dtype))
    np.testing.assert_array_equal(tanh, np.array([-1, -1, -0.0, 0, 1, 1, np.nan], dtype))
    assert np.signbit(tanh[2])
