"""Runs CMake. Everything else about the package is in pyproject.toml.

Against which TensorFlow: the one that can be imported while building. `pip install .` brings the
one pinned in pyproject.toml; `pip install --no-build-isolation .` uses the one installed, and
without any TensorFlow builds masked_lstm.core alone.
"""

import importlib.util
import os
import pathlib
import shutil
import subprocess
import sys

from setuptools import Distribution, Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = pathlib.Path(__file__).resolve().parent


def tensorflow_flags():
    """(version, compile flags, link flags) of the TensorFlow at hand, or None without one.

    Asked in a child process: importing TensorFlow here would load it into pip's build.
    """
    if os.environ.get("MASKED_LSTM_TENSORFLOW", "AUTO").upper() == "OFF":
        return None
    code = (
        "import importlib.util, sys\n"
        "if importlib.util.find_spec('tensorflow') is None: sys.exit(3)\n"
        "import tensorflow as tf\n"
        "print(tf.__version__)\n"
        "print(';'.join(tf.sysconfig.get_compile_flags()))\n"
        "print(';'.join(tf.sysconfig.get_link_flags()))\n"
    )
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True
    )
    if result.returncode == 3:
        return None
    if result.returncode != 0:
        raise RuntimeError("TensorFlow is installed but cannot be imported; see the error above")
    return tuple(result.stdout.strip().splitlines()[-3:])


TENSORFLOW = tensorflow_flags()


def nvcc_of_pypi():
    """The nvcc of `pip install nvidia-cuda-nvcc nvidia-cuda-cccl`, or None unless all of it is
    there. In an isolated build that is the build's own environment."""
    spec = importlib.util.find_spec("nvidia")
    for folder in spec.submodule_search_locations if spec else ():
        for nvcc in sorted(pathlib.Path(folder).glob("cu*/bin/nvcc"), reverse=True):
            root = nvcc.parent.parent
            needed = ("include/cuda_runtime.h", "include/nv/target", "lib/libcudart_static.a")
            if all((root / name).exists() for name in needed):
                return nvcc
    return None


def chosen_options():
    """CMake's, from the environment; and nvcc, where CMake would not find it: a toolkit on PATH or
    named by CUDACXX comes before PyPI's."""
    names = [f"MASKED_LSTM_{name}" for name in ("AVX512", "CUDA", "CUDA_ARCHITECTURES", "XLA")]
    options = [f"-D{name}={os.environ[name]}" for name in names if name in os.environ]
    if "CUDACXX" in os.environ or shutil.which("nvcc"):
        return options
    nvcc = shutil.which("nvcc", path="/usr/local/cuda/bin") or nvcc_of_pypi()
    return options if nvcc is None else [*options, f"-DCMAKE_CUDA_COMPILER={nvcc}"]


class CMakeBuild(build_ext):
    """Builds all libraries of the package; a failure is a failed install."""

    def run(self):
        import pybind11

        editable = self.inplace or getattr(self, "editable_mode", False)
        base = ROOT / "python" if editable else pathlib.Path(self.build_lib).resolve()
        output = base / "masked_lstm"
        output.mkdir(parents=True, exist_ok=True)
        for stale in output.glob("*.so"):  # of an earlier build, perhaps with other options
            stale.unlink()
        version, compile_flags, link_flags = TENSORFLOW or ("", "", "")
        kind = f"tf{version}" if TENSORFLOW else "core"
        build = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}-{kind}"
        # It remembers paths that may be gone: an isolated build's ninja, a moved checkout.
        (build / "CMakeCache.txt").unlink(missing_ok=True)
        subprocess.check_call(
            [
                "cmake", "-G", "Ninja", "-S", str(ROOT), "-B", str(build),
                f"-DMASKED_LSTM_OUTPUT_DIR={output}",
                f"-DPython_EXECUTABLE={sys.executable}",
                f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
                f"-DMASKED_LSTM_TF_COMPILE_FLAGS={compile_flags}",
                f"-DMASKED_LSTM_TF_LINK_FLAGS={link_flags}",
                f"-DMASKED_LSTM_TF_VERSION={version}",
                *chosen_options(),
            ]
        )  # fmt: skip
        subprocess.check_call(["cmake", "--build", str(build)])
        no_xla = (build / "no_xla.txt").read_text()
        architectures = (build / "cuda_architectures.txt").read_text()
        print(f"masked_lstm: XLA kernels: {no_xla or 'built'}")
        (output / "_build_info.py").write_text(
            f'"""Written by setup.py."""\n\n'
            f'TENSORFLOW_VERSION = "{version}"  # "": no op\n'
            f'CUDA_ARCHITECTURES = "{architectures}"  # "": no CUDA kernels\n'
            f'NO_XLA = "{no_xla}"  # why there are no XLA kernels; "": they were built\n'
        )


class BinaryDistribution(Distribution):
    """Has native libraries even though setuptools sees no Extension sources."""

    def has_ext_modules(self):
        return True


def requirements():
    """NumPy, and the TensorFlow minor version that the op was built against."""
    if TENSORFLOW is None:
        return ["numpy"]
    major, minor = TENSORFLOW[0].split(".")[:2]
    return ["numpy", f"tensorflow=={major}.{minor}.*", "keras>=3.15"]


setup(
    ext_modules=[Extension("masked_lstm._core", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
    distclass=BinaryDistribution,
    install_requires=requirements(),
)
