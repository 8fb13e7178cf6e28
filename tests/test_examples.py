"""Every file in examples/: the model trained with Keras' LSTM and with ours is the same model."""

import importlib
import pathlib

import pytest

EXAMPLES = pathlib.Path(__file__).resolve().parent.parent / "examples"
NAMES = sorted(path.stem for path in EXAMPLES.glob("[a-z]*.py"))


def test_every_model_that_people_write_is_there():
    assert set(NAMES) >= {
        "autoencoder",
        "bidirectional",
        "entity_tagging",
        "generator",
        "masking",
        "question_answering",
        "stacked",
        "text_classification",
    }


@pytest.mark.parametrize("name", NAMES)
def test_same_results(name, monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    example = importlib.import_module(name)
    comparison = example.compare(samples=96, epochs=3)

    # Losses and predictions agree, the loss falls, and the fused kernels ran, both ways. The
    # tolerance and where it comes from: RELATIVE_TOLERANCE in examples/_common.py.
    assert comparison.problems() == []
    # Keras' run was Keras': none of our kernels served it.
    assert comparison.keras.kernel_calls == {}
