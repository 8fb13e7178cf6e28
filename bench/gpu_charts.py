"""The charts of `run.py --device cuda`, from its rows."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  the backend is chosen first

CENTER = {"units": 512, "batch": 64, "dtype": "bfloat16", "valid_fraction": 0.4}
AXES = {"units": "units", "batch": "batch", "valid_fraction": "valid fraction"}


def _at_center(row, but) -> bool:
    return all(
        name == but
        or row[name] == value
        or name == "valid_fraction"
        and abs(row[name] - value) < 0.02
        for name, value in CENTER.items()
    )


def draw_all(rows: list[dict], path: Path) -> list[Path]:
    """One file beside `path` for each thing that varies, forward and training step; and the ratio
    to the best peer over all points. Those without rows are left out."""
    written = []
    for axis, title in AXES.items():
        figure, panels = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
        drawn = 0
        for panel, pass_name in zip(panels, ("forward", "training"), strict=True):
            chosen = [r for r in rows if r["pass"] == pass_name and _at_center(r, axis)]
            for peer in dict.fromkeys(row["peer"] for row in chosen):
                points = sorted((r[axis], r["us_per_step"]) for r in chosen if r["peer"] == peer)
                panel.plot(*zip(*points, strict=True), marker="o", label=peer)
                drawn += len(points)
            panel.set(title=pass_name, xlabel=title, ylabel="us per padded step", yscale="log")
            if axis != "valid_fraction":
                panel.set_xscale("log", base=2)
            if chosen:
                panel.legend(fontsize=8)
        if drawn:
            others = ", ".join(f"{AXES.get(k, k)} {v}" for k, v in CENTER.items() if k != axis)
            figure.supxlabel(f"{others}; {rows[0]['gpu']}, commit {rows[0]['commit']}", fontsize=9)
            written.append(path.with_name(f"{path.stem}-{axis.replace('_', '-')}.png"))
            figure.savefig(written[-1], dpi=110)
        plt.close(figure)
    ours = [row for row in rows if row["peer"] == "ours" and row["ratio_to_best_peer"]]
    if ours:
        figure, panel = plt.subplots(figsize=(8, 4), layout="constrained")
        for dtype in dict.fromkeys(row["dtype"] for row in ours):
            points = [
                (r["valid_fraction"], r["ratio_to_best_peer"]) for r in ours if r["dtype"] == dtype
            ]
            panel.scatter(*zip(*points, strict=True), s=14, label=dtype)
        panel.axhline(1, color="gray", linewidth=0.8)
        panel.set(xlabel="valid fraction", ylabel="best peer's time / ours", yscale="log")
        panel.legend(fontsize=8)
        written.append(path.with_name(f"{path.stem}-ratios.png"))
        figure.savefig(written[-1], dpi=110)
        plt.close(figure)
    return written
