"""Shared memory regions while there are none, asked for by the unmodified tritonclient."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tritonclient.grpc.aio
import tritonclient.http.aio
from tritonclient.utils import InferenceServerException

from tests.house import House, open_house

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
both = pytest.mark.parametrize("protocol", ["http", "grpc"])
HANDLE = b"AAAA"


def triton(house: House, protocol: str) -> Any:
    kinds = {"http": tritonclient.http.aio, "grpc": tritonclient.grpc.aio}
    return kinds[protocol].InferenceServerClient(getattr(house, protocol).address)


async def refusal(awaitable: Any) -> tuple[str, str]:
    with pytest.raises(InferenceServerException) as caught:
        await awaitable
    return str(caught.value.status()), str(caught.value.message())


@both
async def test_no_region_is_listed_and_all_can_be_unregistered(
    tmp_path: Path, protocol: str
) -> None:
    more = {"as_json": True} if protocol == "grpc" else {}
    async with open_house(tmp_path, "a") as house, triton(house, protocol) as client:
        for kind in ("system", "cuda"):
            listed = await getattr(client, f"get_{kind}_shared_memory_status")(**more)
            await getattr(client, f"unregister_{kind}_shared_memory")()
            await getattr(client, f"unregister_{kind}_shared_memory")("nobody's")
            assert listed == ([] if protocol == "http" else {})


@both
async def test_a_region_of_a_name_is_not_found(tmp_path: Path, protocol: str) -> None:
    async with open_house(tmp_path, "a") as house, triton(house, protocol) as client:
        system = await refusal(client.get_system_shared_memory_status("mine"))
        cuda = await refusal(client.get_cuda_shared_memory_status("mine"))
    code = {"http": "404", "grpc": "StatusCode.NOT_FOUND"}[protocol]
    assert system == (code, "Unable to find system shared memory region: 'mine'")
    assert cuda == (code, "Unable to find cuda shared memory region: 'mine'")


@both
async def test_none_can_be_registered(tmp_path: Path, protocol: str) -> None:
    async with open_house(tmp_path, "a") as house, triton(house, protocol) as client:
        system = await refusal(client.register_system_shared_memory("mine", "/key", 64))
        cuda = await refusal(client.register_cuda_shared_memory("mine", HANDLE, 0, 64))
    assert system[0] == {"http": "501", "grpc": "StatusCode.UNIMPLEMENTED"}[protocol]
    assert system[1].startswith("failed to register shared memory region 'mine': ")
    assert cuda[0] == {"http": "400", "grpc": "StatusCode.INVALID_ARGUMENT"}[protocol]
    assert cuda[1].startswith(
        "failed to register CUDA shared memory region: 'mine', GPUs not supported"
    )
