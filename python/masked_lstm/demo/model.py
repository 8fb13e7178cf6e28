"""The model, written with stock Keras layers only."""

from __future__ import annotations

import keras
from keras import layers

from . import data


def build(units: int, embedding: int = 64) -> keras.Model:
    """An encoder-decoder: letters and the phonemes so far -> logits of the next phoneme.

    The letters go through a bidirectional LSTM of ``units // 2`` each way; the decoder, an LSTM of
    ``units``, starts from its two final states, concatenated. Padding is masked from the embeddings
    up to the loss: Keras averages it over the positions that the mask of the logits leaves.

    Inputs ``{"letters": (B, S), "phonemes": (B, T)}``, ids, 0 = padding; output (B, T, ids).
    """
    if units < 2 or units % 2:
        raise ValueError(f"units must be an even number of at least 2, got {units}")
    letters = keras.Input((None,), dtype="int32", name="letters")
    phonemes = keras.Input((None,), dtype="int32", name="phonemes")

    embedded = layers.Embedding(
        data.NUM_LETTER_IDS, embedding, mask_zero=True, name="letter_embedding"
    )(letters)
    encoder = layers.Bidirectional(layers.LSTM(units // 2, return_state=True), name="encoder")
    _, forward_h, forward_c, backward_h, backward_c = encoder(embedded)
    h = layers.Concatenate(name="h")([forward_h, backward_h])
    c = layers.Concatenate(name="c")([forward_c, backward_c])

    embedded = layers.Embedding(
        data.NUM_PHONEME_IDS, embedding, mask_zero=True, name="phoneme_embedding"
    )(phonemes)
    decoder = layers.LSTM(units, return_sequences=True, return_state=True, name="decoder")
    outputs, _, _ = decoder(embedded, initial_state=[h, c])
    logits = layers.Dense(data.NUM_PHONEME_IDS, name="logits")(outputs)
    return keras.Model({"letters": letters, "phonemes": phonemes}, logits, name="g2p")


def compile_for_training(model: keras.Model, learning_rate: float, steps: int) -> None:
    """Adam with a learning rate that falls to 0 over ``steps`` steps along a cosine."""
    schedule = keras.optimizers.schedules.CosineDecay(learning_rate, decay_steps=steps)
    model.compile(
        optimizer=keras.optimizers.Adam(schedule),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
