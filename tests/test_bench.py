"""The benchmark's parts that need no clock: cases, the check of results, CSV and report."""

import csv
import pathlib
import subprocess
import sys
import time
import types

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

    # Rows of another machine are not mixed with these, though cases and threads are the same.
    elsewhere = tmp_path / "elsewhere.csv"
    slower = {"cpu": "another CPU", "median_ms": 40.0}
    rows = [row | slower for row in _rows() if (row["case"], row["peer"]) == ("text", "core")]
    run.write(elsewhere, rows, Limits)
    report.main([str(path), str(elsewhere), "--out", str(tmp_path), "--readme", str(readme)])
    lines = (tmp_path / "report.md").read_text().splitlines()
    ours, others = [line for line in lines if line.startswith("| text (")]
    assert "2.50x" in ours and "40" in others
    assert readme.read_text() == inserted


def test_a_case_is_taken_from_one_run(tmp_path):
    """From the last that has it; a void one is replaced, and replaces none that is not."""
    import report
    import run

    class Limits:
        peak, sgemm = 200.0, 160.0

    def rows_of(name, **changes):
        path = tmp_path / f"{name}.csv"
        run.write(path, [row | changes for row in _rows() if row["case"] == "text"], Limits)
        return path

    few = tmp_path / "few.csv"  # of a later run, with fewer peers
    run.write(few, [row for row in _rows() if row["case"] == "text"][-2:], Limits)
    first, void = rows_of("first"), rows_of("void", void=1, median_ms=1.0)
    assert {row["peer"] for row in report.read([first, few])} == {"core", "layer"}
    assert {row["void"] for row in report.read([first, void])} == {0.0}
    assert {row["void"] for row in report.read([void, first])} == {0.0}
    assert {row["void"] for row in report.read([void])} == {1.0}


def test_cuda_without_a_gpu_is_one_sentence():
    command = [sys.executable, str(ROOT / "bench" / "run.py"), "--device", "cuda"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 1
    assert run.stderr.startswith("error: --device cuda: expected ") and run.stderr.count("\n") == 1


def test_cuda_grid():
    from gpu import BATCH, CENTER, DTYPES, FRACTIONS, UNITS, Point, grid

    points = grid()
    assert points == grid() and len(points) == len(set(points))
    assert len(points) == 2 * len(UNITS) * len(BATCH) * len(DTYPES) * len(FRACTIONS)
    assert points[:2] == [Point(*CENTER, "forward"), Point(*CENTER, "training")]
    near = 2 * (len(UNITS) + len(BATCH) + len(DTYPES) + len(FRACTIONS) - 3)
    differences = [sum(a != b for a, b in zip(p[:4], CENTER, strict=True)) for p in points]
    assert max(differences[:near]) == 1 and min(differences[near:]) == 2
    for point in points:
        lengths = point.lengths()
        assert lengths.shape == (point.batch,) and lengths.min() >= 1
        wanted = point.fraction * point.batch * point.timesteps
        assert abs(lengths.sum() - wanted) <= 0.5 and lengths.max() <= point.timesteps
    assert Point(512, 64, "bfloat16", 1.0, "forward").flops(100) == 2 * 4 * 512 * 1024 * 100


def test_cuda_rows_and_charts(tmp_path):
    """From times of a clock that is made up: medians, shares, the best peer, files."""
    import gpu
    import gpu_charts

    class Peaks:
        tflops, gbs = dict.fromkeys(gpu.DTYPES, 100.0), 1000.0

    def peer(ours):
        return types.SimpleNamespace(ours=ours, version="1", clock_name="CUDA events")

    peers = {"ours": peer(True), "torch": peer(False), "torch_packed": peer(False)}
    calls = []

    def clock(name, microseconds):
        def run(call, count):
            calls.append((name, count))
            return microseconds

        return None, run

    rows = []
    for point in gpu.grid()[:8]:
        prepared = {"ours": clock("ours", 100.0), "torch": clock("torch", 400.0)}
        prepared["torch_packed"] = clock("torch_packed", 250.0)
        times = gpu.measure(prepared, seconds=0.01)
        facts = {"gpu": "a GPU", "commit": "0123"}
        rows += gpu.rows_of(point, times, dict.fromkeys(peers, 1e-6), peers, facts, Peaks)
    assert {count for name, count in calls if name == "ours"} == {1, 10}  # a millisecond at once
    ours = rows[0]
    assert ours["peer"] == "ours" and ours["median_us"] == 100 and ours["us_per_step"] == 0.5
    assert ours["best_peer"] == "torch_packed" and ours["ratio_to_best_peer"] == 2.5
    valid = ours["valid_steps"]
    assert ours["valid_tflops"] == pytest.approx(8 * 512 * 1024 * valid / 100e-6 / 1e12, rel=1e-3)
    assert ours["tensor_share"] == pytest.approx(ours["valid_tflops"] / 100, rel=1e-2)
    assert ours["memory_share"] == pytest.approx(ours["valid_gbs"] / 1000, rel=1e-2)
    path = tmp_path / "cuda-a-gpu.csv"
    gpu.write(path, rows)
    with path.open() as file:
        assert next(csv.reader(file)) == gpu.COLUMNS
    names = {chart.name for chart in gpu_charts.draw_all(rows, path)}
    assert "cuda-a-gpu-units.png" in names and "cuda-a-gpu-ratios.png" in names
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in names)


