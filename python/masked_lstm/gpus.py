"""On which GPUs the layer takes the CUDA kernels by itself.

A generation of GPUs is qualified by a record: bench/gpu_check.sh has passed on one of them and its
log is committed. Until then Keras' own path is taken there, unless somebody asks for ours.
"""

import os

# Compute capability -> the log of a passing bench/gpu_check.sh, in the repository. Its last lines
# say what may be added here. Empty: none has passed with TensorFlow's own part (docs/gpu.md).
QUALIFIED: dict[str, str] = {}
# The same for calls inside XLA, which a log may leave unchecked; they ask for both.
QUALIFIED_XLA: dict[str, str] = {}


def built_for():
    """Compute capabilities that the op library has kernels for, as "80" or "90a"; [] without."""
    try:
        from masked_lstm import _build_info
    except ImportError:
        return []
    return [name for name in _build_info.CUDA_ARCHITECTURES.split(",") if name]


def runs_on(capability, built):
    """Whether kernels built for `built` run on a GPU of `capability`, such as "8.6"."""
    number = capability.replace(".", "")
    if not number.isdigit():
        return True  # unknown: CUDA will tell
    # A plain number brings code that newer GPUs compile when it is loaded; one with a letter is for
    # that GPU alone.
    return any(
        name == "native"
        or name.rstrip("af") == number
        or name.isdigit()
        and int(name) <= int(number)
        for name in built
    )


def not_possible(capabilities, built):
    """Why a GPU of `capabilities` cannot run the kernels; None if all can (or nothing was built:
    the op then computes on the CPU)."""
    for capability in capabilities:
        if built and not runs_on(capability, built):
            return (
                f"the CUDA kernels were built for compute capabilities {', '.join(built)}, and a "
                f"GPU in use has {capability}; build with MASKED_LSTM_CUDA_ARCHITECTURES="
                f"{capability.replace('.', '')}"
            )
    return None


def not_chosen(capabilities, built, xla=False):
    """Why backend="auto" leaves GPUs of `capabilities` (of all in use) to Keras; None if not.

    xla: what the record of XLA says, not that of the kernels by themselves.
    """
    if not built:
        return (
            "a GPU is in use and masked_lstm was built without CUDA kernels "
            "(backend='fused' computes on the CPU)"
        )
    if reason := not_possible(capabilities, built):
        return reason
    if os.environ.get("MASKED_LSTM_GPU", "0") not in ("", "0"):
        return None
    for capability in capabilities or ["unknown"]:
        if capability not in (QUALIFIED_XLA if xla else QUALIFIED):
            where = " inside XLA" if xla else ""
            return (
                f"a GPU is in use, of compute capability {capability}, for which the CUDA kernels "
                f"have no passing record{where} yet (backend='fused' or MASKED_LSTM_GPU=1 takes "
                "them)"
            )
    return None
