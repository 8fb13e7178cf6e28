"""Training steps of whole models inside and outside XLA, interleaved in one process, into a CSV.

    python bench/xla.py [--threads 2] [--rounds 20] [--out bench/results/xla/cpu-2threads.csv]
    python bench/xla.py --table         writes docs/xla.md's table from that file

A step is `model.train_on_batch`: forward, loss, gradients and Adam; with `jit_compile=True` one
compiled program. Peers: our layer and Keras', each with XLA and without. Ours without XLA is
measured twice, as if it were two peers: by so much the others may differ by chance. Before
timing, the first step's loss and the prediction after it are compared with Keras'.
"""

from __future__ import annotations

import argparse
import csv
import functools
import os
import sys
import time
from pathlib import Path

BENCH = Path(__file__).resolve().parent
PEERS = {  # name: (ours?, XLA?)
    "layer": (True, False),
    "layer_again": (True, False),
    "layer_jit": (True, True),
    "keras": (False, False),
    "keras_jit": (False, True),
}
COLUMNS = (
    "date commit cpu isa threads tensorflow keras case batch timesteps input_dim units "
    "valid_fraction peer rounds median_ms low_ms high_ms compile_s error"
).split()
VOCABULARY = 5000
RESULTS = BENCH / "results" / "xla" / "cpu-2threads.csv"
PAGE = BENCH.parent / "docs" / "xla.md"
MARKS = ("<!-- xla -->\n", "<!-- /xla -->\n")
MODELS = {
    "qa_small": "words, LSTM, Dense",
    "text": "words, LSTM, Dense",
    "text_deep": "words, Bidirectional, LSTM, Dense",
    "tagger": "vectors, LSTM, Dense at every step",
}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--table", action="store_true", help="writes the table, measures nothing")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--peers", type=lambda text: text.split(","), default=list(PEERS))
    parser.add_argument("--cases", type=lambda text: text.split(","), default=[])
    return parser.parse_args()


