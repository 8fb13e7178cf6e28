"""The demo's course: both models trained in turn, judged, reported, plotted, recorded."""

from __future__ import annotations

import json
import os
import statistics
from argparse import Namespace

import keras
import rich.console
import tensorflow as tf

import masked_lstm

from . import data, model, plot, report, train, transcribe

KERAS = "Keras"
OURS = "masked_lstm"


def run(arguments: Namespace) -> dict:
    """Trains, prints and writes `results.json` and `training.png` to `arguments.out`."""
    console = rich.console.Console(highlight=False)
    if arguments.threads:
        tf.config.threading.set_intra_op_parallelism_threads(arguments.threads)
        tf.config.threading.set_inter_op_parallelism_threads(arguments.threads)
    words = data.split(data.load(), arguments.held_out, arguments.words, arguments.seed)
    pairs = data.encode(words.train)
    results = {
        "settings": {key: value for key, value in vars(arguments).items() if key != "out"},
        "versions": {
            "masked_lstm": masked_lstm.__version__,
            "tensorflow": tf.__version__,
            "keras": keras.__version__,
        },
        "threads": arguments.threads or os.cpu_count(),
        "training_words": len(words.train),
        "training_pronunciations": len(pairs),
        "held_out_words": len(words.held_out),
        "batches_per_epoch": -(-len(pairs) // arguments.batch_size),
        "valid_fraction": data.valid_fraction(pairs, arguments.batch_size, seed=0),
    }
    report.introduction(console, results)

    runs = _make_runs(arguments, results["batches_per_epoch"])
    before = masked_lstm.kernel_calls()
    _train(arguments, pairs, words.held_out, runs, console)
    after = masked_lstm.kernel_calls()
    results["kernel_calls"] = {name: after[name] - before.get(name, 0) for name in after}

    transcripts = {}
    results["runs"] = {}
    for name, one in runs.items():
        recorded = {
            "loss": [epoch.loss for epoch in one.epochs],
            "seconds": [epoch.seconds for epoch in one.epochs],
        }
        if len(one.epochs) == arguments.epochs:  # a half-trained model is not worth judging
            transcripts[name] = transcribe.transcribe(one.decode, list(words.held_out))
            recorded |= transcribe.score(transcripts[name], words.held_out)._asdict()
        results["runs"][name] = recorded
    results["runs"][OURS]["phoneme_error_rates"] = runs[OURS].phoneme_error_rates
    # Over the epochs that both have run, so that both saw the same machine.
    for name, one in runs.items():
        seconds = [epoch.seconds for epoch in one.epochs[: arguments.keras_epochs]]
        results["runs"][name]["median_seconds"] = statistics.median(seconds)
    medians = {name: recorded["median_seconds"] for name, recorded in results["runs"].items()}
    results["speed_up"] = medians[KERAS] / medians[OURS]

    report.summary(console, results)
    report.samples(console, words.held_out, transcripts)
    arguments.out.mkdir(parents=True, exist_ok=True)
    plot.draw(results, arguments.out / "training.png")
    (arguments.out / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    console.print(f"Written: {arguments.out}/training.png, {arguments.out}/results.json")
    return results


def _make_runs(arguments, batches_per_epoch) -> dict[str, train.Run]:
    """The stock model and the same model with our layers: same weights, same optimizer."""
    keras.utils.set_random_seed(arguments.seed)
    stock = model.build(arguments.units)
    ours = masked_lstm.replace_lstm(stock)
    for one in (stock, ours):
        model.compile_for_training(
            one, arguments.learning_rate, arguments.epochs * batches_per_epoch
        )
    return {KERAS: train.Run(stock), OURS: train.Run(ours)}


def _train(arguments, pairs, held_out, runs, console):
    """Epoch by epoch in turn, so that a busy machine slows both; Keras' `keras_epochs` only."""
    with report.Progress(console, list(runs)) as progress:
        for epoch in range(arguments.epochs):
            finished = {}
            for name, one in runs.items():
                if name == KERAS and epoch >= arguments.keras_epochs:
                    continue
                batches = data.batches(pairs, arguments.batch_size, seed=epoch)
                label = f"epoch {epoch + 1}/{arguments.epochs} {name}"
                with progress.bar(label, len(batches)) as on_batch:
                    finished[name] = one.train_epoch(batches, on_batch)
            transcripts = transcribe.transcribe(runs[OURS].decode, list(held_out))
            error_rate = transcribe.score(transcripts, held_out).phoneme_error_rate
            runs[OURS].phoneme_error_rates.append(error_rate)
            progress.row(epoch + 1, finished, error_rate)
