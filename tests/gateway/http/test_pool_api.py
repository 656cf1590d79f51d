"""The pool over the admin API, with a real book of leases behind it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from structlog.testing import capture_logs

from tests.autoscale.lease_house import LeaseDesk
from tests.gateway.http import test_admin as admin

PATH = "/admin/v1/leases"


def open_desk(folder: Path) -> LeaseDesk:
    return LeaseDesk(folder, "127.0.0.1:0")


async def test_a_lease_is_asked_for_watched_returned_and_released(tmp_path: Path) -> None:
    desk = open_desk(tmp_path)
    wanted = {"id": "mine", "holder": "train", "slots": 2, "slot_class": "cpu", "grace_s": 3}
    with capture_logs():
        async with admin.client(desk) as http:
            made = (await http.post(PATH, json=wanted)).json()
            again = (await http.post(PATH, json=wanted)).json()
            assert made == again and (made["id"], made["state"]) == ("mine", "WAITING")
            desk.offer(2)
            watched = (await http.get(f"{PATH}/mine?known=WAITING")).json()
            assert watched["state"] == "GRANTED" and watched["grace_s"] == 3
            desk.offer(0)
            told = (await http.get(f"{PATH}/mine?known=GRANTED")).json()
            assert told["state"] == "NOTICED" and 0 < told["due_in_s"] <= 3
            returned = (await http.post(f"{PATH}/mine/return")).json()
            assert (returned["state"], returned["preemptions"]) == ("WAITING", 1)
            listed = (await http.get(PATH)).json()["leases"]
            assert [each["id"] for each in listed] == ["mine"]
            assert (await http.delete(f"{PATH}/mine")).json() == {"released": "mine"}
            for gone in (await http.get(f"{PATH}/mine"), await http.delete(f"{PATH}/mine")):
                assert gone.status_code == 404 and "no lease 'mine'" in gone.json()["error"]


async def test_without_an_id_the_pool_chooses_one(tmp_path: Path) -> None:
    desk = open_desk(tmp_path)
    with capture_logs():
        async with admin.client(desk) as http:
            answers = [await http.post(PATH, json={"holder": "train"}) for _ in range(2)]
    ids = {answer.json()["id"] for answer in answers}
    assert len(ids) == 2 and len(desk.states) == 2


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"holder": "train", "slots": 9}, "needs 9 slots of class cpu, leases get at most 4"),
        ({"holder": "train", "slot_class": "gpu"}, "there is no slot class gpu, but cpu"),
        ({"holder": "train", "grace_s": 1000}, "`grace_s` (1000) should be at most 300"),
        ({"holder": "train", "slots": 0}, "slots: "),
        ({"holder": "train", "grace_s": -1}, "grace_s: "),
        ({"holder": "train", "grace_s": "NaN"}, "grace_s: "),
        ({"holder": ""}, "holder: "),
        ({"holder": "train", "id": "a/b"}, "id: "),
        ({"holder": "train", "more": 1}, "more: "),
        ({}, "holder: "),
    ],
)
async def test_what_cannot_be_is_refused_in_one_sentence(
    tmp_path: Path, body: dict[str, Any], words: str
) -> None:
    desk = open_desk(tmp_path)
    async with admin.client(desk) as http:
        answer = await http.post(PATH, json=body)
    assert answer.status_code == 400 and words in answer.json()["error"] and desk.states == []


async def test_nothing_of_it_is_told_without_the_token(tmp_path: Path) -> None:
    desk = open_desk(tmp_path)
    async with admin.client(desk, token="wrong") as http:
        answers: list[httpx.Response] = [
            await http.get("/admin/v1/pool"),
            await http.get(PATH),
            await http.get(f"{PATH}/a"),
            await http.post(PATH, json={"holder": "train"}),
            await http.post(f"{PATH}/a/return"),
            await http.delete(f"{PATH}/a"),
        ]
    assert {answer.status_code for answer in answers} == {401} and desk.states == []


async def test_a_pool_that_is_away_is_503(tmp_path: Path) -> None:
    desk = open_desk(tmp_path)
    desk.away = True
    async with admin.client(desk) as http:
        answer = await http.post(PATH, json={"holder": "train"})
    assert answer.status_code == 503 and "pool is away" in answer.json()["error"]
