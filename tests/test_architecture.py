"""Dependencies run one way only: layer -> ops -> bindings -> core."""

import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
CSRC = ROOT / "csrc"
PACKAGE = ROOT / "python" / "masked_lstm"

# Folder of csrc -> the project's own folders that its files may include ("" is csrc itself).
ALLOWED = {
    "": {"", "cpu"},
    "cpu": {"", "cpu"},
    "cuda": {"", "cpu", "cuda"},
    "host": {"", "cpu", "host"},
    "python": {"", "cpu", "cuda", "host", "python"},
    "tensorflow": {"", "cpu", "cuda", "host"},
}
FRAMEWORKS = {
    "python": ("pybind11/",),
    "tensorflow": ("tensorflow/", "absl/", "xla/", "unsupported/Eigen"),
}
FOREIGN = (
    "tensorflow/",
    "absl/",
    "xla/",
    "unsupported/Eigen",
    "Eigen/",
    "Python.h",
    "pybind11/",
    "torch/",
)


def includes(path):
    return re.findall(r'^\s*#\s*include\s*([<"])([^">]+)[">]', path.read_text(), re.M)


def test_core_includes_no_framework():
    sources = [p for p in CSRC.rglob("*") if p.suffix in {".h", ".cc", ".cu", ".cuh"}]
    assert len(sources) > 10
    for path in sources:
        folder = path.relative_to(CSRC).parts[0] if path.parent != CSRC else ""
        for bracket, name in includes(path):
            if name.startswith(FOREIGN):
                assert name.startswith(FRAMEWORKS.get(folder, ())), (path, name)
            elif (path.name, name) in (("device.cuh", "cuda_host.h"), ("ptx.cuh", "hopper_host.h")):
                continue  # in tests only: tests/cuda_host
            elif bracket == '"':
                local = (path.parent / name).exists()
                target = folder if local else name.split("/")[0] if "/" in name else ""
                assert target in ALLOWED[folder], (path, name)
                assert local or (CSRC / name).exists(), (path, name)


def test_python_layers_depend_one_way():
    """core and reference know no TensorFlow; ops knows no Keras; nobody imports upwards."""
    order = [
        "results",
        "reference",
        "core",
        "cuda",
        "composite",
        "ops",
        "calls",
        "gpus",
        "layer",
        "replace",
    ]
    for at, module in enumerate(order):
        text = (PACKAGE / f"{module}.py").read_text()
        imported = set(re.findall(r"^\s*(?:from|import) ([\w.]+)", text, re.M))
        imported |= {
            f"masked_lstm.{name}"
            for names in re.findall(r"^\s*from masked_lstm import (.+)$", text, re.M)
            for name in re.findall(r"\w+", names)
        }
        above = {f"masked_lstm.{name}" for name in order[at + 1 :]}
        assert not imported & above, module
        top = {name.split(".")[0] for name in imported}
        if at < order.index("composite"):
            assert not top & {"tensorflow", "keras"}, module
        if module in ("composite", "ops"):
            assert "keras" not in top


def test_importing_the_package_is_light():
    code = """
        import sys, masked_lstm
        heavy = {"tensorflow", "keras", "numpy"} & set(sys.modules)
        assert not heavy, heavy
        assert {"LSTM", "lstm", "core"} <= set(dir(masked_lstm))
        import masked_lstm.core
        assert not {"tensorflow", "keras"} & set(sys.modules)
    """
    import textwrap

    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)


def test_libraries_bring_their_own_cuda_and_show_little():
    """TensorFlow exports functions of CUDA's names: its choice of a version, not nvcc's."""
    libraries = sorted(PACKAGE.glob("*.so"))
    assert len(libraries) >= 2
    for path in libraries:
        names = {"undefined": [], "defined": []}
        for kind, of_kind in names.items():
            command = ["nm", "-D", f"--{kind}-only", path]
            listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            of_kind += [line.split()[-1] for line in listing.splitlines()]
        assert names["undefined"]
        cuda = re.compile(r"(__)?(cuda|cu)[A-Z]")
        assert not [name for name in names["undefined"] + names["defined"] if cuda.match(name)]
        entries = re.compile(r"masked_lstm_\w+|PyInit_\w+")
        ours = [name for name in names["defined"] if "masked_lstm" in name or "PyInit" in name]
        assert ours
        assert not [name for name in ours if not entries.fullmatch(name)], path
