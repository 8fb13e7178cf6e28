"""One adapter per implementation that is measured.

An adapter gets a case's arrays in Keras' layouts, converts them once (gate order, time-major,
constants, whatever that library likes best) and returns a call without arguments. Only the call is
timed. The other half of what it returns brings the result back into Keras' layouts, so that
nobody is timed computing something else.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from cases import Case, Data

# name: (module, class). The first is the control, measured twice.
REGISTRY = {
    "keras": ("peers.tf", "Keras"),
    "keras_jit": ("peers.tf", "KerasJit"),
    "block_lstm": ("peers.tf", "BlockLSTM"),
    "torch": ("peers.pytorch", "Dense"),
    "torch_packed": ("peers.pytorch", "Packed"),
    "onnxruntime": ("peers.runtimes", "OnnxRuntime"),
    "openvino": ("peers.runtimes", "OpenVino"),
    "core": ("peers.ours", "Core"),
    "op": ("peers.tf", "Op"),
    "layer": ("peers.tf", "Layer"),
    "layer_jit": ("peers.tf", "LayerJit"),
}
OURS = ("core", "op", "layer", "layer_jit")
CONTROL = "keras"
CONTROL_AGAIN = "keras_again"

TITLES = {
    "keras": "Keras",
    "keras_jit": "Keras + XLA",
    "block_lstm": "BlockLSTMV2",
    "torch": "PyTorch dense",
    "torch_packed": "PyTorch packed",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "core": "masked_lstm core",
    "op": "masked_lstm op",
    "layer": "masked_lstm layer",
    "layer_jit": "masked_lstm layer + XLA",
}

Result = dict[str, np.ndarray]


class Prepared(NamedTuple):
    """`call()` does the work and waits for it; `decode(call())` gives NumPy arrays: outputs
    (B, T, directions * U) and, in training, inputs, kernel0, recurrent_kernel0, bias0 (kernel1 ...
    for the backward direction): the gradients, in Keras' layouts."""

    call: Callable[[], Any]
    decode: Callable[[Any], Result]


class Peer:
    """Base of the adapters; a constructor raises ImportError when its library is not installed."""

    version = ""

    def __init__(self, threads: int):
        self.threads = threads

    def refuses(self, case: Case, data: Data, pass_name: str) -> str | None:
        """Why this peer cannot compute the case at all, or None."""
        return None

    def prepare(self, case: Case, data: Data, pass_name: str) -> Prepared:
        raise NotImplementedError


def load(name: str, threads: int) -> Peer:
    """The adapter called `name`; ImportError if what it needs is not installed."""
    module, attribute = REGISTRY[name]
    return getattr(importlib.import_module(module), attribute)(threads)


def error(result: Result, expected: Result, mask: np.ndarray) -> float:
    """Largest deviation of any array, relative to that array's largest value; valid steps only."""

    def deviation(name: str) -> float:
        got, want = result[name], expected[name]
        if got.shape != want.shape:
            return float("inf")
        if name in ("outputs", "inputs"):
            got, want = got[mask], want[mask]
        return float(np.abs(got - want).max() / np.abs(want).max())

    # nan_to_num: a NaN must not slip through a comparison
    deviations = [deviation(name) for name in expected]
    return float(np.nan_to_num(deviations, nan=np.inf).max())
