from __future__ import annotations

from dataclasses import replace
from functools import partial

from hypothesis import given
from hypothesis import strategies as st
from pydantic import ByteSize

from autoscale.catalog import CatalogEntry
from autoscale.leases import Lease, LeaseBook, LeaseState
from autoscale.policy import DesiredSlots
from autoscale.sharing import (
    BELIEVED_S,
    CROWDED_S,
    FEWER_S,
    LEASES,
    START_S,
    ModelPlaces,
    ShareBook,
    TargetBook,
    divide,
    slots_needed,
)
from autoscale.slot_book import Room
from headrace.config.args import ModelConfig, PoolConfig, SlotClass
from headrace.config.scaling import Replicas, Share


def need(
    name: str,
    slots: int,
    *,
    least: int = 0,
    most: int = 100,
    size: float = 1.0,
    held: int = 0,
    lingering: bool = False,
    **share: object,
) -> ModelPlaces:
    config = ModelConfig(replicas=Replicas(min=least, max=most), share=Share.model_validate(share))
    return ModelPlaces(name, config, "cpu", DesiredSlots(slots, lingering), 1, size, held)


CLASSES = {"cpu": SlotClass(min=1, max=1000)}


def lone_leases(wanted: int, held: int = 0) -> LeaseBook:
    """Leases of one slot each, the first `held` of them granted."""
    states = [LeaseState.GRANTED] * held + [LeaseState.WAITING] * (wanted - held)
    leases = [
        Lease(str(number), "job", 1, "cpu", 5.0, 0, 1.0, 0.0, number, state)
        for number, state in enumerate(states)
    ]
    return LeaseBook({"cpu": 1000}, leases=leases)


def grants(*needs: ModelPlaces, slots: int, leases: int = 0, leased: int = 0) -> dict[str, int]:
    lent = lone_leases(leases, leased)
    division = divide(needs, PoolConfig(), CLASSES, {"cpu": slots}, lent, {})
    found = dict(division.grants)
    if leases:
        found[LEASES] = division.for_leases["cpu"]
    return found


def test_everybody_gets_what_it_wishes_while_there_is_enough() -> None:
    assert grants(need("a", 2), need("b", 3), slots=6) == {"a": 2, "b": 3}


def test_guarantees_come_first_and_the_rest_is_shared_by_weight() -> None:
    found = grants(need("a", 9, least=2, weight=1), need("b", 9, weight=3), slots=8)
    assert found["a"] >= 2
    assert found["b"] == 8 - found["a"] == 6


def test_a_lingering_model_is_no_account_and_keeps_its_wish() -> None:
    assert grants(need("a", 4), need("b", 1, lingering=True), slots=4) == {"a": 4, "b": 1}


def test_leases_get_what_models_leave_but_never_the_least_slots() -> None:
    assert grants(need("a", 1, least=1), slots=4, leases=9) == {"a": 1, LEASES: 3}
    assert grants(slots=4, leases=9) == {LEASES: 3}
    busy = grants(need("a", 4, least=1, priority=5), slots=4, leases=3, leased=3)
    assert busy["a"] + busy[LEASES] == 4
    assert busy["a"] >= 2, "the group of models has its half"


def test_slots_needed_are_the_sum_of_parts_or_the_most_copies() -> None:
    small = [need(str(number), 1, size=0.25) for number in range(5)]
    assert slots_needed(small, [1] * len(small)) == 2
    copies = need("a", 3, size=0.25)
    assert slots_needed([copies], [3]) == 3


def test_slots_needed_are_those_that_the_places_fit_into() -> None:
    large = [need(name, 1, size=0.6) for name in "abc"]
    assert slots_needed(large, [1] * 3) == 3, "no two fit into one"
    mixed = [*large, *(need(name, 1, size=0.4) for name in "xyz")]
    assert slots_needed(mixed, [1] * 6) == 3
    beside = [need("a", 3, size=0.25), need("b", 1)]
    assert slots_needed(beside, [3, 1]) == 4
    versions = replace(need("a", 2, size=0.5), versions=2)
    assert slots_needed([versions], [4]) == 2, "other versions may lie beside each other"