def test_cuda_peers_that_fail(monkeypatch):
    """Ours wrong or failing is told; others that fail, or take long to prepare, are left out."""
    import gpu

    problem = types.SimpleNamespace(error=lambda outputs: outputs)
    fake = types.SimpleNamespace(Problem=lambda point: problem)
    monkeypatch.setitem(sys.modules, "gpu_peers", fake)

    def peer(error, ours=False, seconds=0.0):
        def prepare(problem):
            time.sleep(seconds)
            if isinstance(error, Exception):
                raise error
            return None, lambda: error

        refuses = lambda point: None  # noqa: E731
        clock = lambda call, count: 50.0  # noqa: E731
        return types.SimpleNamespace(ours=ours, refuses=refuses, prepare=prepare, clock=clock)

    def measure(**peers):
        notes = []
        times, _, broken = gpu.measure_point(gpu.grid()[0], peers, notes.append, 0.05)
        return set(times), broken, set(peers), "\n".join(notes)

    right, slow = peer(1e-6), peer(1e-6, seconds=60)
    times, broken, left, notes = measure(ours=peer(1e-6, True), torch=right, flashrnn=slow)
    assert (times, broken, left) == ({"ours", "torch"}, [], {"ours", "torch"})
    assert "flashrnn: not prepared in 0 s: left out" in notes
    times, broken, _, notes = measure(ours=peer(0.5, True), layer=peer(OSError("no\nmore"), True))
    assert (times, broken) == (set(), ["ours", "layer"])
    assert "WRONG RESULTS" in notes and "layer failed: OSError: no" in notes
    crowded = RuntimeError("CUDA out of memory. Tried")
    times, broken, left, _ = measure(ours=peer(crowded, True), torch=peer(OSError()), packed=right)
    assert (times, broken, left) == ({"packed"}, [], {"ours", "torch", "packed"})


def test_gpu_check_ends_at_once_without_a_gpu(tmp_path):
    """One sentence, and nothing is written."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("dirname", "env", "sh"):
        (tools / name).symlink_to(f"/usr/bin/{name}")
    run = subprocess.run(
        ["/bin/sh", ROOT / "bench/gpu_check.sh", tmp_path / "results"],
        env={"PATH": str(tools), "PYTHON": sys.executable},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 1 and run.stderr == "error: expected nvidia-smi, found none\n"
    assert not (tmp_path / "results").exists()
