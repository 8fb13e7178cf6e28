"""Question answering with two inputs: a story, a question, and one of 500 answers.

Each story ends with the name of a country, each question with the attribute of it that is asked
for; the answer is a pair such as (country 7, attribute 3). Both inputs are of variable length,
padded with 0, and each goes through its own masked Embedding and LSTM.
"""

import _common
import keras
import numpy as np
from keras import layers

COUNTRIES, ATTRIBUTES = 25, 20
ANSWERS = COUNTRIES * ATTRIBUTES  # 500
OTHER_WORDS = 200
STORY_LENGTH, QUESTION_LENGTH = 48, 10


def make_data(samples):
    """Returns padded stories and questions (0 = padding) and the index of each answer."""
    rng = np.random.default_rng(1)

    def sentences(keys, keyword_count, shortest, longest):
        """Sentences of other words with a keyword at the end, padded."""
        result = []
        for key in keys:
            words = rng.integers(0, OTHER_WORDS, rng.integers(shortest, longest + 1))
            words = words + 1 + keyword_count
            words[-1] = 1 + key
            result.append(words)
        return keras.utils.pad_sequences(result, maxlen=longest, padding="post")

    countries = rng.integers(0, COUNTRIES, samples)
    attributes = rng.integers(0, ATTRIBUTES, samples)
    stories = sentences(countries, COUNTRIES, 4, STORY_LENGTH)
    questions = sentences(attributes, ATTRIBUTES, 2, QUESTION_LENGTH)
    return stories, questions, countries * ATTRIBUTES + attributes


def build(LSTM):  # noqa: N803 - a class
    story = keras.Input((None,), dtype="int32", name="story")
    question = keras.Input((None,), dtype="int32", name="question")
    encoded_story = layers.Embedding(1 + COUNTRIES + OTHER_WORDS, 64, mask_zero=True)(story)
    encoded_story = LSTM(32)(encoded_story)
    encoded_question = layers.Embedding(1 + ATTRIBUTES + OTHER_WORDS, 32, mask_zero=True)(question)
    encoded_question = LSTM(16)(encoded_question)
    both = layers.concatenate([encoded_story, encoded_question])
    answer = layers.Dense(ANSWERS, activation="softmax")(both)
    model = keras.Model([story, question], answer)
    model.compile(keras.optimizers.Adam(0.002), "sparse_categorical_crossentropy")
    return model


def compare(samples=2000, epochs=8):
    stories, questions, answers = make_data(samples)
    inputs = {"story": stories, "question": questions}

    expected = ["country {:2}, attribute {:2}".format(*divmod(a, ATTRIBUTES)) for a in answers[:4]]

    def train(model):
        history = model.fit(inputs, answers, batch_size=32, epochs=epochs, shuffle=False, verbose=0)
        return history.history["loss"]

    def predict(model):
        return model.predict({k: v[:100] for k, v in inputs.items()}, verbose=0)

    return _common.compare(build, train, predict, expected)


def describe(probabilities):
    country, attribute = divmod(int(probabilities.argmax()), ATTRIBUTES)
    return f"country {country:2}, attribute {attribute:2}: {probabilities.max():.6f}"


if __name__ == "__main__":
    _common.main(compare(), describe)
