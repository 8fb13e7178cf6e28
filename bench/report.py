"""Turns the benchmark's CSV files into Markdown tables and PNG charts.

    python bench/report.py [CSV ...] [--out FOLDER] [--readme README.md]

Reads bench/results/cpu-*.csv unless told otherwise, writes report.md and the charts into --out
(bench/results), and with --readme puts the tables of the main cases on the machine that was
measured last between the lines `<!-- bench -->` and `<!-- /bench -->` of that file. Void
measurements are left out and named.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections import defaultdict
from pathlib import Path

from cases import CASES
from peers import CONTROL_AGAIN, OURS, TITLES

RESULTS = Path(__file__).resolve().parent / "results"
NUMBERS = (
    "threads batch timesteps input_dim units valid_fraction rounds median_ms low_ms high_ms "
    "gflops peak_gflops sgemm_gflops peak_share sgemm_share control void memory_mib"
).split()

Rows = list[dict]


def read(paths: list[Path]) -> Rows:
    """Each measurement's rows, numbers as floats (None where a field is empty).

    A case and pass that several files have on one machine is taken from the last of them, from the
    last one that is not void if there is one: its peers were measured together.
    """
    measurements = {}
    for path in paths:
        here = defaultdict(list)
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                row |= {name: float(row[name]) if row[name] != "" else None for name in NUMBERS}
                here[machine_of(row), row["threads"], row["case"], row["pass"]].append(row)
        for key, rows in here.items():
            if key not in measurements or not rows[0]["void"] or measurements[key][0]["void"]:
                measurements[key] = rows
    order = {case: place for place, case in enumerate(CASES)}
    rows = [row for rows in measurements.values() for row in rows]
    return sorted(rows, key=lambda row: order.get(row["case"], -1))


def by_case(rows: Rows) -> dict[str, dict[str, dict]]:
    """{case: {peer: row}} in the order of the rows, without the control's repetition."""
    table = defaultdict(dict)
    for row in rows:
        if row["peer"] != CONTROL_AGAIN:
            table[row["case"]][row["peer"]] = row
    return dict(table)


def best_peer(peers: dict[str, dict]) -> dict | None:
    others = [row for name, row in peers.items() if name not in OURS]
    return min(others, key=lambda row: row["median_ms"], default=None)


def speedup(peers: dict[str, dict], ours: str) -> float | None:
    """The best peer's time over ours; below 1, ours is slower."""
    best = best_peer(peers)
    return best["median_ms"] / peers[ours]["median_ms"] if best and ours in peers else None


def milliseconds(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def summary(rows: Rows) -> str:
    """One line on one measurement, for the terminal."""
    ((case, peers),) = by_case(rows).items()
    shown = [peers[name] for name in OURS if name in peers] + [best_peer(peers)]
    parts = [f"{TITLES[row['peer']]} {milliseconds(row['median_ms'])} ms" for row in shown]
    if factor := speedup(peers, "core"):
        parts.append(f"core {factor:.2f}x")
    void = ", [red]void[/]" if rows[0]["void"] else ""
    return f"{case} {rows[0]['pass']}: {', '.join(parts)} (control {rows[0]['control']:+.1%}{void})"


def markdown(header: list[str], lines: list[list[str]]) -> str:
    aligned = ["---"] + ["---:"] * (len(header) - 1)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [header, aligned, *lines]) + "\n"


def result_table(rows: Rows) -> str:
    """Ours against the best peer of each case; a dash where there is nothing."""

    def cell(value, form) -> str:
        return "–" if value is None else form.format(value)

    def time(row: dict | None) -> str:
        return milliseconds(row["median_ms"]) if row else "–"

    lines = []
    for case, peers in by_case(rows).items():
        best, core = best_peer(peers), peers.get("core", {})
        row = next(iter(peers.values()))
        shape = ",".join(f"{row[key]:.0f}" for key in "batch timesteps input_dim units".split())
        lines.append(
            [
                f"{case} ({shape}; {row['valid_fraction']:.0%} valid)",
                *(time(peers.get(name)) for name in ("core", "layer")),
                f"{time(best)} ({TITLES[best['peer']]})" if best else "–",
                *(cell(speedup(peers, name), "{:.2f}x") for name in ("core", "layer")),
                *(cell(core.get(name), "{:.0%}") for name in ("peak_share", "sgemm_share")),
            ]
        )
    header = "case (B,T,D,U)|core, ms|layer, ms|best peer, ms|core vs best|layer vs best"
    return markdown([*header.split("|"), "core, of FMA peak", "core, of sgemm"], lines)


def peer_table(rows: Rows, value) -> str:
    """Cases by peers; `value(row)` makes a cell."""
    names = [name for name in TITLES if any(row["peer"] == name for row in rows)]
    lines = [
        [case, *(value(peers[name]) if name in peers else "–" for name in names)]
        for case, peers in by_case(rows).items()
    ]
    return markdown(["case", *(TITLES[name] for name in names)], lines)


