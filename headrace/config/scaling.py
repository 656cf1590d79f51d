"""How a model's slots follow its load and share it, and its part of a pool that many share."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from headrace.config.types import Name, Seconds, Strict


class Routing(Strict):
    """How a gateway chooses among a model's slots; `hash` keys on a header or the body."""

    policy: Literal["least-in-flight", "round-robin", "hash"] = "least-in-flight"
    header: Annotated[str, Field(pattern=r"^[A-Za-z0-9!#$%&'*+.^_`|~\-]{1,100}$")] | None = None
    key: Literal["header", "body"] = "header"

    @model_validator(mode="after")
    def _header_is_named(self) -> Self:
        if self.policy == "hash" and self.key == "header" and not self.header:
            raise ValueError("hash routing by header needs `header`, the name of that header")
        return self


DEFAULT_GROUP = "default"


POLICIES = {"reactive": "autoscale.policy:Reactive", "trend": "autoscale.policy:Trend"}
"""Scaling policies by name; a class of your own goes by its import path."""


class Replicas(Strict):
    """How many slots a model holds."""

    min: int = Field(default=1, ge=0, le=10_000)
    max: int = Field(default=1, ge=1, le=10_000)

    @model_validator(mode="before")
    @classmethod
    def _max_follows_min(cls, data: Any) -> Any:
        """`min: 3` alone means `max: 3` too."""
        if isinstance(data, dict) and isinstance(data.get("min"), int) and "max" not in data:
            return {**data, "max": max(1, data["min"])}
        return data

    @model_validator(mode="after")
    def _min_below_max(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"`min` ({self.min}) should not be above `max` ({self.max})")
        return self


class Scaling(Strict):
    """When a model gets another slot and when it gives one back, between its `replicas`.

    A slot should have `target_in_flight` requests, as the mean over `look_back_s`. More slots are
    asked for once they were wanted for `up_delay_s`, fewer after `down_delay_s`, and at most
    `max_step` within a second. A model that nobody has called for `idle_s` gives back the last one
    too, where `replicas.min` is 0. `policy` is one of `POLICIES`, or the import path of a class of
    your own with the methods of `autoscale.policy.Policy`.
    """

    target_in_flight: Annotated[float, Field(gt=0, le=10_000)] = 8.0
    look_back_s: Annotated[float, Field(gt=0, le=3600)] = 0.5
    up_delay_s: Seconds = 0.0
    down_delay_s: Seconds = 10.0
    max_step: Annotated[int, Field(ge=1, le=10_000)] = 100
    idle_s: Annotated[float, Field(ge=0.1, le=86_400)] = 60.0
    policy: str = "reactive"

    @model_validator(mode="after")
    def _known_policy(self) -> Self:
        module, colon, name = self.policy.partition(":")
        path = colon and name.isidentifier() and all(map(str.isidentifier, module.split(".")))
        if self.policy not in POLICIES and not path:
            names = ", ".join(POLICIES)
            raise ValueError(f"`policy` should be {names} or an import path (module:Class)")
        return self


class Share(Strict):
    """What a model may claim while others want slots too (`autoscale.fair_share`).

    Its `replicas.min` are guaranteed. Beyond them groups share by their weights (`shares` of the
    pool) and models of a group by theirs. What others lend goes to a higher priority first.
    """

    weight: Annotated[float, Field(gt=0, le=1e6)] = 1.0
    priority: Annotated[int, Field(ge=-1000, le=1000)] = 0
    group: Name = DEFAULT_GROUP


class Leases(Strict):
    """What other work may lease of the pool.

    A job that must return its slots is told `grace_s` before (a lease may ask for less or more, up
    to `max_grace_s`). A job that was interrupted `max_preemptions` times is spared where that is
    possible. A holder that is silent for `ttl_s` has lost its lease.
    """

    max_slots: Annotated[int, Field(ge=0, le=100_000)] = 1000
    grace_s: Seconds = 5.0
    max_grace_s: Seconds = 300.0
    max_preemptions: Annotated[int, Field(ge=1, le=1000)] = 3
    ttl_s: Annotated[float, Field(ge=1, le=3600)] = 15.0
    weight: Annotated[float, Field(gt=0, le=1e6)] = 1.0
    priority: Annotated[int, Field(ge=-1000, le=1000)] = -10
    group: Name = "leases"
