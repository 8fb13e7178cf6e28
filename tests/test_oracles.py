"""Other people's LSTMs as oracles: ONNX Runtime with sequence_lens, PyTorch's packed sequences."""

import numpy as np
import pytest
from problems import make_problem

from masked_lstm import core

TIMESTEPS, INPUT_DIM, UNITS = 7, 4, 5
LENGTHS = {
    "mixed": [7, 3, 1, 5],
    "shorter in the middle": [7, 2, 7, 7],
    "zero length in the middle": [6, 0, 7, 2],
    "all equal": [7, 7, 7, 7],
    "one row": [4],
}


def make(seed, lengths, dtype="float32"):
    return make_problem(len(lengths), TIMESTEPS, INPUT_DIM, UNITS, dtype=dtype, seed=seed)


def ours(problem, lengths, backwards):
    """(outputs at their own timesteps and 0 in the padding, h, c)"""
    result = core.forward(
        problem.inputs,
        *problem.weights(),
        sequence_lengths=np.array(lengths),
        initial_state=problem.initial_state,
        zero_output_for_mask=True,
        go_backwards=backwards,
    )
    return result.outputs[:, ::-1] if backwards else result.outputs, result.h, result.c


def onnx_lstm(problems, lengths, direction):
    """The ONNX operator: gates i, o, f, c; weights transposed; two biases; time-major."""
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")

    def gates(weights):
        i, f, c, o = np.split(weights, 4, axis=-1)
        return np.concatenate([i, o, f, c], axis=-1)

    biases = [np.concatenate([gates(p.bias), np.zeros(4 * UNITS, "f")]) for p in problems]
    feeds = {
        "X": problems[0].inputs.transpose(1, 0, 2),
        "W": np.stack([gates(p.kernel).T for p in problems]),
        "R": np.stack([gates(p.recurrent_kernel).T for p in problems]),
        "B": np.stack(biases),
        "sequence_lens": np.array(lengths, np.int32),
        "initial_h": np.stack([p.initial_state[0] for p in problems]),
        "initial_c": np.stack([p.initial_state[1] for p in problems]),
    }
    helper, types = onnx.helper, onnx.TensorProto
    node = helper.make_node(
        "LSTM", list(feeds), ["Y", "Y_h", "Y_c"], hidden_size=UNITS, direction=direction
    )
    values = [
        helper.make_tensor_value_info(
            name, types.INT32 if value.dtype == np.int32 else types.FLOAT, value.shape
        )
        for name, value in feeds.items()
    ]
    results = [helper.make_tensor_value_info(n, types.FLOAT, None) for n in ("Y", "Y_h", "Y_c")]
    graph = helper.make_graph([node], "lstm", values, results)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    session = runtime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    y, h, c = session.run(None, {k: np.ascontiguousarray(v) for k, v in feeds.items()})
    return y.transpose(1, 2, 0, 3), h, c  # (directions, B, T, U)


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_onnx_runtime(lengths, direction):
    """float32, 7 steps of 9 products: agreement to some 1e-6."""
    problems = [make(0, lengths)]
    if direction == "bidirectional":
        problems.append(make(1, lengths)._replace(inputs=problems[0].inputs))
    y, h, c = onnx_lstm(problems, lengths, direction)
    for index, problem in enumerate(problems):
        outputs, last_h, last_c = ours(problem, lengths, direction == "reverse" or index == 1)
        np.testing.assert_allclose(outputs, y[index], atol=3e-6)
        for row, length in enumerate(lengths):
            if length == 0:  # ONNX Runtime returns zeros, not the initial states
                continue
            np.testing.assert_allclose(last_h[row], h[index, row], atol=3e-6)
            np.testing.assert_allclose(last_c[row], c[index, row], atol=3e-6)


@pytest.mark.parametrize("name", ["mixed", "shorter in the middle", "all equal", "one row"])
def test_pytorch_packed_sequences(name):
    """Outputs, states and every gradient, in float64. PyTorch's gates: i, f, g, o; two biases."""
    torch = pytest.importorskip("torch")
    from torch.nn.utils import rnn

    lengths = LENGTHS[name]
    problem = make(0, lengths, "float64")
    lstm = torch.nn.LSTM(INPUT_DIM, UNITS, batch_first=True).double()
    weights = (problem.kernel.T, problem.recurrent_kernel.T, problem.bias, 0 * problem.bias)
    with torch.no_grad():
        for parameter, value in zip(lstm.parameters(), weights, strict=True):
            parameter.copy_(torch.tensor(value))
    x, h0, c0 = (
        torch.tensor(a, requires_grad=True) for a in (problem.inputs, *problem.initial_state)
    )
    packed = rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    y, (h, c) = lstm(packed, (h0[None], c0[None]))
    y, _ = rnn.pad_packed_sequence(y, batch_first=True, total_length=TIMESTEPS)
    upstream = [torch.tensor(g) for g in (problem.d_outputs, problem.d_h[None], problem.d_c[None])]
    torch.autograd.backward([y, h, c], upstream)
    for a, b in zip(ours(problem, lengths, False), (y, h[0], c[0]), strict=True):
        np.testing.assert_allclose(a, b.detach().numpy(), atol=1e-12)
    gradients = core.backward(
        problem.inputs,
        *problem.weights(),
        None,
        problem.d_outputs,
        problem.d_h,
        problem.d_c,
        sequence_lengths=np.array(lengths),
        initial_state=problem.initial_state,
        zero_output_for_mask=True,
    )
    kernel, recurrent_kernel, bias, _ = (p.grad.numpy() for p in lstm.parameters())
    expected = (x.grad, kernel.T, recurrent_kernel.T, bias, h0.grad, c0.grad)
    for name, value in zip(gradients._fields, expected, strict=True):
        np.testing.assert_allclose(getattr(gradients, name), value, atol=1e-11, err_msg=name)
