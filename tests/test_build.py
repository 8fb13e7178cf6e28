"""What builds leave behind: object files, and without TensorFlow a working masked_lstm.core that
says what is missing."""

import os
import re
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import pytest

from masked_lstm import _build_info

ROOT = Path(__file__).resolve().parent.parent


def test_core_without_tensorflow(tmp_path):
    environment = {
        **os.environ,
        "MASKED_LSTM_TENSORFLOW": "OFF",
        "MASKED_LSTM_CUDA": "OFF",
        "MASKED_LSTM_AVX512": "OFF",  # quicker to compile, and so is what is not optimized
        "CMAKE_BUILD_TYPE": "Debug",
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    }
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-build-isolation", "--no-deps"]
    subprocess.run([*command, "-w", tmp_path, ROOT], check=True, env=environment)
    (wheel,) = tmp_path.glob("masked_lstm-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
        metadata = next(name for name in archive.namelist() if name.endswith("METADATA"))
        requirements = archive.read(metadata).decode()
        assert not [name for name in archive.namelist() if "masked_lstm_ops" in name]
        assert not [name for name in archive.namelist() if "_cuda.cpython" in name]
    assert "Requires-Dist: numpy" in requirements
    assert "Requires-Dist: tensorflow" not in requirements
    code = f"""
        import sys
        class NoTensorFlow:
            def find_spec(self, name, *_):
                if name.split(".")[0] in ("tensorflow", "keras"):
                    raise ModuleNotFoundError(f"No module named '{{name}}'")
        sys.meta_path.insert(0, NoTensorFlow())
        sys.path.insert(0, r"{tmp_path / "site"}")
        import numpy as np
        import masked_lstm
        from masked_lstm import core, reference
        assert masked_lstm.__file__.startswith(r"{tmp_path}")
        x, w, r = (np.full(shape, 0.1, "f") for shape in ((2, 3, 4), (4, 20), (5, 20)))
        expected = reference.forward(x, w, r).outputs
        np.testing.assert_allclose(core.forward(x, w, r).outputs, expected, rtol=1e-5)
        assert core.isa() in ("avx2", "generic")
        assert masked_lstm.kernel_calls() == {{f"cpu-{{core.isa()}}-float32-forward": 1}}
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, cwd=tmp_path)
    # With TensorFlow at hand but no op: one sentence.
    code = f"""
        import sys
        sys.path.insert(0, r"{tmp_path / "site"}")
        from masked_lstm import ops
        try:
            ops.load()
        except ImportError as error:
            assert "was built without TensorFlow's op; install" in str(error), error
        else:
            raise AssertionError
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, cwd=tmp_path)


def test_no_instruction_set_leaks_into_another():
    """Weak symbols of a file compiled for one instruction set carry its namespace, so the linker
    cannot hand them to another."""
    # Of the build that is installed; others may be left over.
    kind = f"tf{_build_info.TENSORFLOW_VERSION}" if _build_info.TENSORFLOW_VERSION else "core"
    builds = list((ROOT / "build").glob(f"cmake-{sys.implementation.cache_tag}-{kind}/CMakeFiles"))
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
