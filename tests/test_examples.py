"""Every file in examples/: the model trained with Keras' LSTM and with ours is the same model.

The tolerance is measured, not guessed: see examples/_common.py, class Comparison.
"""

import importlib
import pathlib

import numpy as np
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
    comparison = example.compare(samples=128, epochs=3)

    # Losses and predictions agree, the loss falls, and the fused kernels ran, both ways.
    assert comparison.problems() == []
    # Keras' runs were Keras': none of our kernels served them.
    assert comparison.keras.kernel_calls == comparison.nudged.kernel_calls == {}

    # The tolerance is far below what training does, so that another result could not pass for the
    # same. MARGIN * EPSILON * sqrt(K) is 1e-5 for K = 100 rows of weights; training this little
    # (at most 90 steps) may amplify that tenfold.
    assert (comparison.loss_tolerance < 1e-4 * comparison.keras.losses).all()
    assert comparison.prediction_tolerance < 1e-3 * np.ptp(comparison.keras.predictions)
