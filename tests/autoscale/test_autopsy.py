from __future__ import annotations

import pytest

from autoscale.failures import autopsy
from headrace.snapshot import FailureKind, State
from replicas.last_words import Words

MB = 2**20


def words(memory_mb: int, limit_mb: int, exit_code: int | None = None, held: int = 1) -> Words:
    return Words(7, {}, held, memory_mb * MB, limit_mb * MB, exit_code, ("line",))


def test_without_last_words_it_just_died() -> None:
    text, found = autopsy("cpu", State.LOADING, 1, None)
    assert text == "the slot died while it was loading"
    assert (found.kind, found.exit_code, found.memory_bytes) == (FailureKind.DIED, None, 0)


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        (words(510, 500, 137), FailureKind.MEMORY),
        (words(451, 500), FailureKind.MEMORY),
        (words(449, 500), FailureKind.DIED),
        (words(9000, 0), FailureKind.DIED),
    ],
)
def test_the_memory_at_death_tells_the_kind(said: Words, kind: FailureKind) -> None:
    text, found = autopsy("cpu", State.WARMING, 1, said)
    assert found.kind is kind and found.lines == ("line",) and found.slot_class == "cpu"
    assert ("limit" in text) is (kind is FailureKind.MEMORY)
    assert (found.memory_bytes, found.limit_bytes) == (said.memory_bytes, said.limit_bytes)


def test_who_shared_the_slot_may_be_the_one_that_took_the_memory() -> None:
    alone = [
        autopsy("cpu", State.LOADING, *each)[1].alone for each in ((1, words(1, 1)), (2, None))
    ]
    told = autopsy("cpu", State.LOADING, 1, words(1, 1, held=3))[1].alone
    assert (alone, told) == ([True, False], False)
