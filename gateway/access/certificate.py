"""The certificate that a client has shown in its handshake: the names that it is for."""

from __future__ import annotations

import asyncio
import math
import ssl
from collections.abc import Iterator
from dataclasses import dataclass

import structlog
from cryptography import x509

KINDS: tuple[tuple[str, type[x509.GeneralName]], ...] = (
    ("DNS", x509.DNSName),
    ("URI", x509.UniformResourceIdentifier),
    ("email", x509.RFC822Name),
    ("IP", x509.IPAddress),
)
"""Kinds of alternative names, called as OpenSSL does."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class ClientCertificate:
    """A verified certificate, whose time ends at `ends_s` (seconds since 1970).

    `names` are its subject (RFC 4514) and its alternative names, such as `DNS:a.example`; one that
    cannot be read has none.
    """

    names: tuple[str, ...]
    ends_s: float


def shown_certificate(transport: asyncio.BaseTransport) -> ClientCertificate | None:
    """What the client of a connection has shown; None without TLS, or where it has shown none."""
    end: ssl.SSLObject | None = transport.get_extra_info("ssl_object")
    content = None if end is None else end.getpeercert(binary_form=True)
    if content is None:
        return None
    try:
        found = x509.load_der_x509_certificate(content)
        return ClientCertificate(tuple(_names(found)), found.not_valid_after_utc.timestamp())
    except Exception as error:  # OpenSSL is less strict, and the library's errors have no base
        log.warning("client_certificate_unread", reason=str(error))
        return ClientCertificate((), math.inf)


def _names(certificate: x509.Certificate) -> Iterator[str]:
    if subject := certificate.subject.rfc4514_string():
        yield subject
    try:
        kind = x509.SubjectAlternativeName
        names = certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return
    for text, of in KINDS:
        for name in names:
            if isinstance(name, of):
                yield f"{text}:{name.value}"
