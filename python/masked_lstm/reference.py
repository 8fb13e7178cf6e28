"""The specification in NumPy, in float64: what every kernel must compute, one timestep at a time.

Written to be read, not to be fast. Same arguments and results as masked_lstm.core.
"""

import numpy as np

from masked_lstm.results import Forward, Gradients


def _sigmoid(x):
    return np.exp(-np.logaddexp(0.0, -x))


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


def _walk(x, kernel, recurrent_kernel, bias, h, c, positions):
    """One sequence: h and c after each valid step, and what the backward pass needs of it."""
    steps = []
    for t in positions:
        h_before, c_before = h, c
        i, f, g, o = np.split(x[t] @ kernel + h @ recurrent_kernel + bias, 4)
        i, f, g, o = _sigmoid(i), _sigmoid(f), np.tanh(g), _sigmoid(o)
        c = f * c + i * g
        h = o * np.tanh(c)
        steps.append((t, i, f, g, o, h_before, c_before, h, c))
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
):
    """See masked_lstm.core.forward."""
    x, kernel, recurrent_kernel, bias, h0, c0 = _float64(
        inputs, kernel, recurrent_kernel, bias, initial_state
    )
    batch, timesteps, _ = x.shape
    outputs = np.zeros((batch, timesteps, h0.shape[1]))
    last, h, c = np.zeros_like(h0), h0.copy(), c0.copy()
    schedule = _schedule(batch, timesteps, mask, sequence_lengths, go_backwards)
    for row, positions in enumerate(schedule):
        steps = _walk(x[row], kernel, recurrent_kernel, bias, h0[row], c0[row], positions)
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
    for row, positions in enumerate(schedule):
        steps = _walk(x[row], kernel, recurrent_kernel, bias, h0[row], c0[row], positions)
        ranges = _output_ranges(positions, timesteps, go_backwards, zero_output_for_mask)
        dh = np.zeros(h0.shape[1]) if d_h is None else np.array(d_h[row], np.float64)
        dc = np.zeros(h0.shape[1]) if d_c is None else np.array(d_c[row], np.float64)
        if d_outputs is not None and steps and not return_sequences:
            dh = dh + d_outputs[row]
        for step, (begin, end) in zip(reversed(steps), reversed(ranges), strict=True):
            t, i, f, g, o, h_before, c_before, _, c = step
            if d_outputs is not None and return_sequences:
                dh = dh + np.asarray(d_outputs[row, begin:end], np.float64).sum(axis=0)
            tanh_c = np.tanh(c)
            dc = dc + dh * o * (1 - tanh_c**2)
            d_gates = np.concatenate(
                [
                    dc * g * i * (1 - i),
                    dc * c_before * f * (1 - f),
                    dc * i * (1 - g**2),
                    dh * tanh_c * o * (1 - o),
                ]
            )
            dx[row, t] = kernel @ d_gates
            d_kernel += np.outer(x[row, t], d_gates)
            d_recurrent_kernel += np.outer(h_before, d_gates)
            d_bias += d_gates
            dh = recurrent_kernel @ d_gates
            dc = dc * f
        dh0[row], dc0[row] = dh, dc
    return Gradients(dx, d_kernel, d_recurrent_kernel, d_bias, dh0, dc0)
