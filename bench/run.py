"""Measures our LSTM and every installed peer, interleaved in one process, into a CSV file.

    python bench/run.py                          everything, one to two hours
    python bench/run.py --cases main --quick     five cases, five rounds
    python bench/run.py --threads 1,2 --cases main,stream --peers torch,core
    python bench/run.py --device cuda            the CUDA kernels, against cuDNN: see gpu.py

Each round takes all peers in a new random order; before each timed call the process sleeps, so
that other libraries' thread pools stop spinning, and the peer warms up. Keras is measured twice, as
if it were two peers: where the two medians differ by more than 5 %, the measurement is repeated
with more rounds, and if they still differ it is marked void. Before timing, every peer's result is
compared with Keras' in float64. `python bench/report.py` turns the CSV into tables and charts.
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

BENCH = Path(__file__).resolve().parent
ROUNDS_QUICK = 5

COLUMNS = (
    "date commit cpu isa device threads python case group pass batch timesteps input_dim units "
    "directions valid_steps valid_fraction peer version rounds median_ms low_ms high_ms best_ms "
    "gflops peak_gflops sgemm_gflops peak_share sgemm_share control void error memory_mib"
).split()


def parse() -> argparse.Namespace:
    def words(text: str) -> list[str]:
        return text.split(",")

    def counts(text: str) -> list[int]:
        return [int(word) for word in words(text)]

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--cases", type=words, default=[], help="names or groups, comma-separated (all)")
    add("--peers", type=words, default=[], help="comma-separated (all that are installed)")
    add("--threads", type=counts, default=[cores], help="for every peer; 1,2: one run for each")
    add("--rounds", type=int, help="(30, or 8 where the fastest takes 20 ms or more)")
    add("--retries", type=int, help="where Keras measured twice disagrees (2; quick: 0)")
    add("--quick", action="store_true", help="main cases, few rounds, no peak memory")
    add("--no-memory", action="store_true", help="no peak memory (a process for each peer)")
    add("--out", type=Path, help="CSV file (bench/results/cpu-<N>threads.csv; quick: in out/)")
    add("--device", choices=["cpu", "cuda"], default="cpu")
    add("--seconds", type=float, default=240, help="of measuring with --device cuda (240)")
    options = parser.parse_args()
    if options.seconds <= 0:
        parser.error("--seconds: expected more than 0")
    if options.device == "cuda" and options.cases:
        parser.error("--cases: expected none with --device cuda, which measures a grid of its own")
    if options.out and len(options.threads) > 1:
        parser.error("--out: expected a single --threads, since each count has its own file")
    if min(options.threads) < 1 or (options.rounds is not None and options.rounds < 1):
        parser.error("--threads and --rounds: expected at least 1")
    if options.retries is not None and options.retries < 0:
        parser.error("--retries: expected at least 0")
    return options


def set_environment(threads: int) -> None:
    """What must be set before NumPy, TensorFlow and the others are imported."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(threads)
    os.environ |= {"CUDA_VISIBLE_DEVICES": "-1", "KERAS_BACKEND": "tensorflow"}
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def write(path: Path, rows: list[dict], limits) -> None:
    """Writes all rows again, since the limits are the best of the whole run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for row in rows:
            for name, rate in (("peak", limits.peak), ("sgemm", limits.sgemm)):
                row[f"{name}_gflops"] = round(rate, 2) if rate else ""
                row[f"{name}_share"] = round(row["gflops"] / rate, 4) if rate else ""
            writer.writerow(row)


def run(options: argparse.Namespace, threads: int) -> int:
    """Measures everything; returns the exit status, 1 when nothing but void measurements came."""
    set_environment(threads)
    import machine
    import memory
    from cases import select
    from measure import load_peers, measure
    from report import summary
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

    console = Console(highlight=False, soft_wrap=True)
    try:
        cases = select(options.cases or (["main"] if options.quick else []))
        loaded = load_peers(options.peers, threads, console.print)
    except ValueError as error:
        sys.exit(f"error: {error}")
    limits = machine.Limits(threads)
    facts = {
        "date": time.strftime("%Y-%m-%d"),
        "commit": machine.commit(),
        "cpu": machine.cpu(),
        "isa": machine.isa(),
        "device": options.device,
        "threads": threads,
        "python": platform.python_version(),
    }
    console.print(", ".join(f"{name} {value}" for name, value in facts.items()))
    folder = BENCH.parent / "out" if options.quick else BENCH / "results"
    path = options.out or folder / f"cpu-{threads}threads.csv"
    rounds = options.rounds or (ROUNDS_QUICK if options.quick else None)
    jobs = [(case, pass_name) for case in cases for pass_name in case.passes]
    with_memory = not (options.quick or options.no_memory)
    rows = []
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        total = progress.add_task("cases", total=len(jobs))
        for case, pass_name in jobs:
            task = progress.add_task(f"{case.name} {pass_name}", total=None)
            limits.measure()
            retries = (0 if options.quick else 2) if options.retries is None else options.retries

            def on_round(done: int, count: int, task=task) -> None:
                progress.update(task, completed=done, total=count)

            new = measure(case, pass_name, loaded, rounds, retries, console.print, on_round)
            for row in new:
                row |= facts
                if case.group == "main" and with_memory and row["peer"] in loaded:
                    row["memory_mib"] = memory.measure(row["peer"], case.name, pass_name, threads)
            rows += new
            write(path, rows, limits)
            console.print(summary(new))
            progress.remove_task(task)
            progress.advance(total)
    peak = f"{limits.peak:.0f} GFLOP/s" if limits.peak else "not measured, it needs our core"
    console.print(f"FMA peak {peak}; sgemm {limits.sgemm:.0f} GFLOP/s; {len(rows)} rows in {path}")
    if void := dict.fromkeys(f"{row['case']} {row['pass']}" for row in rows if row["void"]):
        console.print(f"[red]Void, Keras measured twice differs by over 5 %:[/] {', '.join(void)}")
    return int(all(row["void"] for row in rows))


def main() -> int:
    options = parse()
    if options.device == "cuda":
        import gpu

        return gpu.run(options)
    if len(options.threads) == 1:
        return run(options, options.threads[0])
    # Thread counts cannot be changed once the libraries have started: one process for each.
    command = [sys.executable, __file__, *sys.argv[1:], "--threads"]  # the last --threads wins
    return max(subprocess.run([*command, str(n)], check=False).returncode for n in options.threads)


if __name__ == "__main__":
    sys.exit(main())
