"""The demo: a grapheme-to-phoneme model trained with Keras' LSTM and with ours.

Run it as ``python -m masked_lstm.demo``; needs TensorFlow and the packages of the extra ``demo``.
"""
