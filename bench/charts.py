"""The charts of the report, drawn from CSV rows with matplotlib."""

from __future__ import annotations

import textwrap
from pathlib import Path

import matplotlib
from peers import OURS, TITLES
from report import Rows, best_peer, by_case, machine_of, machines, milliseconds, speedup

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  the backend is chosen first

PASSES = {"forward": "Forward", "training": "Training step"}
PEER_COLORS = "#b07aa1 #d4a6c8 #9c755f #f28e2b #ffbe7d #76b7b2 #59a14f"
COLORS = dict(zip(TITLES, f"{PEER_COLORS} #1f4e9c #5b8bd0 #9dbbe6 #2a7f9e".split(), strict=True))


def draw_all(rows: Rows, folder: Path) -> list[Path]:
    """Draws each chart for which there are rows, of the machine that was measured last; the paths
    written."""
    written = []
    for draw in (times, speedups, shares, fractions, scaling):
        for machine in machines(rows):
            here = [row for row in rows if machine_of(row) == machine]
            most = max(row["threads"] for row in here)
            at_most = [row for row in here if row["threads"] == most]
            shown = here if draw is scaling else at_most
            if drawn := draw(shown):
                figure, note = drawn
                where = f"{', '.join(machine)}, {most:.0f} threads, {_commits(shown)}"
                per_line = int(13 * figure.get_figwidth())  # characters of this size in an inch
                figure.supxlabel(f"{note}\n{textwrap.fill(where, per_line)}", fontsize=9)
                for axis in figure.axes:
                    axis.spines[["top", "right"]].set_visible(False)
                written.append(folder / f"{draw.__name__}.png")
                figure.savefig(written[-1], dpi=110)
                plt.close(figure)
                break
    return written


def _commits(rows: Rows) -> str:
    """All that the rows are of, each shortened, "+changes" kept."""
    commits = dict.fromkeys(row["commit"][:7] + row["commit"][12:] for row in rows)
    return f"commit {' and '.join(commits)}"


def _passes(rows: Rows, group: str | None = None) -> dict[str, Rows]:
    """The rows of each pass that has any, by the pass' title."""
    chosen = [row for row in rows if group in (None, row["group"])]
    split = {title: [row for row in chosen if row["pass"] == p] for p, title in PASSES.items()}
    return {title: part for title, part in split.items() if part}


def _axes(lines: int, columns: int, width: float, height: float):
    size = (width * columns, height * lines + 0.5)
    return plt.subplots(lines, columns, squeeze=False, layout="constrained", figsize=size)


def _legend(figure) -> None:
    """One legend beside the panels, for what is drawn in any of them."""
    handles = {}
    for axis in figure.axes:
        handles |= {label: h for h, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles, loc="outside right center", fontsize=8)


def _line(axis, name: str, points: list[tuple[float, float]]) -> None:
    width = 2.4 if name in OURS else 1.4
    x, y = zip(*sorted(points), strict=True)
    axis.plot(x, y, marker="o", ms=4, lw=width, color=COLORS[name], label=TITLES[name])


def times(rows: Rows):
    """A panel for each main case and pass: every peer's time."""
    tables = {title: by_case(part) for title, part in _passes(rows, "main").items()}
    cases = list(dict.fromkeys(case for table in tables.values() for case in table))
    if not cases:
        return None
    figure, axes = _axes(len(cases), len(tables), 5.5, 2.1)
    for column, (title, table) in enumerate(tables.items()):
        for line, case in enumerate(cases):
            axis = axes[line][column]
            if case not in table:  # void, or not measured
                axis.axis("off")
                continue
            axis.set_title(f"{case}, {title.lower()}, ms", fontsize=10)
            peers = sorted(table[case].values(), key=lambda row: -row["median_ms"])
            bars = axis.barh(
                [TITLES[row["peer"]] for row in peers],
                [row["median_ms"] for row in peers],
                xerr=[
                    [row["median_ms"] - row["low_ms"] for row in peers],
                    [row["high_ms"] - row["median_ms"] for row in peers],
                ],
                error_kw={"lw": 0.8, "ecolor": "#555555"},
                color=[COLORS[row["peer"]] for row in peers],
            )
            labels = [milliseconds(row["median_ms"]) for row in peers]
            axis.bar_label(bars, labels, fontsize=8, padding=4)
            axis.margins(x=0.14)
            axis.set_xlim(left=0)
            axis.tick_params(labelsize=8)
    return figure, "Shorter is better. Lines: from quartile to quartile."


def speedups(rows: Rows):
    """Ours over the best peer, every case, on a logarithmic axis: losses as long as wins.

    But for cases that vary one quantity: those have charts of their own, and may have few peers.
    """
    rows = [row for row in rows if row["group"].split("_")[0] not in ("fraction", "scaling")]
    tables = {title: by_case(part) for title, part in _passes(rows).items()}
    cases = list(by_case(rows))
    if not any(row["peer"] in OURS for row in rows):
        return None
    figure, axes = _axes(1, len(tables), 6, 0.34 * len(cases) + 0.8)
    for axis, (title, table) in zip(axes[0], tables.items(), strict=True):
        for offset, name in ((-0.2, "core"), (0.2, "layer")):
            factors = {i: speedup(table.get(case, {}), name) for i, case in enumerate(cases)}
            factors = {i: factor for i, factor in factors.items() if factor}
            lines, widths = [i + offset for i in factors], [f - 1 for f in factors.values()]
            bars = axis.barh(lines, widths, 0.38, left=1, color=COLORS[name], label=TITLES[name])
            labels = [f"{factor:.2f}x" for factor in factors.values()]
            axis.bar_label(bars, labels, fontsize=7, padding=2)
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter("{x:g}x")
        axis.set_yticks(range(len(cases)), cases, fontsize=8)
        axis.set_ylim(len(cases) - 0.4, -0.6)
        axis.margins(x=0.12)
        axis.axvline(1, color="black", lw=1)
        axis.set_title(title, fontsize=11)
    _legend(figure)
    return figure, "Best peer's time / ours, for each case. Left of the line ours is slower."


