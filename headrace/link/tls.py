"""TLS around the link's TCP connections; each end proves with a certificate that it belongs here.

Without files, all processes derive one key and its certificate from the cluster's secret. The
certificate is its own authority, so who presents it knows the secret: no file is passed around, and
nothing expires. Unix sockets stay plain.
"""

from __future__ import annotations

import hmac
import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache

from headrace.config.args import LinkConfig, LinkFiles
from headrace.errors import ConfigError, HeadraceError
from headrace.secrets import resolve

HANDSHAKE_TIMEOUT_S = 5.0

_ALIKE = "give all nodes the same `secret` and the same `link.tls`"


@dataclass(frozen=True, slots=True)
class LinkTls:
    """What the link's TCP connections are encrypted with: `files`, or what `secret` gives."""

    secret: bytes = field(repr=False)
    files: LinkFiles | None = None

    def context(self, *, server: bool) -> ssl.SSLContext:
        """Settings for one connection, so that changed files count for the next one; blocks.

        Raises `ConfigError` where the files cannot be used.
        """
        if self.files is None:
            key, certificate = derive(self.secret)
            return _context(key, certificate, certificate, server=server)
        key, certificate, authority = (
            resolve(place) for place in (self.files.key, self.files.cert, self.files.ca)
        )
        try:
            return _context(key, certificate, authority, server=server)
        except (ssl.SSLError, ValueError) as error:
            reason = getattr(error, "reason", None) or "no PEM text"
            raise ConfigError(
                f"`link.tls`: `cert`, `key` and `ca` should be PEM, the key without a password and "
                f"that of the certificate ({_words(reason)})"
            ) from None


def link_tls(config: LinkConfig, secret: bytes) -> LinkTls | None:
    """TLS as configured, None where it is off; raises `ConfigError` for files that are of no use.

    `secret` is the cluster's.
    """
    if isinstance(config.tls, LinkFiles):
        tls = LinkTls(secret, config.tls)
        tls.context(server=True)
        return tls
    return LinkTls(secret) if config.tls == "auto" else None


@cache
def derive(secret: bytes) -> tuple[str, str]:
    """The key and the certificate of a cluster, as PEM: the same in each of its processes.

    Ed25519 signs without chance, so not a bit differs between them.
    """
    # Importing it takes 60 ms, which only those who speak with other nodes need to spend.
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.x509.oid import NameOID

    seed = hmac.digest(secret, b"headrace link certificate 1", "sha256")
    key = Ed25519PrivateKey.from_private_bytes(seed)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "headrace link")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(datetime(2000, 1, 1, tzinfo=UTC))
        .not_valid_after(datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC))  # RFC 5280: no end
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, None)
    )
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return pem.decode(), certificate.public_bytes(serialization.Encoding.PEM).decode()


def _context(key: str, certificate: str, authority: str, *, server: bool) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    # Nodes come and go under any address: what counts is that the authority signed.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=authority)
    with _memory_file(f"{key}\n{certificate}\n") as path:
        context.load_cert_chain(path, password=b"")  # a key with a password fails, and asks nobody
    if server:
        context.num_tickets = 0  # links last: nothing is resumed
    return context


@contextmanager
def _memory_file(text: str) -> Iterator[str]:
    """The path of a file without a name, as Python reads keys from files only."""
    descriptor = os.memfd_create("headrace", os.MFD_CLOEXEC)
    try:
        with os.fdopen(os.dup(descriptor), "w", encoding="utf-8") as file:
            file.write(text)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


def explain(error: Exception) -> str:
    """Why there is no TLS connection, and what would be right."""
    if isinstance(error, HeadraceError):
        return error.message
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the peer's certificate is refused ({error.verify_message}): {_ALIKE}"
    if isinstance(error, ConnectionResetError | ssl.SSLEOFError):
        return f"the peer ended the TLS handshake: {_ALIKE}"
    if isinstance(error, TimeoutError | ConnectionAbortedError):
        return "the TLS handshake took too long"
    if isinstance(error, ssl.SSLError):
        reason = error.reason or str(error)
        if reason in _NO_TLS:
            return f"the peer does not speak TLS: {_ALIKE}"
        return f"the TLS handshake failed ({_words(reason)}): {_ALIKE}"
    return str(error) or type(error).__name__


_NO_TLS = frozenset(
    {"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "HTTPS_PROXY_REQUEST", "PACKET_LENGTH_TOO_LONG"}
)
"""What OpenSSL says of bytes that are no TLS."""


def _words(reason: str) -> str:
    return reason.lower().replace("_", " ")
