"""`python -m masked_lstm`: what is installed, and what would run."""

import importlib.metadata
import importlib.util
import os
import platform

import masked_lstm
from masked_lstm import gpus


def _version(distribution):
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _op_state():
    """(path of the op library, whether it loads and if not why, the same of the XLA kernels)."""
    if importlib.util.find_spec("tensorflow") is None:
        return "-", "TensorFlow is not installed", "TensorFlow is not installed"
    from masked_lstm import ops

    try:
        ops.load()
    except ImportError as error:
        return str(ops.library_path()), str(error), "the op library does not load"
    devices = [name for name in ("CPU", "GPU") if not ops.no_xla_reason(gpu=name == "GPU")]
    xla = f"load ({', '.join(devices)})" if devices else ops.no_xla_reason()
    return str(ops.library_path()), "loads", xla


def _cuda_state():
    built = gpus.built_for()
    if not built:
        return "none: nvcc was not found when this was built"
    qualified = ", ".join(gpus.QUALIFIED) or "none yet"
    inside = ", ".join(c for c in gpus.QUALIFIED if c in gpus.QUALIFIED_XLA) or "none yet"
    return (
        f"for compute capability {', '.join(built)}; GPUs taken by themselves: {qualified}, "
        f"inside XLA: {inside}"
    )


def main():
    """Prints versions, the instruction set in use, CUDA or not, and where the libraries lie."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from masked_lstm import _build_info, core

    path, state, xla = _op_state()
    try:
        isa = core.isa()
    except ValueError as error:
        isa = f"none: {error}"
    rows = {
        "masked_lstm": masked_lstm.__version__,
        "Python": platform.python_version(),
        "NumPy": _version("numpy"),
        "TensorFlow": _version("tensorflow"),
        "  built against": _build_info.TENSORFLOW_VERSION or "none: core only",
        "Keras": _version("keras"),
        "instruction set": f"{isa} (this CPU: {', '.join(core.isas())})",
        "CUDA kernels": _cuda_state(),
        "core library": core.library_path(),
        "op library": path,
        "  state": state,
        "XLA kernels": xla,
    }
    for name, value in rows.items():
        print(f"{name:16} {value}")


if __name__ == "__main__":
    main()
