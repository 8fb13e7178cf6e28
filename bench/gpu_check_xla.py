"""On a GPU: a function compiled by XLA gives the bits of the same calls outside of XLA, through the
CUDA kernels; and Keras trains with jit_compile=True as it does without.

    python bench/gpu_check_xla.py

Part of gpu_check.sh. The last line says: passed, FAILED, or not checked and why.
"""

from __future__ import annotations

import importlib.util
import sys

import numpy as np

TITLE = "The op compiled by XLA against itself outside:"
BACKWARDS = dict(go_backwards=True, recompute=True)
# Few: each is a program to compile. Every dtype, with and without each option, every kind of mask.
CASES = [
    ("float32", "none", {}),
    ("float32", "lengths", BACKWARDS),
    ("float32", "holes", {}),
    ("float64", "holes", BACKWARDS),
    ("float16", "lengths", {}),
    ("float16", "holes", BACKWARDS),
    ("bfloat16", "none", BACKWARDS),
    ("bfloat16", "holes", {}),
]


def not_checkable() -> str | None:
    """Why nothing can be checked here."""
    if importlib.util.find_spec("tensorflow") is None:
        return "TensorFlow is not installed"
    import tensorflow as tf

    if not tf.config.list_physical_devices("GPU"):
        return "TensorFlow sees no GPU"
    from masked_lstm import ops

    ops.load()
    return ops.no_xla_reason(gpu=True)


def cuda_calls() -> int:
    """Calls of CUDA kernels that programs compiled by XLA have made."""
    from masked_lstm import ops

    counts = ops.xla_kernel_calls()
    return sum(count for kernel, count in counts.items() if kernel.startswith("cuda-"))


def both_passes(dtype, masking, options):
    """A function of no arguments: results and all gradients of one call."""
    import tensorflow as tf

    import masked_lstm

    rng = np.random.default_rng(0)
    batch, timesteps, input_dim, units = 37, 20, 24, 80
    shapes = [(batch, timesteps, input_dim), (input_dim, 4 * units), (units, 4 * units)]
    shapes += [(4 * units,), (batch, units), (batch, units)]
    arguments = [tf.constant(0.2 * rng.standard_normal(shape), dtype) for shape in shapes]
    lengths = rng.integers(0, timesteps + 1, batch)
    masks = {
        "none": {},
        "lengths": dict(sequence_lengths=tf.constant(lengths, tf.int32)),
        "holes": dict(mask=tf.constant(rng.random((batch, timesteps)) < 0.5)),
    }
    upstream = [(batch, timesteps, units), (batch, units), (batch, units)]
    upstream = [tf.constant(rng.standard_normal(shape), dtype) for shape in upstream]

    def function():
        with tf.GradientTape() as tape:
            tape.watch(arguments)
            results = masked_lstm.lstm(
                *arguments[:4], initial_state=arguments[4:], **masks[masking], **options
            )
        return [*results, *tape.gradient(results, arguments, output_gradients=upstream)]

    return function


def same_bits() -> bool:
    import tensorflow as tf

    good = True
    for dtype, masking, options in CASES:
        function = both_passes(dtype, masking, options)
        before = cuda_calls()
        inside = tf.function(function, jit_compile=True)()
        calls = cuda_calls() - before
        outside = tf.function(function)()
        pairs = zip(inside, outside, strict=True)
        same = all(a.numpy().tobytes() == b.numpy().tobytes() for a, b in pairs)
        if not same or calls != 2:
            print(f"FAILED: XLA, {dtype}, {masking}, {options}: same {same}, calls {calls}")
            good = False
    return good


def same_training() -> bool:
    import keras
    import tensorflow as tf

    import masked_lstm

    tf.config.experimental.enable_tensor_float_32_execution(False)
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 20, (64, 12)), rng.standard_normal((64, 1))
    losses, good = [], True
    for jit_compile in (True, False):
        keras.utils.set_random_seed(1)
        model = keras.Sequential(
            [
                keras.layers.Embedding(20, 16, mask_zero=True),
                keras.layers.Bidirectional(masked_lstm.LSTM(32, backend="fused")),
                keras.layers.Dense(1),
            ]
        )
        model.compile("adam", "mse", jit_compile=jit_compile)
        before = cuda_calls()
        losses.append(model.fit(x, y, epochs=3, batch_size=16, verbose=0).history["loss"])
        calls = cuda_calls() - before
        if bool(model.jit_compile) != jit_compile or (calls > 0) != jit_compile:
            used = f"Keras took {model.jit_compile}, calls {calls}"
            print(f"FAILED: XLA, a training run with jit_compile={jit_compile}: {used}")
            good = False
    if not np.allclose(*losses, rtol=1e-4):
        print(f"FAILED: XLA, losses of a training run: {losses}")
        good = False
    return good


def main() -> int:
    reason = not_checkable()
    if reason is not None:
        print(f"{TITLE} not checked, {reason}")
        return 0
    good = [same_bits(), same_training()]
    print(TITLE, "passed" if all(good) else "FAILED")
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
