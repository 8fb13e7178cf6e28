"""The demo's picture: loss curves and seconds per epoch of both runs."""

from __future__ import annotations

import pathlib

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

COLORS = ("#d08c2f", "#2f6fd0")


def draw(results: dict, path: pathlib.Path) -> None:
    """Draws `results` (see compare.run) to a PNG at `path`."""
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(9, 3.8), width_ratios=[3, 2], layout="constrained"
    )
    _losses(left, results["runs"])
    _seconds(right, results["runs"], results["speed_up"])
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(
        f"Letters to phonemes, {results['training_words']:,} words, "
        f"{results['valid_fraction']:.0%} of the padded positions exist",
        fontsize=12,
    )
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _losses(axes, runs):
    # They lie on each other: the first drawn is the wider.
    styles = (dict(linewidth=5, markersize=9, alpha=0.5), dict(linewidth=1.6, markersize=4))
    for (name, run), color, style in zip(runs.items(), COLORS, styles, strict=True):
        epochs = range(1, len(run["loss"]) + 1)
        axes.plot(epochs, run["loss"], color=color, marker="o", label=name, **style)
    axes.set_xlabel("epoch")
    axes.set_ylabel("training loss")
    axes.set_ylim(bottom=0)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(frameon=False)
    axes.set_title("The same training run ...", fontsize=11)


def _seconds(axes, runs, speed_up):
    """A bar for each run's median, and under it a dot for each epoch."""
    for place, ((name, run), color) in enumerate(zip(runs.items(), COLORS, strict=True)):
        median = run["median_seconds"]
        axes.barh(name, median, color=color, height=0.5)
        axes.plot(run["seconds"], [place + 0.36] * len(run["seconds"]), "o", color=color, ms=4)
        axes.annotate(
            f"{median:.1f} s",
            (median, place),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
        )
    axes.invert_yaxis()
    axes.margins(x=0.2)  # room for the labels
    axes.set_xlim(left=0)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("seconds per epoch\n(bar: median of those both ran, dots: each)")
    axes.set_title(f"... {speed_up:.1f} times as fast", fontsize=11)
