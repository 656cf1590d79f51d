"""Starting and stopping as far as they go without Ray: what is refused, awaited and tidied."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import click
import pytest
from rich.console import Console

from command import instance
from command.instance import InstanceAddress, find_instance
from command.launch import (
    Options,
    Outcome,
    Ready,
    end_abandoned,
    take_down,
    up,
    up_detached,
    wait_ready,
)
from command.readiness import StartFailed
from command.terminal import Progress
from gateway.config_file import Config
from headrace.config.args import Args, PoolConfig
from headrace.config.types import SecretRef
from headrace.errors import ConfigError, DeadlineExceeded, Unavailable
from headrace.process import ProcessId, process_id
from loadtests.processes import free_ports

SUPERVISOR = """
import signal, sys
from command import instance
http, admin = sys.argv[1:]
instance.claim(http).write(
    instance.Instance(__import__("os").getpid(), "f", "a", http, "127.0.0.1:1", admin, "s")
)
print("up", flush=True)
signal.pause()
"""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HEADRACE_HOME", str(tmp_path))
    return tmp_path


def free_addresses(count: int) -> list[str]:
    """Addresses on loopback that nobody listens on."""
    return [f"127.0.0.1:{port}" for port in free_ports(count)]


def config(http: str, grpc: str, admin: str, **models: dict[str, Any]) -> Config:
    listen = {"http": http, "grpc": grpc, "admin": admin}
    args = Args.model_validate({"schema": 1, "listen": listen, "store": "memory://store"})
    return Config("f.yaml", "a", args, PoolConfig.model_validate({"models": models}), {})


def silent() -> Progress:
    return Progress(Console(file=io.StringIO()))


def never(ready: Ready) -> None:
    raise AssertionError(f"nothing should be announced: {ready}")


def leave_behind(http: str, process: ProcessId) -> Path:
    """A state file as a killed supervisor leaves it: its lock is gone, its processes may live."""
    claim = instance.claim(http)
    claim.write(instance.Instance(1, "f", "a", http, "g", "d", "s", processes=(process,)))
    os.close(claim.descriptor)
    return claim.path


@contextmanager
def child(*command: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that does not outlive the test."""
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def status(*states: str, ready: bool = True) -> dict[str, Any]:
    versions = [
        {"version": number, "state": state, "reason": "", "load_s": 0.1}
        for number, state in enumerate(states, 1)
    ]
    models = [{"name": "m", "reason": "", "versions": versions}]
    return {"ready": ready, "addresses": {"http": "127.0.0.1:5"}, "models": models}


class Admin(HTTPServer):
    """An admin listener that tells its statuses one by one, and maybe leaves when asked to."""

    def __init__(self, *statuses: dict[str, Any], leaves: bool = True) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.statuses = list(statuses)
        self.leaves = leaves

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_port}"

    def shutdown_request(self, request: Any) -> None:
        """Leave after the answer to the shutdown has been sent."""
        super().shutdown_request(request)
        if not self.statuses and self.leaves:
            self.socket.close()


class Handler(BaseHTTPRequestHandler):
    """GET tells a status, the last one again and again; POST means shutdown."""

    server: Admin

    def do_GET(self) -> None:
        left = self.server.statuses
        self.answer(left.pop(0) if len(left) > 1 else left[0])

    def do_POST(self) -> None:
        self.server.statuses.clear()
        self.answer({})

    def answer(self, value: dict[str, Any]) -> None:
        content = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Keep the test's output clean."""


@contextmanager
def serving(admin: Admin) -> Iterator[Admin]:
    def serve() -> None:
        while admin.socket.fileno() >= 0 and not done:
            admin.handle_request()

    done: list[bool] = []
    admin.timeout = 0.01
    thread = Thread(target=serve)
    thread.start()
    try:
        yield admin
    finally:
        done.append(True)
        thread.join()
        admin.server_close()


def run_wait(
    admin: str, *, wait: Callable[[float], bool] = lambda _: False, timeout_s: float = 60.0
) -> Ready | None:
    http, grpc = free_addresses(2)
    whole = config(http, grpc, admin, m={"runtime": "onnx"})
    return wait_ready(whole, timeout_s, silent(), lambda: "starting", wait)


def test_a_start_is_ready_when_all_models_have_settled() -> None:
    steps = (status("LOADING"), status("READY", "LOADING"), status("READY", "FAILED"))
    with serving(Admin(*steps)) as admin:
        ready = run_wait(admin.address)
        assert len(admin.statuses) == 1
    assert ready is not None and ready.late == () and ready.addresses == {"http": "127.0.0.1:5"}
    assert [str(state) for state in ready.models] == ["m/1", "m/2"]
    assert ready.example == "curl -s http://127.0.0.1:5/v2/models/m"


def test_a_start_waits_until_the_gateway_takes_requests() -> None:
    early = status("READY", ready=False)
    with serving(Admin(early, early, status("READY"))) as admin:
        ready = run_wait(admin.address)
        assert len(admin.statuses) == 1
    assert ready is not None and not ready.late


def test_a_start_that_takes_too_long_names_what_is_late() -> None:
    with serving(Admin(status("LOADING"))) as admin:
        ready = run_wait(admin.address, timeout_s=0)
    assert ready is not None and ready.late == ("m",)
    (nobody,) = free_addresses(1)
    unanswered = run_wait(nobody, timeout_s=0)
    assert unanswered is not None and unanswered.late == ("m",)
    assert unanswered.addresses["admin"] == nobody


def test_a_start_that_is_stopped_tells_nothing() -> None:
    (nobody,) = free_addresses(1)
    assert run_wait(nobody, wait=lambda _: True) is None


