"""The core as C++, under sanitizers."""

import pathlib
import shutil
import subprocess
import sys

import pytest

from masked_lstm import core

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
    avx512 = core.isa().startswith(("avx512", "amx"))
    build(tmp_path, MASKED_LSTM_SANITIZE=sanitizers, MASKED_LSTM_AVX512="ON" if avx512 else "OFF")
    races = ["races"] if sanitizers == "thread" else []
    result = subprocess.run([tmp_path / "check_core", *races], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-4000:]
    assert "0 failures" in result.stdout
    assert races or ("avx512" if avx512 else "wide") in result.stdout  # the 64-byte layout
