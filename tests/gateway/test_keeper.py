"""Real keepers, and gateways' ends of them: what becomes of connections when one dies."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from gateway import keeper
from gateway.sockets import HeldSockets
from headrace.errors import ConfigError
from loadtests.processes import free_ports

ADDRESSES = {"http": "127.0.0.1:0", "grpc": "127.0.0.1:0"}
HOLD_S = 20.0
NONSENSE = (b"?", b"[]", b'{"join": [[1]]}', b'{"join": 7}', b"{}" * 9000, b"[" * 9000)
GATEWAY = """
import asyncio, sys
from pathlib import Path
from gateway.sockets import HeldSockets

async def main():
    folder, address, owner, hold_s = sys.argv[1:]
    held = HeldSockets(Path(folder), "app", {"http": address}, int(owner), float(hold_s))
    listening = held["http"]
    listening.listen()
    held.serve()
    print(listening.getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.read)

asyncio.run(main())
"""
"""A gateway that takes no connection, and dies when it is killed."""


@asynccontextmanager
async def held(folder: Path, **settings: object) -> AsyncIterator[HeldSockets]:
    """A gateway's end whose `watch` runs."""
    wanted = {"application": "app", "addresses": ADDRESSES, "owner": os.getpid(), "hold_s": HOLD_S}
    sockets = HeldSockets(folder, **{**wanted, **settings})  # type: ignore[arg-type]
    task = asyncio.create_task(sockets.watch())
    try:
        yield sockets
    finally:
        sockets.close()
        await asyncio.wait_for(task, 5)


def keepers(folder: Path) -> list[psutil.Process]:
    """The keepers whose Unix socket is in this folder."""
    return [each for each in psutil.process_iter() if _keeps(each, folder)]


def _keeps(process: psutil.Process, folder: Path) -> bool:
    here = str(folder / "keeper.sock")
    try:
        return keeper.__file__ in process.cmdline() and any(
            known.laddr == here for known in process.net_connections("unix")
        )
    except psutil.Error:  # it has just ended
        return False


