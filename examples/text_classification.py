"""Text classification: is a review positive or negative?

Reviews of 5 to 60 words; a few words praise, a few complain, and "not" turns the next word around.
The label is positive when praise outweighs complaint. Padded with 0, masked by the Embedding.
"""

import _common
import keras
import numpy as np
from keras import layers

PADDING, NOT = 0, 1
PRAISE = np.arange(2, 22)
COMPLAINT = np.arange(22, 42)
NEUTRAL = np.arange(42, 300)


def make_data(samples):
    """Returns padded reviews (samples, 60) and labels (samples,)."""
    rng = np.random.default_rng(2)
    reviews, labels = [], []
    while len(reviews) < samples:
        length = rng.integers(5, 61)
        kinds = rng.choice(4, size=length, p=[0.1, 0.2, 0.2, 0.5])
        words = np.choose(
            kinds,
            [NOT] + [rng.choice(group, length) for group in (PRAISE, COMPLAINT, NEUTRAL)],
        )
        opinion = np.select([kinds == 1, kinds == 2], [1, -1], default=0)
        opinion[1:] *= np.where(words[:-1] == NOT, -1, 1)
        if opinion.sum() != 0:
            reviews.append(words)
            labels.append(opinion.sum() > 0)
    reviews = keras.utils.pad_sequences(reviews, maxlen=60, padding="post", value=PADDING)
    return reviews, np.array(labels, dtype="float32")


def build(LSTM):  # noqa: N803 - a class
    model = keras.Sequential(
        [
            keras.Input((None,), dtype="int32"),
            layers.Embedding(300, 32, mask_zero=True),
            LSTM(64),
            layers.Dense(1, activation="sigmoid"),
        ]
    )
    model.compile(keras.optimizers.Adam(0.001), "binary_crossentropy")
    return model


def compare(samples=1600, epochs=5):
    reviews, labels = make_data(samples)

    expected = ["positive" if label else "negative" for label in labels[:4]]

    def train(model):
        history = model.fit(reviews, labels, batch_size=32, epochs=epochs, shuffle=False, verbose=0)
        return history.history["loss"]

    def predict(model):
        return model.predict(reviews[:100], verbose=0)

    return _common.compare(build, train, predict, expected)


def describe(probability):
    return f"{'positive' if probability > 0.5 else 'negative'} ({probability[0]:.6f})"


if __name__ == "__main__":
    _common.main(compare(), describe)
