"""The LSTM in TensorFlow's own ops, one timestep at a time: slow, but differentiable at will.

Second-order gradients and forward-mode derivatives of the fused op are taken from here.
"""

import tensorflow as tf


def _valid(inputs, mask):
    """The op's mask input (bool mask, int32 lengths, or a scalar for neither) as bool (B,T)."""
    if mask.dtype == tf.bool:
        return mask
    batch, timesteps = tf.unstack(tf.shape(inputs)[:2])
    if mask.shape.rank == 0:
        return tf.ones([batch, timesteps], tf.bool)
    return tf.sequence_mask(mask, timesteps)


def lstm(
    inputs,
    kernel,
    recurrent_kernel,
    bias,
    h0,
    c0,
    mask,
    *,
    go_backwards,
    zero_output_for_mask,
    return_sequences,
):
    """(outputs, h, c) as the op MaskedLstm gives; arguments as the op's."""
    valid = _valid(inputs, mask)
    x = tf.where(valid[..., tf.newaxis], inputs, tf.zeros_like(inputs))
    if go_backwards:
        x, valid = tf.reverse(x, [1]), tf.reverse(valid, [1])
    timesteps = tf.shape(x)[1]
    projected = tf.transpose(x @ kernel + bias, [1, 0, 2])
    valid = tf.transpose(valid)[..., tf.newaxis]  # (T,B,1)
    outputs = tf.TensorArray(inputs.dtype, size=timesteps, element_shape=h0.shape)

    def step(t, h, c, previous, outputs):
        i, f, g, o = tf.split(projected[t] + h @ recurrent_kernel, 4, axis=-1)
        new_c = tf.sigmoid(f) * c + tf.sigmoid(i) * tf.tanh(g)
        new_h = tf.sigmoid(o) * tf.tanh(new_c)
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


def gradient_of_gradient(inputs, mask, upstream, d_results, **options):
    """Gradient of the gradient op: what its float inputs get when its results get `upstream`.

    Args:
        inputs: x, kernel, recurrent_kernel, bias, h0, c0, as the op takes them.
        mask: the op's mask input.
        upstream: gradients arriving at the six results of MaskedLstmGrad.
        d_results: d_outputs, d_h, d_c, as MaskedLstmGrad took them.

    Returns:
        Nine tensors: for the six inputs and for d_results.
    """
    dtype = inputs[0].dtype
    compute = tf.float64 if dtype == tf.float64 else tf.float32
    inputs, d_results, upstream = (
        [tf.cast(tensor, compute) for tensor in tensors]
        for tensors in (inputs, d_results, upstream)
    )
    with tf.GradientTape() as outer:
        outer.watch([inputs, d_results])
        with tf.GradientTape() as inner:
            inner.watch(inputs)
            results = lstm(*inputs, mask, **options)
        first = inner.gradient(results, inputs, d_results, tf.UnconnectedGradients.ZERO)
    gradients = outer.gradient(first, [*inputs, *d_results], upstream, tf.UnconnectedGradients.ZERO)
    return [tf.cast(gradient, dtype) for gradient in gradients]
