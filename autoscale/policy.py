"""How many slots a model should hold; pure, so that every decision can be replayed."""

from __future__ import annotations

from gateway.config import ModelConfig


def desired_replicas(config: ModelConfig) -> int:
    """The slots that a model should hold now: the least that its config asks for.

    Load joins here as a further argument: the answer then lies between `min` and `max`.
    """
    return config.replicas.min
