from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from autoscale.slot_book import FULL, OpenSlots

SIZES = (0.1, 0.125, 0.3, 0.35, 0.5, 1.0)
LOADED = st.lists(st.lists(st.sampled_from(SIZES), max_size=8), max_size=8)


@given(LOADED, st.lists(st.tuples(st.integers(0, 7), st.sampled_from(SIZES)), max_size=12))
def test_the_orders_are_those_of_a_look_at_all_slots(
    loaded: list[list[float]], more: list[tuple[int, float]]
) -> None:
    now = {f"s{n}": (min(sum(sizes), 1.0), len(sizes)) for n, sizes in enumerate(loaded)}
    slots = OpenSlots([(slot_id, *each) for slot_id, each in now.items()], min(SIZES))
    for number, size in [(-1, 0.0), *more]:
        slot_id = f"s{number}"
        if slot_id in now and now[slot_id][0] + size <= FULL:
            used, count = now[slot_id]
            now[slot_id] = (used + size, count + 1)
            slots.change(slot_id, *now[slot_id])
        assert slots.empty == sum(not count for _, count in now.values())
        for wanted in SIZES:
            fit = [s for s, (used, _) in now.items() if used + wanted <= FULL]
            assert list(slots.fewest(wanted)) == sorted(fit, key=lambda s: (now[s][1], s))
            assert list(slots.fullest(wanted)) == sorted(fit, key=lambda s: (-now[s][0], s))


def test_a_full_slot_comes_back_when_it_is_used_less() -> None:
    slots = OpenSlots([("a", 1.0, 2)], 0.1)
    assert not list(slots.fewest(0.1))
    slots.change("a", 0.5, 1)
    assert list(slots.fewest(0.5)) == list(slots.fullest(0.5)) == ["a"]
    assert not list(slots.fewest(0.6))
