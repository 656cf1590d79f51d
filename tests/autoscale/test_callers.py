"""Orders about keys, on real files; and on a store that others write too or that is away."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from autoscale.callers import KeyDesk
from autoscale.key_store import KeyFile
from headrace.access import KeyRecord
from headrace.config.args import Budgets
from headrace.errors import (
    ConfigError,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unauthenticated,
)
from headrace.errors import Unavailable as Away
from headrace.keys import KeyStore, find_record, key_pepper

SECRET = b"secret of the cluster"
NOW_S = time.time()


class Clock:
    now_s = NOW_S

    def __call__(self) -> float:
        return self.now_s


class SharedStore:
    """A `KeyStore` in memory that several desks share; it can be away, or slow to read."""

    def __init__(self) -> None:
        self.records: dict[str, KeyRecord] = {}
        self.changes = 0
        self.away = False
        self.gate = asyncio.Event()
        self.gate.set()

    async def load(self) -> Mapping[str, KeyRecord]:
        found = dict(self.records)
        await self.gate.wait()
        return found

    async def put(self, *records: KeyRecord) -> None:
        if self.away:
            raise Away("the store is away")
        self.records |= {record.id: record for record in records}
        self.changes += 1

    async def number(self) -> int:
        if self.away:
            raise Away("the store is away")
        return self.changes

    async def close(self) -> None:
        self.away = True


def desk(store: KeyStore, clock: Clock | None = None) -> KeyDesk:
    opened = KeyDesk(store, key_pepper(SECRET), clock or Clock())
    opened.tiers = frozenset({"standard", "premium"})
    return opened


def at_file(tmp_path: Path) -> KeyDesk:
    return desk(KeyFile(tmp_path / "keys.jsonl"))


def holds(at: KeyDesk, key: str, now_s: float = NOW_S) -> bool:
    try:
        find_record(key_pepper(SECRET), at.records, key.encode(), now_s)
    except Unauthenticated:
        return False
    return True


async def test_a_new_key_holds_here_and_in_the_next_life(tmp_path: Path) -> None:
    here = at_file(tmp_path)
    made = await here.create("alice", "premium", ["faces"], 3600.0)
    facts = {"name": "alice", "tier": "premium", "models": ["faces"], "state": "valid"}
    assert facts.items() <= made.items() and made["expires_s"] == NOW_S + 3600
    later = at_file(tmp_path)
    assert await later.refresh() and not await later.refresh()
    assert holds(here, made["key"]) and holds(later, made["key"])
    assert not holds(later, made["key"], NOW_S + 3600)


async def test_the_list_never_shows_a_secret_or_its_hash(tmp_path: Path) -> None:
    here = at_file(tmp_path)
    assert await here.list() == []
    made = await here.create("alice", "premium")
    text = json.dumps(await here.list())
    assert "alice" in text and made["key"] not in text and "digest" not in text
    assert here.records[made["id"]].digest not in text


async def test_a_revoked_key_is_refused_and_listed(tmp_path: Path) -> None:
    here = at_file(tmp_path)
    made = await here.create("alice", "premium")
    ended = await here.revoke("alice")
    assert ended["state"] == "revoked" and "key" not in ended and not holds(here, made["key"])
    assert [each["state"] for each in await here.list()] == ["revoked"]
    for name in ("alice", made["id"]):
        with pytest.raises(NotFound, match=name):
            await here.revoke(name)


async def test_a_rotated_key_holds_for_its_grace(tmp_path: Path) -> None:
    here = at_file(tmp_path)
    old = await here.create("alice", "premium", ["faces"], 9000.0)
    new = await here.rotate("alice", 60.0)
    same = ("name", "tier", "models", "expires_s")
    assert [new[name] for name in same] == [old[name] for name in same]
    assert new["replaces"] == old["id"] != new["id"]
    assert holds(here, old["key"], NOW_S + 59) and not holds(here, old["key"], NOW_S + 60)
    assert holds(here, new["key"], NOW_S + 60)
    assert [each["state"] for each in await here.list()] == ["ending", "valid"]


async def test_without_grace_the_old_key_ends_at_once(tmp_path: Path) -> None:
    here = at_file(tmp_path)
    old = await here.create("alice", "premium")
    new = await here.rotate(old["id"])
    assert not holds(here, old["key"]) and holds(here, new["key"])


async def test_a_key_in_its_grace_can_be_revoked(tmp_path: Path) -> None:
    here = at_file(tmp_path)
    old = await here.create("alice", "premium")
    new = await here.rotate("alice", 86_400.0)
    with pytest.raises(FailedPrecondition, match="give an id") as caught:
        await here.revoke("alice")
    assert old["id"] in caught.value.message and new["id"] in caught.value.message
    await here.revoke(old["id"])
    assert not holds(here, old["key"]) and holds(here, new["key"])
    with pytest.raises(NotFound):
        await here.rotate(old["id"])


async def test_a_name_is_given_to_one_valid_key(tmp_path: Path) -> None:
    here = at_file(tmp_path)
    made = await here.create("alice", "premium")
    with pytest.raises(FailedPrecondition, match="already"):
        await here.create("alice", "standard")
    await here.revoke("alice")
    again = await here.create("alice", "standard")
    assert again["id"] != made["id"]
    # A key may be named like the id of another: an id means the key that has it.
    await here.create(again["id"], "standard")
    assert (await here.revoke(again["id"]))["name"] == "alice"


async def test_two_orders_for_one_name_make_one_key(tmp_path: Path) -> None:
    here = at_file(tmp_path)
    orders = [here.create("alice", "premium") for _ in range(5)]
    made = await asyncio.gather(*orders, return_exceptions=True)
    assert sum(isinstance(each, FailedPrecondition) for each in made) == 4
    assert len(here.records) == 1


@pytest.mark.parametrize(
    ("order", "words"),
    [
        (("alice", "gold"), "there is no tier 'gold'; known: premium, standard"),
        (("a\nb", "premium"), "printable"),
        (("alice", "premium", None, 0.0), "later than now"),
        (("alice", "premium", None, float("nan")), "later than now"),
    ],
)
async def test_a_wrong_order_changes_nothing(
    tmp_path: Path, order: tuple[Any, ...], words: str
) -> None:
    here = at_file(tmp_path)
    with pytest.raises(InvalidArgument, match=words):
        await here.create(*order)
    assert not here.records and not (tmp_path / "keys.jsonl").exists()


async def test_a_key_of_a_tier_that_is_gone_is_not_rotated(tmp_path: Path) -> None:
    here = at_file(tmp_path)
    made = await here.create("alice", "premium")
    here.tiers = frozenset()
    with pytest.raises(InvalidArgument, match="`tiers` is off"):
        await here.rotate("alice")
    assert holds(here, made["key"])


async def test_an_expired_key_is_listed_as_such(tmp_path: Path) -> None:
    clock = Clock()
    here = desk(KeyFile(tmp_path / "keys.jsonl"), clock)
    await here.create("alice", "premium", None, 10.0)
    clock.now_s += 10
    assert [each["state"] for each in await here.list()] == ["expired"]
    with pytest.raises(NotFound):
        await here.rotate("alice")
    await here.create("alice", "premium")


async def test_two_clusters_share_keys() -> None:
    store = SharedStore()
    here, there = desk(store), desk(store)
    made = await here.create("alice", "premium")
    with pytest.raises(FailedPrecondition, match="already"):
        await there.create("alice", "premium")
    # The order that failed has read the news; the gateways must still be told of it.
    assert await there.refresh() and holds(there, made["key"])
    await there.revoke("alice")
    assert await here.refresh() and not holds(here, made["key"])


async def test_an_own_order_does_not_hide_news_of_another_cluster() -> None:
    store = SharedStore()
    here, there = desk(store), desk(store)
    await here.create("alice", "premium")
    await there.create("bob", "premium")  # reads about alice on its way
    assert await there.refresh() and not await there.refresh()
    assert {each.name for each in there.records.values()} == {"alice", "bob"}


async def test_a_slow_reading_does_not_bring_a_revoked_key_back() -> None:
    store = SharedStore()
    here, there = desk(store), desk(store)
    made = await there.create("alice", "premium")
    store.gate.clear()
    reading = asyncio.create_task(here.refresh())
    revoking = asyncio.create_task(here.revoke("alice"))
    for _ in range(10):
        await asyncio.sleep(0)
    assert not revoking.done()
    store.gate.set()
    await asyncio.gather(reading, revoking)
    assert not holds(here, made["key"])


async def test_a_store_that_is_away_is_logged_once_and_keys_stay() -> None:
    store = SharedStore()
    here = desk(store)
    made = await here.create("alice", "premium")
    with capture_logs() as logs:
        for _ in range(2):
            store.away = True
            for _ in range(3):
                with pytest.raises(Away):
                    await here.refresh()
            with pytest.raises(Away):
                await here.revoke("alice")
            store.away = False
            await here.refresh()
    expected = ["key_store_away", "key_store_back"] * 2
    assert [each["event"] for each in logs] == expected
    assert holds(here, made["key"]) and len(await here.list()) == 1


async def test_keys_that_were_never_read_are_not_listed_as_none() -> None:
    store = SharedStore()
    store.away = True
    with pytest.raises(Away):
        await desk(store).list()


async def test_the_config_says_where_keys_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADRACE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("HOME", str(tmp_path))
    for config, path in (
        (Budgets(), tmp_path / "state" / "keys.jsonl"),
        (Budgets(keys=str(tmp_path / "own.jsonl")), tmp_path / "own.jsonl"),
        (Budgets(keys="~/mine.jsonl"), tmp_path / "mine.jsonl"),
    ):
        here = KeyDesk.open(config, SECRET)
        here.tiers = frozenset({"premium"})
        made = await here.create("alice", "premium")
        assert made["id"] in path.read_text()


async def test_a_key_revoked_by_another_headrace_ends_here(tmp_path: Path) -> None:
    here, there = at_file(tmp_path), at_file(tmp_path)
    made = await here.create("alice", "premium")
    assert await there.refresh() and holds(there, made["key"])
    await here.revoke("alice")
    assert await there.refresh() and not holds(there, made["key"])
    with pytest.raises(NotFound):
        await there.revoke("alice")


async def test_a_file_that_breaks_meanwhile_ends_no_key_and_is_said_once(tmp_path: Path) -> None:
    here = at_file(tmp_path)
    made = await here.create("alice", "premium")
    await here.refresh()
    good = (tmp_path / "keys.jsonl").read_bytes()
    (tmp_path / "keys.jsonl").write_bytes(b"{\n")
    with capture_logs() as logs:
        for _ in range(2):
            with pytest.raises(ConfigError, match=r"keys\.jsonl:1: "):
                await here.refresh()
    assert [each["event"] for each in logs] == ["key_store_away"] and holds(here, made["key"])
    (tmp_path / "keys.jsonl").write_bytes(good)
    assert not await here.refresh() and holds(here, made["key"])


async def test_a_desk_that_closes_leaves_its_store() -> None:
    store = SharedStore()
    await desk(store).close()
    assert store.away
