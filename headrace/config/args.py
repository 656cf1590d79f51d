"""Typed configuration: `args` needs a restart, the Pool's `user_config` changes live."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    ByteSize,
    Field,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from headrace.config.scaling import Leases, Replicas, Routing, Scaling, Share
from headrace.config.sharding import ShardingConfig
from headrace.config.tiers import ANONYMOUS, AuthConfig, Tier, with_defaults
from headrace.config.types import Amount, Name, Seconds, SecretRef, Strict
from headrace.runtimes import RUNTIMES, RuntimeName


class JobsConfig(Strict):
    """Requests that are answered later (`Prefer: respond-async`).

    `folder` holds the database and the uploads of the jobs (default: `jobs` in the state folder).
    Jobs that have ended are kept for `keep_s`. One runs for at most `max_run_s`, and a caller has
    at most `max_waiting` that have not ended.
    """

    keep_s: Annotated[float, Field(ge=1, le=366 * 86_400)] = 86_400.0
    max_running: int = Field(default=1, ge=1, le=64)
    max_waiting: int = Field(default=100, ge=1, le=100_000)
    max_run_s: Seconds = 3600.0
    folder: Annotated[str, Field(min_length=1)] | None = None


class MediaConfig(Strict):
    """The stage that splits large pictures and videos; `replicas: 0` turns it off.

    `cpus` is what Ray reserves for each replica: none, as the slots do the work. `spool` is the
    folder of uploads (default: one of the node); where all nodes share it, `shared` lets the slots
    of all of them work on a video. Up to `spool_memory` of an upload stay in memory while it comes.
    """

    replicas: int = Field(default=1, ge=0, le=256)
    cpus: float = Field(default=0.0, ge=0, le=1024)
    spool: Annotated[str, Field(min_length=1)] | None = None
    shared: bool = False
    spool_memory: Annotated[ByteSize, Field(ge=0, le=1024**3)] = ByteSize(1024 * 1024)
    jobs: JobsConfig = JobsConfig()

    def folder(self, of_node: Path) -> Path:
        """The folder of uploads; `of_node` where the config names none."""
        return Path(self.spool) if self.spool else of_node

    @property
    def enabled(self) -> bool:
        return self.replicas > 0


MAX_SLOTS = 10_000
"""Cap on the slots of a class: Ray and our own tables are meant for no larger clusters."""

SlotCount = Annotated[int, Field(ge=0, le=MAX_SLOTS)]

_LABEL = r"[A-Za-z0-9]([A-Za-z0-9\-]{0,61}[A-Za-z0-9])?"
_HOST_NAME = re.compile(rf"{_LABEL}(\.{_LABEL})*\.?")
WILDCARDS = frozenset({"0.0.0.0", "::"})


def split_address(address: str) -> tuple[str, int]:
    """Host and port of `host:port` (IPv6 in brackets); raises `ValueError`."""
    host, colon, port_text = address.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    host = host[1:-1] if bracketed else host
    if not colon or not host or not port_text.isascii() or not port_text.isdigit():
        raise ValueError("should be host:port, such as 127.0.0.1:8080")
    if int(port_text) > 65_535:
        raise ValueError("the port should be between 0 and 65535 (0: any free one)")
    if bracketed:
        try:
            ipaddress.IPv6Address(host)
        except ValueError:
            raise ValueError("the brackets should hold an IPv6 address, as in [::1]:8080") from None
    elif not _HOST_NAME.fullmatch(host):
        raise ValueError("the host should be a name, an IPv4 address or [IPv6]")
    return host, int(port_text)


def _checked_address(address: str) -> str:
    split_address(address)
    return address


Address = Annotated[str, AfterValidator(_checked_address)]


class FileRef(Strict):
    """A file of the machine that reads it."""

    file: Annotated[str, Field(min_length=1)]

    @property
    def path(self) -> Path:
        return Path(self.file).expanduser()


class Tls(Strict):
    """TLS of the listeners, each on or off; the files are PEM, and read anew when they change.

    `cert` begins with the server's certificate, before those that lead to its authority. With
    `client_ca` clients of HTTP and gRPC show a certificate that it has signed. A handshake may take
    `handshake_timeout_s`.
    """

    cert: FileRef
    key: FileRef
    client_ca: FileRef | None = None
    client_certificates: Literal["required", "optional"] = "required"
    min_version: Literal["1.2", "1.3"] = "1.2"
    handshake_timeout_s: Annotated[float, Field(gt=0, le=600)] = 10.0
    http: bool = True
    grpc: bool = True
    admin: bool = True

    @field_validator("min_version", mode="before")
    @classmethod
    def _number(cls, data: Any) -> Any:
        """YAML reads 1.2 as a number."""
        return str(data) if isinstance(data, float) else data

    @property
    def listeners(self) -> tuple[str, ...]:
        """Names of the listeners that speak TLS."""
        return tuple(name for name in ("http", "grpc", "admin") if getattr(self, name))

    @property
    def files(self) -> tuple[FileRef, ...]:
        """All files that are read."""
        return (self.cert, self.key, *filter(None, (self.client_ca,)))


class Listen(Strict):
    """Addresses as `host:port`, by default on loopback. Port 0 takes a free one."""

    http: Address = "127.0.0.1:8080"
    grpc: Address = "127.0.0.1:8081"
    admin: Address = "127.0.0.1:8082"
    link: Address = "127.0.0.1:0"
    tls: Tls | None = None

    @model_validator(mode="after")
    def _ports_differ(self) -> Self:
        taken: list[tuple[str, str, int]] = []
        for name in ("http", "grpc", "admin", "link"):
            host, port = split_address(getattr(self, name))
            for other, other_host, other_port in taken:
                same_host = host == other_host or not WILDCARDS.isdisjoint((host, other_host))
                if port and port == other_port and same_host:
                    raise ValueError(f"`{other}` and `{name}` both use port {port}")
            taken.append((name, host, port))
        return self


class LinkFiles(Strict):
    """PEM files of the link's TLS: each process shows `cert`, and trusts whom `ca` has signed."""

    cert: SecretRef
    key: SecretRef
    ca: SecretRef


