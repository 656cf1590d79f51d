"""The two networks of `digits` and their training."""

from typing import Any

import numpy as np
import tensorflow as tf
from digit_data import SIDE, Digits
from numpy.typing import NDArray

CLASSES = 10
SEED = 11
EPOCHS = {"1": 8, "2": 6}


def train(version: str, digits: Digits) -> Any:
    """Train the network of `version` ("1" dense, "2" convolutional) on pixels in 0..1."""
    tf.keras.utils.set_random_seed(SEED)
    network = _dense() if version == "1" else _convolutional()
    network.compile("adam", "sparse_categorical_crossentropy")
    pixels, labels = _shifted(digits)
    network.fit(pixels, labels, batch_size=64, epochs=EPOCHS[version], verbose=0)
    return network


def accuracy(network: Any, digits: Digits) -> float:
    """The share of pictures whose most likely class is right."""
    scores = network.predict(_scaled(digits.pictures), batch_size=500, verbose=0)
    return float(np.mean(scores.argmax(axis=1) == digits.labels))


def _dense() -> Any:
    layers = tf.keras.layers
    return tf.keras.Sequential(
        [
            tf.keras.Input((SIDE, SIDE)),
            layers.Flatten(),
            layers.Dense(32, activation="relu"),
            layers.Dense(CLASSES, activation="softmax"),
        ]
    )


def _convolutional() -> Any:
    layers = tf.keras.layers
    return tf.keras.Sequential(
        [
            tf.keras.Input((SIDE, SIDE)),
            layers.Reshape((SIDE, SIDE, 1)),
            layers.Conv2D(16, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(32, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dropout(0.3),
            layers.Dense(64, activation="relu"),
            layers.Dense(CLASSES, activation="softmax"),
        ]
    )


def _scaled(pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
    return pictures.astype(np.float32) / np.float32(255)


def _shifted(digits: Digits) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Each picture five times: as it is and one pixel to each side."""
    shifts = ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1))
    pictures = [np.roll(digits.pictures, shift, axis=(1, 2)) for shift in shifts]
    return _scaled(np.concatenate(pictures)), np.tile(digits.labels, len(shifts))
