from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from autoscale.catalog import CatalogEntry
from autoscale.decision import Decision, Observation, decide
from autoscale.failures import Failures
from autoscale.fleet import states_of
from autoscale.policy import DesiredSlots
from autoscale.pool_view import model_view
from autoscale.slot_book import DesiredVersion, Hold
from headrace.config.args import ModelConfig, PoolConfig
from headrace.config.scaling import Replicas
from headrace.snapshot import ModelVersion, Placement, SlotView, State


def entry(*versions: int, **config: Any) -> CatalogEntry:
    return CatalogEntry("m", ModelConfig(**config), "cpu", versions)


def placed(version: int, state: State = State.READY, revision: int = 0) -> Placement:
    return Placement(f"slot-{version}", "m", version, state, revision=revision)


def decided(
    known: CatalogEntry,
    *placements: Placement,
    failed: ModelVersion | None = None,
    stopping: str | None = None,
    rejected: Mapping[str, frozenset[int]] = MappingProxyType({}),
    revisions: Mapping[tuple[str, int], int] = MappingProxyType({}),
    **more: Any,
) -> Decision:
    found = Observation(
        PoolConfig(),
        [known],
        [SlotView(stopping, "cpu", "", "", "", draining=True)] if stopping else [],
        placements,
        retry_at={failed: 1.0} if failed else {},
        rejected=rejected,
        revisions=revisions,
    )
    return decide(found, **more)


def test_a_swap_wants_the_new_version_and_keeps_the_old_one() -> None:
    decision = decided(entry(1, 2), placed(1), serving={"m": ((1, 0),)})
    assert decision.wants == [DesiredVersion("m", 2, 1, "cpu", guaranteed=1)]
    assert decision.holds == {ModelVersion("m", 1): Hold.KEEP}
    assert not decision.models["m"].settled()


def test_after_the_swap_the_old_version_may_stay() -> None:
    decision = decided(entry(1, 2), placed(1), placed(2), serving={"m": ((1, 0),)})
    assert decision.holds == {ModelVersion("m", 1): Hold.YIELD}
    assert decision.models["m"].rollout.default == 2 and decision.models["m"].settled()


def test_a_version_whose_only_slot_stops_does_not_take_over() -> None:
    both = (placed(1), placed(2))
    decision = decided(entry(1, 2), *both, serving={"m": ((1, 0),)}, stopping="slot-2")
    assert decision.holds == {ModelVersion("m", 1): Hold.KEEP}
    assert decision.models["m"].rollout.default == 1
    alone = decided(entry(2), placed(2), serving={"m": ((2, 0),)}, stopping="slot-2")
    assert alone.models["m"].rollout.serving == ((2, 0),), "it answers until its slot ends"


def test_a_rejected_version_is_not_wanted() -> None:
    decision = decided(entry(1, 2), placed(2), rejected={"m": frozenset({2})})
    assert [want.version for want in decision.wants] == [1]


def test_a_labelled_version_is_wanted_beside_the_policy_but_never_the_default() -> None:
    decision = decided(entry(1, 2, 3, labels={"stable": 1}))
    assert [want.version for want in decision.wants] == [1, 3]
    assert (
        decided(entry(1, 2, labels={"old": 2}, versions=(1,)), placed(2))
        .models["m"]
        .rollout.default
        == 1
    )


def test_replicas_and_revisions_go_into_the_wants() -> None:
    decision = decided(entry(1, replicas=Replicas(min=3)), revisions={("m", 1): 2})
    assert decision.wants == [DesiredVersion("m", 1, 3, "cpu", 2, guaranteed=3)]


def granted(known: CatalogEntry, places: int, *placements: Placement, **more: Any) -> list[int]:
    decision = decided(known, *placements, granted={"m": places}, **more)
    return [want.target for want in decision.wants]


def test_where_places_are_fewer_than_versions_the_default_one_gets_them() -> None:
    both = entry(1, 2, versions="all", replicas=Replicas(min=0, max=2))
    wish = {"desired": {"m": DesiredSlots(2)}}
    assert [granted(both, places, **wish) for places in range(5)] == [
        [0, 0],
        [0, 1],
        [1, 1],
        [1, 2],
        [2, 2],
    ]
    served = {"serving": {"m": ((2, 0), (1, 0))}, **wish}
    assert granted(both, 1, placed(1), failed=ModelVersion("m", 2), **served) == [1, 0]
    assert granted(both, 3, placed(1), failed=ModelVersion("m", 2), **served) == [2, 1]


