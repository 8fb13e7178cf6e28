"""Results of the forward and the backward pass, of masked_lstm.core and masked_lstm.reference.

Letters: B batch, T timesteps as padded, U units, N valid timesteps of the whole batch.
"""

from typing import NamedTuple

import numpy as np


class Forward(NamedTuple):
    """Results of `forward`."""

    outputs: np.ndarray  # (B,T,U), or (B,U) with return_sequences=False
    h: np.ndarray  # (B,U)
    c: np.ndarray  # (B,U)
    reserve: np.ndarray | None  # (5*U*N,): what `backward` needs; None unless save_reserve


class Gradients(NamedTuple):
    """Results of `backward`, each with the shape of the argument it belongs to."""

    inputs: np.ndarray
    kernel: np.ndarray
    recurrent_kernel: np.ndarray
    bias: np.ndarray
    h0: np.ndarray
    c0: np.ndarray
