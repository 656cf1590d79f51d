"""The certificates of the listeners: TLS contexts from files, read anew when these change."""

from __future__ import annotations

import asyncio
import os
import ssl
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from cryptography import x509

from headrace.config.args import FileRef, Tls
from headrace.errors import ConfigError

LOOK_S = 1.0
"""Interval of looking whether the files have changed."""
SOON_S = 14 * 86_400.0
"""Time before the end of a certificate from which it is told of."""
MAX_FILE_BYTES = 1024 * 1024
"""Cap on a file of certificates: a larger one is the wrong file."""
PROTOCOLS: Mapping[str, str] = {"http": "http/1.1", "grpc": "h2", "admin": "http/1.1"}
"""What each listener speaks, as ALPN (RFC 7301) calls it."""
MINIMUM = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}

Farewell = Callable[[bytes], None]
"""Sends a client the last bytes of a handshake that has failed."""
FAREWELL: ContextVar[Farewell] = ContextVar("farewell")
"""That of the connection whose handshake begins."""

log = structlog.get_logger()


RECORD_BYTES = 16 * 1024
"""The most that one record carries, and so one read gives."""


class _ServerEnd(ssl.SSLObject):
    """The server's end of a connection; event loops drop the alert of a failed handshake.

    They also read until OpenSSL says that nothing is left, which it does slowly, and each time into
    a new buffer for 16 records.
    """

    incoming: ssl.MemoryBIO
    outgoing: ssl.MemoryBIO
    farewell: Farewell

    def read(self, len: int = 1024, buffer: Any = None) -> Any:
        if buffer is not None:
            return super().read(len, buffer)
        if not self.incoming.pending and not self.pending():
            raise ssl.SSLWantReadError(ssl.SSL_ERROR_WANT_READ, "nothing is left to read")
        return super().read(min(len, RECORD_BYTES))

    def do_handshake(self) -> None:
        try:
            super().do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except ssl.SSLError:
            self.farewell(self.outgoing.read())
            raise


class ServerContext(ssl.SSLContext):
    """A server's context whose connections say why their handshake has failed."""

    sslobject_class = _ServerEnd

    def wrap_bio(self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, **more: Any) -> _ServerEnd:  # type: ignore[override]
        made = super().wrap_bio(incoming, outgoing, **more)
        assert isinstance(made, _ServerEnd)
        made.incoming, made.outgoing, made.farewell = incoming, outgoing, FAREWELL.get()
        return made


@dataclass(frozen=True, slots=True)
class Certificate:
    """What is told of our own certificate; `ends_s` in seconds since 1970."""

    subject: str
    ends_s: float

    def warning(self, now_s: float) -> str | None:
        """What is wrong with its time: that it is over, or nearly so."""
        ended = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(self.ends_s))
        if self.ends_s <= now_s:
            return f"the certificate ({self.subject}) has expired: {ended}"
        return f"the certificate ends soon: {ended}" if self.ends_s - now_s < SOON_S else None


def read_certificate(config: Tls) -> Certificate:
    """The server's certificate as its file has it; raises `ConfigError`."""
    content = _read(config.cert, "cert")
    try:
        found = x509.load_pem_x509_certificate(content)
        return Certificate(found.subject.rfc4514_string(), found.not_valid_after_utc.timestamp())
    except ValueError:
        raise ConfigError(
            f"`listen.tls.cert`: {config.cert.file} should begin with a certificate in PEM form"
        ) from None


def server_context(config: Tls, listener: str) -> ServerContext:
    """The context of one listener's connections; raises `ConfigError` for files of no use."""
    context = ServerContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = MINIMUM[config.min_version]
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols([PROTOCOLS[listener]])
    _read(config.cert, "cert")
    _read(config.key, "key")
    try:
        context.load_cert_chain(config.cert.path, config.key.path, password=_no_password)
    except OSError as error:  # of OpenSSL, or a file has just been taken away
        said = error.reason if isinstance(error, ssl.SSLError) else error.strerror
        reason = (said or "no PEM form").lower().replace("_", " ")
        raise ConfigError(
            f"`listen.tls`: {config.cert.file} and {config.key.file} should be a certificate and "
            f"its key, both in PEM form ({reason})"
        ) from None
    if config.client_ca is not None and listener != "admin":
        _trust_clients(context, config.client_ca)
        required = config.client_certificates == "required"
        context.verify_mode = ssl.CERT_REQUIRED if required else ssl.CERT_OPTIONAL
    return context


def check_files(config: Tls) -> Certificate:
    """The server's certificate, if all files are of use; raises `ConfigError`."""
    for listener in config.listeners:
        server_context(config, listener)
    return read_certificate(config)


def _trust_clients(context: ssl.SSLContext, authority: FileRef) -> None:
    _read(authority, "client_ca")
    try:
        context.load_verify_locations(authority.path)
    except OSError:
        raise ConfigError(
            f"`listen.tls.client_ca`: {authority.file} should hold certificates in PEM form"
        ) from None


def _read(place: FileRef, key: str) -> bytes:
    """The bytes of a file; an error of OpenSSL would not name it."""
    try:
        with place.path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(
            f"`listen.tls.{key}`: cannot read {place.file}: {error.strerror}"
        ) from None
    if len(content) > MAX_FILE_BYTES:
        raise ConfigError(f"`listen.tls.{key}`: {place.file} is over {MAX_FILE_BYTES} bytes")
    return content


def _no_password() -> str:
    """OpenSSL would ask for it on the terminal."""
    raise ConfigError("`listen.tls.key`: a key with a password cannot be used: remove it")


Stamp = tuple[int, int, int, int] | None
"""What changes with a file; None where there is none."""


def _stamp(path: Path) -> Stamp:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


class Certificates:
    """The present context of each listener that speaks TLS; `run` must run. Raises `ConfigError`.

    Where changed files are of no use, or only half of them have changed, the old ones stay.
    """

    def __init__(self, config: Tls) -> None:
        self._config = config
        self._files = [place.path for place in config.files]
        self._stamps = self._look()
        self._contexts = self._make()
        self._failed: list[Stamp] | None = None
        self._told_s = 0.0
        self._tell_end()

    def context(self, listener: str) -> Callable[[], ServerContext] | None:
        """Gives the context for a listener's next connection; None where it speaks no TLS."""
        return (lambda: self._contexts[listener]) if listener in self._contexts else None

    async def run(self) -> None:
        """Follow changes of the files until cancelled."""
        while True:
            await asyncio.sleep(LOOK_S)
            await asyncio.to_thread(self.refresh)

    def refresh(self) -> None:
        """Read the files if they have changed; blocks."""
        stamps = self._look()
        if stamps != self._stamps:
            try:
                self._contexts = self._make()
            except ConfigError as error:
                # Once for each change; it is tried again, as a change may bear the same stamp.
                if stamps != self._failed:
                    log.warning("certificates_kept", reason=error.message)
                self._failed = stamps
                return
            self._stamps, self._failed, self._told_s = stamps, None, 0.0
            log.info("certificates_changed", listeners=sorted(self._contexts))
        self._tell_end()

    def _make(self) -> dict[str, ServerContext]:
        config = self._config
        self._own = read_certificate(config)
        return {name: server_context(config, name) for name in config.listeners}

    def _look(self) -> list[Stamp]:
        return [_stamp(path) for path in self._files]

    def _tell_end(self) -> None:
        """Say once a day that the certificate has ended, or soon will."""
        now_s = time.time()
        if now_s - self._told_s > 86_400 and (warning := self._own.warning(now_s)):
            self._told_s = now_s
            log.warning("certificate_ends", reason=warning)