def shares(rows: Rows):
    """Share of the FMA peak on valid work, ours and the best peer; of sgemm if no peak is known."""
    passes = _passes(rows, "main")
    if not passes:
        return None
    has_peak = rows[0]["peak_share"] is not None
    figure, axes = _axes(1, len(passes), 5.6, 3.6)
    for axis, (title, part) in zip(axes[0], passes.items(), strict=True):
        table = by_case(part)
        series = {name: [peers.get(name) for peers in table.values()] for name in OURS}
        series["best peer"] = [best_peer(peers) for peers in table.values()]
        series = {name: values for name, values in series.items() if any(values)}
        width = 0.84 / len(series)
        for index, (name, values) in enumerate(series.items()):
            share = [
                row["peak_share" if has_peak else "sgemm_share"] if row else 0 for row in values
            ]
            x = [i + (index - (len(series) - 1) / 2) * width for i in range(len(values))]
            color, label = COLORS.get(name, "#999999"), TITLES.get(name, name)
            bars = axis.bar(x, [100 * s for s in share], 0.94 * width, color=color, label=label)
            axis.bar_label(bars, fmt="%.0f", fontsize=7, padding=1)
        if has_peak:
            level = 100 * part[0]["sgemm_gflops"] / part[0]["peak_gflops"]
            axis.axhline(level, color="#444444", lw=0.9, ls="--", label="large sgemm")
        axis.set_xticks(range(len(table)), list(table))
        axis.set_ylim(0, 105)
        axis.set_title(title, fontsize=11)
    axes[0][0].set_ylabel(f"% of {'the measured FMA peak' if has_peak else 'a large sgemm'}")
    _legend(figure)
    return figure, "Arithmetic on valid steps only."


def fractions(rows: Rows):
    """Time against the share of valid steps, both logarithmic: proportional is a straight line."""
    passes = _passes(rows, "fraction")
    if not passes:
        return None
    figure, axes = _axes(1, len(passes), 6, 4.2)
    for axis, (title, part) in zip(axes[0], passes.items(), strict=True):
        for name in (name for name in TITLES if any(row["peer"] == name for row in part)):
            points = [(r["valid_fraction"], r["median_ms"]) for r in part if r["peer"] == name]
            _line(axis, name, points)
            if name == "core":
                most, full = max(points)
                x = [fraction for fraction, _ in points]
                label = "core's full time x fraction"
                axis.plot(x, [full * f / most for f in x], "k:", lw=1, label=label)
        ticks = sorted({row["valid_fraction"] for row in part})
        axis.set(xscale="log", yscale="log", xlabel="valid steps", ylabel="ms")
        axis.set_xticks(ticks, [f"{tick:.0%}" for tick in ticks])
        axis.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
        axis.set_title(f"{title}, shape of case text", fontsize=11)
        axis.grid(alpha=0.25, which="both", lw=0.5)
    _legend(figure)
    return figure, "Cost against valid work."


def scaling(rows: Rows):
    """Rate on valid work against T, B, U and threads, each from the shape of case text."""
    most = max(row["threads"] for row in rows)
    text = [row for row in rows if row["case"] == "text"]
    panels = {}
    for field in ("timesteps", "batch", "units"):
        part = [row for row in rows if row["group"] == f"scaling_{field}"]
        if part:
            # Of the case itself the run that is of the same commit, where there is one.
            commits = {row["commit"] for row in part}
            known = sorted(text, key=lambda row: row["commit"] not in commits)
            panels[field] = [row for row in part + known if row["threads"] == most]
    if len({row["threads"] for row in text}) > 1:
        panels["threads"] = text
    if not panels:
        return None
    figure, axes = _axes(len(PASSES), len(panels), 4.2, 3.2)
    for line, (pass_name, title) in enumerate(PASSES.items()):
        for axis, (field, part) in zip(axes[line], panels.items(), strict=True):
            part = [row for row in part if row["pass"] == pass_name]
            for name in (name for name in TITLES if any(row["peer"] == name for row in part)):
                points = {}
                for row in part:
                    if row["peer"] == name:
                        points.setdefault(row[field], row["gflops"])
                if len(points) > 1:
                    _line(axis, name, list(points.items()))
            ticks = sorted({row[field] for row in part})
            axis.set_xscale("log", base=2)
            axis.set_xticks(ticks, [f"{tick:.0f}" for tick in ticks], fontsize=8)
            axis.minorticks_off()
            axis.set_ylim(bottom=0)
            axis.set_title(f"{title}: {field}", fontsize=10)
            axis.grid(alpha=0.25, lw=0.5)
        axes[line][0].set_ylabel("GFLOP/s on valid work")
    _legend(figure)
    return figure, "Case text with one quantity changed. Higher is better."