async def soon(condition: Callable[[], object], seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - other processes tell nobody
            await asyncio.sleep(0.02)


def connects(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except ConnectionRefusedError:
        return False
    return True


def port_of(listening: socket.socket) -> int:
    with listening:
        return int(listening.getsockname()[1])


def start_gateway(
    folder: Path, address: str = "127.0.0.1:0", owner: int | None = None, hold_s: float = HOLD_S
) -> tuple[subprocess.Popen[str], int]:
    """A gateway as a process of its own, and its port."""
    arguments = [str(folder), address, str(owner or os.getpid()), str(hold_s)]
    process = subprocess.Popen(
        [sys.executable, "-c", GATEWAY, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    return process, int(process.stdout.readline())


def kill(process: subprocess.Popen[str]) -> None:
    with process:
        process.kill()


async def test_connections_wait_for_the_successor_of_a_gateway_that_was_killed(
    tmp_path: Path,
) -> None:
    gateway, port = start_gateway(tmp_path)
    kill(gateway)
    client = socket.create_connection(("127.0.0.1", port), timeout=5)
    client.sendall(b"hello")
    async with held(tmp_path, addresses={"http": "127.0.0.1:0"}) as sockets:
        with sockets["http"] as listening:
            assert listening.getsockname()[1] == port
            connection, _ = listening.accept()
            assert connection.recv(5) == b"hello"
    client.close()
    connection.close()


async def test_without_a_successor_connections_are_refused_after_a_while(tmp_path: Path) -> None:
    gateway, port = start_gateway(tmp_path, hold_s=1.0)
    kill(gateway)
    waiting = socket.create_connection(("127.0.0.1", port), timeout=5)
    await soon(lambda: not connects(port))
    with pytest.raises(ConnectionResetError):
        waiting.recv(1)
    waiting.close()
    await soon(lambda: not keepers(tmp_path))


async def test_a_successor_that_does_not_get_ready_does_not_make_clients_wait_for_ever(
    tmp_path: Path,
) -> None:
    address = f"127.0.0.1:{free_ports(1)[0]}"
    gateway, port = start_gateway(tmp_path, address, hold_s=1.0)
    kill(gateway)
    async with held(tmp_path, addresses={"http": address}) as starting:
        await soon(lambda: not connects(port))
        with starting["http"] as listening:  # and yet it can, later
            listening.listen()
            starting.serve()
            assert listening.getsockname()[1] == port and connects(port)


async def test_what_a_successor_accepts_on_already_is_not_shut(tmp_path: Path) -> None:
    ports = free_ports(2)
    names = {name: f"127.0.0.1:{port}" for name, port in zip(ADDRESSES, ports, strict=True)}
    async with (
        held(tmp_path, addresses=names, hold_s=1.0) as dying,
        held(tmp_path, addresses=names, hold_s=1.0) as starting,
    ):
        for name in names:
            with dying[name] as listening:
                listening.listen()
        dying.serve()
        dying.close()
        starting.serve("grpc")
        await soon(lambda: not connects(ports[0]))
        await asyncio.sleep(1.0)
        assert connects(ports[1])


async def test_a_keeper_outlives_the_end_of_sockets_that_were_shut_already(tmp_path: Path) -> None:
    async with held(tmp_path, hold_s=0.5) as leaving, held(tmp_path) as starting:
        with leaving["http"] as listening:
            listening.listen()
        leaving.serve()
        (before,) = keepers(tmp_path)
        assert not await leaving.leave()
        leaving.shut()
        leaving.close()
        await asyncio.sleep(1.5)
        assert keepers(tmp_path) == [before]
        starting.serve()
        assert not await starting.leave()


async def test_gateways_share_sockets_and_the_last_to_leave_closes_them(tmp_path: Path) -> None:
    async with held(tmp_path) as first:
        with first["http"] as listening:
            listening.listen()
        first.serve()
        async with held(tmp_path) as second:
            port = port_of(second["http"])
            assert port == port_of(first["http"]) != port_of(second["grpc"])
            assert not await first.leave(), "the second one does not accept yet"
            second.serve()
            async with asyncio.timeout(10):
                while not await first.leave():  # until the keeper has heard the second one
                    pass
            first.close()
            assert connects(port)
            assert not await second.leave() and connects(port)
        await soon(lambda: not connects(port))
    await soon(lambda: not keepers(tmp_path))


async def test_connections_do_not_wait_once_all_gateways_have_left(tmp_path: Path) -> None:
    async with held(tmp_path) as first, held(tmp_path) as second:
        with first["http"] as listening:
            listening.listen()
            port = port_of(first["http"])
        second.serve()
        first.serve()
        await second.leave()
        await first.leave()
        second.close()
        first.close()
        await soon(lambda: not connects(port))
        await soon(lambda: not keepers(tmp_path))


async def test_applications_do_not_share(tmp_path: Path) -> None:
    async with held(tmp_path) as first:
        with first["http"] as listening:
            listening.listen()
            port = listening.getsockname()[1]
        address = {"http": f"127.0.0.1:{port}"}
        with pytest.raises(ConfigError, match=rf"127.0.0.1:{port}: Address already in use; stop"):
            HeldSockets(tmp_path, "other", address, os.getpid())
        assert port_of(first["http"]) == port


async def test_an_address_that_is_not_known_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot listen on 256\.0\.0\.1:80: .*not known"):
        HeldSockets(tmp_path, "app", {"http": "256.0.0.1:80"}, os.getpid())
    await soon(lambda: not keepers(tmp_path))


async def test_the_host_of_an_address_changes_while_the_old_one_is_used(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    old, _ = start_gateway(tmp_path, f"127.0.0.1:{port}")
    async with held(tmp_path, addresses={"http": f"0.0.0.0:{port}"}) as new:
        with new["http"] as listening:
            listening.listen()
        new.serve()
        kill(old)
        assert connects(port)


async def test_a_killed_keeper_is_replaced_and_gets_the_sockets(tmp_path: Path) -> None:
    async with held(tmp_path) as first, held(tmp_path) as second:
        port = port_of(first["http"])
        with first["http"] as listening:
            listening.listen()
        first.serve()
        (before,) = keepers(tmp_path)
        before.send_signal(signal.SIGTERM)
        before.send_signal(signal.SIGKILL)
        await soon(lambda: keepers(tmp_path) not in ([], [before]))
        gateway, same = start_gateway(tmp_path, ADDRESSES["http"])
        assert same == port == port_of(second["http"])
        kill(gateway)
        assert len(keepers(tmp_path)) == 1 and connects(port)


async def test_who_leaves_without_an_answer_does_not_take_itself_for_the_last(
    tmp_path: Path,
) -> None:
    async with held(tmp_path) as sockets:
        sockets.serve()
        (standing,) = keepers(tmp_path)
        standing.suspend()
        try:
            assert await sockets.leave()
        finally:
            standing.resume()


async def test_the_keeper_ends_with_the_process_that_starts_gateways(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    owner, _ = start_gateway(tmp_path)
    gateway, port = start_gateway(tmp_path / "own", owner=owner.pid)
    kill(gateway)
    assert connects(port)
    kill(owner)
    await soon(lambda: not keepers(tmp_path / "own"))
    assert not connects(port)


async def test_a_keeper_is_for_its_user_and_survives_nonsense(tmp_path: Path) -> None:
    async with held(tmp_path) as sockets:
        mode = (tmp_path / "keeper.sock").stat().st_mode
        assert stat.S_IMODE(mode) == 0o600
        (before,) = keepers(tmp_path)
        for nonsense in NONSENSE:
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stranger:
                stranger.connect(str(tmp_path / "keeper.sock"))
                stranger.send(nonsense)
        sockets.serve()
        assert not await sockets.leave()
        assert keepers(tmp_path) == [before]
