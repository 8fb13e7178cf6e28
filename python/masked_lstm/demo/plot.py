"""The demo's picture: loss curves and seconds per epoch of both runs."""

from __future__ import annotations

import pathlib
import statistics

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

COLORS = ("#d08c2f", "#2f6fd0")


def draw(results: dict, path: pathlib.Path) -> None:
    """Draws `results` (see compare.run) to a PNG at `path`."""
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(9, 3.8), width_ratios=[3, 2], layout="constrained"
    )
    styles = (dict(linewidth=5, alpha=0.5), dict(linewidth=1.6))  # they lie on each other
    for (name, one), color, style in zip(results["runs"].items(), COLORS, styles, strict=True):
        epochs = range(1, len(one["loss"]) + 1)
        left.plot(epochs, one["loss"], color=color, marker="o", markersize=4, label=name, **style)
    left.set_xlabel("epoch")
    left.set_ylabel("training loss")
    left.set_ylim(bottom=0)
    left.xaxis.get_major_locator().set_params(integer=True)
    left.legend(frameon=False)
    left.set_title("The same training run ...", fontsize=11)

    names = list(results["runs"])
    seconds = [one["seconds"] for one in results["runs"].values()]
    medians = [statistics.median(values) for values in seconds]
    below = [m - min(values) for m, values in zip(medians, seconds, strict=True)]
    above = [max(values) - m for m, values in zip(medians, seconds, strict=True)]
    bars = right.barh(
        names, medians, xerr=[below, above], color=COLORS, height=0.55, ecolor="#555555"
    )
    right.invert_yaxis()
    right.set_xlabel("median seconds per epoch")
    right.margins(x=0.15)
    for bar, median in zip(bars, medians, strict=True):
        right.text(
            bar.get_width() * 0.04, bar.get_y() + bar.get_height() / 2, f"{median:.1f} s",
            va="center", color="white", fontweight="bold",
        )  # fmt: skip
    speed_up = results["speed_up"]
    right.set_title(f"... {speed_up:.1f} times as fast" if speed_up else "", fontsize=11)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    right.tick_params(axis="y", length=0)
    figure.suptitle(
        f"Letters to phonemes, {results['training_words']:,} words, "
        f"{results['valid_fraction']:.0%} of the padded positions exist",
        fontsize=12,
    )
    figure.savefig(path, dpi=130)
    plt.close(figure)
