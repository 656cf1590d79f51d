from __future__ import annotations

import math

import pytest
from pydantic import ByteSize

from autoscale.failures import Failures, autopsy, backoff_s, largest_above
from headrace.config.args import SlotClass
from headrace.snapshot import Evidence, FailureKind, ModelVersion, State
from replicas.last_words import Words

KEY = ModelVersion("m", 1)
BROKEN = Evidence(FailureKind.BROKEN, "cpu")


def slot_class(megabytes: int | None, **more: object) -> SlotClass:
    memory = None if megabytes is None else ByteSize(megabytes * 2**20)
    return SlotClass.model_validate({"memory": memory, **more})


CLASSES = {"cpu": slot_class(500), "big": slot_class(2000), "mid": slot_class(1000)}


def out_of_memory(name: str = "cpu", *, alone: bool = True, proven: bool = False) -> Evidence:
    return Evidence(FailureKind.MEMORY, name, 137, 501, 500, alone, proven)


def test_backoff_doubles_up_to_a_minute() -> None:
    assert [backoff_s(n) for n in (0, 1, 2, 3, 5, 6, 5000)] == [0, 2, 4, 8, 32, 60, 60]


def test_each_failure_in_a_row_waits_longer_until_it_is_forgotten() -> None:
    failures, key = Failures(), ModelVersion("m", 1)
    failures.add(key, "bad file", 100.0)
    assert failures.retry_at() == {key: 102.0}
    failures.add(key, "worse file", 102.0)
    assert failures.retry_at() == {key: 106.0} and failures.reason(key) == "worse file"
    failures.forget([key, ModelVersion("absent", 1)])
    assert key not in failures and failures.reason(key) == ""
    failures.add(key, "bad file", 200.0)
    assert failures.retry_at() == {key: 202.0}


def test_a_model_is_forgotten_with_all_its_versions() -> None:
    failures = Failures()
    for key in (ModelVersion("m", 1), ModelVersion("m", 2, 1), ModelVersion("n", 1)):
        failures.add(key, "bad", 0.0)
    failures.forget_model("m")
    assert list(failures.retry_at()) == [ModelVersion("n", 1)]


def test_files_that_are_refused_twice_wait_for_a_change() -> None:
    failures = Failures()
    failures.add(KEY, "cut short", 100.0, BROKEN)
    assert failures.retry_at() == {KEY: 102.0}
    failures.add(KEY, "cut short", 102.0, BROKEN)
    assert failures.retry_at() == {KEY: math.inf} and not failures.due(KEY, 1e9)
    failures.renew([KEY])
    failures.add(KEY, "cut short", 200.0, BROKEN)
    assert failures.retry_at() == {KEY: 202.0}


def test_what_may_pass_does_not_count_against_the_files() -> None:
    failures = Failures()
    for now_s in (0.0, 10.0, 20.0):
        failures.add(KEY, "the store is away", now_s)
    failures.add(KEY, "cut short", 30.0, BROKEN)
    assert failures.retry_at() == {KEY: 46.0}


def test_files_that_another_slot_holds_are_not_given_up() -> None:
    failures = Failures(CLASSES)
    for number in range(5):
        proven = Evidence(FailureKind.BROKEN, "cpu", proven=True)
        failures.add(KEY, "refused", float(number), proven)
        failures.add(KEY, "killed", float(number), out_of_memory("big", proven=True))
    assert math.isfinite(failures.retry_at()[KEY]) and failures.too_small() == {}


def test_out_of_memory_is_tried_once_in_the_largest_class() -> None:
    failures = Failures(CLASSES)
    assert failures.class_for("m", 1, "cpu") == "cpu"
    failures.add(KEY, "killed", 0.0, out_of_memory())
    assert failures.retry_at() == {KEY: 2.0} and failures.class_for("m", 1, "cpu") == "big"
    assert failures.class_for("m", 2, "cpu") == "cpu"
    failures.add(KEY, "killed", 2.0, out_of_memory("big"))
    assert failures.retry_at() == {KEY: math.inf} and failures.class_for("m", 1, "cpu") == "cpu"


def test_a_model_stays_in_the_larger_class_once_it_is_ready() -> None:
    failures = Failures(CLASSES)
    failures.add(KEY, "killed", 0.0, out_of_memory())
    failures.forget([KEY])
    failures.forget_model("m")
    assert KEY not in failures and failures.class_for("m", 1, "cpu") == "big"
    after = Failures(CLASSES)
    after.restore(failures.too_small())
    assert after.class_for("m", 1, "cpu") == "big"


def test_a_change_brings_it_back_to_its_own_class() -> None:
    failures = Failures(CLASSES)
    failures.add(KEY, "killed", 0.0, out_of_memory())
    failures.renew([KEY])
    assert failures.class_for("m", 1, "cpu") == "cpu"


def test_without_a_larger_class_only_company_is_worth_another_try() -> None:
    alone, shared = Failures({"cpu": slot_class(500)}), Failures({"cpu": slot_class(500)})
    alone.add(KEY, "killed", 0.0, out_of_memory())
    shared.add(KEY, "killed", 0.0, out_of_memory(alone=False))
    assert (alone.retry_at(), shared.retry_at()) == ({KEY: math.inf}, {KEY: 2.0})
    shared.add(KEY, "killed", 2.0, out_of_memory(alone=False))
    assert shared.retry_at() == {KEY: math.inf}


def test_a_larger_class_can_hold_what_the_other_can() -> None:
    assert largest_above("cpu", CLASSES) == "big" and largest_above("big", CLASSES) is None
    unlimited = {**CLASSES, "free": slot_class(None)}
    assert largest_above("cpu", unlimited) == "free" and largest_above("free", unlimited) is None
    for other in (
        slot_class(9000, preload=["tensorflow"]),
        slot_class(9000, gpus=1),
        slot_class(9000, min=0, max=0),
        slot_class(500),
    ):
        assert largest_above("cpu", {"cpu": slot_class(500), "other": other}) is None
    assert largest_above("gone", CLASSES) is None


def test_what_is_known_is_told_with_the_next_try() -> None:
    failures = Failures(CLASSES)
    failures.add(KEY, "killed", 10.0, out_of_memory())
    (told,) = failures.documents(11.0)
    assert (told["ago_s"], told["retry_in_s"], told["next_class"]) == (1.0, 1.0, "big")
    assert (told["exit_code"], told["memory_bytes"], told["limit_bytes"]) == (137, 501, 500)
    failures.add(KEY, "killed", 12.0, out_of_memory("big"))
    (told,) = failures.documents(13.0)
    assert (told["retry_in_s"], told["next_class"], told["count"]) == (None, None, 2)


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