class LinkConfig(Strict):
    """How the link's TCP connections are encrypted; Unix sockets are not.

    `auto` needs nothing but the cluster's secret; `off` is for networks that encrypt by themselves.
    """

    tls: Literal["auto", "off"] | LinkFiles = "auto"

    @field_validator("tls", mode="before")
    @classmethod
    def _off_in_yaml(cls, data: Any) -> Any:
        """YAML reads `off` as false."""
        return "off" if data is False else data


class Limits(Strict):
    """Limits of a connection or request; `headrace.protocols.elements` counts `max_elements`."""

    max_body_bytes: int = Field(default=128 * 1024 * 1024, ge=1024)
    max_elements: int = Field(default=2**20, ge=1024)
    max_header_bytes: int = Field(default=64 * 1024, ge=1024, le=16 * 1024 * 1024)
    max_headers: int = Field(default=128, ge=8, le=10_000)
    max_buffered_bytes: int = Field(default=2 * 1024**3, ge=1024 * 1024)
    max_callers: int = Field(default=200_000, ge=100)
    connections_per_address: int = Field(default=4096, ge=1)
    max_concurrent_loads: int = Field(default=4, ge=1, le=1000)
    streams_per_connection: int = Field(default=256, ge=1)
    header_timeout_s: Seconds = 10.0
    body_timeout_s: Seconds = 60.0
    write_timeout_s: Seconds = 30.0
    idle_timeout_s: Seconds = 75.0
    default_deadline_s: Seconds = 60.0
    max_deadline_s: Seconds = 600.0
    drain_s: Seconds = 30.0

    @model_validator(mode="after")
    def _deadlines_fit(self) -> Self:
        if self.default_deadline_s > self.max_deadline_s:
            raise ValueError("`default_deadline_s` should not be above `max_deadline_s`")
        return self


class Audit(Strict):
    """Where each gateway writes its decisions, and how many of them are kept.

    `folder` defaults to `audit` in the state folder. All refusals are written, and the share
    `sample` of what was allowed.
    """

    enabled: bool = True
    folder: str | None = None
    sample: float = Field(default=0.01, ge=0, le=1)
    max_file_bytes: int = Field(default=16 * 1024 * 1024, ge=64 * 1024)
    files: int = Field(default=8, ge=1, le=1000)


class Budgets(Strict):
    """Where budgets, quotas and API keys live: in the pool, or in a Redis that clusters share.

    `keys` is the file in which the pool keeps the API keys (default: `keys.jsonl` in the state
    folder).
    """

    store: Annotated[str, Field(pattern=r"^(pool|rediss?://.+)$")] = "pool"
    password: SecretRef | None = None
    prefix: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:\-]{1,64}$")] = "headrace"
    keys: str | None = None

    @model_validator(mode="after")
    def _no_password_in_the_url(self) -> Self:
        user, at, _ = self.store.partition("://")[2].rpartition("@")
        if at and ":" in user:
            raise ValueError("`store` should hold no password: name its place in `password`")
        return self


