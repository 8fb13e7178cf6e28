"""The benchmark's cases: named shapes and length distributions, the same on every machine.

Letters: B batch, T timesteps as padded, D input_dim, U units, N valid timesteps of the batch.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

PASSES = ("forward", "training")  # training = forward and the gradients of x and all weights


@dataclass(frozen=True)
class Case:
    """One shape with one way to draw the lengths of its rows."""

    name: str
    batch: int
    timesteps: int
    input_dim: int
    units: int
    lengths: str = "beta"  # beta, full, equal, two_point, one_long or fraction
    fraction: float = 1.0  # of valid steps, for lengths="fraction" only
    directions: int = 1
    carry_state: bool = False  # an initial state is given (streaming)
    group: str = "main"
    passes: tuple[str, ...] = PASSES

    def flops(self, valid_steps: int, pass_name: str) -> float:
        """Multiplications and additions of the matrix products on valid steps only.

        The cell's pointwise work is not counted. The backward pass has two products (of the
        input and of the weights) for each product of the forward pass, hence the factor 3.
        """
        forward = 2.0 * valid_steps * 4 * self.units * (self.input_dim + self.units)
        return forward * self.directions * (3 if pass_name == "training" else 1)


@dataclass(frozen=True)
class Data:
    """Arrays of one case, float32, in Keras' layouts.

    `weights` holds (kernel (D, 4U), recurrent_kernel (U, 4U), bias (4U)) for each direction, gates
    in the order i, f, c, o. `d_outputs` (B, T, directions * U), the gradient that arrives at the
    outputs in a training step, is 0 at padded steps, so peers that compute padding and peers that
    skip it owe the same gradients. The inputs' padding holds ordinary numbers.
    """

    inputs: np.ndarray
    lengths: np.ndarray
    weights: tuple[tuple[np.ndarray, np.ndarray, np.ndarray], ...]
    h0: np.ndarray
    c0: np.ndarray
    d_outputs: np.ndarray

    @cached_property
    def mask(self) -> np.ndarray:
        """(B, T) bool, True at valid steps."""
        return np.arange(self.inputs.shape[1]) < self.lengths[:, None]

    @property
    def padded(self) -> bool:
        return bool((self.lengths < self.inputs.shape[1]).any())

    @property
    def valid_steps(self) -> int:
        return int(self.lengths.sum())


def make_lengths(case: Case) -> np.ndarray:
    """(B,) int32 lengths in 1..T, at least one row full (but for `equal`); the name is the seed."""
    rng = np.random.default_rng(zlib.crc32(case.name.encode()))
    batch, timesteps = case.batch, case.timesteps
    if case.lengths == "full" or batch == 1:
        return np.full(batch, timesteps, np.int32)
    if case.lengths == "equal":  # padded to a fixed T that no row reaches
        return np.full(batch, round(0.4 * timesteps), np.int32)
    if case.lengths == "two_point":  # short and long rows, alternating
        lengths = np.where(np.arange(batch) % 2, timesteps, timesteps // 10).astype(np.int32)
    elif case.lengths == "one_long":
        lengths = np.full(batch, max(1, timesteps // 20), np.int32)
    elif case.lengths == "beta":
        # Evenly spaced quantiles of a large sample: a small batch too has the distribution's mean.
        drawn = np.sort(rng.beta(1.3, 2.2, batch * 64))[32::64]
        lengths = np.ceil(rng.permutation(drawn) * timesteps).astype(np.int32)
    elif case.lengths == "fraction":
        return _lengths_of_fraction(rng, batch, timesteps, case.fraction)
    else:
        raise ValueError(f"case {case.name}: unknown length distribution {case.lengths!r}")
    lengths = np.clip(lengths, 1, timesteps)
    lengths[lengths.argmax()] = timesteps
    return lengths


def _lengths_of_fraction(rng, batch: int, timesteps: int, fraction: float) -> np.ndarray:
    """As beta, but with another mean, then moved step by step until the sum is exact."""
    target = max(timesteps + batch - 1, round(fraction * batch * timesteps))
    mean = min((target - timesteps) / ((batch - 1) * timesteps), 0.999)
    drawn = rng.beta(3.5 * mean, 3.5 * (1 - mean), batch)
    lengths = np.clip(np.ceil(drawn * timesteps), 1, timesteps).astype(np.int32)
    lengths[0] = timesteps
    while (missing := target - int(lengths.sum())) != 0:
        row, step = rng.integers(1, batch), int(np.sign(missing))
        lengths[row] = np.clip(lengths[row] + step, 1, timesteps)
    return lengths


def aligned(array: np.ndarray) -> np.ndarray:
    """`array` at a multiple of 64 bytes, as TensorFlow wants it; a copy where it is not."""
    if array.ctypes.data % 64 == 0 and array.flags.c_contiguous:
        return array
    memory = np.empty(array.nbytes + 64, np.uint8)
    start = -memory.ctypes.data % 64
    result = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    result[...] = array
    return result


def make_data(case: Case) -> Data:
    rng = np.random.default_rng(zlib.crc32(case.name.encode()) + 1)
    lengths = make_lengths(case)

    def normal(*shape: int, scale: float = 1.0) -> np.ndarray:
        return aligned(rng.standard_normal(shape, dtype=np.float32) * np.float32(scale))

    d, u = case.input_dim, case.units
    weights = tuple(
        (
            normal(d, 4 * u, scale=(2 / (d + 4 * u)) ** 0.5),
            normal(u, 4 * u, scale=(1 / (4 * u)) ** 0.5),
            normal(4 * u, scale=0.1),
        )
        for _ in range(case.directions)
    )
    inputs = normal(case.batch, case.timesteps, d)
    state_scale = 0.5 if case.carry_state else 0.0
    h0, c0 = (normal(case.batch, u, scale=state_scale) for _ in range(2))
    d_outputs = normal(case.batch, case.timesteps, u * case.directions)
    d_outputs *= (np.arange(case.timesteps) < lengths[:, None])[..., None]
    return Data(inputs, lengths, weights, h0, c0, d_outputs)


def _all_cases() -> dict[str, Case]:
    main = [
        Case("qa_small", 32, 100, 64, 32),
        Case("text", 64, 200, 128, 128),
        Case("tagger", 64, 128, 300, 256),
        Case("speech", 32, 500, 80, 512),
        Case("large", 64, 100, 1024, 1024),
    ]
    text = main[1]
    cases = [
        *main,
        *(replace(case, name=f"{case.name}_full", lengths="full", group="full") for case in main),
        *(Case(f"single_{u}", 1, 200, u, u, "full", group="single") for u in (128, 512)),
        *(
            Case(
                f"stream_{b}",
                b,
                1,
                128,
                128,
                "full",
                carry_state=True,
                group="stream",
                passes=("forward",),
            )
            for b in (1, 8)
        ),
        *(
            Case(f"short_{b}x{t}", b, t, 128, 128, "full", group="short", passes=("forward",))
            for b, t in ((1, 20), (8, 4), (32, 1), (32, 4))
        ),
        replace(text, name="text_bidirectional", directions=2, group="bidirectional"),
        *(
            replace(text, name=f"text_{kind}", lengths=kind, group="lengths")
            for kind in ("equal", "two_point", "one_long")
        ),
        *(
            replace(
                text,
                name=f"text_{percent}%",
                lengths="fraction",
                fraction=percent / 100,
                group="fraction",
            )
            for percent in (5, 10, 25, 50, 75, 100)
        ),
    ]
    for field, values in (
        ("timesteps", (25, 50, 100, 400, 800)),
        ("batch", (4, 8, 16, 32, 128)),
        ("units", (16, 32, 64, 256, 512)),
    ):
        cases += [
            replace(text, name=f"text_{field}_{n}", group=f"scaling_{field}", **{field: n})
            for n in values
        ]
    return {case.name: case for case in cases}


CASES = _all_cases()


def select(names: list[str]) -> list[Case]:
    """Cases by name or group (all, if none is named), in order; ValueError for an unknown one."""
    known = set(CASES) | {case.group for case in CASES.values()}
    if unknown := [name for name in names if name not in known]:
        raise ValueError(
            f"unknown case {', '.join(unknown)}; cases: {', '.join(CASES)}; "
            f"groups: {', '.join(dict.fromkeys(case.group for case in CASES.values()))}"
        )
    if not names:
        return list(CASES.values())
    return [case for case in CASES.values() if case.name in names or case.group in names]
