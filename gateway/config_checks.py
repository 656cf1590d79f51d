"""What no single field can tell: models, slots and store must fit each other."""

from __future__ import annotations

import difflib
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from autoscale.fair_share import SlotAccount, check_guarantees
from autoscale.policy import policy_named
from autoscale.sharing import LEASES
from autoscale.water_filling import TOLERANCE
from gateway.yaml_source import KeyPath
from headrace.config.args import Args, Latest, ModelConfig, PoolConfig, Tls, split_address
from headrace.errors import ConfigError, ModelLoadError
from headrace.link.tls import link_tls
from headrace.runtimes import RuntimeName

Stored = Mapping[str, Mapping[int, RuntimeName | None]]
"""By model its versions in a local store, ascending, and their runtimes where the files tell."""

_LOOPBACK = ("127.", "localhost", "::1")


@dataclass(frozen=True, slots=True)
class Finding:
    """`path` begins with `args` or `pool`; a warning does not keep Headrace from starting."""

    path: KeyPath
    message: str
    warning: bool = False


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the nearest known word, or all known ones when none is near."""
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; known: {', '.join(names)}" if names else ""


def cross_check(args: Args, pool: PoolConfig) -> list[Finding]:
    """All mistakes and warnings of a config whose fields are valid one by one."""
    store = Path(args.store)
    is_local = "://" not in args.store
    stored = _stored(store) if is_local and store.is_dir() else None
    findings = [
        *_slots_of_models(args, pool, stored or {}),
        *_room(args, pool, stored or {}),
        *_tiers(args, pool),
        *_policies(pool),
        *_sharing(args, pool),
        *_listeners(args, pool),
        *_link(args),
    ]
    if stored is not None:
        findings += _store(args.store, stored, pool)
    elif is_local:
        message = f"there is no folder {args.store!r} to read; `make models` builds the demo's"
        findings.append(Finding(("args", "store"), message, warning=True))
    return findings


def _listeners(args: Args, pool: PoolConfig) -> Iterator[Finding]:
    """What anybody could read or do who reaches a listener; and files of TLS that are of no use."""
    listen, tls = args.listen, args.listen.tls
    encrypted = () if tls is None else tls.listeners
    shown = tls is not None and tls.client_ca and tls.client_certificates == "required"
    open_to_all = []
    for name in ("http", "grpc", "admin"):
        host, _ = split_address(getattr(listen, name))
        if host.startswith(_LOOPBACK):
            continue
        if name not in encrypted:
            what = "the admin token" if name == "admin" else "credentials and data"
            key = "`listen.tls`" if tls is None else f"`listen.tls.{name}: true`"
            message = f"{host} is not loopback: {what} would travel in clear; {key} encrypts"
            yield Finding(("args", "listen", name), message, warning=True)
        if name != "admin" and not (shown and name in encrypted):
            open_to_all.append(f"`listen.{name}`")
    if open_to_all and pool.tiers is None:
        message = f"{' and '.join(open_to_all)} beyond loopback let everybody in while it is off"
        yield Finding(("pool", "tiers"), message, warning=True)
    elif open_to_all and pool.auth.anonymous:
        message = (
            f"{' and '.join(open_to_all)} beyond loopback let in who has no credential; "
            "`auth.anonymous: false` asks for one"
        )
        yield Finding(("pool", "auth", "anonymous"), message, warning=True)
    if pool.auth.certificates is not None and (tls is None or tls.client_ca is None):
        message = "has no effect without `listen.tls.client_ca`: no client shows a certificate"
        yield Finding(("pool", "auth", "certificates"), message, warning=True)
    if tls is not None:
        yield from _tls_files(tls)


def _link(args: Args) -> Iterator[Finding]:
    """A link between nodes that others could read along; and files for it that are of no use."""
    path: KeyPath = ("args", "link", "tls")
    host, _ = split_address(args.listen.link)
    if args.link.tls == "off" and not host.startswith(_LOOPBACK):
        message = (
            f"`listen.link` is not loopback ({host}): requests and answers would travel between "
            "nodes in clear; `auto` encrypts"
        )
        yield Finding(path, message, warning=True)
    try:
        link_tls(args.link, b"")
    except ConfigError as error:
        yield Finding(path, error.message, warning=True)  # They may be on another machine.


def _tls_files(tls: Tls) -> Iterator[Finding]:
    from gateway.certificates import check_files  # with cryptography: 60 ms

    path: KeyPath = ("args", "listen", "tls")
    try:
        message = check_files(tls).warning(time.time())
    except ConfigError as error:
        message = error.message  # No mistake yet: they may be on another machine.
    if message is not None:
        yield Finding(path, message, warning=True)


def _stored(folder: Path) -> Stored | None:
    """What a folder stores, None if it cannot be read."""
    from replicas.repository import Repository  # with fsspec and numpy: 0.3 s

    try:
        store = Repository(str(folder), cache_dir=folder)  # of a local one nothing is cached
        return {
            model: {version: files.runtime for version, files in store.inspect(model).items()}
            for model in store.models()
        }
    except ModelLoadError:
        return None


def _tiers(args: Args, pool: PoolConfig) -> Iterator[Finding]:
    """Limits that could never let a request through, or that say nothing."""
    for name, tier in (pool.tiers or {}).items():
        path = ("pool", "tiers", name)
        for model, config in pool.models.items():
            if config.cost is not None and config.cost.amount > tier.capacity:
                message = (
                    f"{tier.capacity:g} is less than one request to {model!r} costs at least: "
                    f"{config.cost.amount:g}"
                )
                yield Finding((*path, "burst"), message)
        for model in tier.models or ():
            if model not in pool.models:
                message = f"there is no model {model!r}{did_you_mean(model, pool.models)}"
                yield Finding((*path, "models"), message, warning=True)
        if tier.max_body_bytes is not None and tier.max_body_bytes > args.limits.max_body_bytes:
            message = (
                f"more than `limits.max_body_bytes` ({args.limits.max_body_bytes}) has no effect"
            )
            yield Finding((*path, "max_body_bytes"), message, warning=True)
    believed = pool.auth.jwt or pool.auth.certificates
    if pool.tiers is None and (believed is not None or not pool.auth.anonymous):
        message = "has no effect while `tiers` is off: every caller is let in"
        yield Finding(("pool", "auth"), message, warning=True)


def _slot_class(model: ModelConfig, name: str, stored: Stored) -> str | None:
    """A model's slot class, by the files of its newest version if need be; None if unknown."""
    newest_first = reversed([*stored.get(name, {}).values()])
    runtime = model.runtime or next(filter(None, newest_first), None)
    return model.slot_class_for(runtime) if runtime else model.slot_class