class SlotClass(Strict):
    """Slots of one kind: how many, with what share of a node, and what they preload.

    `min` are always there, `warm` free ones are kept ready beyond those that models hold, and
    there are never more than `max`; `count: 3` stands for `min: 3, max: 3`. `max: 0` turns the
    class off. `memory` is a slot's budget, which the models in it share.
    """

    count: SlotCount | None = None
    min: SlotCount = 1
    warm: SlotCount = 0
    max: SlotCount = 1
    cpus: float = Field(default=1.0, ge=0, le=1024)
    gpus: float = Field(default=0.0, ge=0, le=16)
    resources: dict[str, Amount] = Field(default_factory=dict)
    preload: tuple[RuntimeName, ...] = ("onnx",)
    memory: Annotated[ByteSize, Field(ge=1024 * 1024)] | None = None
    max_models: int = Field(default=1, ge=1, le=1000)
    pin: bool = False

    @property
    def least(self) -> int:
        """The number of slots while models hold none."""
        return max(self.min, self.warm)

    @model_validator(mode="before")
    @classmethod
    def _in_short(cls, data: Any) -> Any:
        """Set `min` and `max` from `count`, or a missing `max` from `min` and `warm`."""
        if not isinstance(data, dict):
            return data
        count = _slot_count(data.get("count"))
        if count is not None:
            return {"min": count, "max": count, **data}
        if "count" not in data and "max" not in data:
            least = (_slot_count(data.get("min")), _slot_count(data.get("warm")))
            return {**data, "max": max(1, *(number or 0 for number in least))}
        return data

    @model_validator(mode="after")
    def _numbers_fit(self) -> Self:
        short = (self.count, 0, self.count)
        if self.count is not None and (self.min, self.warm, self.max) != short:
            raise ValueError("`count` is short for equal `min` and `max`: give either it or those")
        for name, number in (("min", self.min), ("warm", self.warm)):
            if number > self.max:
                raise ValueError(f"`{name}` ({number}) should not be above `max` ({self.max})")
        if self.pin and (self.cpus < 1 or self.cpus != int(self.cpus)):
            raise ValueError("`pin` needs a whole number of `cpus`, at least 1")
        return self


_SLOT_COUNT: TypeAdapter[int] = TypeAdapter(SlotCount)


def _slot_count(value: Any) -> int | None:
    """The number that the field reads in a value; None where it refuses it."""
    try:
        return _SLOT_COUNT.validate_python(value)
    except ValidationError:
        return None


class RepositoryAccess(Strict):
    """The listener on which models may be loaded by request, and the period of a remote store."""

    control: Literal["admin", "public"] = "admin"
    poll_s: Annotated[float, Field(ge=0.2, le=86_400)] = 5.0


class SharedMemory(Strict):
    """Files below /dev/shm that clients of this machine may register as regions.

    Their names begin with `prefix`, and they belong to `user`, a number (default: our own).
    """

    prefix: Annotated[str, Field(pattern=r"^[^/]{0,200}$")] = ""
    user: Annotated[int, Field(ge=0, lt=2**32)] | None = None


_ORIGIN = re.compile(
    r"[a-z][a-z0-9+.\-]*://[a-z0-9.\-_]+(:[0-9]{1,5})?|[a-z]+://\[[0-9a-f:]+\](:[0-9]{1,5})?"
)


def _checked_origin(text: str) -> str:
    if text != "*" and not _ORIGIN.fullmatch(text):
        raise ValueError(
            "should be written as browsers send it, such as https://app.example.com: scheme, host "
            "and port in lower case, without a path; or '*' for all"
        )
    return text


class CorsConfig(Strict):
    """Pages in browsers that may call over HTTP: those of these `origins`, or of all (`*`).

    They may send `headers` besides those of our protocols. A browser remembers for `max_age_s` what
    it may.
    """

    origins: Annotated[
        tuple[Annotated[str, AfterValidator(_checked_origin)], ...], Field(min_length=1)
    ]
    headers: tuple[Annotated[str, Field(pattern=r"^[A-Za-z0-9!#$%&'*+.^_`|~\-]{1,128}$")], ...] = ()
    max_age_s: Annotated[float, Field(ge=0, le=86_400)] = 600.0

    @model_validator(mode="after")
    def _all_or_some(self) -> Self:
        if "*" in self.origins and len(self.origins) > 1:
            raise ValueError("`*` in `origins` stands alone: it means all of them")
        return self


class Args(Strict):
    """The application's `args:`; a change restarts every replica."""

    schema_: Literal[1] = Field(alias="schema")
    listen: Listen = Listen()
    link: LinkConfig = LinkConfig()
    gateways: Annotated[int, Field(ge=1, le=256)] | Literal["auto"] = 1
    slots: dict[Name, SlotClass] = Field(default_factory=lambda: {"cpu": SlotClass()}, min_length=1)
    store: Annotated[str, Field(min_length=1)] = "models/repository"
    repository: RepositoryAccess = RepositoryAccess()
    limits: Limits = Limits()
    budgets: Budgets = Budgets()
    audit: Audit = Audit()
    media: MediaConfig = MediaConfig()
    shared_memory: SharedMemory | None = None
    cors: CorsConfig | None = None
    secret: SecretRef | None = None
    admin_token: SecretRef | None = None
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @field_validator("shared_memory", mode="before")
    @classmethod
    def _shared_memory_in_short(cls, data: Any) -> Any:
        """`true` allows it with the defaults, `false` not at all."""
        return {True: {}, False: None}[data] if isinstance(data, bool) else data


