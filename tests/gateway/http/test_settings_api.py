"""Log and trace settings, read and set by the unmodified tritonclient."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog

from gateway.triton_settings import check_log_settings
from headrace.errors import InvalidArgument
from tests.gateway.http.test_shared_memory_api import both, refusal, triton
from tests.house import open_house

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
LOGS = {
    "log_file": "",
    "log_info": True,
    "log_warning": True,
    "log_error": True,
    "log_verbose_level": 1,
    "log_format": "ISO8601",
}
TRACES = {
    "trace_level": ["OFF"],
    "trace_rate": "1000",
    "trace_count": "-1",
    "log_frequency": "0",
    "trace_file": "",
    "trace_mode": "triton",
}


def plain(answer: Any) -> dict[str, Any]:
    """gRPC's answer as HTTP's: the one value of each setting."""
    if "settings" not in answer:
        return dict(answer)
    found = {}
    for name, setting in answer["settings"].items():
        [value] = setting.values()
        found[name] = value[0] if isinstance(value, list) and name != "trace_level" else value
    return found


@both
async def test_they_can_be_read(tmp_path: Path, protocol: str) -> None:
    more = {"as_json": True} if protocol == "grpc" else {}
    async with open_house(tmp_path, "a") as house, triton(house, protocol) as client:
        logs = await client.get_log_settings(**more)
        traces = await client.get_trace_settings(**more)
        one = await client.get_trace_settings("affine", **more)
    assert plain(logs) == LOGS
    assert plain(traces) == plain(one) == TRACES


async def test_what_is_logged_is_what_the_config_says(tmp_path: Path) -> None:
    before = structlog.get_config()["wrapper_class"]
    async with open_house(tmp_path, "a") as house, httpx.AsyncClient(verify=False) as client:
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
        try:
            found = (await client.get(f"http://{house.http.address}/v2/logging")).json()
        finally:
            structlog.configure(wrapper_class=before)
    assert found == LOGS | {"log_info": False, "log_warning": False, "log_verbose_level": 0}


@both
async def test_they_can_be_set_to_what_they_are(tmp_path: Path, protocol: str) -> None:
    more = {"as_json": True} if protocol == "grpc" else {}
    async with open_house(tmp_path, "a") as house, triton(house, protocol) as client:
        logs = await client.update_log_settings({"log_info": True, "log_error": True}, **more)
        traces = await client.update_trace_settings(
            settings={"trace_level": ["OFF"], "trace_rate": "1000", "trace_count": None}, **more
        )
    assert plain(logs) == LOGS
    assert plain(traces) == TRACES


@both
async def test_a_change_is_refused(tmp_path: Path, protocol: str) -> None:
    async with open_house(tmp_path, "a") as house, triton(house, protocol) as client:
        log = await refusal(client.update_log_settings({"log_info": False}))
        file = await refusal(client.update_trace_settings(settings={"trace_file": "/etc/passwd"}))
        level = await refusal(client.update_trace_settings(settings={"trace_level": ["TENSORS"]}))
        unknown = await refusal(client.update_trace_settings(settings={"speed": "11"}))
        nobody = await refusal(client.get_trace_settings("nobody"))
    not_offered = {"http": "501", "grpc": "StatusCode.UNIMPLEMENTED"}[protocol]
    wrong = {"http": "400", "grpc": "StatusCode.INVALID_ARGUMENT"}[protocol]
    assert [log[0], file[0], level[0]] == [not_offered] * 3
    assert "'log_info' can not be updated through network protocol" in log[1]
    assert "'trace_level' can not be updated" in level[1]
    assert unknown[0] == wrong and "no trace setting 'speed'" in unknown[1]
    assert nobody[0] == {"http": "404", "grpc": "StatusCode.NOT_FOUND"}[protocol]


@pytest.mark.parametrize("setting", [{"log_info": 1}, {"log_file": True}, {"log_format": 7}])
def test_a_setting_has_a_type(setting: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument, match=f"'{next(iter(setting))}' must be "):
        check_log_settings(setting, LOGS)