def test_what_serves_until_a_new_version_is_ready_needs_slots_too() -> None:
    swapped = replace(need("a", 2), leaving=2)
    assert slots_needed([swapped], [2]) == 4


def test_models_that_are_only_to_be_learned_of_make_do_with_one_slot() -> None:
    needs = [need("busy", 2)]
    needs += [
        ModelPlaces(str(n), ModelConfig(), "cpu", DesiredSlots(1, True, learning=True))
        for n in range(1000)
    ]
    division = divide(needs, PoolConfig(), CLASSES, {"cpu": 200}, LeaseBook({}), {})
    assert division.needed == {"cpu": 3}


def test_a_model_with_more_versions_than_places_still_gets_places() -> None:
    two = replace(need("a", 1), versions=2)
    assert grants(two, need("b", 2, least=2), slots=3) == {"a": 1, "b": 2}


def test_room_by_memory_exclusive_or_count() -> None:
    slots = {"cpu": SlotClass(max=4, max_models=10, memory=ByteSize(1000 * 1024 * 1024))}
    entries = [
        CatalogEntry("half", ModelConfig(memory=ByteSize(500 * 1024 * 1024)), "cpu"),
        CatalogEntry("alone", ModelConfig(exclusive=True), "cpu"),
        CatalogEntry("small", ModelConfig(), "cpu"),
        CatalogEntry("tiny", ModelConfig(memory=ByteSize(1024 * 1024)), "cpu"),
    ]
    room = Room({"cpu": 10}, {e.name: e.config.part_of(slots[e.slot_class]) for e in entries})
    sizes = {entry.name: room.size(entry.name, "cpu") for entry in entries}
    assert sizes == {"half": 0.5, "alone": 1.0, "small": 0.1, "tiny": 0.1}


class Targets:
    """A book of one class with a clock."""

    def __init__(self, slot_class: SlotClass) -> None:
        self.book, self.now_s = TargetBook({"cpu": slot_class}), 0.0

    def follow(self, needed: int, after_s: float = 0.0, leased: int = 0) -> int:
        self.now_s += after_s
        return self.book.follow({"cpu": needed}, {"cpu": leased}, self.now_s)["cpu"]

    def capacity(self, live: int, after_s: float = 0.0) -> int:
        self.now_s += after_s
        return self.book.update_capacity({"cpu": live}, {}, self.now_s)["cpu"]


def test_targets_rise_at_once_and_fall_after_a_while() -> None:
    targets = Targets(SlotClass(min=1, warm=1, max=6))
    assert targets.follow(3) == 4
    assert targets.follow(1) == 4
    assert targets.follow(1, after_s=FEWER_S / 2) == 4
    assert targets.follow(3) == 4, "needed again: the while begins anew"
    assert targets.follow(1, after_s=FEWER_S) == 4
    assert targets.follow(1, after_s=FEWER_S) == 2
    assert targets.follow(100) == 6
    assert targets.follow(0, after_s=1) == 6


def test_leased_slots_are_retired_at_once() -> None:
    targets = Targets(SlotClass(min=1, max=6))
    assert targets.follow(6) == 6
    assert targets.follow(2, leased=3) == 3


def test_slots_that_do_not_come_are_not_counted_on_until_they_do() -> None:
    targets = Targets(SlotClass(min=1, max=6))
    targets.follow(5)
    assert targets.capacity(live=2) == 6
    assert targets.capacity(live=2, after_s=START_S) == 2
    assert targets.capacity(live=5) == 6


def test_fewer_targets_do_not_bring_back_what_never_came() -> None:
    targets = Targets(SlotClass(min=1, max=6))
    targets.follow(5)
    targets.capacity(live=3)
    assert targets.capacity(live=3, after_s=START_S) == 3
    targets.follow(2)
    targets.follow(2, after_s=FEWER_S)
    assert targets.capacity(live=2) == 3
    targets.follow(5)
    assert targets.capacity(live=4) == 4, "one more came after all"
    assert targets.capacity(live=5) == 6, "all that is asked for"
    targets.capacity(live=3)
    assert targets.capacity(live=3, after_s=START_S) == 3
    targets.follow(3)
    targets.follow(3, after_s=FEWER_S)
    assert targets.capacity(live=3, after_s=BELIEVED_S) == 6


