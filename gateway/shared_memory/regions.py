"""Triton's system shared memory: the regions that clients of this machine have registered.

All gateways of a node share a folder with a file for each region, so a client may reach any of
them, and regions outlive a gateway. Nothing is mapped: the owner of a file may truncate it at any
time, and a process that touches a page that is gone is killed.
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
import secrets
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import orjson

from headrace.config.args import SharedMemory
from headrace.errors import (
    AlreadyExists,
    HeadraceError,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    Unavailable,
    Unimplemented,
    quoted,
)
from headrace.link.frames import Buffer


def unknown_region(name: str, kind: str = "") -> NotFound:
    """`kind` is `system ` or `cuda ` where its status was asked for."""
    return NotFound(f"Unable to find {kind}shared memory region: {quoted(name)}")


def registration_failed(name: str, reason: str) -> InvalidArgument:
    return InvalidArgument(f"failed to register shared memory region {quoted(name)}: {reason}")


def registration_is_off(name: str) -> Unimplemented:
    return Unimplemented(
        f"failed to register shared memory region {quoted(name)}: shared memory is off here "
        "(`shared_memory: true` under `args` allows it); send tensors in the request"
    )


def cuda_is_refused(name: str) -> InvalidArgument:
    return InvalidArgument(
        f"failed to register CUDA shared memory region: {quoted(name)}, GPUs not supported: "
        "a GPU's memory is not taken from clients; send tensors in the request"
    )


@dataclass(frozen=True, slots=True)
class RegionPart:
    """The part of a region that holds a tensor: `byte_size` bytes from `offset` on."""

    tensor: str
    region: str
    offset: int
    byte_size: int


MEMORY = Path("/dev/shm")
MAX_REGIONS = 4096
"""Cap for all callers of a node; each region is a small file."""
MAX_REGIONS_OF_CALLER = 512
MAX_NAME_BYTES = 1024
MAX_FILE_BYTES = 16 * 1024
"""Cap on a registration's JSON, which may need six bytes for one of a name or key."""
RESERVED = ("headrace-", "sem.", "plasma")
"""Prefixes of our own bodies under way, of semaphores, and of Ray's object store."""


@dataclass(frozen=True, slots=True)
class Region:
    """`byte_size` bytes from `offset` on of the POSIX shared memory object `key`."""

    name: str
    key: str
    offset: int
    byte_size: int


