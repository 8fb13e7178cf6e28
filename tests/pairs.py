"""A stock LSTM and ours with the same weights, and the masks to compare them under."""

import keras
import numpy as np

import masked_lstm

BATCH, TIMESTEPS, INPUT_DIM, UNITS = 4, 6, 3, 5

MASKS = {
    "none": None,
    "full": np.ones((BATCH, TIMESTEPS), bool),
    "right": np.arange(TIMESTEPS) < np.array([[6], [1], [4], [3]]),
    "left": np.arange(TIMESTEPS) >= np.array([[5], [0], [2], [3]]),
    "holes": np.array(
        [[1, 0, 1, 1, 0, 1], [0, 1, 0, 0, 1, 0], [1, 1, 0, 0, 0, 1], [0, 0, 1, 0, 1, 1]]
    )
    > 0,
    "empty rows": np.arange(TIMESTEPS) < np.array([[0], [2], [0], [6]]),
}


# In float64. Sums of at most 8 products of numbers below 1, and 6 timesteps, leave some 100
# roundings of 1e-16.
TOLERANCE = dict(rtol=1e-12, atol=1e-12)


def assert_all_close(ours, stock, **tolerance):
    for mine, theirs in zip(keras.tree.flatten(ours), keras.tree.flatten(stock), strict=True):
        np.testing.assert_allclose(mine, theirs, **(tolerance or TOLERANCE))


def random(*shape, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, shape)


def same_weights(stock, ours, seed=0):
    """Gives both built layers or models the same random weights (biases too)."""
    rng = np.random.default_rng(seed)
    weights = [rng.uniform(-0.8, 0.8, w.shape) for w in stock.weights]
    stock.set_weights(weights)
    ours.set_weights(weights)


def pair(units=UNITS, batch=None, input_dim=INPUT_DIM, backend="fused", **kwargs):
    """`keras.layers.LSTM` on its plain loop and `masked_lstm.LSTM`, built, same weights."""
    stock = keras.layers.LSTM(units, use_cudnn=False, **kwargs)
    ours = masked_lstm.LSTM(units, backend=backend, **kwargs)
    for layer in (stock, ours):
        layer.build((batch, None, input_dim))
    same_weights(stock, ours)
    return stock, ours


def padding_and_poison(x, mask):
    """`x` twice: as it is for Keras, and with NaN where the mask is False for ours."""
    return x, x if mask is None else np.where(mask[..., None], x, np.nan)


def forward_calls():
    """How many forward calls the fused kernels have served in this process."""
    return sum(n for name, n in masked_lstm.kernel_calls().items() if name.endswith("forward"))
