"""The core as C++: under sanitizers, and what its object files may contain."""

import pathlib
import re
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
CMAKE = [shutil.which("cmake", path=str(pathlib.Path(sys.executable).parent)) or "cmake"]
NINJA = shutil.which("ninja", path=str(pathlib.Path(sys.executable).parent)) or "ninja"


def build(directory, **options):
    """Configures and builds the CMake project with no binding."""
    definitions = [f"-D{name}={value}" for name, value in options.items()]
    configure = [*CMAKE, "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={NINJA}", "-S", str(ROOT), "-B"]
    definitions += ["-DMASKED_LSTM_PYTHON=OFF"]
    for command in (
        [*configure, str(directory), *definitions],
        [*CMAKE, "--build", str(directory)],
    ):
        result = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert result.returncode == 0, result.stdout[-4000:]


@pytest.mark.parametrize("sanitizers", ["address,undefined", "thread"])
def test_under_sanitizers(sanitizers, tmp_path):
    build(tmp_path, MASKED_LSTM_SANITIZE=sanitizers)
    races = ["races"] if sanitizers == "thread" else []
    result = subprocess.run([tmp_path / "check_core", *races], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-4000:]
    assert "0 failures" in result.stdout and (races or "wide" in result.stdout)


def test_no_instruction_set_leaks_into_another():
    """Weak symbols of a file compiled for one instruction set carry its namespace, so the linker
    cannot hand them to another."""
    builds = sorted((ROOT / "build").glob("cmake-*/CMakeFiles"))
    if not builds:
        pytest.skip("installed from a wheel: no object files at hand")
    objects = [path for build in builds for path in build.glob("kernels_*.dir/**/*.o")]
    assert objects
    for path in objects:
        namespace = re.search(r"kernels_(\w+)\.dir", str(path)).group(1)
        listing = subprocess.run(["nm", "-C", path], check=True, capture_output=True, text=True)
        weak = re.findall(r"^\S+ [VWu] (.*)$", listing.stdout, re.M)
        strangers = [symbol for symbol in weak if f"masked_lstm::{namespace}::" not in symbol]
        assert not strangers, path