def _slots_of_models(args: Args, pool: PoolConfig, stored: Stored) -> Iterator[Finding]:
    for name, model in pool.models.items():
        path = ("pool", "models", name)
        wanted = _slot_class(model, name, stored)
        if wanted is None:
            continue
        if wanted not in args.slots:
            default = "" if model.slot_class else ", the default of its runtime,"
            message = f"the slot class {wanted!r}{default} is not in args.slots"
            yield Finding((*path, "slot_class"), message + did_you_mean(wanted, args.slots))
            continue
        slots = args.slots[wanted]
        if model.replicas.min > slots.max:
            message = f"found {model.replicas.min}; the class {wanted!r} has {slots.max} slots"
            yield Finding((*path, "replicas", "min"), message)
        if model.memory and slots.memory and model.memory > slots.memory:
            message = f"more than a slot of {wanted!r} has: {slots.memory.human_readable()}"
            yield Finding((*path, "memory"), message)
        if model.runtime and model.runtime not in slots.preload:
            message = f"{model.runtime!r} is not preloaded in {wanted!r}: loading takes longer"
            yield Finding((*path, "runtime"), message, warning=True)


def _versions(name: str, model: ModelConfig, stored: Stored) -> int:
    """How many versions a model holds at least, as far as config and store tell."""
    numbers = list(stored.get(name, ()))
    if isinstance(model.versions, tuple):
        kept = set(model.versions)
    elif model.versions == "all":
        kept = set(numbers)
    else:
        kept = set(numbers[-(model.versions.latest if isinstance(model.versions, Latest) else 1) :])
    return max(1, len(kept | set(model.labels.values())))


