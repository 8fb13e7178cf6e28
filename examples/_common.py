"""What every example here shares: train one model with both LSTM classes and compare.

`compare` builds a model with `keras.layers.LSTM` and again with `masked_lstm.LSTM`, gives both the
same weights, trains both on the same batches in the same order, and checks that losses and
predictions are the same. How far apart they may be is not guessed: see `Comparison`.
"""

import dataclasses
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

EPSILON = float(np.finfo(np.float32).eps)


@dataclass(frozen=True)
class Run:
    """One model, trained: mean loss of each epoch, predictions, and what it took."""

    losses: np.ndarray  # (epochs,)
    predictions: np.ndarray  # (samples, ...)
    seconds: float  # of the training
    kernel_calls: dict[str, int]  # calls served by masked_lstm's kernels meanwhile


@dataclass(frozen=True)
class Comparison:
    """Keras' run, ours, and the tolerance between them.

    Two correct float32 LSTMs round differently, and training amplifies any difference, by an amount
    that depends on model and data. So it is measured: `nudged` is Keras' model trained once more
    with each weight w replaced by w * (1 +- EPSILON * sqrt(K)), K its number of rows. A float32
    dot product of K terms is the exact one of weights changed by about that much (Wilkinson's
    backward error; sqrt(K) and not K because rounding errors mostly cancel: Higham & Mary, "A new
    approach to probabilistic rounding error analysis", 2019). `nudged` therefore differs from Keras
    as an equally good implementation does.

    One random nudge is one draw of that difference, and ours another. Both are maxima over many
    numbers, so they are of one size but not equal; hence MARGIN. The second term is the rounding of
    the result itself, for draws that happen to cancel.
    """

    MARGIN = 8

    keras: Run
    nudged: Run
    ours: Run
    expected: Sequence[str]  # what the first few predictions should be, for the reader

    @property
    def loss_tolerance(self) -> np.ndarray:
        """(epochs,): what epoch e may differ by; differences only grow as training goes on."""
        spread = np.maximum.accumulate(np.abs(self.nudged.losses - self.keras.losses))
        return self.MARGIN * (spread + EPSILON * np.abs(self.keras.losses))

    @property
    def prediction_tolerance(self) -> float:
        """What any one predicted number may differ by."""
        spread = np.abs(self.nudged.predictions - self.keras.predictions).max()
        return self.MARGIN * float(spread + EPSILON * np.abs(self.keras.predictions).max())

    @property
    def loss_difference(self) -> np.ndarray:
        return np.abs(self.ours.losses - self.keras.losses)

    @property
    def prediction_difference(self) -> float:
        return float(np.abs(self.ours.predictions - self.keras.predictions).max())

    def problems(self) -> list[str]:
        """One sentence for each thing that is not as it should be; empty when all is well."""
        found = []
        # Written so that NaN is a problem too.
        if not np.all(self.loss_difference <= self.loss_tolerance):
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

    initial_weights = stock.get_weights()
    keras_run = _run(stock, train, predict)
    _start_again(stock, _nudge(initial_weights))
    nudged_run = _run(stock, train, predict)
    ours_run = _run(ours, train, predict)

    # Times are those of a model's second training: by then its graph has been traced.
    _start_again(ours, initial_weights)
    ours_seconds, _ = _timed(train, ours)
    return Comparison(
        keras=dataclasses.replace(keras_run, seconds=nudged_run.seconds),
        nudged=nudged_run,
        ours=dataclasses.replace(ours_run, seconds=ours_seconds),
        expected=expected,
    )


def main(comparison: Comparison, describe: Callable[[np.ndarray], str]) -> None:
    """Prints a comparison and ends the program: status 0 when all is well, else 1.

    Args:
        comparison: what `compare` returned.
        describe: puts one prediction (a row of `Run.predictions`) into words.
    """
    console = Console(highlight=False)
    epochs = Table("epoch", "keras.layers.LSTM", "masked_lstm.LSTM", "difference", "tolerance")
    rows = zip(
        comparison.keras.losses,
        comparison.ours.losses,
        comparison.loss_difference,
        comparison.loss_tolerance,
        strict=True,
    )
    for epoch, (stock, ours, difference, tolerance) in enumerate(rows, start=1):
        epochs.add_row(
            str(epoch), f"{stock:.6f}", f"{ours:.6f}", f"{difference:.1e}", f"{tolerance:.1e}"
        )
    console.print("Loss", style="bold")
    console.print(epochs)

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

    stock, ours = comparison.keras.seconds, comparison.ours.seconds
    console.print("Training time", style="bold")
    console.print(f"{stock:.2f} s with Keras' LSTM, {ours:.2f} s with ours: {stock / ours:.1f}x")
    console.print(f"Fused kernels called: {comparison.ours.kernel_calls or 'none'}")

    problems = comparison.problems()
    for problem in problems:
        console.print(problem, style="red")
    if not problems:
        console.print("Same results.", style="green")
    sys.exit(1 if problems else 0)


def _timed(train, model):
    start = time.perf_counter()
    losses = train(model)
    return time.perf_counter() - start, losses


def _run(model, train, predict) -> Run:
    before = Counter(masked_lstm.kernel_calls())
    seconds, losses = _timed(train, model)
    predictions = predict(model)
    return Run(
        losses=np.asarray(losses, dtype=np.float64),
        predictions=np.asarray(predictions, dtype=np.float64),
        seconds=seconds,
        kernel_calls=dict(Counter(masked_lstm.kernel_calls()) - before),
    )


def _start_again(model: keras.Model, weights: list[np.ndarray]) -> None:
    """Gives the model these weights and its optimizer the state of a new one."""
    model.set_weights(weights)
    learning_rate = model.optimizer.learning_rate
    for variable in model.optimizer.variables:
        if variable is not learning_rate:
            variable.assign(np.zeros(variable.shape))  # Adam starts from zeros


def _nudge(weights: list[np.ndarray]) -> list[np.ndarray]:
    signs = np.random.default_rng(0)
    nudged = []
    for weight in weights:
        relative = EPSILON * np.sqrt(weight.shape[0]) * signs.choice([-1, 1], size=weight.shape)
        nudged.append((weight * (1 + relative)).astype(weight.dtype))
    return nudged
