"""Two stacked LSTM layers that forecast the next value of a series; no mask anywhere.

A household's power use: a daily and a weekly cycle of random phase and strength, and noise. The
model sees 48 hours of the reading and of the hour (as sine and cosine) and predicts the next hour.
"""

import _common
import keras
import numpy as np
from keras import layers

TIMESTEPS = 48


def make_data(samples):
    """Returns windows (samples, 48, 3) and the reading that follows each (samples, 1)."""
    rng = np.random.default_rng(4)
    hour = rng.integers(0, 168, (samples, 1)) + np.arange(TIMESTEPS + 1)
    daily, weekly = rng.uniform(0.3, 1.0, (2, samples, 1))
    phase = rng.uniform(-1, 1, (samples, 1))
    reading = daily * np.sin(2 * np.pi * hour / 24 + phase)
    reading += weekly * np.sin(2 * np.pi * hour / 168)
    reading += 0.05 * rng.standard_normal(reading.shape)
    clock = 2 * np.pi * hour / 24
    features = np.stack([reading, np.sin(clock), np.cos(clock)], axis=-1).astype("float32")
    return features[:, :-1], features[:, -1, :1]


def build(LSTM):  # noqa: N803 - a class
    model = keras.Sequential(
        [
            keras.Input((TIMESTEPS, 3)),
            LSTM(48, return_sequences=True),
            LSTM(24),
            layers.Dense(1),
        ]
    )
    model.compile(keras.optimizers.Adam(0.005), "mse")
    return model


def compare(samples=1200, epochs=5):
    windows, next_readings = make_data(samples)

    expected = [describe(reading) for reading in next_readings[:4]]

    def train(model):
        history = model.fit(
            windows, next_readings, batch_size=32, epochs=epochs, shuffle=False, verbose=0
        )
        return history.history["loss"]

    def predict(model):
        return model.predict(windows[:100], verbose=0)

    return _common.compare(build, train, predict, expected)


def describe(reading):
    return f"{reading[0]:+.6f}"


if __name__ == "__main__":
    _common.main(compare(), describe)
