"""What `run.py --device cuda` measures: one adapter per implementation. See gpu.py."""

from __future__ import annotations

import functools
import importlib.util
import os
import subprocess
import sys
import time

import numpy as np
import torch
from torch.nn.utils import rnn

DEVICE = "cuda"


def driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "unknown"


class Problem:
    """Inputs, weights in Keras' layouts, upstream gradient; the outputs to expect."""

    def __init__(self, point):
        self.point = point
        generator = torch.Generator(DEVICE).manual_seed(0)
        units, batch, timesteps = point.units, point.batch, point.timesteps
        dtype = "float32" if point.dtype == "tf32" else point.dtype
        self.dtype = getattr(torch, dtype)

        def normal(*shape, scale=1.0):
            values = torch.randn(shape, generator=generator, device=DEVICE) * scale
            return values.to(self.dtype)

        self.x = normal(batch, timesteps, units)
        self.kernel = normal(units, 4 * units, scale=units**-0.5)
        self.recurrent_kernel = normal(units, 4 * units, scale=units**-0.5)
        self.bias = normal(4 * units, scale=0.5)
        self.d_outputs = normal(batch, timesteps, units)
        self.lengths = point.lengths()
        positions = torch.arange(timesteps)
        self.mask = (positions < torch.from_numpy(self.lengths)[:, None]).to(DEVICE)
        with torch.no_grad():
            self.expected = self._lstm(torch.float64).eval()(self.x.double())[0]

    def _lstm(self, dtype, cls=torch.nn.LSTM):
        """PyTorch's LSTM with these weights; its gates have Keras' order."""
        units = self.point.units
        lstm = cls(units, units, batch_first=True, device=DEVICE, dtype=dtype)
        with torch.no_grad():
            lstm.weight_ih_l0.copy_(self.kernel.T)
            lstm.weight_hh_l0.copy_(self.recurrent_kernel.T)
            lstm.bias_ih_l0.copy_(self.bias)
            lstm.bias_hh_l0.zero_()
        return lstm

    def lstm(self):
        return self._lstm(self.dtype)

    def error(self, outputs) -> float:
        """Largest error of the outputs of valid steps."""
        difference = (outputs.double() - self.expected).abs()
        error = float(torch.where(self.mask[..., None], difference, 0.0).max())
        return error if np.isfinite(error) else float("inf")


class Peer:
    ours = False
    version = f"torch {torch.__version__}"
    clock_name = "CUDA events"

    def __init__(self, clock):
        self.clock = clock

    def refuses(self, point) -> str | None:
        """Why the peer is left out at a point."""
        return None


class Ours(Peer):
    ours = True

    def __init__(self, clock):
        super().__init__(clock)
        import masked_lstm
        from masked_lstm import cuda

        self.cuda = cuda
        self.version = f"masked_lstm {masked_lstm.__version__}"

    def prepare(self, problem):
        training = problem.point.pass_name == "training"
        mask = {}
        if problem.point.fraction < 1:
            mask["sequence_lengths"] = torch.from_numpy(problem.lengths).to(DEVICE)
        arguments = (problem.x, problem.kernel, problem.recurrent_kernel, problem.bias)

        def call():
            result = self.cuda.forward(*arguments, save_reserve=training, **mask)
            if training:
                self.cuda.backward(*arguments, result.reserve, problem.d_outputs, **mask)
            return result

        return call, lambda: call().outputs


class Dense(Peer):
    """torch.nn.LSTM on every step: cuDNN's persistent kernels where it chooses them."""

    def prepare(self, problem):
        training = problem.point.pass_name == "training"
        lstm = problem.lstm().train(training)  # cuDNN keeps less for inference
        lstm.flatten_parameters()
        x = problem.x.clone().requires_grad_(training)

        def call():
            with torch.set_grad_enabled(training):
                y = self.run(lstm, x, problem)
            if training:
                lstm.zero_grad(set_to_none=True)
                x.grad = None
                y.backward(problem.d_outputs)
            return y

        return call, lambda: call().detach()

    def run(self, lstm, x, problem):
        return lstm(x)[0]