def test_a_broken_new_version_of_a_sleeping_model_takes_no_traffic() -> None:
    asleep: dict[str, Any] = {"serving": {"m": ((1, 0),)}, "desired": {"m": DesiredSlots(0)}}
    fresh = decided(entry(1, 2), **asleep).models["m"]
    assert fresh.rollout.default == 2
    broken = decided(entry(1, 2), failed=ModelVersion("m", 2), **asleep).models["m"]
    assert broken.rollout.default == 1


def test_the_view_tells_states_reasons_and_what_is_kept_warm() -> None:
    placements = (placed(1), placed(2), placed(3, State.LOADING))
    decision = decided(entry(1, 2, 3), *placements, serving={"m": ((2, 0),)})
    failures = Failures()
    view = model_view(decision.models["m"], states_of(placements), {}, failures, {}, None, 0.0)
    assert view.default == 2
    assert [(v.version, v.state, v.served) for v in view.versions] == [
        (1, State.READY, False),
        (2, State.READY, True),
        (3, State.LOADING, True),
    ]
    failures.add(ModelVersion("m", 3), "bad file", 0.0)
    two = states_of(placements[:2])
    told = model_view(decision.models["m"], two, {}, failures, {}, view, 0.0)
    assert (told.versions[2].state, told.versions[2].reason) == (State.FAILED, "bad file")
    waiting = {ModelVersion("m", 3): "needs 1 slot"}
    told = model_view(decision.models["m"], two, {}, Failures(), waiting, view, 0.0)
    assert (told.versions[2].state, told.versions[2].reason) == (State.PENDING, "needs 1 slot")


def test_a_label_that_names_no_version_of_the_store_is_told() -> None:
    def told(known: CatalogEntry) -> str:
        placements = (placed(1),)
        decision = decided(known, *placements, serving={"m": ((1, 0),)}).models["m"]
        return model_view(decision, states_of(placements), {}, Failures(), {}, None, 0.0).reason

    assert told(entry(1, labels={"stable": 1})) == ""
    assert told(entry(1, labels={"stable": 1, "new": 7, "old": 8})) == (
        "label 'new' names version 7, which is not served; "
        "label 'old' names version 8, which is not served"
    )
    missing = replace(entry(1, labels={"new": 7}, versions=(7,)), reason="no version 7")
    assert told(missing).startswith("no version 7; label 'new' names version 7")
    # Without any version the reason alone says that there is nothing to wait for.
    assert told(entry(labels={"stable": 1})) == ""


def test_the_last_good_version_stays_wanted_while_what_follows_is_missing_or_broken() -> None:
    serving = {"m": ((6, 0),)}
    for in_place in ("aside", "in-place"):
        decision = decided(
            entry(5, 6, 7, swap=in_place), placed(6), serving=serving, failed=ModelVersion("m", 7)
        )
        assert [want.version for want in decision.wants] == [6, 7]
        assert ModelVersion("m", 6) not in decision.holds
        assert decision.models["m"].rollout.default == 6
    gone = decided(entry(5, 7), serving=serving, failed=ModelVersion("m", 7))
    assert [want.version for want in gone.wants] == [7]
    asked = decided(entry(5, 6, versions=(9,)), placed(6), serving=serving)
    assert [want.version for want in asked.wants] == [6]
    assert asked.models["m"].rollout.default == 6
    trying = decided(entry(5, 6, 7), serving=serving)
    assert [want.version for want in trying.wants] == [7]


def test_while_the_store_has_told_nothing_everything_stays() -> None:
    unknown = CatalogEntry("m", ModelConfig(), "cpu", known=False)
    decision = decided(unknown, placed(1), placed(2), serving={"m": ((2, 0),)})
    assert decision.holds == {ModelVersion("m", 1): Hold.KEEP, ModelVersion("m", 2): Hold.KEEP}
    assert decision.models["m"].rollout.default == 2
    assert decided(unknown, placed(1)).models["m"].rollout.default == 1
