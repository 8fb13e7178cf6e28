"""Every file in examples/: the model trained with Keras' LSTM and with ours is the same model.

The tolerance is measured, not guessed: see examples/_common.py, class Comparison.
"""

import importlib
import pathlib

import pytest

EXAMPLES = pathlib.Path(__file__).resolve().parent.parent / "examples"
NAMES = sorted(path.stem for path in EXAMPLES.glob("[a-z]*.py"))


def test_every_model_that_people_write_is_there():
    assert len(NAMES) >= 8


@pytest.mark.parametrize("name", NAMES)
def test_same_results(name, monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    example = importlib.import_module(name)
    comparison = example.compare(samples=240, epochs=4)
    assert comparison.problems() == []
    # Keras' runs were Keras': none of our kernels served them.
    assert comparison.keras.kernel_calls == comparison.nudged.kernel_calls == {}
    assert not (comparison.ours.predictions == 0).all()
