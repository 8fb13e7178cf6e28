"""Random LSTM problems: masks of every kind, padding poisoned with NaN and Inf."""

from typing import NamedTuple

import numpy as np
import pytest

from masked_lstm import core

# Every instruction set of the package; those this CPU lacks are skipped where all can see it.
ISAS = [
    pytest.param(isa, marks=pytest.mark.skipif(isa not in core.isas(), reason=f"CPU lacks {isa}"))
    for isa in ("generic", "avx2", "avx512")
]
# Of float32: the sets with products of bfloat16 are avx512 in all else.
FLOAT32_ISA = "avx512" if core.isa().endswith("bf16") else core.isa()
MASKS = ("none", "full", "right", "left", "holes", "empty")


class Problem(NamedTuple):
    """Arguments of core.forward, and gradients arriving at its results."""

    inputs: np.ndarray
    kernel: np.ndarray
    recurrent_kernel: np.ndarray
    bias: np.ndarray
    initial_state: tuple
    mask: np.ndarray | None
    d_outputs: np.ndarray
    d_h: np.ndarray
    d_c: np.ndarray

    def weights(self):
        return self.kernel, self.recurrent_kernel, self.bias

    def poisoned(self):
        """inputs with NaN and Inf wherever the mask says that nobody may look."""
        inputs = self.inputs.copy()
        if self.mask is not None:
            inputs[~self.mask] = np.nan
            inputs[~self.mask, ::2] = np.inf
        return inputs


def make_mask(kind, batch, timesteps, rng):
    """(B,T) bool: one full and one empty row among random ones; None for "none"."""
    lengths = rng.integers(0, timesteps + 1, batch)
    lengths[: min(batch, 2)] = [timesteps, 0][: min(batch, 2)]
    positions = np.arange(timesteps)
    if kind == "none":
        return None
    if kind == "full":
        return np.ones((batch, timesteps), bool)
    if kind == "empty":
        return np.zeros((batch, timesteps), bool)
    if kind == "right":
        return positions < lengths[:, None]
    if kind == "left":
        return positions >= timesteps - lengths[:, None]
    mask = rng.random((batch, timesteps)) < 0.5
    mask[: min(batch, 2)] = np.array([[True], [False]])[: min(batch, 2)]
    return mask


def make_problem(
    batch, timesteps, input_dim, units, mask="none", dtype="float64", seed=0, return_sequences=True
):
    """A problem whose gates work where they are curved, not saturated."""
    rng = np.random.default_rng([seed, batch, timesteps, input_dim, units])

    def normal(*shape, scale=1.0):
        return (scale * rng.standard_normal(shape)).astype(dtype)

    outputs = (batch, timesteps, units) if return_sequences else (batch, units)
    return Problem(
        inputs=normal(batch, timesteps, input_dim),
        kernel=normal(input_dim, 4 * units, scale=max(input_dim, 1) ** -0.5),
        recurrent_kernel=normal(units, 4 * units, scale=units**-0.5),
        bias=normal(4 * units, scale=0.5),
        initial_state=(normal(batch, units, scale=0.5), normal(batch, units)),
        mask=make_mask(mask, batch, timesteps, rng),
        d_outputs=normal(*outputs),
        d_h=normal(batch, units),
        d_c=normal(batch, units),
    )


def relative_error(actual, expected):
    """Largest error, relative to the largest expected value (at least 1)."""
    if np.size(expected) == 0:
        return 0.0
    difference = np.abs(np.asarray(actual, np.float64) - np.asarray(expected, np.float64))
    return float(np.max(difference) / max(1.0, np.max(np.abs(expected))))
