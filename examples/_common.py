"""What every example here shares: train one model with both LSTM classes and compare.

`compare` builds a model with `keras.layers.LSTM` and again with `masked_lstm.LSTM`, gives both the
same weights, trains both on the same batches in the same order, and checks that losses and
predictions are the same, to RELATIVE_TOLERANCE.
"""

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow reads it when it is imported

import keras
import numpy as np
from rich.console import Console
from rich.table import Table

import masked_lstm

# How far apart the two may be. A float32 dot product of K terms is off by about eps * sqrt(K), for
# its rounding errors mostly cancel (Higham & Mary, "A new approach to probabilistic rounding error
# analysis", 2019), and T timesteps hand that on T times: two good LSTMs agree in their outputs and
# gradients to eps * sqrt(K) * T. No LSTM here has more than 128 terms (input_dim + units) or is
# trained on more than 64 timesteps, so that is 9e-5 at most.
#
# Adam's steps are then off by that part of their size, and what many steps add up to, by that part
# of the way: hence losses are compared by it times the first loss, predictions by it times their
# range. This holds while training does not amplify differences. Training with a high learning rate
# does, a thousandfold and more: then Keras' LSTM does not even agree with itself after its weights
# were changed by one rounding. The learning rates here are low enough.
RELATIVE_TOLERANCE = float(np.finfo(np.float32).eps) * np.sqrt(128) * 64


@dataclass(frozen=True)
class Run:
    """One model, trained."""

    losses: np.ndarray  # (epochs,): the mean loss of each
    predictions: np.ndarray  # (samples, ...)
    kernel_calls: dict[str, int]  # calls that masked_lstm's kernels served meanwhile
    train_again: Callable[[], float]  # the same training from the same start; returns its seconds


@dataclass(frozen=True)
class Comparison:
    """Two models trained alike, Keras' and ours."""

    keras: Run
    ours: Run
    expected: Sequence[str]  # what the first few predictions should be, for the reader

    @property
    def loss_tolerance(self) -> float:
        return RELATIVE_TOLERANCE * float(self.keras.losses[0])

    @property
    def loss_differences(self) -> np.ndarray:
        """(epochs,)"""
        return np.abs(self.ours.losses - self.keras.losses)

    @property
    def prediction_tolerance(self) -> float:
        return RELATIVE_TOLERANCE * float(np.ptp(self.keras.predictions))

    @property
    def prediction_difference(self) -> float:
        """The largest of all."""
        return float(np.abs(self.ours.predictions - self.keras.predictions).max())

    def problems(self) -> list[str]:
        """One sentence for each thing that is not as it should be; empty when all is well."""
        found = []
        # Written so that NaN is a problem too.
        if not np.all(self.loss_differences <= self.loss_tolerance):
            found.append("The losses differ by more than the tolerance.")
        if not self.prediction_difference <= self.prediction_tolerance:
            found.append("The predictions differ by more than the tolerance.")
        if not self.ours.losses[-1] < self.ours.losses[0]:
            found.append("The loss did not fall.")
        for direction in ("forward", "backward"):
            if not any(direction in name for name in self.ours.kernel_calls):
                found.append(f"No fused {direction} kernel ran.")
        return found


def compare(
    build: Callable[[type], keras.Model],
    train: Callable[[keras.Model], list[float]],
    predict: Callable[[keras.Model], np.ndarray],
    expected: Sequence[str],
) -> Comparison:
    """Trains `build(LSTM)` with Keras' LSTM and with ours, from the same weights.

    Args:
        build: takes the LSTM class, returns a compiled model.
        train: trains the model it is given and returns the loss of each epoch. It is called more
            than once and must use the same batches in the same order each time.
        predict: returns the trained model's predictions.
        expected: what the first few predictions should be, in words; only printed.
    """
    keras.utils.set_random_seed(0)
    stock = build(keras.layers.LSTM)
    ours = build(masked_lstm.LSTM)
    ours.set_weights(stock.get_weights())
    return Comparison(
        keras=_run(stock, train, predict), ours=_run(ours, train, predict), expected=expected
    )


def main(comparison: Comparison, describe: Callable[[np.ndarray], str]) -> None:
    """Prints a comparison and ends the program: status 0 when all is well, else 1.

    Args:
        comparison: what `compare` returned.
        describe: puts one prediction (a row of `Run.predictions`) into words.
    """
    console = Console(highlight=False)
    epochs = Table("epoch", "keras.layers.LSTM", "masked_lstm.LSTM", "difference")
    rows = zip(
        comparison.keras.losses,
        comparison.ours.losses,
        comparison.loss_differences,
        strict=True,
    )
    for epoch, (stock, ours, difference) in enumerate(rows, start=1):
        epochs.add_row(str(epoch), f"{stock:.6f}", f"{ours:.6f}", f"{difference:.1e}")
    console.print("Loss", style="bold")
    console.print(epochs)
    console.print(f"Tolerance {comparison.loss_tolerance:.1e}")

    predictions = Table("expected", "keras.layers.LSTM", "masked_lstm.LSTM")
    for sample, expected in enumerate(comparison.expected):
        stock, ours = comparison.keras.predictions[sample], comparison.ours.predictions[sample]
        predictions.add_row(expected, describe(stock), describe(ours))
    console.print("Predictions", style="bold")
    console.print(predictions)
    console.print(
        f"Largest difference {comparison.prediction_difference:.1e},"
        f" tolerance {comparison.prediction_tolerance:.1e}"
    )

    # The second training is the one to time: now the graphs have been traced.
    stock, ours = comparison.keras.train_again(), comparison.ours.train_again()
    console.print("Training time", style="bold")
    console.print(f"{stock:.2f} s with Keras' LSTM, {ours:.2f} s with ours: {stock / ours:.1f}x")
    console.print(f"Fused kernels called: {comparison.ours.kernel_calls or 'none'}")

    problems = comparison.problems()
    for problem in problems:
        console.print(problem, style="red")
    if not problems:
        console.print("Same results.", style="green")
    sys.exit(1 if problems else 0)


def _run(model, train, predict) -> Run:
    initial_weights = model.get_weights()

    def train_again():
        model.set_weights(initial_weights)
        learning_rate = model.optimizer.learning_rate
        for variable in model.optimizer.variables:
            if variable is not learning_rate:
                variable.assign(np.zeros(variable.shape))  # Adam starts from zeros
        start = time.perf_counter()
        train(model)
        return time.perf_counter() - start

    calls_before = Counter(masked_lstm.kernel_calls())
    losses = train(model)
    predictions = predict(model)
    return Run(
        losses=np.asarray(losses, dtype=np.float64),
        predictions=np.asarray(predictions, dtype=np.float64),
        kernel_calls=dict(Counter(masked_lstm.kernel_calls()) - calls_before),
        train_again=train_again,
    )
