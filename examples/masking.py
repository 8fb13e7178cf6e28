"""Masking layer over sensor readings, trained and used a batch at a time.

A room's thermometer reports temperature and humidity, but some reports are lost in between (a hole
in the mask, not just padding at the end) and recordings are of different length. What is missing
is filled with -1 and masked. The target is the temperature at the end of the recording, without
the reports' noise. Batches are learned from as they come in, with `train_on_batch`;
`predict_on_batch` answers for one.
"""

import _common
import keras
import numpy as np
from keras import layers

TIMESTEPS = 50
MISSING = -1.0


def make_data(samples):
    """Returns recordings (samples, 50, 2), -1 where missing, and last temperatures (samples, 1)."""
    rng = np.random.default_rng(7)
    rate = rng.uniform(0, 1, (samples, 1))
    time = np.arange(TIMESTEPS) / TIMESTEPS
    temperature = rng.uniform(0, 1, (samples, 1)) + rate * time
    humidity = rng.uniform(0.2, 0.8, (samples, 1)) - 0.2 * rate * time
    recordings = np.stack([temperature, humidity], axis=-1)
    recordings += 0.05 * rng.standard_normal(recordings.shape)
    lengths = rng.integers(10, TIMESTEPS + 1, (samples, 1))
    last_temperatures = np.take_along_axis(temperature, lengths - 1, axis=1)
    missing = (np.arange(TIMESTEPS) >= lengths) | (rng.random((samples, TIMESTEPS)) < 0.2)
    recordings[missing] = MISSING
    return recordings.astype("float32"), last_temperatures.astype("float32")


def build(LSTM):  # noqa: N803 - a class
    model = keras.Sequential(
        [
            keras.Input((None, 2)),
            layers.Masking(mask_value=MISSING),
            LSTM(40),
            layers.Dense(1),
        ]
    )
    model.compile(keras.optimizers.Adam(0.002), "mse")
    return model


def compare(samples=1600, epochs=5, batch_size=16):
    recordings, temperatures = make_data(samples)

    expected = [describe(temperature) for temperature in temperatures[:4]]

    def train(model):
        losses = []
        for _ in range(epochs):
            batches = [slice(i, i + batch_size) for i in range(0, samples, batch_size)]
            batch_losses = [
                model.train_on_batch(recordings[batch], temperatures[batch]) for batch in batches
            ]
            losses.append(np.mean(batch_losses))
        return losses

    def predict(model):
        return model.predict_on_batch(recordings[:batch_size])

    return _common.compare(build, train, predict, expected)


def describe(temperature):
    return f"{temperature[0]:.6f}"


if __name__ == "__main__":
    _common.main(compare(), describe)
