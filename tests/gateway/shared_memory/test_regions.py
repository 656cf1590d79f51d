"""Regions of system shared memory: who may register what."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tritonclient.utils import shared_memory as shm

from gateway.shared_memory.regions import MAX_REGIONS_OF_CALLER, Region, Regions
from headrace.access import Access
from headrace.config.args import SharedMemory
from headrace.config.tiers import AuthConfig, Tier
from headrace.errors import InvalidArgument, NotFound, PermissionDenied, Unavailable
from headrace.keys import new_key
from headrace.link import shared_memory
from tests.gateway.http.test_shared_memory_api import both, refusal, triton
from tests.gateway.shared_memory.region_house import ROWS, Memory, register, sharing, x
from tests.house import PEPPER, client

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@both
async def test_regions_are_listed_and_unregistered_by_name_and_all(
    tmp_path: Path, memory: Memory, protocol: str
) -> None:
    more = {"as_json": True} if protocol == "grpc" else {}
    async with sharing(tmp_path) as house, triton(house, protocol) as c:
        for name in ("b", "a", "c"):
            await c.register_system_shared_memory(name, memory(8), 4, offset=4)
        one = await c.get_system_shared_memory_status("b", **more)
        await c.unregister_system_shared_memory("b")
        two = await c.get_system_shared_memory_status(**more)
        await c.unregister_system_shared_memory()
        none = await c.get_system_shared_memory_status(**more)
        metadata = await c.get_server_metadata()
    expected = {"name": "b", "key": memory.keys[0], "offset": 4, "byte_size": 4}
    if protocol == "http":
        assert one == [expected]
        assert [each["name"] for each in two] == ["a", "c"]
        assert none == []
        assert "system_shared_memory" in metadata["extensions"]
    else:
        assert one == {"regions": {"b": expected | {"offset": "4", "byte_size": "4"}}}
        assert sorted(two["regions"]) == ["a", "c"]
        assert none == {}
        assert "system_shared_memory" in metadata.extensions


async def test_regions_serve_both_protocols_and_every_gateway_of_the_node(
    tmp_path: Path, memory: Memory
) -> None:
    key = memory(32, ROWS.tobytes())
    other = Regions(SharedMemory(), tmp_path / "regions")
    async with sharing(tmp_path) as house, triton(house, "http") as c, triton(house, "grpc") as g:
        await c.register_system_shared_memory("in", key, 32)
        result = await g.infer("affine", [x("grpc", "in", 32)])
    np.testing.assert_array_equal(result.as_numpy("y"), 2 * ROWS + 1)
    assert other.listed("") == [Region("in", key, 0, 32)]


KEYS = {
    "": "invalid shm key",
    "/": "invalid shm key",
    "..": "invalid shm key",
    "/../etc/passwd": "invalid shm key",
    "/a/b": "invalid shm key",
    "/a\0b": "invalid shm key",
    "/" + "a" * 256: "invalid shm key",
    "/headrace-1-0123456789abcdef": "invalid shm key",
    "/sem.lock": "invalid shm key",
    "/nobody_has_made_this": "No such file or directory",
}


async def test_a_key_is_the_name_of_a_file_in_shared_memory(tmp_path: Path) -> None:
    async with sharing(tmp_path) as house, client(house) as http:
        for key, says in KEYS.items():
            answer = await register(http, "r", key, 1)
            assert answer.status_code == 400, key
            error = answer.json()["error"]
            assert error.startswith("failed to register shared memory region 'r': ")
            assert says in error


async def test_only_plain_files_of_our_user_are_taken(tmp_path: Path, memory: Memory) -> None:
    link, pipe, folder = (memory(0) for _ in range(3))
    for key in (link, pipe, folder):
        (Path("/dev/shm") / key[1:]).unlink()
    (Path("/dev/shm") / link[1:]).symlink_to("/etc/passwd")
    os.mkfifo(Path("/dev/shm") / pipe[1:])
    (Path("/dev/shm") / folder[1:]).mkdir()
    try:
        async with sharing(tmp_path) as house, client(house) as http:
            answers = [await register(http, "r", key, 1) for key in (link, pipe, folder)]
    finally:
        (Path("/dev/shm") / folder[1:]).rmdir()
    assert [each.status_code for each in answers] == [400, 400, 400]
    assert all("Unable to open shared memory region" in each.text for each in answers)
    stranger = Regions(SharedMemory(user=os.geteuid() + 1), tmp_path / "others")
    with pytest.raises(InvalidArgument, match="the user whose regions are taken"):
        stranger.register("", Region("r", memory(8), 0, 8))


def test_keys_begin_with_the_prefix(tmp_path: Path, memory: Memory) -> None:
    regions = Regions(SharedMemory(prefix="triton_"), tmp_path / "regions")
    with pytest.raises(InvalidArgument, match="keys begin with 'triton_' here"):
        regions.register("", Region("r", memory(8), 0, 8))


REGISTRATIONS: list[tuple[Any, str]] = [
    ([], "the request body must be a JSON object"),
    ({"byte_size": 8}, "has no 'key' field"),
    ({"key": "/k"}, "has no 'byte_size' field"),
    ({"key": 5, "byte_size": 8}, "'key' must be a string, not 5"),
    ({"key": "/k", "byte_size": "8"}, "'byte_size' must be a number of bytes"),
    ({"key": "/k", "byte_size": True}, "'byte_size' must be a number of bytes"),
    ({"key": "/k", "byte_size": -8}, "'byte_size' must be a number of bytes"),
    ({"key": "/k", "byte_size": 8, "offset": -1}, "'offset' must be a number of bytes"),
    ({"key": "/k", "byte_size": 2**63}, "'byte_size' must be a number of bytes"),
    ({"key": "/k", "byte_size": 0}, "'byte_size' is at least 1"),
]


async def test_a_malformed_registration_is_refused(tmp_path: Path) -> None:
    async with sharing(tmp_path) as house, client(house) as http:
        for body, says in REGISTRATIONS:
            answer = await http.post("/v2/systemsharedmemory/region/r/register", json=body)
            assert answer.status_code == 400, body
            assert says in answer.json()["error"]
        name = "r" * 1025
        answer = await http.post(
            f"/v2/systemsharedmemory/region/{name}/register", json={"key": "/k", "byte_size": 1}
        )
        assert "a name has 1 to 1024 bytes" in answer.json()["error"]


@both
async def test_a_region_lies_within_its_object_and_has_its_name_alone(
    tmp_path: Path, memory: Memory, protocol: str
) -> None:
    key = memory(64)
    async with sharing(tmp_path) as house, triton(house, protocol) as c:
        for byte_size, offset in ((65, 0), (60, 5), (8, 64), (2**62, 2**62)):
            found = await refusal(c.register_system_shared_memory("r", key, byte_size, offset))
            assert found[1].startswith("failed to register shared memory region 'r': invalid args")
        await c.register_system_shared_memory("r", key, 64)
        taken = await refusal(c.register_system_shared_memory("r", key, 64))
    code = {"http": "400", "grpc": "StatusCode.ALREADY_EXISTS"}[protocol]
    assert taken == (code, "shared memory region 'r' already in manager")


def test_a_caller_has_so_many_regions(tmp_path: Path, memory: Memory) -> None:
    regions, key = Regions(SharedMemory(), tmp_path / "regions"), memory(8)
    for number in range(MAX_REGIONS_OF_CALLER):
        regions.register("one", Region(str(number), key, 0, 8))
    with pytest.raises(Unavailable, match="too many shared memory regions: 512 are yours"):
        regions.register("one", Region("more", key, 0, 8))
    regions.register("two", Region("more", key, 0, 8))
    regions.unregister("one")
    assert regions.listed("one") == []
    assert len(regions.listed("two")) == 1


def test_a_caller_does_not_see_the_regions_of_others(tmp_path: Path, memory: Memory) -> None:
    regions = Regions(SharedMemory(), tmp_path / "regions")
    regions.register("key:one", Region("r", memory(8), 0, 8))
    with pytest.raises(NotFound, match="Unable to find shared memory region: 'r'"):
        regions.find("key:two", "r")
    regions.unregister("key:two", "r")
    regions.register("key:two", Region("r", memory(8), 0, 8))
    assert [each.key for each in regions.listed("key:one")] == memory.keys[:1]


def test_callers_elsewhere_are_refused(tmp_path: Path) -> None:
    regions = Regions(SharedMemory(), tmp_path / "regions", "10.0.0.1")
    for near in ("127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1", "10.0.0.1"):
        regions.require_local(near, ())
    for address in ("10.0.0.9", "", "::ffff:10.0.0.9", "fe80::1"):
        with pytest.raises(PermissionDenied, match="the gateway's own machine"):
            regions.require_local(address, ())
    with pytest.raises(PermissionDenied):
        regions.require_local("127.0.0.1", [b"forwarded"])


async def test_callers_with_keys_have_regions_of_their_own(tmp_path: Path, memory: Memory) -> None:
    keys = [new_key(PEPPER, name=name, tier="all", now_s=1.0) for name in ("alice", "bob")]
    every = {"anonymous": Tier(), "all": Tier()}
    access = Access(1, every, AuthConfig(), {record.id: record for _, record in keys})
    (alice, _), (bob, _) = keys
    region = {"shared_memory_region": "r", "shared_memory_byte_size": 32}
    entry = {"name": "x", "datatype": "FP32", "shape": [2, 4], "parameters": region}
    key = memory(32, ROWS.tobytes())
    async with sharing(tmp_path, access=access) as house, client(house) as http:
        async with triton(house, "grpc") as g:
            await g.register_system_shared_memory("r", key, 32, headers={"x-api-key": alice})
            seen = await g.get_system_shared_memory_status(headers={"x-api-key": alice})
            unseen = await g.get_system_shared_memory_status(headers={"x-api-key": bob})
        codes, listed = [], []
        for secret in (alice, bob):
            http.headers["X-API-Key"] = secret
            answer = await http.post("/v2/models/affine/infer", json={"inputs": [entry]})
            codes.append(answer.status_code)
            listed.append((await http.get("/v2/systemsharedmemory/status")).json())
        await http.post("/v2/systemsharedmemory/unregister")
        http.headers["X-API-Key"] = alice
        kept = await http.get("/v2/systemsharedmemory/region/r/status")
    assert (list(seen.regions), list(unseen.regions)) == (["r"], [])
    assert codes == [200, 404]
    assert [len(each) for each in listed] == [1, 0]
    assert kept.json() == [{"name": "r", "key": key, "offset": 0, "byte_size": 32}]


def test_bodies_of_the_link_are_no_regions(tmp_path: Path) -> None:
    """A caller must not read what other callers send."""
    name = shared_memory.write(b"somebody's body")
    try:
        regions = Regions(SharedMemory(), tmp_path / "regions")
        with pytest.raises(InvalidArgument, match="invalid shm key"):
            regions.register("", Region("r", f"//{name}", 0, 4))
    finally:
        shared_memory.discard(name)


def test_the_client_of_triton_makes_objects_that_are_taken(tmp_path: Path) -> None:
    handle = shm.create_shared_memory_region("r", f"/headrace_client_{os.getpid()}", 32)
    try:
        shm.set_shared_memory_region(handle, [ROWS])
        regions = Regions(SharedMemory(), tmp_path / "regions")
        region = Region("r", f"/headrace_client_{os.getpid()}", 0, 32)
        regions.register("", region)
        assert bytes(regions.read(region)) == ROWS.tobytes()
    finally:
        shm.destroy_shared_memory_region(handle)
