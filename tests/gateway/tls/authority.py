"""Certificates of a test: files of an authority of its own, and clients that trust it."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import trustme
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtensionOID, NameOID

from headrace.config.args import FileRef, Tls


@dataclass
class Authority:
    """An authority whose certificates are written to `folder`."""

    folder: Path
    ca: Any = field(default_factory=trustme.CA)

    @property
    def root(self) -> Path:
        """The authority's own certificate."""
        path = self.folder / "root.pem"
        self.ca.cert_pem.write_to_path(path)
        return path

    def issue(self, name: str, *hosts: str, ends_in_s: float = 90 * 86_400, **more: Any) -> Path:
        """Write `NAME.pem` (certificate, then key) and its two parts; gives the first."""
        ends = datetime.fromtimestamp(time.time() + ends_in_s, UTC)
        begins = datetime.fromtimestamp(time.time() - 30 * 86_400, UTC)
        made = self.ca.issue_cert(*hosts, not_before=begins, not_after=ends, **more)
        for part, blobs in (("cert", made.cert_chain_pems), ("key", [made.private_key_pem])):
            content = b"".join(blob.bytes() for blob in blobs)
            (self.folder / f"{name}.{part}").write_bytes(content)
        path = self.folder / f"{name}.pem"
        path.write_bytes(made.private_key_and_cert_chain_pem.bytes())
        return path

    def issue_raw(self, name: str, alternative_names: bytes) -> Path:
        """As `issue`, with these bytes (DER) as the extension of alternative names."""
        issuer = x509.load_pem_x509_certificate(self.ca.cert_pem.bytes())
        identifier = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
        signer = load_pem_private_key(self.ca.private_key_pem.bytes(), None)
        assert isinstance(signer, ec.EllipticCurvePrivateKey)
        names = x509.UnrecognizedExtension(ExtensionOID.SUBJECT_ALTERNATIVE_NAME, alternative_names)
        made = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(issuer.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(names, critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier),
                critical=False,
            )
            .sign(signer, SHA256())
        )
        path = self.folder / f"{name}.pem"
        secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        path.write_bytes(secret + made.public_bytes(Encoding.PEM))
        return path

    def server(self, *hosts: str, clients: Authority | None = None, **more: Any) -> Tls:
        """The config of listeners with a certificate for these hosts (default: 127.0.0.1)."""
        times = {"ends_in_s": more.pop("ends_in_s")} if "ends_in_s" in more else {}
        self.issue("server", *(hosts or ("127.0.0.1", "localhost")), **times)
        if clients is not None:
            more["client_ca"] = FileRef(file=str(clients.root))
        return Tls(
            cert=FileRef(file=str(self.folder / "server.cert")),
            key=FileRef(file=str(self.folder / "server.key")),
            **more,
        )

    def client(self, shown: Path | None = None, protocols: Sequence[str] = ()) -> ssl.SSLContext:
        """A client that trusts this authority alone, and shows a certificate."""
        context = ssl.create_default_context(cafile=str(self.root))
        if shown is not None:
            context.load_cert_chain(shown)
        if protocols:
            context.set_alpn_protocols(list(protocols))
        return context


async def fetch(address: str, context: ssl.SSLContext, sent: bytes) -> bytes:
    """What a server answers until it closes the connection; raises `OSError`.

    On a socket of its own, as event loops do not send the alert of a handshake that fails.
    """
    return await asyncio.to_thread(_fetch, address, context, sent)


def _fetch(address: str, context: ssl.SSLContext, sent: bytes) -> bytes:
    host, port = address.split(":")
    answer = b""
    with (
        socket.create_connection((host, int(port)), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname=host) as secure,
    ):
        secure.sendall(sent)
        while data := secure.recv(65_536):
            answer += data
    return answer
