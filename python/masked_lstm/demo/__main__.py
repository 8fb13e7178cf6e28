"""`python -m masked_lstm.demo`: trains one model with Keras' LSTM and with ours, and compares."""

from __future__ import annotations

import argparse
import os
import pathlib


def parse_arguments(argv=None):
    """The command line; `--full` changes the defaults."""
    parser = argparse.ArgumentParser(
        prog="python -m masked_lstm.demo",
        description="Trains a grapheme-to-phoneme model on the CMU Pronouncing Dictionary: with "
        "Keras' LSTM, and the same model after replace_lstm.",
    )
    parser.add_argument("--full", action="store_true", help="train on all words, until it works")
    parser.add_argument("--words", type=int, help="training words (default 12000; --full: all)")
    parser.add_argument("--epochs", type=int, help="(default 5; --full: 14)")
    parser.add_argument(
        "--keras-epochs", type=int, help="epochs of Keras' half (default: all; --full: 1)"
    )
    parser.add_argument("--units", type=int, help="of the decoder (default 128; --full: 256)")
    parser.add_argument("--batch-size", type=int, help="(default 64; --full: 128)")
    parser.add_argument("--learning-rate", type=float, help="(default 0.005; --full: 0.003)")
    parser.add_argument("--held-out", type=int, default=2000, help="words to judge by")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, help="for either LSTM (default: all cores)")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out"))
    arguments = parser.parse_args(argv)
    short = dict(words=12000, epochs=5, units=128, batch_size=64, learning_rate=5e-3)
    full = dict(keras_epochs=1, epochs=14, units=256, batch_size=128, learning_rate=3e-3)
    for name, value in (full if arguments.full else short).items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
    if arguments.keras_epochs is None:
        arguments.keras_epochs = arguments.epochs
    for name in ("epochs", "keras_epochs", "batch_size"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name.replace('_', '-')}: expected at least 1")
    return arguments


def main(argv=None):
    """Runs the demo; returns what it writes to results.json."""
    arguments = parse_arguments(argv)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before TensorFlow is imported
    from . import compare

    return compare.run(arguments)


if __name__ == "__main__":
    main()
