"""The specification in NumPy, in float64: what every kernel must compute, one timestep at a time.

Written to be read, not to be fast. Arguments and results as masked_lstm.core has
them, but for row_splits.
"""

import numpy as np

from masked_lstm.results import Forward, Gradients


def _sigmoid(x):
    return np.exp(-np.logaddexp(0.0, -x))


# name: (f(x), df/dx); at a kink 0, as in TensorFlow.
ACTIVATIONS = {
    "tanh": (np.tanh, lambda x: 1 - np.tanh(x) ** 2),
    "sigmoid": (_sigmoid, lambda x: _sigmoid(x) * (1 - _sigmoid(x))),
    "relu": (lambda x: np.maximum(x, 0), lambda x: np.where(x > 0, 1.0, 0.0)),
    "hard_sigmoid": (
        lambda x: np.clip(x / 6 + 0.5, 0, 1),
        lambda x: np.where((x > -3) & (x < 3), 1 / 6, 0.0),
    ),
    "linear": (lambda x: x, np.ones_like),
    "softsign": (lambda x: x / (1 + np.abs(x)), lambda x: 1 / (1 + np.abs(x)) ** 2),
}


def _schedule(batch, timesteps, mask, sequence_lengths, go_backwards):
    """Per row, the valid positions in processing order."""
    if mask is not None and sequence_lengths is not None:
        raise ValueError("mask, sequence_lengths: expected at most one of them, got both")
    if sequence_lengths is not None:
        mask = np.arange(timesteps) < np.asarray(sequence_lengths)[:, None]
    if mask is None:
        mask = np.ones((batch, timesteps), bool)
    rows = [np.flatnonzero(row) for row in np.asarray(mask)]
    return [row[::-1] if go_backwards else row for row in rows]


class _Cell:
    """One sequence's weights, activations and, for each gate, factors of x and h."""

    def __init__(self, kernel, recurrent_kernel, bias, factors, row, activations):
        self.kernel = np.split(kernel, 4, axis=1)
        self.recurrent_kernel = np.split(recurrent_kernel, 4, axis=1)
        self.bias = np.split(bias, 4)
        self.x_factors, self.h_factors = (
            np.ones(4) if given is None else np.asarray(given, np.float64)[:, row]
            for given in factors
        )
        (self.cell, self.d_cell), (self.gate, self.d_gate) = (ACTIVATIONS[a] for a in activations)

    def walk(self, x, h, c, positions):
        """h and c after each valid step, and what the backward pass needs of it."""
        steps = []
        for t in positions:
            h_before, c_before = h, c
            z = [
                (x[t] * self.x_factors[g]) @ self.kernel[g]
                + (h * self.h_factors[g]) @ self.recurrent_kernel[g]
                + self.bias[g]
                for g in range(4)
            ]
            i, f, g, o = self.gate(z[0]), self.gate(z[1]), self.cell(z[2]), self.gate(z[3])
            c = f * c + i * g
            h = o * self.cell(c)
            steps.append((t, z, i, f, g, o, h_before, c_before, h, c))
        return steps


def _output_ranges(positions, timesteps, go_backwards, zero_output_for_mask):
    """Where in the outputs (processing order) each valid step's h stands: [begin, end) per step."""
    at = [timesteps - 1 - t if go_backwards else t for t in positions]
    if zero_output_for_mask:
        return [(begin, begin + 1) for begin in at]
    return list(zip(at, [*at, timesteps][1:], strict=True))


def _float64(inputs, kernel, recurrent_kernel, bias, initial_state):
    x = np.asarray(inputs, np.float64)
    kernel = np.asarray(kernel, np.float64)
    recurrent_kernel = np.asarray(recurrent_kernel, np.float64)
    units = recurrent_kernel.shape[0]
    bias = np.zeros(4 * units) if bias is None else np.asarray(bias, np.float64)
    if initial_state is None:
        initial_state = np.zeros((2, x.shape[0], units))
    h0, c0 = (np.asarray(state, np.float64) for state in initial_state)
    return x, kernel, recurrent_kernel, bias, h0, c0


