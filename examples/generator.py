"""Training from a generator whose batches differ in length, then predicting on longer sequences.

A cart is tracked from three noisy, biased speedometers; the model gives its speed and its
acceleration, both smoothed, at every step: Dense(2) on the last axis. Each batch is as long as its
longest recording; shorter ones are padded, masked, and get a sample_weight of zero there. The
trained weights then move to a new model, which predicts recordings longer than any trained on.
"""

import _common
import keras
import numpy as np
from keras import layers

FEATURES, TARGETS = 3, 2
STEPS_PER_EPOCH = 30
LONGEST_TRAINED_ON = 40


def make_batch(rng, batch_size, longest):
    """Returns speedometers (B, T, 3), targets (B, T, 2) and weights (B, T), T = longest."""
    speed = 0.3 * rng.standard_normal((batch_size, longest)).cumsum(axis=1)
    readings = speed[..., np.newaxis] + 0.3 * rng.standard_normal((batch_size, longest, FEATURES))
    targets = np.zeros((batch_size, longest, TARGETS))
    state = np.zeros((batch_size, TARGETS))
    for step in range(longest):
        smoothed = 0.7 * state[:, 0] + 0.3 * speed[:, step]
        state = np.stack([smoothed, smoothed - state[:, 0]], axis=-1)
        targets[:, step] = state
    lengths = rng.integers(longest // 3, longest + 1, batch_size)
    lengths[0] = longest
    valid = np.arange(longest) < lengths[:, np.newaxis]
    readings[~valid] = 0
    return readings.astype("float32"), targets.astype("float32"), valid.astype("float32")


def make_batches(batch_size):
    """Yields batches for ever, no two neighbours of one length.

    Keras takes a dimension as fixed when the first two batches agree in it, and then refuses any
    other: a generator must begin with batches that differ.
    """
    rng = np.random.default_rng(8)
    longest = 0
    while True:
        longest = rng.choice([n for n in range(10, LONGEST_TRAINED_ON + 1, 10) if n != longest])
        yield make_batch(rng, batch_size, longest)


def build(LSTM):  # noqa: N803 - a class
    model = keras.Sequential(
        [
            keras.Input((None, FEATURES)),
            layers.Masking(),
            LSTM(32, return_sequences=True),
            LSTM(8, return_sequences=True),
            layers.Dense(TARGETS),
        ]
    )
    model.compile(keras.optimizers.Adam(0.005), "mse")
    return model


def compare(samples=32 * STEPS_PER_EPOCH, epochs=6):
    batch_size = samples // STEPS_PER_EPOCH
    longer, tracks, valid = make_batch(np.random.default_rng(9), 16, 3 * LONGEST_TRAINED_ON)
    lengths = valid.sum(axis=1).astype(int)
    expected = [
        describe(track[:length]) for track, length in zip(tracks[:4], lengths[:4], strict=True)
    ]

    def train(model):
        history = model.fit(
            make_batches(batch_size),
            steps_per_epoch=STEPS_PER_EPOCH,
            epochs=epochs,
            shuffle=False,
            verbose=0,
        )
        return history.history["loss"]

    def predict(model):
        new_model = keras.models.clone_model(model)
        new_model.set_weights(model.get_weights())
        return new_model.predict(longer, verbose=0)

    return _common.compare(build, train, predict, expected)


def describe(track):
    speed, acceleration = track[-1]
    return f"speed {speed:+.5f}, acceleration {acceleration:+.5f}"


if __name__ == "__main__":
    _common.main(compare(), describe)
