"""Keras' own tests of LSTM and Bidirectional (in its wheel), with our layer in place of theirs."""

import os
import subprocess
import sys

RUN = """
import os, sys
import keras, pytest
from keras.src import layers
import masked_lstm

layers.LSTM = keras.layers.LSTM = masked_lstm.LSTM
folder = os.path.join(os.path.dirname(layers.__file__), "rnn")
tests = [os.path.join(folder, name) for name in ("lstm_test.py", "bidirectional_test.py")]
code = pytest.main(["-q", "-p", "no:cacheprovider", "--rootdir", os.getcwd(), *tests])
print("fused calls:", sum(masked_lstm.kernel_calls().values()))
sys.exit(code)
"""


def test_keras_own_tests_pass(tmp_path):
    run = subprocess.run(
        [sys.executable, "-c", RUN],
        cwd=tmp_path,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]
    assert int(run.stdout.rsplit("fused calls:", 1)[1]) > 0
