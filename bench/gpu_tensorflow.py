"""The TensorFlow op on a GPU against the CPU's, with no GPU kernel of TensorFlow's own.

    python bench/gpu_tensorflow.py          ops called directly, with a tape, inside tf.function
    python bench/gpu_tensorflow.py xla      inside jit_compile=True

For a TensorFlow whose own device code is of no use there: beside copies, nothing but our op runs on
the GPU. gpu_keras.py and gpu_check_xla.py, which gpu_check.sh runs, need all of TensorFlow.
DEVICE=/CPU:0 tries the script itself.
"""

import functools
import itertools
import os
import sys
import threading
import time

T0 = time.time()
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
SWITCH = "MASKED_LSTM_CUDA_KERNEL"
os.environ.pop(SWITCH, None)
os.environ.pop("MASKED_LSTM_CHECK_LENGTHS", None)
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402

DEVICE, CPU = os.environ.get("DEVICE", "/GPU:0"), "/CPU:0"
ON_GPU = "GPU" in DEVICE
LIMITS = {
    "float32": 1e-4,
    "float64": 1e-11,
    "float16": 2e-2,
    "bfloat16": 1e-1,
}  # bench/gpu_check.py
HOPPER = {
    "bfloat16": 16 * 2**-9,
    "float16": 16 * 2**-11,
    "float32": 16 * 2**-11,
}  # bench/hopper_check.py
NAMES = ("outputs", "h", "c", "dx", "d_kernel", "d_recurrent", "d_bias", "dh0", "dc0")
count = failed = 0


def say(*what):
    print(*what, flush=True)


def check(title, function):
    """function(): (good, words)."""
    global count, failed
    count += 1
    try:
        good, words = function()
    except BaseException as error:  # noqa
        if isinstance(error, KeyboardInterrupt):
            raise
        lines = str(error).strip().splitlines() or [""]
        good, words = False, f"{type(error).__name__}: {lines[0][:300]}"
    failed += not good
    say(f"{title}: {'passed' if good else 'FAILED'} ({words})")
    return good


def on_cpu():
    """What TensorFlow would fill with a GPU kernel of its own is made on the CPU instead."""
    from tensorflow.python import pywrap_tfe
    from tensorflow.python.eager import backprop

    def zeros(shape, dtype=tf.float32, name=None, layout=None):
        with tf.device(CPU):
            return tf.constant(np.zeros([int(n) for n in shape], tf.as_dtype(dtype).as_numpy_dtype))

    tf.zeros = zeros
    old = backprop._default_vspace

    def there(function):
        def call(*a, **k):
            with tf.device(CPU):
                return function(*a, **k)

        return call

    pywrap_tfe.TFE_Py_RegisterVSpace(
        old._replace(zeros_fn=there(old.zeros_fn), zeros_like_fn=there(old.zeros_like_fn))
    )


def constant(value, dtype=None):
    with tf.device(CPU):
        if dtype is not None:
            value = np.asarray(value).astype(tf.as_dtype(dtype).as_numpy_dtype)
        return tf.constant(value)


def values(tensors):
    """As float64 on the host."""
    return [np.asarray(t.numpy()).astype(np.float64) for t in tensors]


