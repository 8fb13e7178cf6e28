"""The demo, on a few words: both halves are the same training run, and everything is written."""

import json
import random

import pytest

from masked_lstm.demo import __main__ as demo
from masked_lstm.demo import data, transcribe


def test_a_tiny_run(tmp_path, capsys):
    arguments = "--words 150 --epochs 2 --units 16 --batch-size 32 --held-out 20"
    results = demo.main([*arguments.split(), "--out", str(tmp_path)])
    keras, ours = results["runs"]["Keras"], results["runs"]["masked_lstm"]
    # Two epochs of a few batches: far fewer steps than float32 needs to drift apart.
    assert keras["loss"] == pytest.approx(ours["loss"], rel=1e-5)
    assert ours["loss"][1] < ours["loss"][0]
    assert keras["phoneme_error_rate"] == ours["phoneme_error_rate"]
    # The encoder's two directions and the decoder, in each batch of two epochs.
    counts = results["kernel_calls"]
    assert (
        sum(count for name, count in counts.items() if "backward" in name)
        == 3 * 2 * results["batches_per_epoch"]
    )
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert (tmp_path / "training.png").read_bytes().startswith(b"\x89PNG")
    assert "times faster per training epoch" in capsys.readouterr().out


def test_no_spelling_is_trained_on_and_held_out():
    words = data.load()
    split = data.split(words, held_out=500, train=None, seed=1)
    assert not split.train.keys() & split.held_out.keys()
    assert len(split.train) + len(split.held_out) == len(words) > 100_000


def test_edit_distance():
    assert transcribe.edit_distance("kitten", "sitting") == 3
    assert transcribe.edit_distance("", "abc") == transcribe.edit_distance("abc", "") == 3
    rng = random.Random(0)
    for _ in range(50):
        a, b, c = ("".join(rng.choices("xyz", k=rng.randrange(7))) for _ in range(3))
        ab, bc, ac = (transcribe.edit_distance(*pair) for pair in ((a, b), (b, c), (a, c)))
        assert ab == transcribe.edit_distance(b, a) and (ab == 0) == (a == b)
        assert ac <= ab + bc
