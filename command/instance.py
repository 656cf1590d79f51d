"""Running instances: their state files, locks of ports, addresses."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import ssl
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import click

from command import tls
from command.client import AdminClient
from headrace.config.args import Args, Listen, split_address
from headrace.config.types import SecretRef
from headrace.errors import ConfigError, HeadraceError
from headrace.process import ProcessId
from headrace.secrets import admin_token, headrace_home

_ATTEMPTS = 10


class PortInUse(HeadraceError):
    """Raised when an address of the config is taken; the message says by whom."""


@dataclass(frozen=True, slots=True)
class Instance:
    """Content of a state file; names the place of the admin token, not the token.

    `processes` are Ray's: if the supervisor is killed, the next command ends them. `certificate` is
    the file of that of the `tls_listeners`.
    """

    pid: int
    config: str
    application: str
    http: str
    grpc: str
    admin: str
    store: str
    admin_token: SecretRef | None = None
    log: str = ""
    processes: tuple[ProcessId, ...] = ()
    tls_listeners: tuple[str, ...] = ()
    certificate: str = ""


@dataclass(slots=True)
class PortClaim:
    """Lock of a port, held while this process lives; the system frees it at its end."""

    path: Path
    descriptor: int

    def write(self, instance: Instance) -> None:
        """Write the instance to the state file."""
        record = asdict(instance)
        record["admin_token"] = instance.admin_token and instance.admin_token.model_dump()
        content = json.dumps(record).encode()
        os.pwrite(self.descriptor, content, 0)
        os.ftruncate(self.descriptor, len(content))

    def release(self) -> None:
        """Remove the state file and free the lock."""
        self.path.unlink(missing_ok=True)
        os.close(self.descriptor)


def state_file(http: str) -> Path:
    """State file of the instance that listens on this HTTP address."""
    port = split_address(http)[1]
    return headrace_home() / f"up-{port or f'any-{os.getpid()}'}.json"


def claim(http: str) -> PortClaim:
    """Lock an HTTP port; raises `PortInUse` when another instance has it."""
    path = state_file(http)
    for _ in range(_ATTEMPTS):
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise ConfigError(f"cannot write {path}: {error.strerror}") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.stat().st_ino == os.fstat(descriptor).st_ino:
                return PortClaim(path, descriptor)
        except (BlockingIOError, FileNotFoundError):
            time.sleep(0.02)  # another process tests the lock, or has just removed the file
        os.close(descriptor)
    other = read(path)
    who = f" (process {other.pid}, {other.config})" if other else ""
    raise PortInUse(
        f"another Headrace{who} already listens on {http}; stop it with `headrace down` "
        "or give this one other ports under `args.listen`"
    )


def alive(path: Path) -> bool:
    """True while a supervisor holds the lock of this state file."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def read(path: Path) -> Instance | None:
    """The instance of a state file; None where the file is gone, empty or not ours."""
    try:
        record = json.loads(path.read_bytes())
        record["processes"] = tuple(ProcessId(**process) for process in record["processes"])
        reference = record["admin_token"]
        record["admin_token"] = SecretRef.model_validate(reference) if reference else None
        record["tls_listeners"] = tuple(record.get("tls_listeners", ()))
        return Instance(**record)
    except (OSError, ValueError, TypeError, KeyError):
        return None


def running() -> Iterator[tuple[Path, Instance]]:
    """Instances of this user that live, by port."""
    return _instances(live=True)


def abandoned() -> Iterator[tuple[Path, Instance]]:
    """Instances whose supervisor was killed and left processes."""
    return _instances(live=False)


def _instances(live: bool) -> Iterator[tuple[Path, Instance]]:
    for path in sorted(headrace_home().glob("up-*.json")):
        instance = read(path)
        if instance is not None and alive(path) == live:
            yield path, instance


@dataclass(frozen=True, slots=True)
class InstanceAddress:
    """Listeners to ask and the token for it; without `found` only the addresses are known.

    `ca` is the file of authorities that were named, `certificate` that of our own certificate.
    """

    admin: str
    http: str
    token: SecretRef | None = None
    path: Path | None = None
    found: Instance | None = None
    ca: str | None = None
    certificate: str | None = None

    def client(self, timeout_s: float = 5.0) -> AdminClient:
        """A client of the admin API, with the token."""
        token, trust = admin_token(self.token), self.trust("admin")
        return AdminClient(self.admin, token, trust=trust, timeout_s=timeout_s)

    def trust(self, listener: Literal["http", "admin"]) -> ssl.SSLContext | None:
        """Whose certificates are good for a listener; None where it speaks no TLS."""
        here = self.found
        if here is not None and listener not in here.tls_listeners:
            return None
        if self.ca is not None:
            context = tls.trust(self.ca)
        elif here is not None:
            context = tls.trust_own(Path(here.certificate))
        elif self.certificate is not None:
            context = tls.trust(tls.SYSTEM)
        else:
            return None
        if self.certificate is not None:
            tls.show(context, self.certificate)
        return context


def find_instance(
    admin: str | None, token_file: str | None, ca: str | None = None
) -> InstanceAddress:
    """The instance at `admin`, else the only one that runs here, else the default ports.

    Raises `click.UsageError` where several run.
    """
    token = SecretRef(file=token_file) if token_file else None
    here = list(running())
    if admin is not None:
        here = [entry for entry in here if entry[1].admin == admin]
    if len(here) > 1:
        choices = ", ".join(f"--admin {found.admin}" for _, found in here)
        raise click.UsageError(f"several run here; choose one: {choices}")
    if here:
        path, found = here[0]
        token = token or found.admin_token
        return InstanceAddress(found.admin, found.http, token, path, found, ca)
    default = Listen()
    return InstanceAddress(admin or default.admin, default.http, token, ca=ca)


def find_listener(http: str | None, ca: str | None, certificate: str | None) -> InstanceAddress:
    """Whose public listener is to be asked: that at `http`, else as `find_instance`."""
    if http is not None:
        return InstanceAddress("", http, ca=ca, certificate=certificate)
    return replace(find_instance(None, None, ca), certificate=certificate)


def check_ports(args: Args) -> None:
    """Raise `PortInUse` where another program listens on an address of the config."""
    for name in ("http", "grpc", "admin", "link"):
        address = getattr(args.listen, name)
        host, port = split_address(address)
        if port == 0 and name == "admin":
            raise ConfigError("args.listen.admin needs a port of its own here: 0 cannot be found")
        if port == 0:
            continue
        try:
            family, kind, protocol, _, target = socket.getaddrinfo(
                host, port, type=socket.SOCK_STREAM
            )[0]
        except socket.gaierror:
            raise ConfigError(f"args.listen.{name}: the host of {address} is not known") from None
        with socket.socket(family, kind, protocol) as probe:
            # Without this, connections in TIME_WAIT would look like a listener.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(target)
            except OSError as error:
                raise PortInUse(_why(name, address, error)) from None


def _why(name: str, address: str, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"{address} is in use by another program; stop it or change args.listen.{name}"
    if error.errno == errno.EACCES:
        return f"no permission to listen on {address}; choose a port above 1023 for listen.{name}"
    return f"cannot listen on {address} (args.listen.{name}): {error.strerror}"
