"""How many slots a model should hold; pure, so that every decision can be replayed."""

from __future__ import annotations

from gateway.config import ModelConfig


def desired_replicas(config: ModelConfig) -> int:
    """Slots for each wanted version of a model: the guaranteed number, whatever the load."""
    return config.replicas.min
