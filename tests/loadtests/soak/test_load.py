from __future__ import annotations

from pathlib import Path

import grpc
import numpy as np
import orjson
import pytest

from headrace.access import Access
from headrace.config.args import Batching, ModelConfig, Tls
from headrace.config.tiers import AuthConfig, Tier
from headrace.keys import new_key
from loadtests.bench.mlp import NAME, mlp_graph, right_answer, write_bodies, write_version
from loadtests.headrace import Running
from loadtests.messages import WrongAnswer
from loadtests.soak.load import Load, check_parts, error_of, questions
from loadtests.tls import Authority
from tests.house import PEPPER, open_house, until

ANSWER = np.linspace(0.0, 0.9, 10).reshape(1, 10)


def test_right_answers_pass_and_wrong_ones_do_not(tmp_path: Path) -> None:
    rows, tensor = questions(write_bodies(tmp_path), ANSWER, "other")
    assert (rows.sort, tensor.sort) == ("TFS JSON", "v2 binary")
    assert rows.message.path == "/v1/models/other:predict"
    assert tensor.message.path == "/v2/models/other/infer"
    rows.check(orjson.dumps({"predictions": ANSWER.tolist()}))
    tensor.check(b'{"outputs": []}' + ANSWER.astype("<f4").tobytes())
    with pytest.raises(WrongAnswer):
        rows.check(orjson.dumps({"predictions": (ANSWER + 0.1).tolist()}))
    with pytest.raises(WrongAnswer):
        tensor.check(b'{"outputs": []}' + ANSWER[:, ::-1].astype("<f4").tobytes())


def test_a_picture_was_done_in_parts() -> None:
    check_parts(b'{"boxes": [], "shards": [{"part": 0}]}')
    with pytest.raises(WrongAnswer):
        check_parts(b'{"boxes": [], "shards": []}')


@pytest.mark.parametrize(
    ("code", "details", "error"),
    [
        (grpc.StatusCode.UNAVAILABLE, "Socket closed", "broken"),
        (grpc.StatusCode.UNAVAILABLE, "last error: Connection refused (111)", "refused"),
        (grpc.StatusCode.UNAVAILABLE, "no slot is there", "UNAVAILABLE: no slot is there"),
        (grpc.StatusCode.INTERNAL, "Socket closed", "INTERNAL: Socket closed"),
    ],
)
def test_a_call_that_failed_says_whether_its_connection_ended(
    code: grpc.StatusCode, details: str, error: str
) -> None:
    assert error_of(code, details) == error


async def test_the_load_speaks_tls_shows_its_key_and_keeps_what_failed(tmp_path: Path) -> None:
    key, record = new_key(PEPPER, name="soak", tier="premium", now_s=1.0)
    tiers = {name: Tier() for name in ("anonymous", "premium")}
    access = Access(1, tiers, AuthConfig(anonymous=False), {record.id: record})
    authority = Authority(tmp_path)
    tls = Tls.model_validate({**authority.files, "admin": False})
    model = write_version(tmp_path / "store", NAME, mlp_graph())
    async with open_house(tmp_path, "a", listen_tls=tls, access=access) as house:
        await house.place("a", NAME, 1, ModelConfig(batching=Batching(max_rows=8)))
        server = Running(f"https://{house.http.address}", house.grpc.address)
        load = Load(server, authority.root, key, write_bodies(tmp_path), right_answer(model))
        async with load.asking():
            await until(lambda: sum(load.requests.values()) > 40)
        right = [each for each in load.failures if each.sort != "picture"]
        load.key = "another one"
        async with load.asking():
            await until(lambda: len({each.sort for each in load.failures}) == 4)
    assert right == [] and 0 < load.worst_s < 30
    errors = {each.sort: each.asked.error for each in load.failures}
    assert errors["TFS JSON"].startswith("status 401: ") and errors["gRPC"].startswith("UNAUTHENT")
    assert set(errors) == {"TFS JSON", "v2 binary", "gRPC", "picture"}, "no model takes pictures"