def forward(
    inputs,
    kernel,
    recurrent_kernel,
    bias=None,
    *,
    mask=None,
    sequence_lengths=None,
    initial_state=None,
    go_backwards=False,
    zero_output_for_mask=False,
    return_sequences=True,
    activation="tanh",
    recurrent_activation="sigmoid",
    input_factors=None,
    recurrent_factors=None,
):
    """See masked_lstm.core.forward."""
    x, kernel, recurrent_kernel, bias, h0, c0 = _float64(
        inputs, kernel, recurrent_kernel, bias, initial_state
    )
    batch, timesteps, _ = x.shape
    outputs = np.zeros((batch, timesteps, h0.shape[1]))
    last, h, c = np.zeros_like(h0), h0.copy(), c0.copy()
    schedule = _schedule(batch, timesteps, mask, sequence_lengths, go_backwards)
    factors, activations = (input_factors, recurrent_factors), (activation, recurrent_activation)
    for row, positions in enumerate(schedule):
        cell = _Cell(kernel, recurrent_kernel, bias, factors, row, activations)
        steps = cell.walk(x[row], h0[row], c0[row], positions)
        ranges = _output_ranges(positions, timesteps, go_backwards, zero_output_for_mask)
        for (*_, h_t, c_t), (begin, end) in zip(steps, ranges, strict=True):
            outputs[row, begin:end] = h_t
            last[row] = h[row] = h_t
            c[row] = c_t
    return Forward(outputs if return_sequences else last, h, c, None)


def backward(
    inputs,
    kernel,
    recurrent_kernel,
    bias=None,
    reserve=None,
    d_outputs=None,
    d_h=None,
    d_c=None,
    *,
    mask=None,
    sequence_lengths=None,
    initial_state=None,
    go_backwards=False,
    zero_output_for_mask=False,
    return_sequences=True,
    activation="tanh",
    recurrent_activation="sigmoid",
    input_factors=None,
    recurrent_factors=None,
):
    """See masked_lstm.core.backward. `reserve` is ignored: the forward pass is computed again."""
    x, kernel, recurrent_kernel, bias, h0, c0 = _float64(
        inputs, kernel, recurrent_kernel, bias, initial_state
    )
    batch, timesteps, _ = x.shape
    dx = np.zeros_like(x)
    d_kernel, d_recurrent_kernel = np.zeros_like(kernel), np.zeros_like(recurrent_kernel)
    d_bias, dh0, dc0 = np.zeros_like(bias), np.zeros_like(h0), np.zeros_like(c0)
    schedule = _schedule(batch, timesteps, mask, sequence_lengths, go_backwards)
    factors, activations = (input_factors, recurrent_factors), (activation, recurrent_activation)
    for row, positions in enumerate(schedule):
        cell = _Cell(kernel, recurrent_kernel, bias, factors, row, activations)
        steps = cell.walk(x[row], h0[row], c0[row], positions)
        ranges = _output_ranges(positions, timesteps, go_backwards, zero_output_for_mask)
        dh = np.zeros(h0.shape[1]) if d_h is None else np.array(d_h[row], np.float64)
        dc = np.zeros(h0.shape[1]) if d_c is None else np.array(d_c[row], np.float64)
        if d_outputs is not None and steps and not return_sequences:
            dh = dh + d_outputs[row]
        for step, (begin, end) in zip(reversed(steps), reversed(ranges), strict=True):
            t, z, i, f, g, o, h_before, c_before, _, c = step
            if d_outputs is not None and return_sequences:
                dh = dh + np.asarray(d_outputs[row, begin:end], np.float64).sum(axis=0)
            y = cell.cell(c)
            dc = dc + dh * o * cell.d_cell(c)
            d_gates = [
                dc * g * cell.d_gate(z[0]),
                dc * c_before * cell.d_gate(z[1]),
                dc * i * cell.d_cell(z[2]),
                dh * y * cell.d_gate(z[3]),
            ]
            dh = np.zeros_like(dh)
            for gate, d_gate in enumerate(d_gates):
                columns = slice(gate * dh.size, (gate + 1) * dh.size)
                x_factors, h_factors = cell.x_factors[gate], cell.h_factors[gate]
                dx[row, t] += (cell.kernel[gate] @ d_gate) * x_factors
                dh += (cell.recurrent_kernel[gate] @ d_gate) * h_factors
                d_kernel[:, columns] += np.outer(x[row, t] * x_factors, d_gate)
                d_recurrent_kernel[:, columns] += np.outer(h_before * h_factors, d_gate)
                d_bias[columns] += d_gate
            dc = dc * f
        dh0[row], dc0[row] = dh, dc
    return Gradients(dx, d_kernel, d_recurrent_kernel, d_bias, dh0, dc0)
