"""The documentation: made from what it describes, and every test it names exists."""

import pathlib
import re
import runpy

import numpy as np

import masked_lstm

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]


def test_api_reference_is_up_to_date():
    make = runpy.run_path(str(ROOT / "docs" / "make_api.py"))
    assert make["text"]() == (ROOT / "docs" / "api.md").read_text(), "run docs/make_api.py"
    documented = {thing.__name__ for things in make["SECTIONS"].values() for thing in things}
    assert set(masked_lstm.__all__) - {"core", "reference"} <= documented


def test_the_table_of_xla_is_of_its_measurements():
    xla = runpy.run_path(str(ROOT / "bench" / "xla.py"))
    assert xla["in_page"]()[1] == xla["table"](), "run python bench/xla.py --table"


def test_every_test_that_is_named_exists():
    functions = {
        path.name: set(re.findall(r"^def (test_\w+)", path.read_text(), re.M))
        for path in (ROOT / "tests").glob("test_*.py")
    }
    for page in PAGES:
        for names in re.findall(r"`(test_[\w.:]+)`", page.read_text()):
            file, _, function = names.rpartition("::")
            if names.endswith(".py"):
                assert names in functions, (page.name, names)
            elif file:
                assert function in functions[file], (page.name, names)
            else:
                assert any(function in known for known in functions.values()), (page.name, names)


def test_every_link_leads_somewhere():
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if not link.startswith("http"):
                assert (page.parent / link).exists(), (page.name, link)


def test_the_migration_pages_conversion():
    """CuDNNLSTM holds, for each gate, W (U,D) and R (U,U) as they lie in memory, and two biases."""
    code = re.search(
        r"def from_cudnn.*?(?=\n\n\nlayer)", (ROOT / "docs/migration.md").read_text(), re.S
    )
    scope = {"np": np}
    exec(code.group(), scope)
    rng = np.random.default_rng(0)
    w, r, b = rng.random((4, 5, 3)), rng.random((4, 5, 5)), rng.random((2, 20))
    kernel = np.concatenate([gate.reshape(3, 5) for gate in w], axis=1)
    recurrent_kernel = np.concatenate(list(r), axis=1)
    ours = scope["from_cudnn"](kernel, recurrent_kernel, b.ravel())
    x, h = rng.random(3), rng.random(5)
    expected = np.concatenate([w[g] @ x + r[g] @ h for g in range(4)]) + b.sum(axis=0)
    np.testing.assert_allclose(x @ ours[0] + h @ ours[1] + ours[2], expected)