class Case:
    """mask: none, lengths, left, holes, empty or ragged. options: of ops.lstm; state=False,
    recompute, factors too."""

    def __init__(self, dtype, mask="none", shape=(19, 13, 24, 48), seed=0, **options):
        batch, timesteps, input_dim, units = shape
        rng = np.random.default_rng(seed)
        normal = lambda *s, scale=1.0: scale * rng.standard_normal(s)  # noqa
        self.dtype, self.options, self.ragged = dtype, dict(options), mask == "ragged"
        self.recompute = self.options.pop("recompute", False)
        factors, state = self.options.pop("factors", False), self.options.pop("state", True)
        x, d_outputs = normal(batch, timesteps, input_dim), normal(batch, timesteps, units)
        weights = [
            normal(input_dim, 4 * units, scale=max(input_dim, 1) ** -0.5),
            normal(units, 4 * units, scale=units**-0.5),
            normal(4 * units, scale=0.5),
        ]
        states = [normal(batch, units, scale=0.5), normal(batch, units)]
        lengths = rng.integers(0, timesteps + 1, batch)
        lengths[:1] = timesteps
        steps = np.arange(timesteps)
        masks = {
            "none": None,
            "lengths": steps < lengths[:, None],
            "left": steps >= timesteps - lengths[:, None],
            "holes": rng.random((batch, timesteps)) < 0.5,
            "empty": np.zeros((batch, timesteps), bool),
        }
        masks["ragged"] = masks["lengths"]
        valid = masks[mask]
        if self.ragged:
            x, d_outputs = x[valid], d_outputs[valid]
            self.mask, self.mask_name = (
                constant(np.concatenate([[0], np.cumsum(lengths)]), "int64"),
                "row_splits",
            )
        else:
            if valid is not None:
                x = np.where(valid[..., None], x, np.nan)  # never read
            self.mask_name = (
                None if mask == "none" else "sequence_lengths" if mask == "lengths" else "mask"
            )
            self.mask = (
                constant(lengths, "int32")
                if mask == "lengths"
                else constant(0, "int32")
                if mask == "none"
                else constant(valid)
            )
        if not self.options.get("return_sequences", True):
            d_outputs = normal(batch, units)
        self.state = state
        if not state:
            states = [np.zeros_like(s) for s in states]
        self.arguments = [constant(v, dtype) for v in (x, *weights, *states)]
        self.upstream = [
            constant(v, dtype) for v in (d_outputs, normal(batch, units), normal(batch, units))
        ]
        self.factors = (
            [constant(normal(4, batch, input_dim), dtype), constant(normal(4, batch, units), dtype)]
            if factors
            else [constant(np.zeros([0]), dtype)] * 2
        )
        self.given_factors = factors

    def raw(self, device, save=None):
        """The two ops, called directly."""
        from masked_lstm import ops

        library = ops.load()
        inputs = [*self.arguments, self.mask, *self.factors]
        save = not self.recompute if save is None else save
        with tf.device(device):
            *results, reserve = library.masked_lstm(*inputs, save_reserve=save, **self.options)
            gradients = library.masked_lstm_grad(
                *inputs, reserve, *self.upstream, skip=[], **self.options
            )
        return [*results, *gradients]

    def call(self, arguments, mask):
        from masked_lstm import ops

        x, kernel, recurrent, bias, h0, c0 = arguments
        more = dict(self.options, recompute=self.recompute)
        if self.state:
            more["initial_state"] = (h0, c0)
        if self.given_factors:
            more["input_factors"], more["recurrent_factors"] = self.factors
        if self.ragged:
            return ops.ragged_lstm(x, mask, kernel, recurrent, bias, **more)
        if self.mask_name:
            more[self.mask_name] = mask
        return ops.lstm(x, kernel, recurrent, bias, **more)

    def with_tape(self, device, arguments=None, mask=None, upstream=None):
        """ops.lstm as a user calls it, and tape.gradient."""
        arguments = self.arguments if arguments is None else arguments
        wanted = arguments if self.state else arguments[:4]
        with tf.device(device):
            with tf.GradientTape() as tape:
                tape.watch(wanted)
                results = self.call(arguments, self.mask if mask is None else mask)
            gradients = tape.gradient(
                results, wanted, output_gradients=self.upstream if upstream is None else upstream
            )
        return [*results, *gradients]

    def in_function(self, device, again=1, **options):
        function = tf.function(
            lambda *a: self.with_tape(device, list(a[:6]), a[6], list(a[7:])),
            autograph=False,
            **options,
        )
        flat = [*self.arguments, self.mask, *self.upstream]
        for _ in range(again):
            results = function(*flat)
        return results


def ran(before):
    from masked_lstm import kernel_calls

    return {k: n - before.get(k, 0) for k, n in kernel_calls().items() if n > before.get(k, 0)}


def calls():
    from masked_lstm import kernel_calls

    return kernel_calls()


def compare(case, expected, way, limits=LIMITS, times=1):
    before = calls()
    tensors = getattr(case, way)(DEVICE)
    got = values(tensors)
    kernels = ran(before)
    device = {t.device.rsplit("device:", 1)[-1] for t in tensors}
    errors = {}
    for name, a, b in zip(NAMES[: len(got)], got, expected[: len(got)], strict=True):
        if a.shape != b.shape:
            return False, f"{name}: shape {a.shape}, expected {b.shape}"
        if b.size:
            e = np.abs(a - b).max() / max(1.0, np.abs(b).max())
            errors[name] = float("inf") if np.isnan(e) else float(e)
    worst = max(errors, key=errors.get) if errors else "nothing"
    error = errors.get(worst, 0.0)
    kinds = ("cpu-",)
    if ON_GPU:
        asked = os.environ.get(SWITCH, "groups")
        groups = asked == "groups" or (asked == "hopper" and case.dtype == "float32")
        kinds = ("cuda-groups-",) if groups else ("cuda-clusters-", "cuda-grid-")
    right = bool(kernels) and all(k.startswith(kinds) for k in kernels)
    right &= sorted(k.rsplit("-", 1)[1] for k in kernels) == ["backward", "forward"]
    kernel_names = ", ".join(sorted(kernels)) or "NOTHING"
    words = f"error {error:.2g} in {worst}, limit {limits[case.dtype]:.2g}; ran {kernel_names}"
    if ON_GPU and way != "in_function" and device != {"GPU:0"}:
        words += f"; results on {sorted(device)}"
    return bool(error <= limits[case.dtype] and right), words