class Batching(Strict):
    """How a slot joins rows: at most `max_rows` a run, waiting `max_wait_s` for more.

    `auto` waits where what the slot has seen says that it pays, and at most for the fixed time of a
    run; `latency_target_s` bounds how long the first row then waits and runs. Requests of more than
    `row_limit` rows are refused. It replaces the `max_batch_size` of the model's `config.pbtxt`;
    without either, long requests are split over several runs.
    """

    max_rows: int = Field(default=32, ge=1, le=65_536)
    max_wait_s: Seconds | Literal["auto"] = "auto"
    latency_target_s: Annotated[float, Field(gt=0)] | None = None
    row_limit: Annotated[int, Field(ge=1, le=65_536)] | None = None

    @property
    def wait_s(self) -> float | None:
        """The longest wait; None where it is automatic."""
        return None if self.max_wait_s == "auto" else self.max_wait_s


class Cost(Strict):
    """What a request takes of its caller's budget once it is answered: `amount` per unit."""

    per: Literal["request", "rows", "megapixels"] = "request"
    amount: Annotated[float, Field(gt=0, le=1e6)] = 1.0

    def of(self, rows: int, megapixels: float) -> float:
        """The cost of an answered request; one whose units are not known costs one unit."""
        units = {"request": 1.0, "rows": float(rows), "megapixels": megapixels}[self.per]
        return self.amount * (units or 1.0)


class Latest(Strict):
    """The newest `latest` versions of the store."""

    latest: int = Field(ge=1, le=1000)


Weight = Annotated[float, Field(gt=0, le=1e6)]
VersionNumber = Annotated[int, Field(ge=0, lt=10**18)]


class ModelConfig(Strict):
    """One model of the store. `runtime` follows from its files, `slot_class` from its runtime.

    An `exclusive` model shares its slot with none; others share it as far as the slot's memory
    goes, where both say their `memory`. `swap` says what happens when a new version finds no free
    slot: `aside` waits for one, `in-place` unloads the old version first. `keep_previous` keeps the
    version before warm, for an instant rollback, while nobody needs its slot.
    """

    runtime: RuntimeName | None = None
    slot_class: Name | None = None
    replicas: Replicas = Replicas()
    scaling: Scaling = Scaling()
    share: Share = Share()
    exclusive: bool = False
    memory: ByteSize | None = None
    versions: Literal["latest", "all"] | Latest | tuple[VersionNumber, ...] = "latest"
    labels: dict[Name, VersionNumber] = Field(default_factory=dict)
    swap: Literal["aside", "in-place"] = "aside"
    keep_previous: bool = True
    batching: Batching = Batching()
    routing: Routing = Routing()
    cost: Cost | None = None
    sharding: ShardingConfig | None = None

    def part_of(self, slots: SlotClass) -> float:
        """The part of a slot of that class that one copy takes, above 0 and up to 1."""
        if self.exclusive:
            return 1.0
        by_memory = self.memory / slots.memory if self.memory and slots.memory else 0.0
        return max(1.0 / slots.max_models, min(1.0, by_memory))

    def slot_class_for(self, runtime: RuntimeName) -> str:
        """The slot class that holds this model if this runtime loads it."""
        return self.slot_class or RUNTIMES[runtime].slot_class


class PoolConfig(Strict):
    """The Pool's `user_config:`; a change reaches every process without a restart.

    `shares` holds the weights of groups of models (1 where there is none). `tiers: off` (which
    YAML reads as false) serves everybody alike and asks for no credential.
    """

    models: dict[Name, ModelConfig] = Field(default_factory=dict)
    shares: dict[Name, Weight] = Field(default_factory=dict)
    leases: Leases = Leases()
    tiers: dict[Name, Tier] | None = Field(default_factory=dict, validate_default=True)
    auth: AuthConfig = AuthConfig()

    @field_validator("tiers", mode="before")
    @classmethod
    def _off(cls, data: Any) -> Any:
        return None if data is False or data == "off" else with_defaults(data)

    @model_validator(mode="after")
    def _tiers_exist(self) -> Self:
        named = self.auth.jwt.default_tier if self.auth.jwt is not None else ANONYMOUS
        if self.tiers is not None and named not in self.tiers:
            raise ValueError(f"`auth.jwt.default_tier` names no tier: {named!r}")
        certificates = self.auth.certificates
        if self.tiers is not None and certificates is not None:
            for tier in sorted(certificates.tiers - self.tiers.keys()):
                raise ValueError(f"`auth.certificates` names no tier: {tier!r}")
        return self