class Packed(Dense):
    """torch.nn.LSTM on a packed batch: what PyTorch has for padding."""

    def run(self, lstm, x, problem):
        lengths = torch.from_numpy(problem.lengths).long()
        packed = rnn.pack_padded_sequence(x, lengths, True, enforce_sorted=False)
        return rnn.pad_packed_sequence(lstm(packed)[0], True, total_length=x.shape[1])[0]


class FlashRNN(Peer):
    """The flashrnn package's fused kernels, after a product of PyTorch for x.W; every step.

    As its README has it, of G gates and N heads: Wx (B,T,G,N,D), R (G,N,D,D), b (G,N,D); states
    (S,B,T,N,D) with h first. Which way round R is, it does not say.
    """

    def __init__(self, clock):
        super().__init__(clock)
        from importlib.metadata import version

        from flashrnn import flashrnn

        self.flashrnn, self.version = flashrnn, f"flashrnn {version('flashrnn')}"

    def refuses(self, point):
        return None if point.dtype == "bfloat16" else "measured in bfloat16 only"

    def prepare(self, problem):
        """R is tried both ways round: the one that gives right results is taken."""
        found = [self.variant(problem, transposed) for transposed in (False, True)]
        return min(found, key=lambda pair: problem.error(pair[1]()))

    def variant(self, problem, transposed):
        batch, timesteps, units = problem.x.shape
        training = problem.point.pass_name == "training"
        # Gates i, f, z (the candidate), o, as Keras'; one head of all units.
        recurrent = problem.recurrent_kernel.view(units, 4, 1, units).permute(1, 2, 0, 3)
        recurrent = (recurrent.transpose(2, 3) if transposed else recurrent).contiguous()
        leaves = [problem.x, problem.kernel, recurrent, problem.bias.view(4, 1, units)]
        leaves = [leaf.detach().clone().requires_grad_(training) for leaf in leaves]
        x, kernel, recurrent, bias = leaves

        def call():
            with torch.set_grad_enabled(training):
                wx = (x @ kernel).view(batch, timesteps, 4, 1, units)
                states, _ = self.flashrnn(
                    wx, recurrent, bias, function="lstm", backend="cuda_fused"
                )
                y = states[0].reshape(batch, timesteps, units)
            if training:
                for leaf in leaves:
                    leaf.grad = None
                y.backward(problem.d_outputs)
            return y

        return call, lambda: call().detach()


class KerasCudnn(Peer):
    """keras.layers.LSTM on TensorFlow, with a mask: CudnnRNNV3."""

    clock_name = "synchronized clock"
    options: dict = {}

    def __init__(self, clock):
        os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
        os.environ.setdefault("KERAS_BACKEND", "tensorflow")
        import keras
        import tensorflow as tf

        if not tf.config.list_physical_devices("GPU"):
            raise ImportError("TensorFlow sees no GPU")
        self.keras, self.tf = keras, tf
        self.version = f"keras {keras.__version__}, tensorflow {tf.__version__}"
        super().__init__(self.synchronized)

    def synchronized(self, call, count):
        self.tf.test.experimental.sync_devices()
        start = time.perf_counter()
        for _ in range(count):
            call()
        self.tf.test.experimental.sync_devices()
        return (time.perf_counter() - start) * 1e6 / count

    def layer(self, units, dtype):
        return self.keras.layers.LSTM(units, return_sequences=True, use_cudnn=True, dtype=dtype)

    def prepare(self, problem):
        tf, point = self.tf, problem.point
        tf.config.experimental.enable_tensor_float_32_execution(point.dtype == "tf32")
        dtype = "float32" if point.dtype == "tf32" else point.dtype

        def array(tensor):
            return tf.cast(tf.constant(tensor.detach().float().cpu().numpy()), dtype)

        layer = self.layer(point.units, dtype)
        layer.build(tuple(problem.x.shape))
        weights = (problem.kernel, problem.recurrent_kernel, problem.bias)
        for variable, value in zip(layer.trainable_variables, weights, strict=True):
            variable.assign(array(value))
        x, dy = array(problem.x), array(problem.d_outputs)
        mask = None
        if point.fraction < 1:
            mask = tf.sequence_mask(problem.lengths, point.timesteps)

        @tf.function(autograph=False, jit_compile=False)
        def call():
            if point.pass_name == "forward":
                return layer(x, mask=mask)
            variables = [variable.value for variable in layer.trainable_variables]
            with tf.GradientTape() as tape:
                tape.watch([x, *variables])
                y = layer(x, mask=mask)
            return y, tape.gradient(y, [x, *variables], output_gradients=dy)

        def outputs():
            y = call() if point.pass_name == "forward" else call()[0]
            return torch.from_numpy(tf.cast(y, "float32").numpy()).to(DEVICE)

        return call, outputs


