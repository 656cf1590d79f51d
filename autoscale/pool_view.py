"""State of the pool for operators: slots and places held, wanted, lent and borrowed; pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from autoscale.catalog import CatalogEntry
from autoscale.decision import ModelDecision
from autoscale.decision_log import Made
from autoscale.failures import Failures
from autoscale.fair_share import Shares, SlotAccount, lent_by
from autoscale.policy import DesiredSlots
from autoscale.rollout import VersionRevision, labels_now
from autoscale.sharing import LEASES, Division, ModelPlaces
from autoscale.slot_book import HELD
from headrace.config.args import SlotClass
from headrace.snapshot import ModelVersion, ModelView, Placement, SlotView, State, VersionView
from headrace.spec import ModelSpec

Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class PoolFacts:
    """Facts for the view.

    `waiting` is why versions wait, `leased` the number of slots by class, `leases` the documents of
    leases.
    """

    classes: Mapping[str, SlotClass]
    slots: Sequence[SlotView] = ()
    placements: Sequence[Placement] = ()
    entries: Sequence[CatalogEntry] = ()
    desired: Mapping[str, DesiredSlots] = field(default_factory=dict)
    division: Division = field(default_factory=Division)
    targets: Mapping[str, int] = field(default_factory=dict)
    waiting: Mapping[ModelVersion, str] = field(default_factory=dict)
    leased: Mapping[str, int] = field(default_factory=dict)
    leases: Sequence[Mapping[str, Any]] = ()
    decisions: Sequence[Made] = ()


@dataclass(frozen=True, slots=True)
class _Sharing:
    """How the slots of one class are shared, by account."""

    accounts: Mapping[str, SlotAccount] = field(default_factory=dict)
    shares: Shares = field(default_factory=lambda: Shares(0.0))
    lent: Mapping[str, float] = field(default_factory=dict)


def render_pool(facts: PoolFacts) -> Document:
    """`{classes, accounts, groups, leases, decisions}`, as in `docs/operations.md`."""
    sharing = {
        slot_class: _Sharing(
            {account.name: account for account in facts.division.accounts.get(slot_class, ())},
            shares,
            lent_by(shares.loans, group=False),
        )
        for slot_class, shares in facts.division.shares.items()
    }
    return {
        "classes": [_class(name, facts) for name in facts.classes],
        "accounts": [*_models(facts, sharing), *_borrowers(facts, sharing)],
        "groups": list(_groups(sharing)),
        "leases": list(facts.leases),
        "decisions": [
            {
                "at": datetime.fromtimestamp(made.at_s, UTC).isoformat(timespec="milliseconds"),
                "kind": made.kind,
                "what": made.what,
                "why": made.why,
            }
            for made in facts.decisions
        ],
    }


def gauges(
    view: Mapping[str, Any],
) -> tuple[dict[tuple[str, str], float], dict[tuple[str, str], float], dict[str, float]]:
    """Metrics: slots by (class, kind), places by (account, kind), utilisation by class."""
    slots = {
        (each["slot_class"], kind): float(each[kind])
        for each in view["classes"]
        for kind in ("capacity", "live", "target", "held", "leased")
    }
    places: Counter[tuple[str, str]] = Counter()
    for account in view["accounts"]:
        for kind in ("wanted", "granted", "held", "borrowed"):
            places[account["name"], kind] += account[kind]
    used = {each["slot_class"]: float(each["utilisation"]) for each in view["classes"]}
    return slots, {labels: float(count) for labels, count in places.items()}, used


def _class(name: str, facts: PoolFacts) -> Document:
    """`held` slots have placements, `free` ones have none; both without `leased` ones."""
    slots = {s.slot_id for s in facts.slots if s.slot_class == name and not s.draining}
    held = len(slots & {p.slot_id for p in facts.placements if p.state in HELD})
    leased = facts.leased.get(name, 0)
    there = len(slots) + leased
    each = facts.classes[name]
    return {
        "slot_class": name,
        "min": each.min,
        "warm": each.warm,
        "max": each.max,
        "capacity": facts.division.capacity.get(name, each.max),
        "live": len(slots),
        "target": facts.targets.get(name, 0),
        "needed": facts.division.needed.get(name, 0),
        "held": held,
        "leased": leased,
        "free": len(slots) - held,
        "utilisation": round((held + leased) / there, 4) if there else 0.0,
        "warning": shares.warning() if (shares := facts.division.shares.get(name)) else "",
    }


def _models(facts: PoolFacts, sharing: Mapping[str, _Sharing]) -> Iterator[Document]:
    held = Counter(p.model for p in facts.placements if p.state in HELD)
    waiting: dict[str, list[str]] = {}
    for key, reason in facts.waiting.items():
        waiting.setdefault(key.model, []).append(f"version {key.version} {reason}")
    for entry in facts.entries:
        name = entry.name
        desired = facts.desired.get(name, DesiredSlots(0))
        reasons = waiting.get(name, []) or ([entry.reason] if entry.reason else [])
        mine = sharing.get(entry.slot_class, _Sharing())
        account = mine.accounts.get(name)
        if account is None:  # lingering, or not decided on yet
            places = ModelPlaces(name, entry.config, entry.slot_class, desired, held=held[name])
            account = places.account(0.0)
        # Lingering models have no part in the sharing: they keep what no other one needs.
        granted = mine.shares.granted.get(name, held[name] if desired.lingering else 0)
        yield {
            **_account(account, mine, held[name], granted),
            "kind": "model",
            "slot_class": entry.slot_class,
            "state": _state(account, desired, held[name], reasons),
            "why": desired.why,
            "waiting": "; ".join(reasons),
        }


def _borrowers(facts: PoolFacts, sharing: Mapping[str, _Sharing]) -> Iterator[Document]:
    for slot_class, mine in sharing.items():
        account = mine.accounts.get(LEASES)
        if account is None:
            continue
        leases = [each for each in facts.leases if each["slot_class"] == slot_class]
        states = Counter(str(each["state"]) for each in leases)
        held = facts.leased.get(slot_class, 0)
        yield {
            **_account(account, mine, held, mine.shares.granted[LEASES]),
            "kind": "leases",
            "slot_class": slot_class,
            "state": "waiting" if held < account.wanted else "served",
            "why": ", ".join(f"{count} {state}" for state, count in sorted(states.items())),
            "waiting": "",
        }


def _groups(sharing: Mapping[str, _Sharing]) -> Iterator[Document]:
    """Slots that whole groups may have, use and lend."""
    for slot_class, mine in sharing.items():
        shares = mine.shares
        lent = lent_by(shares.loans, group=True)
        for group in sorted({account.group for account in mine.accounts.values()}):
            members = [each for each in mine.accounts.values() if each.group == group]
            yield {
                "group": group,
                "slot_class": slot_class,
                "entitled": round(sum(shares.entitled[m.name] for m in members), 3),
                "used": round(sum(shares.granted[m.name] * m.place for m in members), 3),
                "lends": round(lent.get(group, 0.0), 3),
            }


def _account(account: SlotAccount, sharing: _Sharing, held: int, granted: int) -> Document:
    """Figures in places of `size` slots each; `borrows_from` and `lends` are in slots."""
    name, shares = account.name, sharing.shares
    return {
        "name": name,
        "group": account.group,
        "weight": account.weight,
        "priority": account.priority,
        "min": account.minimum,
        "max": account.maximum,
        "size": round(account.place, 4),
        "wanted": account.wanted,
        "granted": granted,
        "guaranteed": shares.guaranteed.get(name, 0),
        "own": shares.own.get(name, 0),
        "borrowed": shares.borrowed.get(name, 0),
        "held": held,
        "borrows_from": [
            {"lender": loan.lender, "slots": round(loan.slots, 3), "group": loan.group}
            for loan in shares.loans.get(name, ())
        ],
        "lends": round(sharing.lent.get(name, 0.0), 3),
        "hungry_s": round(account.hungry_s, 1),
        "turn": name in shares.turns,
    }


def _state(account: SlotAccount, desired: DesiredSlots, held: int, reasons: Sequence[str]) -> str:
    """One word: `asleep`, `lingering`, `hungry` (it has nothing), `waiting`, `served`."""
    if not desired.slots and not held:
        return "asleep"
    if desired.lingering:
        return "lingering"
    if desired.slots and not held:
        return "hungry"
    return "waiting" if reasons or held < account.most else "served"


_PROGRESS = (State.READY, State.WARMING, State.LOADING, State.DRAINING)
"""States of a version with placements: the first that one of them has."""


def model_view(
    decision: ModelDecision,
    states: Mapping[ModelVersion, list[State]],
    specs: Mapping[ModelVersion, ModelSpec],
    failures: Failures,
    waiting: Mapping[ModelVersion, str],
    before: ModelView | None,
    now_s: float,
) -> ModelView:
    """View of a model: the versions that are served, and others that slots still hold."""
    entry, rollout = decision.entry, decision.rollout
    name = entry.name

    def view(target: VersionRevision, *, served: bool) -> VersionView:
        key = ModelVersion(name, *target)
        asleep = decision.situation.desired == 0 and key in specs
        there = [state for state in _PROGRESS if state in states.get(key, ())]
        if there:
            state, reason = there[0], ""
        elif key in failures and not (asleep and failures.due(key, now_s)):
            state, reason = State.FAILED, failures.reason(key)
        elif asleep and key not in waiting:
            state, reason = State.SLEEPING, "its next request wakes it"
        else:
            state, reason = State.PENDING, waiting.get(key, "")
        return VersionView(target[0], state, specs.get(key), reason, served, target[1])

    versions = {target[0]: view(target, served=True) for target in rollout.serving}
    for key in states:
        if key.model == name and key.version not in versions:
            versions[key.version] = view((key.version, key.revision), served=False)
    labels = labels_now(
        entry.config.labels,
        before.labels if before is not None else {},
        rollout,
        decision.situation.ready,
    )
    return ModelView(
        name,
        entry.config,
        tuple(versions[number] for number in sorted(versions)),
        "; ".join(_reasons(decision, labels)),
        rollout.default,
        labels,
        dict(entry.incomplete),
    )


def _reasons(decision: ModelDecision, labels: Mapping[str, int]) -> Iterator[str]:
    """What the store lacks for the model, and labels whose version is not served.

    A model with a reason and no version is not waited for, so labels alone must not give a reason.
    """
    entry = decision.entry
    if entry.reason:
        yield entry.reason
    for label, version in entry.config.labels.items() if decision.rollout.serving else ():
        if label not in labels:
            yield f"label {label!r} names version {version}, which is not served"