def conditions(rows: Rows) -> str:
    """What the numbers were measured on."""
    first = rows[0]
    commits = " and ".join(dict.fromkeys(row["commit"] for row in rows))
    versions = ", ".join(dict.fromkeys(row["version"] for row in rows))
    peak = f"{first['peak_gflops']:.0f} GFLOP/s" if first["peak_gflops"] else "not measured"
    return (
        f"{first['cpu']}, {first['isa']}, {first['threads']:.0f} threads, commit {commits}, "
        f"{first['date']}. Measured FMA peak {peak}, large sgemm "
        f"{first['sgemm_gflops']:.0f} GFLOP/s. Medians of {min(row['rounds'] for row in rows):.0f} "
        "rounds or more; Keras measured twice differs by at most "
        f"{max(abs(row['control']) for row in rows):.1%}. {versions}.\n"
    )


def machine_of(row: dict) -> tuple[str, str]:
    return row["cpu"], row["isa"]


def machines(rows: Rows) -> list[tuple[str, str]]:
    """(CPU, instruction set) of the rows: measured last first, and most rows of a day first."""
    found = [machine_of(row) for row in rows]

    def rank(machine: tuple[str, str]) -> tuple[str, int]:
        days = [row["date"] for row, of in zip(rows, found, strict=True) if of == machine]
        return max(days), len(days)

    return sorted(dict.fromkeys(found), key=rank, reverse=True)


def void_note(void: Rows) -> str:
    names = ", ".join(dict.fromkeys(f"{row['case']} {row['pass']}" for row in void))
    return f"Left out as void, since Keras measured twice differs by over 5 %: {names}.\n"


def sections(rows: Rows, void: Rows, main_only: bool) -> str:
    """The Markdown text, one part for each machine, instruction set and thread count."""
    parts = []
    if main_only:
        latest = machines(rows)[0]
        most = max(row["threads"] for row in rows if machine_of(row) == latest)
        rows, void = (
            [
                row
                for row in part
                if (row["group"], machine_of(row), row["threads"]) == ("main", latest, most)
            ]
            for part in (rows, void)
        )
    for of, threads in dict.fromkeys((machine_of(row), row["threads"]) for row in rows):
        isa = of[1]
        here = [row for row in rows if (machine_of(row), row["threads"]) == (of, threads)]
        parts.append(conditions(here))
        for pass_name, title in (("forward", "Forward"), ("training", "Training step")):
            part = [row for row in here if row["pass"] == pass_name]
            if part:
                parts.append(f"**{title}**, {isa}, {threads:.0f} threads\n\n{result_table(part)}")
            if part and not main_only:
                table = peer_table(part, lambda row: milliseconds(row["median_ms"]))
                parts.append(f"{title}, all peers, ms:\n\n{table}")
            if part := [row for row in part if row["memory_mib"] is not None]:
                table = peer_table(part, lambda row: f"{row['memory_mib']:.0f}")
                parts.append(f"{title}, peak memory, MiB:\n\n{table}")
        if missed := [row for row in void if (machine_of(row), row["threads"]) == (of, threads)]:
            parts.append(void_note(missed))
    shown = {(machine_of(row), row["threads"]) for row in rows}
    for of, threads in dict.fromkeys((machine_of(row), row["threads"]) for row in void):
        if (of, threads) not in shown:
            here = [row for row in void if (machine_of(row), row["threads"]) == (of, threads)]
            parts.append(f"{', '.join(of)}, {threads:.0f} threads. {void_note(here)}")
    return "\n".join(parts)


def insert(readme: Path, text: str) -> None:
    """Replaces what is between the two marker lines; ValueError if they are not there."""
    before, start, rest = readme.read_text().partition("<!-- bench -->\n")
    _, end, after = rest.partition("<!-- /bench -->")
    if not start or not end:
        raise ValueError(f"{readme}: expected the lines <!-- bench --> and <!-- /bench -->")
    readme.write_text(before + start + text + end + after)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("csv", type=Path, nargs="*", help="(bench/results/cpu-*.csv)")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--readme", type=Path, help="file with the two marker lines")
    parser.add_argument("--include-void", action="store_true", help="show void measurements too")
    options = parser.parse_args(arguments)
    everything = read(options.csv or sorted(RESULTS.glob("cpu-*.csv")))
    void = [row for row in everything if row["void"] and not options.include_void]
    rows = [row for row in everything if not row["void"] or options.include_void]
    if not rows:
        why = (
            void_note(void)
            if void
            else "Expected rows in bench/results/cpu-*.csv or a CSV named here."
        )
        sys.exit(f"error: nothing to report. {why}")
    import charts  # matplotlib, which the tables do without

    options.out.mkdir(parents=True, exist_ok=True)
    written = charts.draw_all(rows, options.out)
    images = "\n".join(f"![{path.stem}]({path.name})\n" for path in written)
    report = options.out / "report.md"
    report.write_text(f"# Benchmark\n\n{sections(rows, void, main_only=False)}\n{images}")
    if options.readme:
        insert(options.readme, sections(rows, void, main_only=True))
    print(*(str(path) for path in [report, *written]), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