def _room(args: Args, pool: PoolConfig, stored: Stored) -> Iterator[Finding]:
    """The sum of what models are guaranteed, against what the slots of each class hold."""
    wanted: dict[str | None, list[SlotAccount]] = {}
    for name, model in pool.models.items():
        slot_class = _slot_class(model, name, stored)
        slots = args.slots.get(slot_class) if slot_class is not None else None
        versions, replicas = _versions(name, model, stored), model.replicas
        account = SlotAccount(
            name,
            minimum=replicas.min * versions,
            maximum=replicas.max * versions,
            place=model.part_of(slots) if slots is not None else 1.0,
        )
        wanted.setdefault(slot_class, []).append(account)
    for slot_class, slots in args.slots.items():
        accounts = wanted.get(slot_class, [])
        message = check_guarantees(accounts, slots.max, slot_class)
        taken = sum(account.minimum * account.place for account in accounts)
        if message is not None:
            yield Finding(("args", "slots", slot_class), message)
        elif taken > slots.max - TOLERANCE and _swaps_aside(slot_class, pool, stored):
            message = (
                f"the guarantees of models take all {slots.max} slots, so a new version waits for "
                "a free one; raise `max` (or `count`) by one, or set `swap: in-place`"
            )
            yield Finding(("args", "slots", slot_class), message, warning=True)
    unknown = sum(account.minimum for account in wanted.get(None, []))
    known = sum(a.minimum * a.place for name in args.slots for a in wanted.get(name, []))
    # A model whose runtime and class are unknown takes some part of any slot.
    total = sum(slots.max * slots.max_models for slots in args.slots.values())
    if unknown and known + unknown > total:
        message = f"models ask for {known + unknown:g} placements; all slots hold {total}"
        yield Finding(("args", "slots"), message)


def _policies(pool: PoolConfig) -> Iterator[Finding]:
    """Policies of scaling that cannot be imported."""
    for name, model in pool.models.items():
        policy = model.scaling.policy
        try:
            policy_named(policy)
        except Exception as error:  # somebody else's module may fail in any way
            kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
            yield Finding(("pool", "models", name, "scaling", "policy"), f"{kind}{error}")


def _sharing(args: Args, pool: PoolConfig) -> Iterator[Finding]:
    """Groups without a model, a model named as the leases' account, and leases never granted."""
    leases = pool.leases
    groups = {model.share.group for model in pool.models.values()} | {leases.group}
    for group in pool.shares.keys() - groups:
        message = f"no model is in the group {group!r}{did_you_mean(group, groups)}"
        yield Finding(("pool", "shares", group), message, warning=True)
    if LEASES in pool.models:
        message = f"{LEASES!r} is the account of other work that leases slots: rename the model"
        yield Finding(("pool", "models", LEASES), message)
    if leases.grace_s > leases.max_grace_s:
        message = f"found {leases.grace_s:g}; `max_grace_s` is {leases.max_grace_s:g}"
        yield Finding(("pool", "leases", "grace_s"), message)
    most = max((each.max - each.least for each in args.slots.values()), default=0)
    if "max_slots" in leases.model_fields_set and leases.max_slots > most:
        message = (
            f"no class can lend more than {most}: slots beyond `min` and `warm`, up to its `max`"
        )
        yield Finding(("pool", "leases", "max_slots"), message, warning=True)


def _swaps_aside(slot_class: str, pool: PoolConfig, stored: Stored) -> bool:
    """Whether a model of the class follows its newest version and swaps beside the old one."""
    return any(
        model.swap == "aside"
        and not isinstance(model.versions, tuple)
        and _slot_class(model, name, stored) == slot_class
        for name, model in pool.models.items()
    )


def _store(store: str, stored: Stored, pool: PoolConfig) -> Iterator[Finding]:
    for name, model in pool.models.items():
        path = ("pool", "models", name)
        if name not in stored:
            message = f"the store {store!r} has no model {name!r}{did_you_mean(name, stored)}"
            yield Finding(path, message, warning=True)
            continue
        numbers = model.versions if isinstance(model.versions, tuple) else ()
        named: list[tuple[KeyPath, int]] = [(("versions",), number) for number in numbers]
        named += [(("labels", label), number) for label, number in model.labels.items()]
        for where, version in named:
            if version not in stored[name]:
                message = f"the store has no version {version} of {name!r}"
                yield Finding((*path, *where), message, warning=True)
