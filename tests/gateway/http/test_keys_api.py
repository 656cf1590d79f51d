"""API keys over the admin API, with a real desk and file behind it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from autoscale.callers import KeyDesk
from autoscale.key_store import KeyFile
from gateway.http.admin import keys
from gateway.http.answers import MAX_FIELD, answer_errors
from tests.gateway.http import test_admin as admin
from tests.gateway.views import FixedPool, fixed_view

PATH = "/admin/v1/keys"


class KeyPool(FixedPool):
    """A pool that can do nothing but keys."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.desk = KeyDesk(KeyFile(folder / "keys.jsonl"), b"pepper")
        self.desk.tiers = frozenset({"standard", "premium"})

    def operations(self) -> dict[str, Callable[..., Any]]:
        return key_operations(self.desk)


def key_operations(desk: KeyDesk) -> dict[str, Callable[..., Any]]:
    """As in the pool's table."""
    return {
        "list_keys": desk.list,
        "create_key": desk.create,
        "revoke_key": desk.revoke,
        "rotate_key": desk.rotate,
    }


def keys_app(folder: Path) -> FastAPI:
    app = FastAPI()
    app.state.view = fixed_view(pool=KeyPool(folder))
    app.include_router(keys)
    answer_errors(app)
    return app


def client(folder: Path) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(keys_app(folder))
    return httpx.AsyncClient(transport=transport, base_url="http://admin")


async def made(http: httpx.AsyncClient, **wanted: Any) -> Mapping[str, Any]:
    answer = await http.post(PATH, json={"name": "alice", "tier": "premium", **wanted})
    assert answer.status_code == 200, answer.text
    found: Mapping[str, Any] = answer.json()
    return found


async def test_the_answer_with_a_secret_is_kept_by_nobody(tmp_path: Path) -> None:
    async with client(tmp_path) as http:
        wanted = {"name": "alice", "tier": "premium", "models": ["m"], "expires_in_s": 60}
        created = await http.post(PATH, json=wanted)
        rotated = await http.post(f"{PATH}/alice/rotate", json={"grace_s": 5})
        listed = await http.get(PATH)
    for answer in (created, rotated):
        assert answer.headers["cache-control"] == "no-store"
        assert answer.json()["key"].startswith(f"hr_{answer.json()['id']}_")
        assert answer.json()["models"] == ["m"]
        assert answer.json()["key"] not in listed.text
    assert "digest" not in listed.text
    assert [each["state"] for each in listed.json()["keys"]] == ["ending", "valid"]


async def test_a_key_is_revoked_by_id_or_name(tmp_path: Path) -> None:
    async with client(tmp_path) as http:
        for name in ("alice", "team/blue", "x/revoke", "Zoë & co"):
            first = await made(http, name=name)
            by_id = await http.post(f"{PATH}/{first['id']}/revoke")
            assert by_id.json()["state"] == "revoked"
            second = await made(http, name=name)
            by_name = await http.post(f"{PATH}/{name.replace('/', '%2F')}/revoke")
            assert by_name.json()["id"] == second["id"]


async def test_a_rotation_without_a_body_ends_the_old_key_now(tmp_path: Path) -> None:
    async with client(tmp_path) as http:
        old = await made(http)
        answer = await http.post(f"{PATH}/{old['id']}/rotate")
        assert answer.json()["replaces"] == old["id"]
        listed = (await http.get(PATH)).json()["keys"]
    assert [each["state"] for each in listed] == ["revoked", "valid"]


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        (PATH, {"name": "alice", "tier": "gold"}, 400, "no tier 'gold'"),
        (PATH, {"name": "a\nb", "tier": "premium"}, 400, "printable"),
        (PATH, {"name": "taken", "tier": "premium"}, 409, "'taken' already"),
        (PATH, {"name": "alice"}, 400, "tier: Field required"),
        (PATH, {"name": "alice", "tier": "premium", "more": 1}, 400, "more: Extra"),
        (PATH, {"name": "alice", "tier": "premium", "models": ["../m"]}, 400, "models.0: "),
        (PATH, {"name": "alice", "tier": "premium", "expires_in_s": -1}, 400, "expires_in_s: "),
        (PATH, None, 400, "the body: "),
        (f"{PATH}/nobody/revoke", None, 404, "'nobody'"),
        (f"{PATH}/nobody/rotate", {"grace_s": 0}, 404, "'nobody'"),
        (f"{PATH}/taken/rotate", {"grace_s": -1}, 400, "grace_s: "),
        (f"{PATH}/taken/rotate", {"grace": 1}, 400, "grace: Extra"),
    ],
)
async def test_a_wrong_order_is_one_sentence_and_changes_nothing(
    tmp_path: Path, path: str, body: Any, status: int, words: str
) -> None:
    async with client(tmp_path) as http:
        await made(http, name="taken")
        answer = await http.post(path, json=body)
        listed = (await http.get(PATH)).json()["keys"]
    assert answer.status_code == status and words in answer.json()["error"], answer.text
    assert [(each["name"], each["state"]) for each in listed] == [("taken", "valid")]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'"hunter2"', "the body: "),
        (b'["hunter2"]', "the body: "),
        (b'{"name": "hunter2', "not valid JSON"),
        (b"\xff\xfehunter2", "the body"),
        (b'{"name": "alice", "tier": "../hunter2"}', "tier: "),
        (b'{"name": ["hunter2"], "tier": "premium"}', "name: "),
        (b'{"name": "alice", "tier": "premium", "models": "hunter2"}', "models: "),
        (b'{"name": "alice", "tier": "premium", "models": ["a", {"hunter2": 1}]}', "models.1: "),
        (b'{"name": "alice", "tier": "premium", "expires_in_s": "hunter2"}', "expires_in_s: "),
        (b'{"name": "alice", "tier": "premium", "more": "hunter2"}', "more: "),
    ],
)
async def test_a_body_that_does_not_fit_is_not_echoed(
    tmp_path: Path, body: bytes, words: str
) -> None:
    async with client(tmp_path) as http:
        answer = await http.post(PATH, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400 and set(answer.json()) == {"error"}
    assert words in answer.json()["error"] and "hunter2" not in answer.text


async def test_of_a_long_unknown_field_only_the_beginning_is_said(tmp_path: Path) -> None:
    async with client(tmp_path) as http:
        answer = await http.post(PATH, json={"name": "a", "tier": "premium", "x" * 5000: 1})
    said = answer.json()["error"]
    assert answer.status_code == 400 and said.startswith("x" * MAX_FIELD + ": Extra")


@pytest.mark.parametrize("document", ["hunter2", ["hunter2"], 7])
async def test_a_config_that_is_no_object_is_answered_alike(tmp_path: Path, document: Any) -> None:
    desk = admin.Desk(metrics_folder=tmp_path)
    async with admin.client(desk) as http:
        answer = await http.put("/admin/v1/config", json=document)
    assert answer.status_code == 400 and "the body: " in answer.json()["error"]
    assert "hunter2" not in answer.text and not desk.told


async def test_no_key_is_told_without_the_admin_token(tmp_path: Path) -> None:
    desk = admin.Desk(metrics_folder=tmp_path)
    async with admin.client(desk, token="wrong") as http:
        answers = [await http.get(PATH), await http.post(PATH, json={"name": "a", "tier": "t"})]
    assert [each.status_code for each in answers] == [401, 401] and not desk.told
