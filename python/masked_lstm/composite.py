"""The LSTM in TensorFlow's own ops, one timestep at a time: slow, but differentiable at will.

Second-order gradients and forward-mode derivatives of the fused op are taken from here.
"""

import tensorflow as tf

ACTIVATIONS = {
    "tanh": tf.tanh,
    "sigmoid": tf.sigmoid,
    "relu": tf.nn.relu,
    "hard_sigmoid": lambda x: tf.nn.relu6(x + 3.0) / 6.0,
    "linear": tf.identity,
    "softsign": lambda x: x / (1.0 + tf.abs(x)),  # TensorFlow's has no second derivative
}


def _valid(inputs, mask):
    """The op's mask input (bool mask, int32 lengths, or a scalar for neither) as bool (B,T)."""
    if mask.dtype == tf.bool:
        return mask
    batch, timesteps = tf.shape(inputs)[0], tf.shape(inputs)[1]
    if mask.shape.rank == 0:
        return tf.ones([batch, timesteps], tf.bool)
    return tf.sequence_mask(mask, timesteps)


def _product(values, factors, weights):
    """`values @ weights`; with factors (4,B,·) those of each gate's product."""
    if factors.shape.rank == 1:
        return values @ weights
    if values.shape.rank == 3:
        factors = factors[:, :, tf.newaxis]
    gates = zip(tf.unstack(factors, 4), tf.split(weights, 4, axis=1), strict=True)
    return tf.concat([(values * factor) @ part for factor, part in gates], axis=-1)


def lstm(
    inputs,
    kernel,
    recurrent_kernel,
    bias,
    h0,
    c0,
    mask,
    input_factors,
    recurrent_factors,
    *,
    go_backwards,
    zero_output_for_mask,
    return_sequences,
    activation,
    recurrent_activation,
):
    """(outputs, h, c) as the op MaskedLstm gives; arguments as the op's."""
    cell, gate = ACTIVATIONS[activation], ACTIVATIONS[recurrent_activation]
    ragged = mask.dtype == tf.int64  # row splits: computed in the padded form
    if ragged:
        inputs = tf.RaggedTensor.from_row_splits(inputs, mask, validate=False)
        mask = tf.cast(inputs.row_lengths(), tf.int32)
        inputs = inputs.to_tensor()
        if go_backwards:  # rows end where they end: outputs have no padding in front of them
            inputs, go_backwards = tf.reverse_sequence(inputs, mask, 1), False
    valid = _valid(inputs, mask)
    x = tf.where(valid[..., tf.newaxis], inputs, tf.zeros_like(inputs))
    if go_backwards:
        x, valid = tf.reverse(x, [1]), tf.reverse(valid, [1])
    timesteps = tf.shape(x)[1]
    projected = tf.transpose(_product(x, input_factors, kernel) + bias, [1, 0, 2])
    valid = tf.transpose(valid)[..., tf.newaxis]  # (T,B,1)
    outputs = tf.TensorArray(inputs.dtype, size=timesteps, element_shape=h0.shape)

    def step(t, h, c, previous, outputs):
        h_part = _product(h, recurrent_factors, recurrent_kernel)
        i, f, g, o = tf.split(projected[t] + h_part, 4, axis=-1)
        new_c = gate(f) * c + gate(i) * cell(g)
        new_h = gate(o) * cell(new_c)
        keep = valid[t]
        last = tf.where(keep, new_h, previous)
        output = tf.where(keep, new_h, tf.zeros_like(h)) if zero_output_for_mask else last
        h, c = tf.where(keep, new_h, h), tf.where(keep, new_c, c)
        return t + 1, h, c, last, outputs.write(t, output)

    _, h, c, last, outputs = tf.while_loop(
        lambda t, *_: t < timesteps,
        step,
        (0, h0, c0, tf.zeros_like(h0), outputs),
        maximum_iterations=timesteps,
    )
    if not return_sequences:
        return last, h, c
    outputs = tf.transpose(outputs.stack(), [1, 0, 2])
    return (tf.boolean_mask(outputs, _valid(inputs, mask)) if ragged else outputs), h, c


def gradient_of_gradient(inputs, mask, factors, upstream, d_results, **options):
    """Gradient of the gradient op: what its float inputs get when its results get `upstream`.

    Args:
        inputs: x, kernel, recurrent_kernel, bias, h0, c0, as the op takes them.
        mask: the op's mask input. factors: input_factors and recurrent_factors, as the op's.
        upstream: gradients arriving at the six results of MaskedLstmGrad.
        d_results: d_outputs, d_h, d_c, as MaskedLstmGrad took them.

    Returns:
        Nine tensors: for the six inputs and for d_results.
    """
    # What the op has checked, for the code above to rely on.
    inputs[0] = tf.ensure_shape(inputs[0], [None] * (2 if mask.dtype == tf.int64 else 3))
    if mask.dtype == tf.bool:
        mask = tf.ensure_shape(mask, [None, None])
    factors = [
        tensor if tensor.shape.rank == 1 else tf.ensure_shape(tensor, [4, None, None])
        for tensor in factors
    ]
    dtype = inputs[0].dtype
    compute = tf.float64 if dtype == tf.float64 else tf.float32
    inputs, factors, d_results, upstream = (
        [tf.cast(tensor, compute) for tensor in tensors]
        for tensors in (inputs, factors, d_results, upstream)
    )
    with tf.GradientTape() as outer:
        outer.watch([inputs, d_results])
        with tf.GradientTape() as inner:
            inner.watch(inputs)
            results = lstm(*inputs, mask, *factors, **options)
        first = inner.gradient(results, inputs, d_results, tf.UnconnectedGradients.ZERO)
        # Those of a ragged x are IndexedSlices.
        first = [tf.convert_to_tensor(gradient) for gradient in first]
    gradients = outer.gradient(first, [*inputs, *d_results], upstream, tf.UnconnectedGradients.ZERO)
    return [tf.cast(gradient, dtype) for gradient in gradients]
