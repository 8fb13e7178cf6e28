"""One run: a model trained epoch by epoch, each epoch's loss and time kept."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import keras
import tensorflow as tf

from . import transcribe


class Epoch(NamedTuple):
    """``loss``: Keras' mean training loss. ``seconds``: see ``Stopwatch``."""

    loss: float
    seconds: float


class Stopwatch(keras.callbacks.Callback):
    """Times an epoch of n batches from the end of its first batch on, scaled by n / (n - 1).

    The first batch is left out because in the first epoch TensorFlow traces the model in it.
    """

    def __init__(self, on_batch: Callable[[int, float], None]):
        super().__init__()
        self.on_batch = on_batch
        self.seconds = 0.0

    def on_epoch_begin(self, epoch, logs=None):
        self.first = self.last = None
        self.batches = 0

    def on_train_batch_end(self, batch, logs=None):
        self.last = time.perf_counter()
        self.first = self.last if self.first is None else self.first
        self.batches += 1
        self.on_batch(self.batches, float(logs["loss"]))

    def on_epoch_end(self, epoch, logs=None):
        timed = max(self.batches - 1, 1)
        self.seconds = (self.last - self.first) * self.batches / timed


class Run:
    """A compiled model and what its training has shown so far."""

    def __init__(self, model: keras.Model):
        self.model = model
        self.decode = transcribe.greedy_decoder(model)
        self.epochs: list[Epoch] = []
        self.phoneme_error_rates: list[float] = []

    def train_epoch(
        self, batches: tf.data.Dataset, on_batch: Callable[[int, float], None] = lambda *_: None
    ) -> Epoch:
        """Trains one epoch; ``on_batch(batches done, mean loss so far)`` after each batch."""
        stopwatch = Stopwatch(on_batch)
        done = len(self.epochs)
        history = self.model.fit(
            batches,
            initial_epoch=done,
            epochs=done + 1,
            shuffle=False,
            verbose=0,
            callbacks=[stopwatch],
        )
        self.epochs.append(Epoch(history.history["loss"][-1], stopwatch.seconds))
        return self.epochs[-1]
