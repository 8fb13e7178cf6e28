"""The demo's course: both models trained in turn, judged, printed, plotted, recorded."""

from __future__ import annotations

import json
import statistics
from argparse import Namespace

import keras
import rich.box
import rich.console
import rich.progress
import rich.table
import tensorflow as tf

import masked_lstm

from . import data, model, plot, train, transcribe

SAMPLES = 8  # held-out words shown
COMPARE_WITH = "Keras"
OURS = "masked_lstm"


def run(arguments: Namespace) -> dict:
    """Trains, prints and writes `results.json` and `training.png` to `arguments.out`."""
    console = rich.console.Console()
    if arguments.threads:
        tf.config.threading.set_intra_op_parallelism_threads(arguments.threads)
        tf.config.threading.set_inter_op_parallelism_threads(arguments.threads)
    words = data.split(data.load(), arguments.held_out, arguments.words, arguments.seed)
    pairs = data.encode(words.train)
    valid = data.valid_fraction(pairs, arguments.batch_size, seed=0)
    console.print(
        f"[bold]Letters to phonemes[/bold]: {len(words.train)} words to train on "
        f"({len(pairs)} pronunciations), {len(words.held_out)} held out; "
        f"{valid:.0%} of all positions in the padded batches exist."
    )

    runs = _make_runs(arguments, pairs)
    calls = _train(arguments, pairs, runs, console)
    scores, transcripts = {}, {}
    for name, one in runs.items():
        if len(one.epochs) == arguments.epochs:  # a half-trained model is not worth judging
            transcripts[name] = transcribe.transcribe(one.model, list(words.held_out))
            scores[name] = transcribe.score(transcripts[name], words.held_out)

    results = _results(arguments, words, pairs, valid, runs, scores, calls)
    _print_losses(console, runs)
    _print_summary(console, results)
    _print_words(console, words.held_out, transcripts)
    arguments.out.mkdir(parents=True, exist_ok=True)
    plot.draw(results, arguments.out / "training.png")
    (arguments.out / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    console.print(f"Written: {arguments.out}/training.png, {arguments.out}/results.json")
    return results


def _make_runs(arguments, pairs) -> dict[str, train.Run]:
    """The stock model and the same model with our layers: same weights, same optimizer."""
    keras.utils.set_random_seed(arguments.seed)
    stock = model.build(arguments.units)
    ours = masked_lstm.replace_lstm(stock)
    steps = arguments.epochs * -(-len(pairs) // arguments.batch_size)
    for one in (stock, ours):
        model.compile_for_training(one, arguments.learning_rate, steps)
    return {COMPARE_WITH: train.Run(COMPARE_WITH, stock), OURS: train.Run(OURS, ours)}


def _train(arguments, pairs, runs, console) -> dict[str, int]:
    """Epoch by epoch in turn, so that a busy machine slows both. Returns our kernels' calls."""
    steps = -(-len(pairs) // arguments.batch_size)
    columns = (
        rich.progress.TextColumn("{task.description:24}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeElapsedColumn(),
        rich.progress.TextColumn("loss {task.fields[loss]:.4f}"),
    )
    before = masked_lstm.kernel_calls()
    with rich.progress.Progress(*columns, console=console) as progress:
        for epoch in range(arguments.epochs):
            for name, one in runs.items():
                if name == COMPARE_WITH and epoch >= arguments.keras_epochs:
                    continue
                task = progress.add_task(
                    f"epoch {epoch + 1}/{arguments.epochs} {name}", total=steps, loss=float("nan")
                )

                def show(done, loss, task=task):
                    progress.update(task, completed=done, loss=loss)

                one.train_epoch(data.batches(pairs, arguments.batch_size, epoch), show)
    after = masked_lstm.kernel_calls()
    return {name: count - before.get(name, 0) for name, count in after.items()}


def _results(arguments, words, pairs, valid, runs, scores, calls) -> dict:
    results = {
        "settings": {key: value for key, value in vars(arguments).items() if key != "out"},
        "training_words": len(words.train),
        "held_out_words": len(words.held_out),
        "batches_per_epoch": -(-len(pairs) // arguments.batch_size),
        "valid_fraction": valid,
        "kernel_calls": calls,
        "versions": {
            "masked_lstm": masked_lstm.__version__,
            "tensorflow": tf.__version__,
            "keras": keras.__version__,
        },
        "runs": {
            name: {
                "loss": [epoch.loss for epoch in one.epochs],
                "seconds": [epoch.seconds for epoch in one.epochs],
            }
            for name, one in runs.items()
        },
    }
    for name, score in scores.items():
        results["runs"][name].update(score._asdict())
    # Epochs that both have run, so that both saw the same machine.
    both = zip(*(one.epochs for one in runs.values()), strict=False)
    ratios = [stock.seconds / ours.seconds for stock, ours in both]
    results["speed_up"] = statistics.median(ratios) if ratios else None
    return results


def _print_losses(console, runs):
    table = rich.table.Table(title="Loss per epoch", box=rich.box.SIMPLE)
    table.add_column("epoch", justify="right")
    for name in runs:
        table.add_column(name, justify="right")
    table.add_column("difference", justify="right")
    for epoch in range(max(len(one.epochs) for one in runs.values())):
        losses = [one.epochs[epoch].loss for one in runs.values() if epoch < len(one.epochs)]
        cells = [
            f"{one.epochs[epoch].loss:.3f}" if epoch < len(one.epochs) else "-"
            for one in runs.values()
        ]
        if len(losses) == 2:
            cells.append(f"{abs(losses[0] - losses[1]):.1e}")
        table.add_row(str(epoch + 1), *cells)
    console.print(table)


def _print_summary(console, results):
    table = rich.table.Table(box=rich.box.SIMPLE)
    table.add_column("")
    for name in results["runs"]:
        table.add_column(name, justify="right")
    rows = {
        "seconds per epoch (median)": ("seconds", lambda v: f"{statistics.median(v):.2f}"),
        "phoneme error rate": ("phoneme_error_rate", "{:.1%}".format),
        "words with an error": ("word_error_rate", "{:.1%}".format),
    }
    for title, (key, write) in rows.items():
        values = [one.get(key) for one in results["runs"].values()]
        table.add_row(title, *("-" if not value else write(value) for value in values))
    console.print(table)
    if results["speed_up"]:
        console.print(
            f"[bold]{results['speed_up']:.1f} times faster per training epoch[/bold] (median; the "
            "first batch of each epoch, where the model is traced, is not timed)."
        )
    ran = ", ".join(f"{name} x {count}" for name, count in results["kernel_calls"].items())
    console.print(f"Kernels that ran: {ran or 'none of ours'}.")


def _print_words(console, held_out, transcripts):
    if not transcripts:
        return
    table = rich.table.Table(title="Held-out words", box=rich.box.SIMPLE)
    for column in ("word", "dictionary", *transcripts):
        table.add_column(column)
    for index, (word, listed) in enumerate(list(held_out.items())[:SAMPLES]):
        said = [" ".join(pronunciations[index]) for pronunciations in transcripts.values()]
        table.add_row(word, " ".join(listed[0]), *said)
    console.print(table)
