"""Bidirectional LSTM over the letters of a word: how is each letter spoken?

Two rules of English spelling look ahead: "c" is soft before e, i or y, and an "e" that ends the
word is silent and makes the vowel before it long (cap, cape). Words of 2 to 14 random letters,
padded with 0. Dense acts on the last axis, so the number of timesteps may vary.
"""

import _common
import keras
import numpy as np
from keras import layers

LETTERS = " abcdefghijklmnopqrstuvwxyz"  # 0 is padding
SOUNDS = ["plain", "soft", "silent", "long"]
MARKS = ".s_L"  # the same, one character each, to print


def sounds(word):
    """Returns the index of each letter's sound."""
    result = [0] * len(word)
    for position, letter in enumerate(word[:-1]):
        if letter == "c" and word[position + 1] in "eiy":
            result[position] = 1
    if word[-1] == "e":
        result[-1] = 2
        vowels = [position for position, letter in enumerate(word[:-1]) if letter in "aeiou"]
        if vowels:
            result[vowels[-1]] = 3
    return result


def make_data(samples):
    """Returns padded words and the sound of each letter, both (samples, 14)."""
    rng = np.random.default_rng(5)
    letters = list("bcdgklmnprst" + "cc" + "aaeeeiou" + "y")
    words = ["".join(rng.choice(letters, rng.integers(2, 15))) for _ in range(samples)]
    words = [word[:-1] + "e" if rng.random() < 0.4 else word for word in words]
    spelled = [[LETTERS.index(letter) for letter in word] for word in words]
    spoken = [sounds(word) for word in words]
    return tuple(
        keras.utils.pad_sequences(rows, maxlen=14, padding="post") for rows in (spelled, spoken)
    )


def build(LSTM):  # noqa: N803 - a class
    model = keras.Sequential(
        [
            keras.Input((None,), dtype="int32"),
            layers.Embedding(len(LETTERS), 16, mask_zero=True),
            layers.Bidirectional(LSTM(32, return_sequences=True)),
            layers.Dense(len(SOUNDS), activation="softmax"),
        ]
    )
    model.compile(keras.optimizers.Adam(0.005), "sparse_categorical_crossentropy")
    return model


def compare(samples=1600, epochs=6):
    words, spoken = make_data(samples)

    expected = [
        "".join(LETTERS[letter] for letter in word) + " " + mark(sound)
        for word, sound in zip(words[:8], spoken[:8], strict=True)
    ]

    def train(model):
        history = model.fit(words, spoken, batch_size=32, epochs=epochs, shuffle=False, verbose=0)
        return history.history["loss"]

    def predict(model):
        return model.predict(words[:100], verbose=0)

    return _common.compare(build, train, predict, expected)


def mark(spoken):
    return "".join(MARKS[sound] for sound in spoken)


def describe(probabilities):
    return mark(probabilities.argmax(axis=-1))


if __name__ == "__main__":
    _common.main(compare(), describe)
