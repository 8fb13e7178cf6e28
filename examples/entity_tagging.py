"""Entity tagging: which words of a sentence name a person or a place?

"mr" or "mrs" starts a person's name of one or two words, "in" or "to" is followed by a place. The
same names are used for both (Paris, Washington), so a word alone does not tell: the words before
it do. Sentences of 5 to 24 words, padded with 0 to 24.

The number of timesteps is static: Keras 3.15's TimeDistributed does not work with a dynamic one.
Without TimeDistributed, Dense acts on the last axis and does the same for any number of timesteps.
"""

import _common
import keras
import numpy as np
from keras import layers

TIMESTEPS = 24
PADDING = 0
TITLES = np.arange(1, 3)  # mr, mrs
PREPOSITIONS = np.arange(3, 5)  # in, to
NAMES = np.arange(5, 45)
OTHER_WORDS = np.arange(45, 245)
TAGS = ["O", "B-PER", "I-PER", "B-LOC"]


def make_data(samples):
    """Returns padded sentences and, for each word, the index of its tag; both (samples, 24)."""
    rng = np.random.default_rng(3)
    sentences = np.full((samples, TIMESTEPS), PADDING)
    tags = np.zeros((samples, TIMESTEPS), dtype="int32")
    for sentence, tag in zip(sentences, tags, strict=True):
        length = rng.integers(5, TIMESTEPS + 1)
        position = 0
        while position < length:
            phrase, phrase_tags = [rng.choice(OTHER_WORDS)], [0]
            kind = rng.random()
            if kind < 0.1:
                phrase, phrase_tags = [rng.choice(TITLES), rng.choice(NAMES)], [0, 1]
                if rng.random() < 0.5:
                    phrase, phrase_tags = [*phrase, rng.choice(NAMES)], [0, 1, 2]
            elif kind < 0.2:
                phrase, phrase_tags = [rng.choice(PREPOSITIONS), rng.choice(NAMES)], [0, 3]
            for word, word_tag in zip(phrase, phrase_tags, strict=True):
                if position < length:
                    sentence[position], tag[position] = word, word_tag
                    position += 1
    return sentences, tags


def build(LSTM):  # noqa: N803 - a class
    model = keras.Sequential(
        [
            keras.Input((TIMESTEPS,), dtype="int32"),
            layers.Embedding(245, 48, mask_zero=True),
            LSTM(48, return_sequences=True),
            layers.TimeDistributed(layers.Dense(len(TAGS), activation="softmax")),
        ]
    )
    model.compile(keras.optimizers.Adam(0.005), "sparse_categorical_crossentropy")
    return model


def compare(samples=1200, epochs=4):
    sentences, tags = make_data(samples)

    expected = [name_tags(row) for row in tags[:3]]

    def train(model):
        history = model.fit(sentences, tags, batch_size=32, epochs=epochs, shuffle=False, verbose=0)
        return history.history["loss"]

    def predict(model):
        return model.predict(sentences[:50], verbose=0)

    return _common.compare(build, train, predict, expected)


def name_tags(tags):
    return " ".join(TAGS[tag] for tag in tags[:10]) + " ..."


def describe(probabilities):
    return name_tags(probabilities.argmax(axis=-1))


if __name__ == "__main__":
    _common.main(compare(), describe)
