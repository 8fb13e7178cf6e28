"""Every bad argument of masked_lstm.core: one clear sentence, before anything is computed."""

import numpy as np
import pytest
from problems import make_problem

from masked_lstm import _core, core

P = make_problem(3, 5, 4, 2, dtype="float32")
GOOD = dict(inputs=P.inputs, kernel=P.kernel, recurrent_kernel=P.recurrent_kernel, bias=P.bias)
ONES = np.ones((3, 5), bool)
ACTIVATIONS = "expected tanh, sigmoid, relu, hard_sigmoid, linear or softsign"

BAD = {
    "inputs: expected shape (batch, timesteps, input_dim), got (5, 4)": dict(inputs=P.inputs[0]),
    "inputs: expected dtype float32, float64, float16 or bfloat16, got int64": dict(
        inputs=np.ones((3, 5, 4), int)
    ),
    "inputs: expected dtype float32, float64, float16 or bfloat16, got >f4": dict(
        inputs=P.inputs.astype(">f4")
    ),
    "kernel: expected an array, got None": dict(kernel=None),
    "kernel: expected dtype float32, as inputs, got >f4": dict(kernel=P.kernel.astype(">f4")),
    "kernel: expected shape (input_dim, 4*units) = (4, 8), got (3, 8)": dict(kernel=P.kernel[1:]),
    "kernel: expected dtype float32, as inputs, got float64": dict(kernel=P.kernel.astype(float)),
    "recurrent_kernel: expected shape (units, 4*units) with units >= 1, got (2, 7)": dict(
        recurrent_kernel=P.recurrent_kernel[:, 1:]
    ),
    "recurrent_kernel: expected shape (units, 4*units) with units >= 1, got (0, 0)": dict(
        recurrent_kernel=np.zeros((0, 0), "f")
    ),
    "bias: expected shape (4*units,) = (8,), got (2,)": dict(bias=P.bias[:2]),
    "mask: expected shape (batch, timesteps) = (3, 5), got (3, 4)": dict(mask=ONES[:, 1:]),
    "mask: expected dtype bool, got float64": dict(mask=np.ones((3, 5))),
    "mask, sequence_lengths: expected at most one of them, got both": dict(
        mask=ONES, sequence_lengths=[1, 2, 3]
    ),
    "sequence_lengths: expected shape (batch,) = (3,), got (2,)": dict(sequence_lengths=[1, 2]),
    "sequence_lengths: expected an integer dtype, got float64": dict(sequence_lengths=[1.0] * 3),
    "sequence_lengths[1]: expected a length from 0 to timesteps = 5, got -1": dict(
        sequence_lengths=[0, -1, 0]
    ),
    "sequence_lengths[2]: expected a length from 0 to timesteps = 5, got 6": dict(
        sequence_lengths=[0, 5, 6]
    ),
    "sequence_lengths[0]: expected a length from 0 to timesteps = 5, got 2147483647": dict(
        sequence_lengths=np.array([2**32 + 1, 0, 0])
    ),
    "initial_state: expected two arrays (h, c), got 1 of them": dict(initial_state=[P.d_h]),
    "initial_state: expected two arrays (h, c), got int": dict(initial_state=7),
    "initial_state: expected two arrays (h, c), got None among them": dict(
        initial_state=(P.d_h, None)
    ),
    "initial_state[1] (c): expected shape (batch, units) = (3, 2), got (2, 2)": dict(
        initial_state=(P.d_h, P.d_h[1:])
    ),
    "instruction set: expected generic, avx2, avx512, avx512_bf16 or amx_bf16, got 'mmx'": dict(
        isa="mmx"
    ),
    "instruction set: expected generic, avx2, avx512, avx512_bf16 or amx_bf16, got '5'": dict(
        isa=5
    ),
    "recurrent_factors: expected dtype float32, as inputs, got float16": dict(
        recurrent_factors=np.ones((4, 3, 2), np.float16)
    ),
    "go_backwards: expected True or False, got numpy.ndarray": dict(go_backwards=np.ones(2)),
    f"activation: {ACTIVATIONS}, got '{'x' * 39}\ufffd'": dict(activation="x" * 39 + "\u00e9"),
    f"activation: {ACTIVATIONS}, got 'tanh\\x00s'": dict(activation="tanh\0s"),
    f"activation: {ACTIVATIONS}, got '\\ud800'": dict(activation="\ud800"),
    "num_threads: expected a whole number from 1 to 1024, got 0": dict(num_threads=0),
    "num_threads: expected a whole number from 1 to 1024, got [1 2]": dict(
        num_threads=np.array([1, 2])
    ),
    "num_threads: expected a whole number from 1 to 1024, got nan": dict(num_threads=float("nan")),
}


@pytest.mark.parametrize("function", [core.forward, core.backward])
@pytest.mark.parametrize("sentence", BAD)
def test_one_clear_sentence(sentence, function):
    with pytest.raises((ValueError, TypeError)) as error:
        function(**{**GOOD, **BAD[sentence]})
    assert str(error.value) == sentence


