from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from autoscale.rollout import Rollout, Situation, VersionRevision, labels_now, roll_out


def situation(
    *wanted: int,
    ready: dict[int, int] | None = None,
    serving: tuple[int, ...] = (),
    **more: Any,
) -> Situation:
    """Everything at revision 0, unless told otherwise."""
    stored = frozenset(wanted) | set(ready or {}) | set(serving)
    given: dict[str, Any] = {"candidates": frozenset(wanted), "stored": stored, **more}
    for name in ("stuck", "failed"):
        given[name] = frozenset((version, 0) for version in given.get(name, ()))
    return Situation(
        wanted=tuple((version, 0) for version in wanted),
        ready={(version, 0): count for version, count in (ready or {}).items()},
        serving=tuple((version, 0) for version in serving),
        **given,
    )


def versions(targets: Any) -> list[int]:
    return [version for version, _ in targets]


def test_a_fresh_model_serves_its_newest_ready_version() -> None:
    first = roll_out(situation(1, 2))
    assert (first.default, first.keep, first.spare) == (2, frozenset(), frozenset())
    one = roll_out(situation(1, 2, ready={1: 1}, serving=()))
    assert one.default == 1 and sorted(versions(one.serving)) == [1, 2]
    both = roll_out(situation(1, 2, ready={1: 1, 2: 1}, serving=(2, 1)))
    assert both.default == 2


def test_the_old_version_serves_until_the_new_one_is_ready_and_is_then_kept_warm() -> None:
    loading = roll_out(situation(2, ready={1: 1}, serving=(1,)))
    assert loading.default == 1 and versions(loading.keep) == [1]
    swapped = roll_out(situation(2, ready={1: 1, 2: 1}, serving=(2, 1)))
    assert swapped.default == 2 and versions(swapped.serving) == [2]
    assert (swapped.keep, versions(swapped.spare)) == (frozenset(), [1])
    cold = roll_out(situation(2, ready={1: 1, 2: 1}, serving=(2, 1)), keep_previous=False)
    assert cold.default == 2 and not cold.keep and not cold.spare


def test_the_swap_waits_for_all_replicas_that_fit() -> None:
    one = situation(2, ready={1: 3, 2: 1}, serving=(2, 1), desired=3)
    assert roll_out(one).default == 1 and versions(roll_out(one).keep) == [1]
    full = situation(2, ready={1: 3, 2: 1}, serving=(2, 1), desired=3, stuck=(2,))
    assert roll_out(full).default == 2 and versions(roll_out(full).spare) == [1]


def test_a_version_that_fails_never_takes_traffic() -> None:
    failing = roll_out(situation(2, ready={1: 1}, serving=(2, 1), failed=(2,)))
    assert failing.default == 1 and versions(failing.keep) == [1]


def test_in_place_the_old_version_gives_way() -> None:
    stuck = situation(2, ready={1: 1}, serving=(1,), stuck=(2,))
    assert versions(roll_out(stuck).keep) == [1]
    giving = roll_out(stuck, in_place=True)
    assert giving.keep == frozenset() and versions(giving.spare) == [1] and giving.default == 1
    gone = roll_out(situation(2, serving=(2, 1)), in_place=True)
    assert gone.default == 2


def test_a_rollback_to_a_warm_version_is_one_step() -> None:
    back = roll_out(situation(1, ready={1: 1, 2: 1}, serving=(2,)))
    assert back.default == 1 and versions(back.spare) == [2]


def test_the_default_outlives_the_death_of_its_slot() -> None:
    dead = roll_out(situation(1, 2, ready={1: 1}, serving=(1, 2)))
    assert dead.default == 2
    failing = roll_out(situation(1, 2, ready={1: 1}, serving=(1, 2), failed=(2,)))
    assert failing.default == 1


def test_a_version_that_only_a_label_names_is_never_the_default() -> None:
    labelled = situation(1, 2, ready={1: 1, 2: 1}, candidates=frozenset({1}))
    assert roll_out(labelled).default == 1
    assert sorted(versions(roll_out(labelled).serving)) == [1, 2]


def test_changed_files_of_the_same_version_swap_like_a_new_version() -> None:
    before = Situation(
        wanted=((1, 1),),
        candidates=frozenset({1}),
        ready={(1, 0): 1},
        serving=((1, 0),),
        stored=frozenset({1}),
    )
    assert roll_out(before).serving == ((1, 0),) and roll_out(before).keep == {(1, 0)}
    after = Situation(
        wanted=((1, 1),),
        candidates=frozenset({1}),
        ready={(1, 0): 1, (1, 1): 1},
        serving=((1, 0),),
        stored=frozenset({1}),
    )
    assert roll_out(after) == Rollout(serving=((1, 1),))


def test_only_the_newest_previous_version_stays_warm_and_only_while_it_is_stored() -> None:
    third = situation(3, ready={1: 1, 2: 1, 3: 1}, serving=(2, 3))
    assert versions(roll_out(third).spare) == [2]
    removed = situation(3, ready={2: 1, 3: 1}, serving=(3,), stored=frozenset({3}))
    assert roll_out(removed).spare == frozenset()


def test_nothing_wanted_serves_nothing() -> None:
    assert roll_out(situation(ready={1: 1}, serving=(1,))) == Rollout()


def test_labels_move_when_their_version_is_ready() -> None:
    waiting = Rollout(serving=((2, 0), (1, 0)))
    assert labels_now({"stable": 2}, {"stable": 1}, waiting, {(1, 0): 1}) == {"stable": 1}
    assert labels_now({"stable": 2}, {"stable": 1}, waiting, {(1, 0): 1, (2, 0): 1}) == {
        "stable": 2
    }
    assert labels_now({"stable": 2}, {}, waiting, {}) == {"stable": 2}
    assert labels_now({"stable": 7}, {}, waiting, {}) == {}
    assert labels_now({}, {"stable": 1}, waiting, {(1, 0): 1}) == {}


TARGETS = st.lists(
    st.tuples(st.integers(1, 4), st.integers(0, 1)), max_size=4, unique_by=lambda t: t[0]
).map(lambda targets: tuple(sorted(targets)))
COUNTS = st.dictionaries(st.tuples(st.integers(1, 4), st.integers(0, 1)), st.integers(0, 2))


@given(TARGETS, COUNTS, st.sets(st.integers(1, 4)), st.integers(1, 2), st.booleans())
def test_traffic_never_leaves_a_ready_version_for_one_that_is_not(
    wanted: tuple[VersionRevision, ...],
    ready: dict[VersionRevision, int],
    failed: set[int],
    desired: int,
    in_place: bool,
) -> None:
    serving: tuple[VersionRevision, ...] = ()
    stored = frozenset(range(1, 5))
    for _ in range(3):
        now = Situation(
            wanted=wanted,
            candidates=frozenset(version for version, _ in wanted),
            ready=ready,
            serving=serving,
            desired=desired,
            failed=frozenset(t for t in wanted if t[0] in failed),
            stored=stored,
        )
        result = roll_out(now, in_place=in_place)
        assert len({version for version, _ in result.serving}) == len(result.serving)
        assert not (result.keep & set(wanted)) and not (result.spare & set(wanted))
        before = now.serving[-1] if now.serving else None
        if wanted and before is not None and now.alive(before):
            assert now.alive(result.serving[-1])
        if wanted and any(now.done(t) for t in wanted) and before not in wanted:
            assert now.done(result.serving[-1])
        serving = result.serving
