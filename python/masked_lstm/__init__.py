"""An LSTM for padded batches that computes only the timesteps that exist.

Importing this package is light; TensorFlow and the native libraries are loaded when a name that
needs them is first used. `from masked_lstm import LSTM` registers the Keras layer and loads the
ops: the one import that a SavedModel or a `.keras` file needs.
"""

import importlib

__version__ = "0.1.0"

# Public name -> the module that defines it (None: the name is the module).
_LAZY = {
    "LSTM": "layer",
    "lstm": "ops",
    "ragged_lstm": "ops",
    "kernel_calls": "calls",
    "replace_lstm": "replace",
    "restore_lstm": "replace",
    "replacement_report": "replace",
    "load_model": "replace",
    "core": None,
    "reference": None,
}

__all__ = sorted(_LAZY)


def __getattr__(name):
    if name not in _LAZY:
        raise AttributeError(f"module 'masked_lstm' has no attribute '{name}'")
    module = importlib.import_module(f"masked_lstm.{_LAZY[name] or name}")
    value = module if _LAZY[name] is None else getattr(module, name)
    globals()[name] = value
    return value


def __dir__():
    return sorted([*globals(), *_LAZY])
