"""Keras' own tests (in its wheel) of recurrent layers and masking, every file in which an LSTM
stands, with ours in place of theirs. None is deselected."""

import os
import subprocess
import sys

RUN = """
import glob, os, re, sys
import keras, pytest
from keras.src import layers
import masked_lstm

layers.LSTM = keras.layers.LSTM = masked_lstm.LSTM
folder = os.path.dirname(layers.__file__)
tests = sorted(glob.glob(os.path.join(folder, "rnn", "*_test.py")))
tests.append(os.path.join(folder, "core", "masking_test.py"))
tests = [path for path in tests if re.search(r"\\bLSTM\\b", open(path).read())]
names = {os.path.basename(path) for path in tests}
assert {"lstm_test.py", "bidirectional_test.py", "masking_test.py"} <= names, names
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
    # Those of LSTM, Bidirectional and others that call the layer.
    assert int(run.stdout.rsplit("fused calls:", 1)[1]) >= 70
