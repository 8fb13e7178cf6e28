"""The benchmark's parts that need no clock: cases, the check of results, CSV and report."""

import csv
import pathlib
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def bench_path(monkeypatch):
    """bench/ is a folder of scripts, not a package; its modules are imported as the scripts do."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    yield
    for name in set(sys.modules) - before:  # names as plain as `cases` must not stay behind
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(ROOT / "bench")):
            del sys.modules[name]


def test_cases_are_the_same_every_time():
    from cases import CASES, make_data, make_lengths

    for case in CASES.values():
        lengths = make_lengths(case)
        np.testing.assert_array_equal(lengths, make_lengths(case))
        assert lengths.dtype == np.int32 and lengths.shape == (case.batch,)
        assert lengths.min() >= 1
        assert lengths.max() == case.timesteps or case.lengths == "equal"
        if case.lengths == "fraction":
            assert lengths.sum() == round(case.fraction * case.batch * case.timesteps)
    # The main cases' lengths: beta(1.3, 2.2) has mean 0.37; the full row adds a little.
    fractions = [
        make_lengths(case).sum() / (case.batch * case.timesteps)
        for case in CASES.values()
        if case.group == "main"
    ]
    assert len(fractions) == 5 and all(0.36 < fraction < 0.40 for fraction in fractions)
    first, again = (make_data(CASES["qa_small"]) for _ in range(2))
    np.testing.assert_array_equal(first.inputs, again.inputs)
    assert not first.d_outputs[~first.mask].any() and first.d_outputs[first.mask].all()


def test_unknown_case_is_named():
    from cases import select

    assert [case.name for case in select(["stream", "text"])] == ["text", "stream_1", "stream_8"]
    with pytest.raises(ValueError, match="txet"):
        select(["txet"])


def test_wrong_results_are_seen():
    from peers import error

    mask = np.array([[True, True, False]])
    expected = {"outputs": np.ones((1, 3, 2)), "kernel0": np.full((2, 8), 10.0)}

    def deviation(name, index, value):
        result = {key: array.copy() for key, array in expected.items()}
        result[name][index] = value
        return error(result, expected, mask)

    assert deviation("outputs", (0, 2), 5.0) == 0  # padding does not count
    assert deviation("outputs", (0, 1, 0), 1.5) == 0.5
    assert deviation("kernel0", (1, 7), 15.0) == 0.5
    assert deviation("kernel0", (0, 0), np.nan) == np.inf


def test_our_core_passes_the_check(monkeypatch):
    """The core's adapter, both directions included, against Keras in float64."""
    from dataclasses import replace

    tf = pytest.importorskip("tensorflow")
    # TensorFlow refuses new thread counts once it has run, as it may have in another test.
    for name in ("set_intra_op_parallelism_threads", "set_inter_op_parallelism_threads"):
        monkeypatch.setattr(tf.config.threading, name, lambda count: None)
    from cases import CASES
    from measure import ERROR_LIMIT, check, load_peers, make_data

    notes = []
    case = replace(CASES["text_bidirectional"], batch=5, timesteps=7, input_dim=6, units=4)
    loaded = load_peers(["core"], 2, notes.append)
    calls, errors = check(case, make_data(case), "training", loaded, notes.append)
    assert set(calls) == {"keras", "keras_again", "core"} and notes == []
    assert max(errors.values()) < ERROR_LIMIT / 10


def _rows():
    """CSV rows as run.py writes them: ours is faster in `text`, slower in `stream_1`, and the
    control of `tagger` has failed."""
    from cases import CASES, make_data

    times = {"keras": 50.0, "keras_again": 51.0, "onnxruntime": 20.0, "core": 8.0, "layer": 10.0}
    for name, factor, void in (("text", 1.0, 0), ("stream_1", 0.25, 0), ("tagger", 1.0, 1)):
        case = CASES[name]
        for peer, median in times.items():
            median /= factor if peer in ("core", "layer") else 1.0
            gflops = case.flops(make_data(case).valid_steps, "forward") / median / 1e6
            yield {
                "date": "2000-01-01", "commit": "0123456789ab", "cpu": "a CPU", "isa": "generic",
                "device": "cpu", "threads": 2, "python": "3", "case": name, "group": case.group,
                "pass": "forward", "batch": case.batch, "timesteps": case.timesteps,
                "input_dim": case.input_dim, "units": case.units, "directions": 1,
                "valid_steps": 1, "valid_fraction": 0.4, "peer": peer, "version": f"{peer} 1.0",
                "rounds": 30, "median_ms": median, "low_ms": 0.9 * median, "high_ms": 1.2 * median,
                "best_ms": median, "gflops": gflops, "control": 0.02, "void": void,
                "error": "1.0e-06", "memory_mib": "",
            }  # fmt: skip


def test_csv_and_report(tmp_path, capsys):
    import report
    import run

    class Limits:
        peak, sgemm = 200.0, 160.0

    path = tmp_path / "results.csv"
    run.write(path, list(_rows()), Limits)
    with path.open() as file:
        assert next(csv.reader(file)) == run.COLUMNS
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- bench -->\nold\n<!-- /bench -->\nafter\n")
    assert report.main([str(path), "--out", str(tmp_path), "--readme", str(readme)]) == 0

    text = (tmp_path / "report.md").read_text()
    lines = {line.split(" ")[1]: line for line in text.splitlines() if line.startswith("| ")}
    (won,) = [line for line in text.splitlines() if line.startswith("| text (")]
    (lost,) = [line for line in text.splitlines() if line.startswith("| stream_1 (")]
    assert "20 (ONNX Runtime)" in won and "2.50x" in won and "2.00x" in won
    assert "0.62x" in lost and "0.50x" in lost
    assert "tagger" not in lines and "Left out as void" in text and "tagger forward" in text
    for name in ("times", "speedups", "shares"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert f"{name}.png" in text
    inserted = readme.read_text()
    assert inserted.startswith("before\n") and inserted.endswith("<!-- /bench -->\nafter\n")
    assert "2.50x" in inserted and "stream_1" not in inserted and "old" not in inserted
    assert str(tmp_path / "report.md") in capsys.readouterr().out


def test_cuda_is_refused(monkeypatch, capsys):
    import run

    monkeypatch.setattr(sys, "argv", ["run.py", "--device", "cuda"])
    with pytest.raises(SystemExit):
        run.parse()
    assert "--device cuda: expected cpu" in capsys.readouterr().err
