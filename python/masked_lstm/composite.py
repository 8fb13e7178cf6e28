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
    batch, timesteps = tf.unstack(tf.shape(inputs)[:2])
    if mask.shape.rank == 0:
        return tf.ones([batch, timesteps], tf.bool)
    return tf.sequence_mask(mask, timesteps)


def _product(values, factors, weights):
    """`values @ weights`; with factors (4,B,·) those of each gate's product."""
    if factors.shape.rank == 1:
        return values @ weights
    if values.shape.rank == 3:
        factors = factors[:, :, tf.newaxis]
    gates = zip(tf.unstack(factors), tf.split(weights, 4, axis=1), strict=True)
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
    if mask.dtype == tf.int64:  # row splits: compute on the padded form
        ragged = tf.RaggedTensor.from_row_splits(inputs, mask, validate=False)
        lengths = tf.cast(ragged.row_lengths(), tf.int32)
        if go_backwards:  # outputs in processing order have no padding in front of them
            inputs = tf.reverse_sequence(ragged.to_tensor(), lengths, 1)
        else:
            inputs = ragged.to_tensor()
        outputs, h, c = lstm(
            inputs,
            kernel,
            recurrent_kernel,
            bias,
            h0,
            c0,
            lengths,
            input_factors,
            recurrent_factors,
            go_backwards=False,
            zero_output_for_mask=False,
            return_sequences=return_sequences,
            activation=activation,
            recurrent_activation=recurrent_activation,
        )
        if return_sequences:
            outputs = tf.boolean_mask(outputs, tf.sequence_mask(lengths, tf.shape(inputs)[1]))
        return outputs, h, c
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
    return (tf.transpose(outputs.stack(), [1, 0, 2]) if return_sequences else last), h, c


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
        first = [
            tf.convert_to_tensor(gradient) for gradient in first
        ]  # a ragged x's: IndexedSlices
    gradients = outer.gradient(first, [*inputs, *d_results], upstream, tf.UnconnectedGradients.ZERO)
    return [tf.cast(gradient, dtype) for gradient in gradients]