class Layer(KerasCudnn):
    """Our layer in the same place."""

    ours = True

    def __init__(self, clock):
        super().__init__(clock)
        import masked_lstm
        from masked_lstm import gpus

        if not gpus.built_for():
            raise ImportError("masked_lstm's op was built without CUDA kernels")
        self.masked_lstm = masked_lstm
        self.version = f"masked_lstm {masked_lstm.__version__}, {self.version}"

    def layer(self, units, dtype):
        return self.masked_lstm.LSTM(units, return_sequences=True, backend="fused", dtype=dtype)


# Both bring CUDA's libraries, perhaps of different versions: whether one process can use both is
# found out in another, which may crash.
TOGETHER = """
import os
os.environ["TF_FORCE_GPU_ALLOW_GROWTH"] = "true"
import torch
torch.nn.LSTM(8, 8, device="cuda")(torch.zeros(2, 2, 8, device="cuda"))
import tensorflow as tf
import keras
assert tf.config.list_physical_devices("GPU"), "TensorFlow sees no GPU"
keras.layers.LSTM(8, use_cudnn=True)(tf.zeros((2, 2, 8)))
torch.cuda.synchronize()
"""


@functools.cache
def tensorflow_missing() -> str | None:
    """Why TensorFlow cannot be measured beside PyTorch; None if it can."""
    if importlib.util.find_spec("tensorflow") is None:
        return "tensorflow is not installed"
    command, environment = [sys.executable, "-c", TOGETHER], {"KERAS_BACKEND": "tensorflow"}
    try:
        run = subprocess.run(
            command, env=os.environ | environment, capture_output=True, text=True, timeout=90
        )
    except subprocess.TimeoutExpired:
        return "TensorFlow beside PyTorch took more than 90 s to begin"
    last = (run.stderr.strip().splitlines() or [""])[-1][:200]
    if run.returncode == 0:
        return None
    return f"not beside PyTorch here (exit status {run.returncode}): {last}"


REGISTRY = {
    "ours": Ours,
    "torch": Dense,
    "torch_packed": Packed,
    "flashrnn": FlashRNN,
    "keras_cudnn": KerasCudnn,
    "layer": Layer,
}
OF_TENSORFLOW = ("keras_cudnn", "layer")


def load(wanted, clock, note) -> dict[str, Peer]:
    """name -> peer, of those wanted (all, if none are named) that are installed."""
    if unknown := [name for name in wanted if name not in REGISTRY]:
        raise SystemExit(f"error: --peers: expected {', '.join(REGISTRY)}, got {unknown[0]}")
    peers = {}
    for name, peer in REGISTRY.items():
        if wanted and name not in wanted:
            continue
        if name == "flashrnn" and importlib.util.find_spec(name) is None:
            note("flashrnn: flashrnn is not installed")
            continue
        if name in OF_TENSORFLOW and (reason := tensorflow_missing()):
            note(f"{name}: {reason}")
            continue
        try:
            peers[name] = peer(clock)
        except Exception as error:  # a broken install must not end the run
            note(f"{name} cannot be loaded: {type(error).__name__}: {error}")
    return peers
