"""A training job that lends its slots back: a classifier of handwritten digits, by small steps.

    headrace lease --slots 2 --grace 5 -- python examples/train_digits.py

SIGTERM ends it after the step that is under way; what it has learned is in the checkpoint, and the
next run goes on from there. The pictures are those that `make models` has fetched.
"""

from __future__ import annotations

import argparse
import os
import pickle
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import SGDClassifier

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "models"))

from digit_data import FILE, Digits, read_digits  # noqa: E402

ROWS = 64
CLASSES = np.arange(10)


def say(text: str) -> None:
    """A line that whoever watches sees at once."""
    print(text, flush=True)  # noqa: T201


@dataclass
class Training:
    """What has been learned, after so many steps; pickled as a whole."""

    model: Any = field(
        default_factory=lambda: SGDClassifier("log_loss", alpha=1e-4, random_state=7)
    )
    steps: int = 0

    def step(self, digits: Digits) -> None:
        """Learn from the next rows: which ones depends on the step alone, so none is lost."""
        rows = np.random.default_rng(self.steps).integers(0, len(digits.labels), ROWS)
        self.model.partial_fit(scaled(digits.pictures[rows]), digits.labels[rows], CLASSES)
        self.steps += 1

    def accuracy(self, digits: Digits) -> float:
        """The part of the digits that it reads right."""
        return float(self.model.score(scaled(digits.pictures), digits.labels))


def scaled(pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Pictures [rows, 28, 28] as rows of numbers up to 1."""
    return pictures.reshape(len(pictures), -1).astype(np.float32) / np.float32(255)


def load(checkpoint: Path) -> Training:
    """What an earlier run has left, or a new beginning."""
    if not checkpoint.exists():
        return Training()
    training: Training = pickle.loads(checkpoint.read_bytes())
    return training


def save(training: Training, checkpoint: Path) -> None:
    """Whole or not at all: a kill in the middle leaves the checkpoint before."""
    draft = checkpoint.with_suffix(".tmp")
    draft.write_bytes(pickle.dumps(training))
    draft.replace(checkpoint)


class Stop:
    """SIGTERM and SIGINT as a wish, which is looked at between two steps."""

    def __init__(self) -> None:
        self.asked = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True


def main() -> int:
    """0 once all steps are done, 75 (try again later) when it was told to stop before."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--checkpoint", type=Path, default=Path("digits.ckpt"))
    parser.add_argument("--pause", type=float, default=0.0, help="Seconds to rest after each step.")
    sources = ROOT / "models" / "cache" / "sources"
    found = next(sources.glob(f"*/{FILE}"), None)
    parser.add_argument("--data", type=Path, default=found, required=found is None)
    options = parser.parse_args()
    stop = Stop()
    train, test = read_digits(options.data)
    training = load(options.checkpoint)
    slots = os.environ.get("HEADRACE_LEASE_SLOTS", "no")
    say(f"step {training.steps} of {options.steps}, with {slots} leased slots")
    while training.steps < options.steps and not stop.asked:
        training.step(train)
        if training.steps % 100 == 0:
            save(training, options.checkpoint)
            say(f"step {training.steps}")
        time.sleep(options.pause)
    save(training, options.checkpoint)
    if training.steps < options.steps:
        say(f"told to stop at step {training.steps}; the checkpoint has it all")
        return 75
    say(f"done: {training.accuracy(test):.1%} of the held-out digits are read right")
    return 0


if __name__ == "__main__":
    sys.exit(main())
