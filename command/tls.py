"""TLS of the command's own connections: whom they trust, what they show, and why one fails."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

from headrace.errors import ConfigError

SYSTEM = "system"
"""In place of a file of authorities: those of the machine."""
_END = "-----END CERTIFICATE-----"


class OwnCertificate(ssl.SSLContext):
    """Trusts one certificate alone, whatever host it is for: the first one of a file.

    It is read again for each connection, as it may have been renewed.
    """

    file: Path

    def wrap_socket(self, *args: Any, **more: Any) -> ssl.SSLSocket:
        self._read()
        return super().wrap_socket(*args, **more)

    def wrap_bio(self, *args: Any, **more: Any) -> ssl.SSLObject:
        self._read()
        return super().wrap_bio(*args, **more)

    def _read(self) -> None:
        try:
            first, end, _ = self.file.read_text(encoding="ascii").partition(_END)
            self.load_verify_locations(cadata=first + end)
        except OSError as error:
            raise ConfigError(f"cannot read {self.file}: {error.strerror}") from None
        except (ssl.SSLError, ValueError):
            raise ConfigError(f"{self.file} should begin with a certificate in PEM form") from None


def trust_own(file: Path) -> ssl.SSLContext:
    """For a listener of this machine, which has its certificate from this file."""
    context = OwnCertificate(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # its authority is not in the file
    context.file = file
    return context


def trust(ca: str) -> ssl.SSLContext:
    """For a listener whose certificate an authority of this file has signed.

    Raises `ConfigError`.
    """
    try:
        return ssl.create_default_context(cafile=None if ca == SYSTEM else ca)
    except OSError as error:
        why = _reason(error, "should hold certificates in PEM form")
        raise ConfigError(f"--ca {ca}: {why}") from None


def show(context: ssl.SSLContext, certificate: str) -> None:
    """Show the certificate of a PEM file that has its key too; raises `ConfigError`."""
    try:
        context.load_cert_chain(certificate, password=_no_password)
    except OSError as error:
        why = _reason(error, "should hold a certificate and its key in PEM form")
        raise ConfigError(f"--cert {certificate}: {why}") from None


def _reason(error: OSError, otherwise: str) -> str:
    return otherwise if isinstance(error, ssl.SSLError) else str(error.strerror)


def _no_password() -> str:
    """OpenSSL would ask for it on the terminal."""
    raise ConfigError("--cert: a key with a password cannot be used")


def failure(error: BaseException, address: str) -> str | None:
    """Why TLS has failed, and what would be right; None if the error has another cause."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ssl.SSLError):
        cause = cause.__cause__ or cause.__context__
    if cause is None:
        return None
    if isinstance(cause, ssl.SSLCertVerificationError):
        why = cause.verify_message.rstrip(".")
        return f"the certificate of {address} is not to be trusted: {why} (see --ca)"
    reason = cause.reason or ""
    if reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE"):
        return f"{address} speaks no TLS: leave out --ca"
    if "CERTIFICATE" in reason or reason in (
        "TLSV1_ALERT_UNKNOWN_CA",
        "SSLV3_ALERT_HANDSHAKE_FAILURE",
    ):
        return (
            f"{address} does not take our certificate, or wants one: see --cert ({_words(reason)})"
        )
    return f"TLS with {address} has failed: {_words(reason) or type(cause).__name__}"


def _words(reason: str) -> str:
    return reason.lower().replace("_", " ")