def table() -> str:
    """What docs/xla.md says of the committed measurements."""
    with RESULTS.open(newline="") as file:
        rows = list(csv.DictReader(file))
    facts = {
        name: ", ".join(dict.fromkeys(row[name] for row in rows))
        for name in ("cpu", "isa", "threads", "tensorflow", "keras", "commit", "date", "rounds")
    }
    lines = [
        "{cpu}, {isa}, {threads} threads, TensorFlow {tensorflow}, Keras {keras}, commit {commit}, "
        "{date}; medians of {rounds} rounds, ms.".format(**facts),
        "",
        "| model (B,T,D,U) | ours, XLA | ours | ours, again | Keras, XLA | Keras |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for case, model in MODELS.items():
        of_case = {row["peer"]: row for row in rows if row["case"] == case}
        if not of_case:
            continue
        one = of_case["layer"]
        shape = ",".join(one[name] for name in ("batch", "timesteps", "input_dim", "units"))
        peers = ("layer_jit", "layer", "layer_again", "keras_jit", "keras")
        cells = [f"{float(of_case[peer]['median_ms']):.3g}" for peer in peers]
        title = f"{case}: {model} ({shape}; {float(one['valid_fraction']):.0%} valid)"
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def in_page() -> tuple[str, str, str]:
    """docs/xla.md: before the table, the table, behind it."""
    before, rest = PAGE.read_text().split(MARKS[0])
    return before, *rest.split(MARKS[1])


def main() -> None:
    options = parse()
    if options.table:
        before, _, behind = in_page()
        PAGE.write_text(before + MARKS[0] + table() + MARKS[1] + behind)
        return
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(options.threads)
    os.environ |= {"CUDA_VISIBLE_DEVICES": "-1", "KERAS_BACKEND": "tensorflow"}
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import keras
    import machine
    import numpy as np
    import tensorflow as tf
    from cases import CASES, make_lengths
    from timing import estimate, interleave

    from masked_lstm import LSTM, ops

    tf.config.threading.set_intra_op_parallelism_threads(options.threads)
    ops.load()
    if reason := ops.no_xla_reason():
        sys.exit(f"error: no XLA kernels: {reason}")

    def classifier(lstm, case):  # words in, one answer for each row out
        return [
            keras.layers.Embedding(VOCABULARY, case.input_dim, mask_zero=True),
            lstm(case.units),
            keras.layers.Dense(1),
        ]

    def tagger(lstm, case):  # vectors in, an answer at every step out
        return [
            keras.layers.Masking(),
            lstm(case.units, return_sequences=True),
            keras.layers.Dense(32),
        ]

    def deep(lstm, case):
        return [
            keras.layers.Embedding(VOCABULARY, case.input_dim, mask_zero=True),
            keras.layers.Bidirectional(lstm(case.units, return_sequences=True)),
            lstm(case.units),
            keras.layers.Dense(1),
        ]

    cases = {
        "qa_small": ("qa_small", classifier),
        "text": ("text", classifier),
        "text_deep": ("text", deep),
        "tagger": ("tagger", tagger),
    }
    rows = []
    commit = machine.commit()
    for name in options.cases or cases:
        shape, build = cases[name]
        case = CASES[shape]
        lengths = make_lengths(case)
        valid = np.arange(case.timesteps) < lengths[:, None]
        rng = np.random.default_rng(0)
        if build is tagger:
            x = rng.standard_normal((*valid.shape, case.input_dim), dtype=np.float32)
            x *= valid[..., None]
            y = rng.standard_normal((*valid.shape, 32), dtype=np.float32)
        else:
            x = rng.integers(1, VOCABULARY, valid.shape) * valid
            y = rng.standard_normal((case.batch, 1), dtype=np.float32)
        x, y = tf.constant(x), tf.constant(y)
        calls, compiled, first = {}, {}, {}
        for peer in options.peers:
            ours, jit = PEERS[peer]
            keras.utils.set_random_seed(1)
            lstm = LSTM if ours else keras.layers.LSTM
            model = keras.Sequential([keras.Input(x.shape[1:], dtype=x.dtype), *build(lstm, case)])
            model.compile("adam", "mse", jit_compile=jit)
            if model.jit_compile != jit:
                sys.exit(f"error: {peer}: Keras does not compile the model")
            start = time.perf_counter()
            loss = float(model.train_on_batch(x, y))
            compiled[peer] = time.perf_counter() - start
            first[peer] = np.append(np.ravel(model(x))[:1000], loss)
            calls[peer] = functools.partial(model.train_on_batch, x, y)
        right = first["keras" if "keras" in first else options.peers[0]]
        errors = {p: np.abs(v - right).max() / np.abs(right).max() for p, v in first.items()}
        wrong = {peer: error for peer, error in errors.items() if not error < 1e-3}
        if wrong:
            sys.exit(f"error: {name}: wrong results {wrong}")
        estimates = {peer: estimate(call) for peer, call in calls.items()}
        samples = interleave(calls, estimates, options.rounds, 0, lambda done, count: None)
        for peer, values in samples.items():
            low, median, high = np.percentile(values, (25, 50, 75)) * 1e3
            rows.append(
                {
                    "date": time.strftime("%Y-%m-%d"),
                    "commit": commit,
                    "cpu": machine.cpu(),
                    "isa": machine.isa(),
                    "threads": options.threads,
                    "tensorflow": tf.__version__,
                    "keras": keras.__version__,
                    "case": name,
                    "batch": case.batch,
                    "timesteps": case.timesteps,
                    "input_dim": case.input_dim,
                    "units": case.units,
                    "valid_fraction": round(float(valid.mean()), 4),
                    "peer": peer,
                    "rounds": len(values),
                    "median_ms": round(median, 4),
                    "low_ms": round(low, 4),
                    "high_ms": round(high, 4),
                    "compile_s": round(compiled[peer], 2),
                    "error": f"{errors[peer]:.1e}",
                }
            )
            print(f"{name:10} {peer:12} {median:9.3f} ms ({low:.3f}-{high:.3f})", flush=True)
    out = options.out or BENCH / "results" / "xla" / f"cpu-{options.threads}threads.csv"
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
