"""Settings all tests share."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

# These take minutes: begun last, one would be left alone on its worker.
LONGEST = ("test_native.py", "test_cuda_hopper.py", "test_keras_suite.py", "test_cuda_bindings.py")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else 9)
