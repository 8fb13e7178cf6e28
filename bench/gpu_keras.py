"""The ops and the layer on TensorFlow's GPU: against the same ops on the CPU, and Keras' cuDNN.

    python bench/gpu_keras.py

A process of its own, without PyTorch: the two may bring different versions of CUDA's libraries. See
gpu_check.sh.
"""

from __future__ import annotations

import os
import sys

import numpy as np

os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

LIMITS = {"float32": 1e-4, "float64": 1e-11, "float16": 2e-2, "bfloat16": 1e-1}
SHAPE = BATCH, TIMESTEPS, INPUT_DIM, UNITS = 17, 13, 24, 48


def worst_error(got, expected, dtype) -> float:
    """The largest error of any result, over the limit."""
    pairs = zip(got, expected, strict=True)
    errors = [np.abs(a - b).max() / max(1.0, np.abs(b).max()) for a, b in pairs]
    return float(max(errors)) / LIMITS[dtype] if np.isfinite(errors).all() else float("inf")


def float64(tf, tensors):
    return [tf.cast(tensor, tf.float64).numpy() for tensor in tensors]


def op_on_the_cpu(tf, dtype) -> float:
    """The op on the GPU against its kernels for the CPU, outputs and all gradients."""
    from masked_lstm import ops

    rng = np.random.default_rng(0)
    shapes = ((BATCH, TIMESTEPS, INPUT_DIM), (INPUT_DIM, 4 * UNITS), (UNITS, 4 * UNITS))
    scales = (1, INPUT_DIM**-0.5, UNITS**-0.5, 0.5, 0.5, 1)
    shapes += ((4 * UNITS,), (BATCH, UNITS), (BATCH, UNITS))
    values = [s * rng.standard_normal(shape) for s, shape in zip(scales, shapes, strict=True)]
    mask = rng.random((BATCH, TIMESTEPS)) < 0.5
    results = []
    for device in ("GPU:0", "CPU:0"):
        with tf.device(device):
            arguments = [tf.cast(tf.constant(value), dtype) for value in values]
            with tf.GradientTape() as tape:
                tape.watch(arguments)
                *weights, h0, c0 = arguments
                y, h, c = ops.lstm(*weights, mask=tf.constant(mask), initial_state=[h0, c0])
                total = [tf.reduce_sum(tf.cast(v, tf.float64) ** 2) for v in (y, h, c)]
            results.append(float64(tf, [y, h, c, *tape.gradient(total, arguments)]))
    return worst_error(*results, dtype)


def layer_against_cudnn(keras, tf) -> float:
    """The layer against keras.layers.LSTM(use_cudnn=True), on right padding."""
    import masked_lstm

    rng = np.random.default_rng(0)
    x = tf.constant(rng.standard_normal((BATCH, TIMESTEPS, INPUT_DIM)), tf.float32)
    mask = tf.sequence_mask(rng.integers(1, TIMESTEPS + 1, BATCH), TIMESTEPS)
    shapes = ((INPUT_DIM, 4 * UNITS), (UNITS, 4 * UNITS), (4 * UNITS,))
    weights = [0.2 * rng.standard_normal(shape) for shape in shapes]
    results = []
    tf.config.experimental.enable_tensor_float_32_execution(False)
    for layer in (
        masked_lstm.LSTM(UNITS, backend="fused", return_sequences=True),
        keras.layers.LSTM(UNITS, use_cudnn=True, return_sequences=True),
    ):
        layer.build(x.shape)
        layer.set_weights(weights)
        with tf.GradientTape() as tape:
            tape.watch(x)
            # cuDNN writes zeros at masked steps.
            y = layer(x, mask=mask) * tf.cast(mask, tf.float32)[..., None]
            loss = tf.reduce_sum(y * y)
        variables = [variable.value for variable in layer.trainable_variables]
        results.append(float64(tf, [y, *tape.gradient(loss, [x, *variables])]))
    return worst_error(*results, "float32")


def main() -> int:
    import keras
    import tensorflow as tf

    from masked_lstm import gpus, kernel_calls

    if not tf.config.list_physical_devices("GPU") or not gpus.built_for():
        print("TensorFlow: not checked, it sees no GPU or the op has no CUDA kernels")
        return 0
    errors = {f"op on the GPU and the CPU, {dtype}": op_on_the_cpu(tf, dtype) for dtype in LIMITS}
    errors["layer and Keras' cuDNN"] = layer_against_cudnn(keras, tf)
    ran = any(name.startswith("cuda-") for name in kernel_calls())
    for what, worst in errors.items():
        print(f"TensorFlow, {what}: {'passed' if worst <= 1 and ran else 'FAILED'} ({worst:.2g})")
    return int(not ran or max(errors.values()) > 1)


if __name__ == "__main__":
    sys.exit(main())