CASES = [
    ("none", dict(state=False)),
    ("lengths", {}),
    ("holes", {}),
    ("lengths", dict(go_backwards=True)),
    ("holes", dict(go_backwards=True, zero_output_for_mask=True)),
    ("left", dict(return_sequences=False)),
    ("lengths", dict(recompute=True, state=False)),
    ("holes", dict(factors=True)),
    ("ragged", dict(go_backwards=True)),
    ("holes", dict(activation="softsign", recurrent_activation="hard_sigmoid")),
    ("empty", {}),
]
WAYS = {
    "raw": "ops called directly",
    "with_tape": "eager, tape",
    "in_function": "tf.function, tape",
}


def words_of(mask, options):
    words = ", ".join(
        k if v is True else f"no {k}" if v is False else f"{k} {v}" for k, v in options.items()
    )
    return mask + (f", {words}" if words else "")


def all_of(kernel, dtypes, cases, limits, ways=WAYS, **more):
    os.environ[SWITCH] = kernel
    for dtype, (mask, options) in itertools.product(dtypes, cases):
        title = f"{kernel} {dtype}, {words_of(mask, options)}"
        try:
            case = Case(dtype, mask, **options, **more)
            expected = values(case.raw(CPU))
        except Exception as error:
            words = f"{type(error).__name__}: {str(error).splitlines()[0][:300]}"
            check(f"{title}, the reference", functools.partial(tuple, (False, words)))
            continue
        for way in ways:
            check(f"{title} [{WAYS[way]}]", functools.partial(compare, case, expected, way, limits))
    os.environ.pop(SWITCH)


def bits(a, b):
    return all(x.numpy().tobytes() == y.numpy().tobytes() for x, y in zip(a, b, strict=True))


def same_bits():
    case = Case("float32", "holes", shape=(40, 20, 32, 96))
    first = case.raw(DEVICE)
    same = [
        bits(first, case.raw(DEVICE)),
        bits(first, case.with_tape(DEVICE)),
        bits(first, case.in_function(DEVICE, 5)),
        bits(first, case.raw(DEVICE, save=False)),
    ]
    return all(same), f"again, tape, function, recomputed: {same}"


def skipped():
    """A tape that watches the weights alone; outputs that nothing reads."""
    from masked_lstm import ops

    case = Case("float32", "lengths")
    whole = case.raw(DEVICE)
    flat = [*case.arguments, case.mask, case.upstream[1]]

    def part(*a):
        with tf.device(DEVICE), tf.GradientTape() as tape:
            tape.watch(a[1])
            _, h, _ = ops.lstm(*a[:4], sequence_lengths=a[6], initial_state=a[4:6])
            # d_outputs and d_c: zeros, of the CPU
        with tf.device(DEVICE):
            zero = [constant(np.zeros(case.upstream[i].shape), "float32") for i in (0, 2)]
            library = ops.load()
            none = [constant(np.zeros([0]), "float32")] * 2
            *_, reserve = library.masked_lstm(*a[:7], *none, save_reserve=True)
            expected = library.masked_lstm_grad(
                *a[:7], *none, reserve, zero[0], a[7], zero[1], skip=[0, 2, 3, 4, 5]
            )
        return h, tape.gradient(h, a[1], output_gradients=a[7]), expected[1]

    h, got, expected = part(*flat)
    good = bits([h, got], [whole[1], expected])
    h, got, expected = (
        tf.function(part, autograph=False)(*flat) if not ON_GPU else (h, got, expected)
    )
    return good and bits([got], [expected]), "gradient of kernel alone"


def inference():
    case = Case("float16", "lengths")
    with tf.device(DEVICE):
        got = case.call(case.arguments, case.mask)
        graph = tf.function(lambda *a: case.call(a[:6], a[6])[0], autograph=False)(
            *case.arguments, case.mask
        )
    return bits(
        [*got, graph], [*case.raw(DEVICE)[:3], got[0]]
    ), "without a tape, and one result of a function"


def bad_lengths():
    os.environ["MASKED_LSTM_CHECK_LENGTHS"] = "1"
    try:
        case = Case("float32", "lengths")
        good = bits(case.raw(DEVICE), case.raw(DEVICE))
        case.mask = constant(np.full(case.mask.shape, 14), "int32")
        try:
            case.raw(DEVICE)
            return False, "no error"
        except tf.errors.InvalidArgumentError as error:
            return good and "sequence_lengths" in str(error), str(error).splitlines()[0][:140]
    finally:
        os.environ.pop("MASKED_LSTM_CHECK_LENGTHS")


