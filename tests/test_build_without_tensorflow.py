"""A build without TensorFlow gives a working masked_lstm.core, and says what is missing."""

import os
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_core_without_tensorflow(tmp_path):
    environment = {
        **os.environ,
        "MASKED_LSTM_TENSORFLOW": "OFF",
        "MASKED_LSTM_CUDA": "OFF",
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
        isa = "avx512" if core.isa().endswith("bf16") else core.isa()
        assert masked_lstm.kernel_calls() == {{f"cpu-{{isa}}-float32-forward": 1}}
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
