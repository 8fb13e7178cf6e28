"""From a trained model to pronunciations (greedy decoding) and their phoneme error rate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import keras
import tensorflow as tf

from . import data


class Score(NamedTuple):
    """Edits per phoneme of the references, and the share of words with any."""

    phoneme_error_rate: float
    word_error_rate: float


def greedy_decoder(
    model: keras.Model, max_phonemes: int = 40
) -> tf.types.experimental.PolymorphicFunction:
    """A graph function from letter ids (B, S) to phoneme ids (B, <= max_phonemes), both int32.

    The encoder runs once, then the decoder a step at a time on the phoneme chosen last, until
    every word has ended. A word that has ended is fed padding, masked while the others go on.
    """
    letter_embedding, encoder, phoneme_embedding, decoder, logits = (
        model.get_layer(name)
        for name in ("letter_embedding", "encoder", "phoneme_embedding", "decoder", "logits")
    )

    @tf.function(input_signature=[tf.TensorSpec((None, None), tf.int32)])
    def decode(letters):
        _, forward_h, forward_c, backward_h, backward_c = encoder(letter_embedding(letters))
        h = tf.concat([forward_h, backward_h], axis=-1)
        c = tf.concat([forward_c, backward_c], axis=-1)
        token = tf.fill(tf.shape(letters)[:1], data.START)
        tokens = tf.TensorArray(tf.int32, size=0, dynamic_size=True, element_shape=(None,))
        step = 0
        while step < max_phonemes and tf.reduce_any(token != data.PAD):
            outputs, h, c = decoder(phoneme_embedding(token[:, None]), initial_state=[h, c])
            chosen = tf.argmax(logits(outputs)[:, 0], axis=-1, output_type=tf.int32)
            ended = (token == data.PAD) | (chosen <= data.END)
            token = tf.where(ended, data.PAD, chosen)
            tokens = tokens.write(step, token)
            step += 1
        return tf.transpose(tokens.stack())

    return decode


def transcribe(
    decode: Callable[[tf.Tensor], tf.Tensor], words: Sequence[str], batch_size: int = 512
) -> list[data.Pronunciation]:
    """The pronunciation of each word by ``decode``, a model's ``greedy_decoder``."""
    pronunciations = []
    for start in range(0, len(words), batch_size):
        letters = data.encode_letters(words[start : start + batch_size]).to_tensor(data.PAD)
        pronunciations += [data.decode(row) for row in decode(letters).numpy()]
    return pronunciations


def edit_distance(a: Sequence[str], b: Sequence[str]) -> int:
    """Fewest insertions, deletions and substitutions from ``a`` to ``b`` (Levenshtein)."""
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, start=1):
        diagonal, row[0] = row[0], i
        for j, right in enumerate(b, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (left != right))
    return row[-1]


def score(transcribed: Sequence[data.Pronunciation], references: data.Dictionary) -> Score:
    """Compares each pronunciation with the closest of those listed for its word, in order."""
    edits = phonemes = wrong = 0
    for pronunciation, listed in zip(transcribed, references.values(), strict=True):
        distance, length = min((edit_distance(pronunciation, p), len(p)) for p in listed)
        edits, phonemes, wrong = edits + distance, phonemes + length, wrong + (distance > 0)
    return Score(edits / phonemes, wrong / len(references))