def test_what_was_left_on_the_same_port_is_ended_before_a_start() -> None:
    http, admin = free_addresses(2)
    with (
        child("sleep", "600") as left,
        socket.create_server(("127.0.0.1", 0)) as taken,
    ):
        leave_behind(http, process_id(left.pid))
        grpc = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(instance.PortInUse, match=f"{grpc} is in use by another program"):
            up(config(http, grpc, admin), Options(), silent(), never)
        assert left.wait(10) == -signal.SIGKILL
    assert not list(instance.abandoned()) and not list(instance.running())


def test_only_abandoned_instances_are_tidied() -> None:
    one, two = free_addresses(2)
    claim = instance.claim(one)
    claim.write(instance.Instance(1, "f", "a", one, "g", "d", "s"))
    gone = leave_behind(two, ProcessId(4_000_000, 1))
    assert end_abandoned() == 1 and not gone.exists() and claim.path.exists()
    claim.release()


def test_an_admin_port_that_nobody_could_find_is_refused(home: Path) -> None:
    http, grpc = free_addresses(2)
    with pytest.raises(ConfigError, match=r"args\.listen\.admin needs a port"):
        up(config(http, grpc, "127.0.0.1:0"), Options(), silent(), never)
    assert not list(home.glob("up-*.json"))


def test_a_detached_start_that_ends_at_once_shows_its_log(home: Path) -> None:
    whole = config(*free_addresses(3), m={"runtime": "onnx"})
    with pytest.raises(StartFailed, match=r"(?s)stopped again.*No such command 'nonsense'"):
        up_detached(whole, Options(timeout_s=60), silent(), ["nonsense"])
    (log,) = home.glob("up-*.log")
    assert log.stat().st_mode & 0o777 == 0o600


def test_a_detached_start_beside_another_says_who_it_is() -> None:
    http, grpc, admin = free_addresses(3)
    claim = instance.claim(http)
    claim.write(instance.Instance(4711, "other.yaml", "a", http, grpc, admin, "s"))
    with pytest.raises(instance.PortInUse, match=r"process 4711, other\.yaml"):
        up_detached(config(http, grpc, admin), Options(), silent(), ["nonsense"])
    claim.release()


def test_down_waits_until_the_listener_has_left() -> None:
    with serving(Admin(status())) as admin:
        assert take_down(InstanceAddress(admin.address, "127.0.0.1:1"), 30) is Outcome.STOPPED
        assert admin.socket.fileno() < 0


def test_down_tells_when_nothing_stops() -> None:
    with (
        serving(Admin(status(), leaves=False)) as admin,
        pytest.raises(DeadlineExceeded, match=f"{admin.address} has not stopped after 0 s"),
    ):
        take_down(InstanceAddress(admin.address, "127.0.0.1:1"), 0)


def test_down_where_nothing_runs_is_no_mistake_unless_it_was_named() -> None:
    (nobody,) = free_addresses(1)
    target = InstanceAddress(nobody, "127.0.0.1:1")
    assert take_down(target, 1) is Outcome.NOTHING
    with pytest.raises(Unavailable, match="is Headrace up"):
        take_down(target, 1, known=True)


def test_down_ends_what_a_killed_one_left() -> None:
    http, nobody = free_addresses(2)
    with child("sleep", "600") as left:
        leave_behind(http, process_id(left.pid))
        assert take_down(InstanceAddress(nobody, http), 1, known=True) is Outcome.TIDIED
        assert left.wait(10) == -signal.SIGKILL


def test_down_signals_a_supervisor_whose_gateway_does_not_answer(home: Path) -> None:
    http, admin = free_addresses(2)
    with child(sys.executable, "-c", SUPERVISOR, http, admin) as supervisor:
        assert supervisor.stdout is not None and supervisor.stdout.readline() == b"up\n"
        target = find_instance(None, None)
        assert target.found is not None and target.found.pid == supervisor.pid
        assert take_down(target, 10) is Outcome.STOPPED
        assert supervisor.wait(10) == -signal.SIGTERM
    assert not list(home.glob("up-*.json"))


def test_several_that_run_must_be_told_apart() -> None:
    claims = [instance.claim(f"127.0.0.1:{port}") for port in (1, 2)]
    for claim, admin in zip(claims, ("h:11", "h:12"), strict=True):
        token = SecretRef(env="TOKEN") if admin == "h:12" else None
        claim.write(instance.Instance(1, "f", "a", "h:1", "g", admin, "s", token))
    with pytest.raises(click.UsageError, match="--admin h:11, --admin h:12"):
        find_instance(None, None)
    second = find_instance("h:12", None)
    assert second.found is not None and second.token == SecretRef(env="TOKEN")
    assert find_instance("h:12", "a file").token == SecretRef(file="a file")
    assert find_instance("h:13", None).found is None
    for claim in claims:
        claim.release()


def test_a_token_that_fits_no_header_is_refused_without_showing_it(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("geheim-ä", encoding="utf-8")
    with pytest.raises(ConfigError, match="printable ASCII") as found:
        find_instance("127.0.0.1:1", str(tmp_path / "token")).client()
    assert "geheim" not in found.value.message


def test_a_state_file_that_is_not_ours_is_passed_over(home: Path) -> None:
    for number, content in enumerate((b"", b"[]", b"{}", b"\xff", b'{"processes": 5}')):
        (home / f"up-{number}.json").write_bytes(content)
    assert not list(instance.running()) and not list(instance.abandoned())
    assert find_instance(None, None).found is None