def test_what_fits_into_no_slot_gets_one_more_for_a_while() -> None:
    targets = Targets(SlotClass(min=1, max=6))
    targets.follow(2)
    targets.book.note_crowded({"cpu": 1}, {"cpu": 1}, {}, 0.0)
    assert targets.follow(2) == 2, "one is on its way"
    targets.book.note_crowded({"cpu": 1}, {"cpu": 2}, {}, 0.0)
    assert targets.follow(2) == 3
    targets.book.note_crowded({}, {"cpu": 3}, {}, 100.0)
    assert targets.follow(2, after_s=100.0) == 3
    targets.book.note_crowded({}, {"cpu": 3}, {}, CROWDED_S)
    targets.follow(2)
    assert targets.follow(2, after_s=FEWER_S) == 2


def test_a_class_that_cannot_grow_is_no_larger_after_a_crowd() -> None:
    targets = Targets(SlotClass(min=1, max=3))
    targets.follow(3)
    for _ in range(5):
        targets.book.note_crowded({"cpu": 2}, {"cpu": 3}, {}, 0.0)
    targets.follow(1)
    assert targets.follow(1, after_s=FEWER_S) == 1
    targets.follow(2)
    targets.book.note_crowded({"cpu": 1}, {"cpu": 2}, {"cpu": 1}, FEWER_S)
    assert targets.follow(2) == 2, "the third slot is leased"


@given(
    st.lists(
        st.tuples(st.integers(0, 9), st.integers(0, 3), st.integers(-2, 2), st.integers(1, 4)),
        min_size=1,
        max_size=8,
    ),
    st.integers(1, 12),
    st.integers(0, 6),
)
def test_never_more_than_there_is(
    models: list[tuple[int, int, int, int]], slots: int, leases: int
) -> None:
    needs = [
        need(str(number), max(slots_asked, least), least=least, priority=priority, weight=weight)
        for number, (slots_asked, least, priority, weight) in enumerate(models)
    ]
    classes = {"cpu": SlotClass(min=0, max=1000)}
    division = divide(needs, PoolConfig(), classes, {"cpu": slots}, lone_leases(leases), {})
    total = sum(division.grants.values()) + division.for_leases["cpu"]
    assert total <= slots
    assert all(division.grants[n.name] <= n.desired.slots for n in needs)
    if sum(n.config.replicas.min for n in needs) <= slots:
        assert all(division.grants[n.name] >= n.config.replicas.min for n in needs)


def test_what_no_gang_fits_into_is_for_models() -> None:
    def divided(gang: int) -> tuple[int, int]:
        book = LeaseBook({"cpu": 4})
        book.request("gang", "job", gang, "cpu", 5.0, 0, 1.0, 0.0)
        classes = {"cpu": SlotClass(min=0, max=4)}
        division = divide([need("a", 4)], PoolConfig(), classes, {"cpu": 4}, book, {})
        return division.grants["a"], division.for_leases["cpu"]

    assert divided(2) == (2, 2)
    assert divided(3) == (4, 0)


WISHES = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 4), st.booleans()), max_size=8)


@given(st.lists(st.tuples(WISHES, st.integers(1, 9), st.integers(0, 2)), max_size=5))
def test_a_book_saves_work_and_changes_no_answer(
    rounds: list[tuple[list[tuple[int, int, bool]], int, int]],
) -> None:
    book = ShareBook()
    for asked_for, slots, leases in rounds:
        needs = [
            need(str(n), wanted, held=held, lingering=lingering, size=0.3 if n % 2 else 1.0)
            for n, (wanted, held, lingering) in enumerate(asked_for)
        ]
        classes = {"cpu": SlotClass(min=0, max=9)}
        lent = lone_leases(leases)
        asked = partial(divide, needs, PoolConfig(), classes, {"cpu": slots}, lent, {})
        assert asked(book=book) == asked()
        assert asked(book=book).shares["cpu"] is asked(book=book).shares["cpu"]