def bad_shape():
    case = Case("float32", "lengths")
    case.arguments[3] = constant(np.zeros(7), "float32")
    try:
        case.raw(DEVICE)
        return False, "no error"
    except tf.errors.InvalidArgumentError as error:
        return "bias" in str(error), str(error).splitlines()[0][:140]


def threads():
    cases = [Case("float32", "holes", seed=i, shape=(16, 20, 16, 64)) for i in range(4)]
    alone = [c.raw(DEVICE) for c in cases]
    wrong = []

    def work(i):
        try:
            for _ in range(10):
                if not bits(cases[i].raw(DEVICE), alone[i]):
                    wrong.append(i)
        except Exception as error:
            wrong.append(f"{type(error).__name__}: {str(error).splitlines()[0][:200]}")

    pool = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    [t.start() for t in pool]
    [t.join() for t in pool]
    return not wrong, f"4 threads of 10 calls, wrong: {wrong[:3]}"


def xla_case(dtype, mask, options):
    from masked_lstm import ops

    case = Case(dtype, mask, **options)
    outside = values(case.raw(DEVICE))
    before = sum(
        n for k, n in ops.xla_kernel_calls().items() if k.startswith("cuda-" if ON_GPU else "cpu-")
    )
    inside = values(case.in_function(DEVICE, jit_compile=True))
    n = (
        sum(
            n
            for k, n in ops.xla_kernel_calls().items()
            if k.startswith("cuda-" if ON_GPU else "cpu-")
        )
        - before
    )
    same = all(
        a.tobytes() == b.tobytes() for a, b in zip(inside, outside[: len(inside)], strict=True)
    )  # gradients of unwatched states are not there
    return same and n == 2, f"same bits {same}, calls inside XLA {n}"


def main():
    say(
        "TensorFlow",
        tf.__version__,
        "NumPy",
        np.__version__,
        f"imported in {time.time() - T0:.1f} s; DEVICE {DEVICE}",
    )
    say("GPUs:", tf.config.list_physical_devices("GPU"))
    tf.config.set_soft_device_placement(False)
    on_cpu()
    from masked_lstm import gpus, ops

    ops.load()
    say("masked_lstm:", os.path.dirname(ops.__file__))
    say(
        "built for",
        gpus.built_for(),
        "| no XLA:",
        ops.no_xla_reason(),
        "| no XLA on GPUs:",
        ops.no_xla_reason(gpu=True),
    )
    if ON_GPU:

        def copy():
            with tf.device(DEVICE):
                there = tf.identity(constant(np.arange(6.0), "float32"))
            return there.numpy().tolist() == list(range(6)) and "GPU" in there.device, there.device

        check("a copy to the device and back", copy)
        try:
            say(
                "device:",
                tf.config.experimental.get_device_details(
                    tf.config.list_physical_devices("GPU")[0]
                ),
            )
        except Exception as error:
            say("device: unknown,", type(error).__name__)
    if "xla" in sys.argv[1:]:
        for case in (
            ("float32", "holes", {}),
            ("bfloat16", "lengths", dict(go_backwards=True, recompute=True)),
            ("float16", "holes", dict(factors=False)),
            ("float64", "none", {}),
        ):
            check(f"XLA {case}", functools.partial(xla_case, *case))
    else:
        all_of("groups", LIMITS, CASES, LIMITS)
        all_of("groups", ("float32", "bfloat16"), CASES[1:3], LIMITS, shape=(64, 40, 100, 256))
        for title, function in (
            ("same bits", same_bits),
            ("skipped gradients", skipped),
            ("inference", inference),
            ("lengths out of range, MASKED_LSTM_CHECK_LENGTHS=1", bad_lengths),
            ("a wrong shape", bad_shape),
            ("threads", threads),
        ):
            check(title, function)
        if ON_GPU:
            for kernel in ("hopper", "hopper-tf32", "hopper-grid"):
                limits = LIMITS | (
                    HOPPER
                    if kernel != "hopper"
                    else {k: HOPPER[k] for k in ("float16", "bfloat16")}
                )
                all_of(
                    kernel,
                    ("float32", "float16", "bfloat16"),
                    CASES[1:5] + CASES[6:7],
                    limits,
                    shape=(19, 7, 20, 128),
                )
    verdict = "FAILED" if failed else "passed"
    say(f"summary: {verdict}, {failed} of {count} checks failed, {time.time() - T0:.0f} s")
    say("calls", calls())
    return int(failed > 0)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)