class Regions:
    """The regions by caller and name; `node_ip` is an address of this machine.

    `caller` is the id of a caller, "" where callers are not told apart.
    """

    def __init__(self, config: SharedMemory, folder: Path, node_ip: str = "127.0.0.1") -> None:
        self._config, self._folder, self._node_ip = config, folder, node_ip
        self._user = os.geteuid() if config.user is None else config.user

    def require_local(self, address: str, headers: Collection[bytes]) -> None:
        """Raises `PermissionDenied` for callers that are not on this machine.

        `headers` are lower-case names; what a proxy passes on may come from anywhere.
        """
        with suppress(ValueError):
            found = ipaddress.ip_address(address)
            found = getattr(found, "ipv4_mapped", None) or found
            local = found.is_loopback or str(found) == self._node_ip
            if local and b"x-forwarded-for" not in headers and b"forwarded" not in headers:
                return
        raise PermissionDenied("shared memory is for callers on the gateway's own machine")

    def register(self, caller: str, region: Region) -> None:
        """Make a region known by its name; raises `InvalidArgument` or `AlreadyExists`."""
        name = region.name
        if not name or len(name.encode()) > MAX_NAME_BYTES:
            raise registration_failed(name, f"a name has 1 to {MAX_NAME_BYTES} bytes")
        if region.byte_size < 1 or region.offset < 0:
            raise registration_failed(name, "invalid args: 'byte_size' is at least 1, 'offset' 0")
        try:
            with self._opened(region, os.O_RDONLY):
                pass
        except HeadraceError as error:
            raise registration_failed(name, error.message) from None
        path = self._path(caller, name)
        self._folder.mkdir(mode=0o700, exist_ok=True)
        names = os.listdir(self._folder)
        own = path.name.partition("-")[0]
        mine = sum(each.startswith(own) for each in names)
        if path.name not in names and (len(names) >= MAX_REGIONS or mine >= MAX_REGIONS_OF_CALLER):
            raise Unavailable(
                f"too many shared memory regions: {mine} are yours, {len(names)} in all; "
                f"there may be {MAX_REGIONS_OF_CALLER} and {MAX_REGIONS}"
            )
        # A hard link appears whole or not at all, and never replaces a file.
        draft = self._folder / f".{secrets.token_hex(8)}"
        draft.write_bytes(orjson.dumps(asdict(region)))
        try:
            path.hardlink_to(draft)
        except FileExistsError:
            raise AlreadyExists(f"shared memory region {quoted(name)} already in manager") from None
        finally:
            draft.unlink()

    def find(self, caller: str, name: str, kind: str = "") -> Region:
        """The caller's region of a name; raises `NotFound`."""
        try:
            return _load(self._path(caller, name))
        except FileNotFoundError:
            raise unknown_region(name, kind) from None

    def listed(self, caller: str) -> list[Region]:
        """All regions of a caller, sorted by name."""
        found = []
        for path in self._folder.glob(f"{_digest(caller)}-*"):
            with suppress(FileNotFoundError):
                found.append(_load(path))
        return sorted(found, key=lambda region: region.name)

    def unregister(self, caller: str, name: str = "") -> None:
        """Forget a caller's region, or all if `name` is ""; an unknown one is no error."""
        names = [name] if name else [region.name for region in self.listed(caller)]
        for each in names:
            self._path(caller, each).unlink(missing_ok=True)

    def _path(self, caller: str, name: str) -> Path:
        return self._folder / f"{_digest(caller)}-{_digest(name)}"

    def locate(self, caller: str, part: RegionPart) -> Region:
        """A part of a caller's region, as a region; raises `NotFound` or `InvalidArgument`."""
        region = self.find(caller, part.region)
        if part.offset >= region.byte_size:
            raise InvalidArgument(f"Invalid offset for shared memory region: {quoted(part.region)}")
        if part.offset + part.byte_size > region.byte_size:
            raise InvalidArgument(
                f"Invalid offset + byte size for shared memory region: {quoted(part.region)}"
            )
        return Region(part.region, region.key, region.offset + part.offset, part.byte_size)

    def read(self, region: Region) -> bytearray:
        """A copy of its bytes; raises `InvalidArgument`."""
        content = bytearray(region.byte_size)
        rest, at = memoryview(content), region.offset
        with self._opened(region, os.O_RDONLY) as descriptor:
            while rest:
                count = os.preadv(descriptor, [rest], at)
                if not count:
                    raise _too_small(region)
                rest, at = rest[count:], at + count
        return content

    def write(self, region: Region, content: Buffer) -> None:
        """Write bytes to its begin, at most as many as it has; raises `InvalidArgument`."""
        rest, at = memoryview(content), region.offset
        with self._opened(region, os.O_WRONLY) as descriptor:
            while rest:
                count = os.pwrite(descriptor, rest, at)
                rest, at = rest[count:], at + count

    @contextmanager
    def _opened(self, region: Region, flags: int) -> Iterator[int]:
        """The descriptor of a region's file; raises `InvalidArgument` also if it is too small."""
        name = region.key.lstrip("/")
        plain = name not in ("", ".", "..") and not {"/", "\0"} & set(name)
        if not plain or len(name.encode()) > 255 or name.startswith(RESERVED):
            raise InvalidArgument(
                f"invalid shm key {quoted(region.key)}: it is one plain file name"
            )
        if not name.startswith(self._config.prefix):
            raise InvalidArgument(
                f"invalid shm key {quoted(region.key)}: "
                f"keys begin with {self._config.prefix!r} here"
            )
        try:
            # Opening a pipe must not wait for its other end.
            descriptor = os.open(
                MEMORY / name, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            )
        except OSError as error:
            raise InvalidArgument(
                f"Unable to open shared memory region: {quoted(region.key)}: {error.strerror}"
            ) from None
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode) or found.st_uid != self._user:
                raise InvalidArgument(
                    f"Unable to open shared memory region: {quoted(region.key)}: it is not a file "
                    "of the user whose regions are taken"
                )
            if region.offset + region.byte_size > found.st_size:
                raise _too_small(region)
            yield descriptor
        finally:
            os.close(descriptor)


def _load(path: Path) -> Region:
    """A registration, in three system calls, because requests wait for it."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return Region(**orjson.loads(os.read(descriptor, MAX_FILE_BYTES)))
    finally:
        os.close(descriptor)


@lru_cache(maxsize=4096)
def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _too_small(region: Region) -> InvalidArgument:
    return InvalidArgument(
        f"invalid args: the shared memory object {quoted(region.key)} is smaller than "
        f"{region.offset} + {region.byte_size} bytes"
    )


def region_documents(regions: Regions | None, caller: str, name: str) -> list[dict[str, Any]]:
    """The regions of a caller, or the one of a `name`; none where shared memory is off.

    Raises `NotFound` for an unknown name.
    """
    if regions is None:
        if name:
            raise unknown_region(name, "system ")
        return []
    found = [regions.find(caller, name, "system ")] if name else regions.listed(caller)
    return [asdict(each) for each in found]
