"""Sequence autoencoder: LSTM -> RepeatVector -> LSTM.

The encoder squeezes a pulse wave of 40 readings into 24 numbers, from which the decoder draws it
again. Waves that are unlike the training data come back badly, which finds anomalies.
"""

import _common
import keras
import numpy as np
from keras import layers

TIMESTEPS = 40


def make_data(samples):
    """Returns pulse waves (samples, 40, 1) of random phase and strength."""
    rng = np.random.default_rng(6)
    phase = rng.uniform(0, 1, (samples, 1))
    strength = rng.uniform(0.5, 1.0, (samples, 1))
    angle = 2 * np.pi * (2 * np.arange(TIMESTEPS) / TIMESTEPS + phase)
    waves = strength * (np.sin(angle) + 0.5 * np.sin(2 * angle))
    return waves[..., np.newaxis].astype("float32")


def build(LSTM):  # noqa: N803 - a class
    model = keras.Sequential(
        [
            keras.Input((TIMESTEPS, 1)),
            LSTM(24),
            layers.RepeatVector(TIMESTEPS),
            LSTM(24, return_sequences=True),
            layers.Dense(1),
        ]
    )
    model.compile(keras.optimizers.Adam(0.002), "mse")
    return model


def compare(samples=1200, epochs=6):
    waves = make_data(samples)

    expected = [describe(wave) for wave in waves[:4]]

    def train(model):
        history = model.fit(waves, waves, batch_size=32, epochs=epochs, shuffle=False, verbose=0)
        return history.history["loss"]

    def predict(model):
        return model.predict(waves[:50], verbose=0)

    return _common.compare(build, train, predict, expected)


def describe(wave):
    return " ".join(f"{value:+.4f}" for value in wave[:4, 0]) + " ..."


if __name__ == "__main__":
    _common.main(compare(), describe)
