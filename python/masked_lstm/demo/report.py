"""What the demo prints."""

from __future__ import annotations

import contextlib

import rich.box
import rich.console
import rich.progress
import rich.table

from . import data, train

SAMPLES = 8  # held-out words shown


def introduction(console: rich.console.Console, results: dict) -> None:
    """What is about to be trained."""
    console.print(
        f"[bold]Letters to phonemes[/bold]: {results['training_words']:,} words to train on "
        f"({results['training_pronunciations']:,} pronunciations, no stress marks), "
        f"{results['held_out_words']:,} others held out. "
        f"{results['valid_fraction']:.0%} of all positions in the padded batches exist.\n"
    )


class Progress:
    """A bar for the epoch under way and, above it, a row for every epoch done.

    Where the output is no terminal, only the rows appear.
    """

    def __init__(self, console: rich.console.Console, names: list[str]):
        self._console = console
        self._names = names
        self._bars = rich.progress.Progress(
            rich.progress.TextColumn("{task.description:25}"),
            rich.progress.BarColumn(),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TextColumn("{task.fields[loss]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> Progress:
        first, second = self._names
        heads = f"{first:>11} {second:>11}"
        self._print(f"{'':5} {'training loss':^35} {'seconds':^23}  phoneme error rate")
        self._print(f"{'epoch':>5} {heads} {'difference':>11} {heads}  (held-out words)")
        self._bars.start()
        return self

    def __exit__(self, *_) -> None:
        self._bars.stop()

    @contextlib.contextmanager
    def bar(self, label: str, batches: int):
        """Shows a bar; gives the function to call with (batches done, mean loss so far)."""
        task = self._bars.add_task(label, total=batches, loss="")
        yield lambda done, loss: self._bars.update(task, completed=done, loss=f"loss {loss:.4f}")
        self._bars.remove_task(task)

    def row(self, number: int, epochs: dict[str, train.Epoch], error_rate: float) -> None:
        """Prints one epoch of the runs that have done it, and our run's phoneme error rate."""
        done = [epochs.get(name) for name in self._names]
        losses = " ".join(f"{e.loss:11.4f}" if e else f"{'-':>11}" for e in done)
        seconds = " ".join(f"{e.seconds:11.2f}" if e else f"{'-':>11}" for e in done)
        difference = f"{abs(done[0].loss - done[1].loss):.1e}" if all(done) else "-"
        self._print(f"{number:5} {losses} {difference:>11} {seconds}  {error_rate:10.1%}")

    def _print(self, line):
        self._bars.console.print(line, markup=False, soft_wrap=True)


def summary(console: rich.console.Console, results: dict) -> None:
    """Time and quality of both runs, and which kernels ours used."""
    table = rich.table.Table(box=rich.box.SIMPLE)
    table.add_column("")
    for name in results["runs"]:
        table.add_column(name, justify="right")
    for title, key, form in (
        ("seconds per epoch (median)", "median_seconds", "{:.2f}"),
        ("phoneme error rate", "phoneme_error_rate", "{:.1%}"),
        ("words with an error", "word_error_rate", "{:.1%}"),
    ):
        values = [run.get(key) for run in results["runs"].values()]
        table.add_row(title, *("-" if value is None else form.format(value) for value in values))
    console.print(table)
    console.print(
        f"[bold]{results['speed_up']:.1f} times faster per training epoch[/bold] (over the epochs "
        "both have run; each epoch's first batch, where TensorFlow may trace, is not timed)."
    )
    ran = ", ".join(f"{name} x {count:,}" for name, count in results["kernel_calls"].items())
    console.print(f"Kernels of masked_lstm that ran: {ran or 'none'}.")


def samples(
    console: rich.console.Console,
    held_out: data.Dictionary,
    transcripts: dict[str, list[data.Pronunciation]],
) -> None:
    """The first held-out words as the dictionary has them and as each model says them."""
    table = rich.table.Table(title="Held-out words", box=rich.box.SIMPLE)
    for column in ("word", "dictionary", *transcripts):
        table.add_column(column)
    for index, (word, listed) in enumerate(list(held_out.items())[:SAMPLES]):
        said = [" ".join(pronunciations[index]) for pronunciations in transcripts.values()]
        table.add_row(word, " ".join(listed[0]), *said)
    console.print(table)