@pytest.mark.parametrize(
    "sentence,arguments",
    [
        ("d_h: expected shape (batch, units) = (3, 2), got (2,)", dict(d_h=P.d_h[0])),
        (
            "d_outputs: expected shape (batch, timesteps, units) = (3, 5, 2), got (3, 2)",
            dict(d_outputs=P.d_h),
        ),
        (
            "reserve: expected shape (5 * units * valid steps,) = (150,), got (149,)",
            dict(reserve=np.zeros(149, "f")),
        ),
        (
            "reserve: expected dtype float32, as forward gave it, got float16",
            dict(reserve=np.zeros(150, np.float16)),
        ),
        ("d_c: expected dtype float32, as inputs, got float64", dict(d_c=np.zeros((3, 2)))),
    ],
)
def test_bad_gradients(sentence, arguments):
    with pytest.raises((ValueError, TypeError)) as error:
        core.backward(**GOOD, **arguments)
    assert str(error.value) == sentence


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of setting a dtype
def test_arrays_that_change_meanwhile():
    """Options run Python of the caller's; what it makes of an array is what is checked."""
    inputs = P.inputs.copy()

    class Sly:
        def __bool__(self):
            inputs.dtype = np.float16
            return False

    with pytest.raises(TypeError, match="kernel: expected dtype float16, as inputs, got float32"):
        core.forward(**{**GOOD, "inputs": inputs}, go_backwards=Sly())


def test_no_python_of_the_caller_between_check_and_use():
    """What is copied since it is not contiguous is copied without a subclass' methods."""

    class Hostile(np.ndarray):
        armed = False

        def copy(self, order="C"):
            return np.zeros(1, self.dtype)

        def __array_finalize__(self, _):
            assert not Hostile.armed

    expected = core.forward(**GOOD)
    for change in (strided, misaligned):
        changed = {name: change(array).view(Hostile) for name, array in GOOD.items()}
        Hostile.armed = True
        actual = core.forward(**changed)
        Hostile.armed = False
        np.testing.assert_array_equal(actual.outputs, expected.outputs)


def test_threads_are_counted_once():
    class Sly:
        def __eq__(self, _):
            return True

        def __int__(self):
            return 0

    with pytest.raises(ValueError, match="num_threads: expected a whole number from 1 to 1024"):
        core.forward(**GOOD, num_threads=Sly())


def test_an_interrupt_is_not_a_bad_argument():
    class Interrupted:
        def __bool__(self):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        core.forward(**GOOD, go_backwards=Interrupted())


@pytest.mark.parametrize(
    "batch,timesteps,sentence",
    [
        (2**30, 2**20, "the product of the sizes overflows"),
        (2**40, 1, "batch: expected a size from 0 to 2147483646, got 1099511627776"),
    ],
)
def test_sizes_that_overflow(batch, timesteps, sentence):
    """Broadcast views have huge shapes without huge memory; the core refuses before it looks."""
    huge = np.broadcast_to(np.float32(0), (batch, timesteps, 4))
    kernel, recurrent_kernel = np.zeros((4, 256), "f"), np.zeros((64, 256), "f")
    nothing = [None] * 8
    with pytest.raises(ValueError) as error:
        options = (False, False, True, "tanh", "sigmoid", 1, None)
        _core.forward((huge, kernel, recurrent_kernel, *nothing), options, False)
    assert sentence in str(error.value)


def test_isa_of_the_environment(monkeypatch):
    monkeypatch.setenv("MASKED_LSTM_ISA", "generic")
    assert core.isa() == "generic"
    monkeypatch.setenv("MASKED_LSTM_ISA", "sse9")
    with pytest.raises(ValueError, match="avx512_bf16 or amx_bf16, got 'sse9'"):
        core.forward(**GOOD)
    missing = {"generic", "avx2", "avx512", "avx512_bf16", "amx_bf16"} - set(core.isas())
    for isa in missing:
        monkeypatch.setenv("MASKED_LSTM_ISA", isa)
        with pytest.raises(ValueError, match=f"{isa} was asked for, but this CPU"):
            core.forward(**GOOD)


def strided(array):
    wide = np.full((*array.shape, 2), 99, array.dtype)
    wide[..., 0] = array
    return wide[..., 0]


def misaligned(array):
    memory = np.zeros(array.nbytes + 1, np.uint8)[1:]
    memory[:] = np.ascontiguousarray(array).view(np.uint8).ravel()
    result = memory.view(array.dtype).reshape(array.shape)
    assert not result.flags.aligned
    return result


def subclass(array):
    return array.view(type("Subclass", (np.ndarray,), {}))


@pytest.mark.parametrize("change", [strided, misaligned, subclass, np.ndarray.tolist])
@pytest.mark.parametrize("overwrite_reserve", [False, True])
def test_arguments_are_converted_without_harm(change, overwrite_reserve):
    """Arrays of any layout, copied where needed and never written: but the reserve, if asked."""
    p = make_problem(3, 5, 4, 2, dtype="float64")  # what a list becomes
    rng = np.random.default_rng(1)
    factors = [rng.standard_normal((4, 3, n)) for n in (4, 2)]

    def run(change):
        given = []

        def changed(array):
            given.append((change(array), array.copy()))
            return given[-1][0]

        x, *weights = (changed(array) for array in (p.inputs, *p.weights()))
        options = dict(
            sequence_lengths=changed(np.array([5, 2, 3])),
            initial_state=[changed(state) for state in p.initial_state],
            input_factors=changed(factors[0]),
            recurrent_factors=changed(factors[1]),
        )
        result = core.forward(x, *weights, save_reserve=True, **options)
        d_results = [changed(d) for d in (p.d_outputs, p.d_h, p.d_c)]
        reserve = change(result.reserve) if overwrite_reserve else changed(result.reserve)
        gradients = core.backward(
            x,
            *weights,
            reserve,
            *d_results,
            overwrite_reserve=overwrite_reserve,
            **options,
        )
        for array, before in given:
            np.testing.assert_array_equal(array, before)
        return [array.tobytes() for array in (*result[:3], *gradients)]

    assert run(change) == run(np.copy)
