"""Typed configuration: `args` needs a restart, the Pool's `user_config` changes live."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Seconds = Annotated[float, Field(ge=0, le=86_400)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.\-]{0,127}$")]


class Strict(BaseModel):
    """Unknown keys are errors, values do not change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class SecretRef(Strict):
    """Where a secret is, never the secret itself: exactly one of `file` and `env`."""

    file: str | None = None
    env: str | None = None


class Listen(Strict):
    """Addresses as `host:port`; all on loopback unless said otherwise. Port 0 takes a free one."""

    http: str = "127.0.0.1:8080"
    grpc: str = "127.0.0.1:8081"
    admin: str = "127.0.0.1:8082"
    link: str = "127.0.0.1:0"


class Limits(Strict):
    """What one connection or request may take."""

    max_body_bytes: int = Field(default=128 * 1024 * 1024, ge=1024)
    header_timeout_s: Seconds = 10.0
    body_timeout_s: Seconds = 60.0
    write_timeout_s: Seconds = 30.0
    idle_timeout_s: Seconds = 75.0
    default_deadline_s: Seconds = 60.0
    max_deadline_s: Seconds = 600.0
    drain_s: Seconds = 30.0


class SlotClass(Strict):
    """Slots of one kind: how many, with what share of a node, and what they preload."""

    count: int = Field(default=1, ge=0, le=10_000)
    cpus: float = Field(default=1.0, ge=0, le=1024)
    gpus: float = Field(default=0.0, ge=0, le=16)
    resources: dict[str, float] = Field(default_factory=dict)
    preload: tuple[Literal["onnx", "tensorflow"], ...] = ("onnx",)
    max_models: int = Field(default=1, ge=1, le=1000)


class Args(Strict):
    """The application's `args:`; a change restarts every replica."""

    schema_: Literal[1] = Field(alias="schema")
    listen: Listen = Listen()
    gateways: int | Literal["auto"] = 1
    slots: dict[Name, SlotClass] = Field(default_factory=lambda: {"cpu": SlotClass()})
    store: str = "models/repository"
    limits: Limits = Limits()
    secret: SecretRef | None = None
    admin_token: SecretRef | None = None
    log_level: Literal["debug", "info", "warning", "error"] = "info"


class Replicas(Strict):
    """How many slots a model holds."""

    min: int = Field(default=1, ge=0, le=10_000)
    max: int = Field(default=1, ge=1, le=10_000)


class Batching(Strict):
    """How a slot joins rows: at most `max_rows` a run, waiting `max_wait_s` for more."""

    max_rows: int = Field(default=32, ge=1, le=65_536)
    max_wait_s: Seconds = 0.0


class Routing(Strict):
    """How a gateway chooses among a model's slots; `hash` keys on a header or the body."""

    policy: Literal["least-in-flight", "round-robin", "hash"] = "least-in-flight"
    header: str | None = None
    key: Literal["header", "body"] = "header"


class ModelConfig(Strict):
    """One model of the store."""

    runtime: Literal["onnx", "tensorflow"] | None = None
    slot_class: Name | None = None
    replicas: Replicas = Replicas()
    versions: Literal["latest", "all"] | tuple[Annotated[int, Field(ge=1)], ...] = "latest"
    batching: Batching = Batching()
    routing: Routing = Routing()


class PoolConfig(Strict):
    """The Pool's `user_config:`; a change reaches every process without a restart."""

    models: dict[Name, ModelConfig] = Field(default_factory=dict)
