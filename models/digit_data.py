"""5000 real handwritten digits (a part of MNIST), split once and for all."""

import gzip
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

SIDE = 28
FILE = "mnist_5k.csv.gz"
HELD_OUT_ROWS = 1000
SEED = 11


class Digits(NamedTuple):
    """Pictures uint8 [rows, 28, 28], white on black, and their labels int64 [rows]."""

    pictures: NDArray[np.uint8]
    labels: NDArray[np.int64]


def read_digits(path: Path) -> tuple[Digits, Digits]:
    """The training part and the held-out part of the table at `path`."""
    with gzip.open(path, "rt") as file:
        table = np.loadtxt(file, np.float32, delimiter=",")
    pictures = table[:, :-1].astype(np.uint8).reshape(-1, SIDE, SIDE)
    labels = table[:, -1].astype(np.int64)
    order = np.random.default_rng(SEED).permutation(len(labels))
    test, train = order[:HELD_OUT_ROWS], order[HELD_OUT_ROWS:]
    return Digits(pictures[train], labels[train]), Digits(pictures[test], labels[test])
