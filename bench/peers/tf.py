"""Peers that run in TensorFlow: Keras, Keras with XLA, BlockLSTMV2, and our op and layer."""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf
from cases import Case, Data, aligned

from peers import Peer, Prepared


class TensorFlowPeer(Peer):
    version = f"tensorflow {tf.__version__}"
    jit_compile = False
    dtype = "float32"

    def __init__(self, threads: int):
        super().__init__(threads)
        if tf.config.threading.get_intra_op_parallelism_threads() != threads:
            tf.config.threading.set_intra_op_parallelism_threads(threads)
            tf.config.threading.set_inter_op_parallelism_threads(threads)

    def array(self, value: np.ndarray) -> tf.Tensor:
        """`value` without a copy: tf.constant would hold two."""
        value = aligned(value.astype(self.dtype, copy=False))
        return tf.experimental.dlpack.from_dlpack(value.__dlpack__())

    def traced(self, function, *arguments):
        """`function(*arguments)` as a call without arguments, traced once."""
        compiled = tf.function(function, jit_compile=self.jit_compile, autograph=False)
        concrete = compiled.get_concrete_function(*arguments)
        return lambda: concrete(*arguments)

    def differentiated(self, function, variables, data, pass_name):
        """A traced call of `function(x)`, in training with all its gradients."""

        def training(x, dy):
            with tf.GradientTape() as tape:
                tape.watch([x, *variables])
                y = function(x)
            return y, tape.gradient(y, [x, *variables], output_gradients=dy)

        x = self.array(data.inputs)
        if pass_name == "forward":
            return self.traced(function, x)
        return self.traced(training, x, self.array(data.d_outputs))


class Keras(TensorFlowPeer):
    """keras.layers.LSTM as Keras runs it on a CPU: its generic loop, inside tf.function."""

    version = f"keras {keras.__version__}"
    layer_class = keras.layers.LSTM
    options = {"use_cudnn": False}

    def prepare(self, case: Case, data: Data, pass_name: str) -> Prepared:
        layer = self.layer_class(
            case.units,
            return_sequences=True,
            return_state=case.carry_state,
            dtype=self.dtype,
            **self.options,
        )
        if case.directions == 2:
            layer = keras.layers.Bidirectional(layer)
        layer.build(data.inputs.shape)
        layer.set_weights([array for weights in data.weights for array in weights])
        state = {}
        if case.carry_state:
            state["initial_state"] = [self.array(data.h0), self.array(data.c0)]
        mask = tf.constant(data.mask) if data.padded else None
        call = self.differentiated(
            lambda x: layer(x, mask=mask, **state),
            [variable.value for variable in layer.trainable_variables],
            data,
            pass_name,
        )

        def decode(raw):
            if pass_name == "forward":
                return {"outputs": (raw[0] if case.carry_state else raw).numpy()}
            outputs, gradients = raw
            return {"outputs": outputs.numpy()} | _named(gradients)

        return Prepared(call, decode)


def _named(gradients) -> dict[str, np.ndarray]:
    """[x, kernel, recurrent_kernel, bias, (the same three of the backward direction)] by name."""
    names = ["inputs"]
    for direction in range(len(gradients) // 3):
        names += [f"{name}{direction}" for name in ("kernel", "recurrent_kernel", "bias")]
    arrays = [np.asarray(tf.convert_to_tensor(gradient)) for gradient in gradients]
    return dict(zip(names, arrays, strict=True))


class KerasJit(Keras):
    jit_compile = True


class Layer(Keras):
    """Our layer: the same call as Keras', in tf.function."""

    options = {"backend": "fused"}  # an error rather than Keras' path, silently

    def __init__(self, threads: int):
        super().__init__(threads)
        from masked_lstm import LSTM, __version__

        self.layer_class = LSTM
        self.version = f"masked_lstm {__version__}"


class LayerJit(Layer):
    """Our layer as KerasJit has Keras'."""

    jit_compile = True

    def __init__(self, threads: int):
        super().__init__(threads)
        from masked_lstm import ops

        ops.load()
        if reason := ops.no_xla_reason():
            raise ImportError(reason)


class Op(TensorFlowPeer):
    """Our op alone in tf.function: what the layer adds is the difference."""

    def __init__(self, threads: int):
        super().__init__(threads)
        from masked_lstm import __version__, ops

        ops.load()
        self.lstm = ops.lstm
        self.version = f"masked_lstm {__version__}"

    def refuses(self, case, data, pass_name):
        return "one direction only" if case.directions == 2 else None

    def prepare(self, case: Case, data: Data, pass_name: str) -> Prepared:
        variables = [tf.Variable(array) for array in data.weights[0]]
        options = {}
        if case.carry_state:
            options["initial_state"] = (self.array(data.h0), self.array(data.c0))
        if data.padded:
            options["sequence_lengths"] = tf.constant(data.lengths)
        call = self.differentiated(
            lambda x: self.lstm(x, *variables, **options)[0], variables, data, pass_name
        )

        def decode(raw):
            if pass_name == "forward":
                return {"outputs": raw.numpy()}
            return {"outputs": raw[0].numpy()} | _named(raw[1])

        return Prepared(call, decode)


class BlockLSTM(TensorFlowPeer):
    """tf.raw_ops.BlockLSTMV2: time-major, one kernel for [x, h], every padded step computed."""

    def refuses(self, case, data, pass_name):
        return "one direction only" if case.directions == 2 else None

    def prepare(self, case: Case, data: Data, pass_name: str) -> Prepared:
        kernel, recurrent_kernel, bias = data.weights[0]
        no_peephole = tf.zeros([case.units])
        shared = {
            "seq_len_max": tf.constant(case.timesteps, tf.int64),
            "cs_prev": self.array(data.c0),
            "h_prev": self.array(data.h0),
            "w": self.array(np.concatenate([kernel, recurrent_kernel])),
            **dict.fromkeys(("wci", "wcf", "wco"), no_peephole),
            "b": self.array(bias),
        }

        def forward(x):
            return tf.raw_ops.BlockLSTMV2(x=x, **shared)

        def training(x, dy):
            # Not by tf.GradientTape: TensorFlow registers the gradient of the first BlockLSTM for
            # this op too (tensorflow/python/ops/rnn_grad.py), and that has another gate order.
            saved = forward(x)
            gradient = tf.raw_ops.BlockLSTMGradV2(
                x=x,
                **shared,
                **saved._asdict(),
                cs_grad=tf.zeros_like(saved.cs),
                h_grad=dy,
                use_peephole=False,
            )
            return saved.h, [gradient.x_grad, gradient.w_grad, gradient.b_grad]

        def time_major(array):
            return self.array(np.ascontiguousarray(array.swapaxes(0, 1)))

        x = time_major(data.inputs)
        if pass_name == "training":
            call = self.traced(training, x, time_major(data.d_outputs))
        else:
            call = self.traced(lambda x: forward(x).h, x)

        def decode(raw):
            if pass_name == "forward":
                return {"outputs": raw.numpy().swapaxes(0, 1)}
            outputs, (dx, dw, db) = raw
            dx, dw = dx.numpy().swapaxes(0, 1), np.split(dw.numpy(), [case.input_dim])
            return {"outputs": outputs.numpy().swapaxes(0, 1)} | _named([dx, *dw, db])

        return Prepared(call, decode)
