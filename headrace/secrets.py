"""Secrets, read in the process that uses them and never shown."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import time
from pathlib import Path

from headrace.config.types import SecretRef
from headrace.errors import ConfigError

MAX_SECRET_BYTES = 64 * 1024
"""Cap on a secret's file: a larger one is the wrong file."""

_WAIT_S = 2.0
"""Time for another process to finish writing a secret that it made."""


def headrace_home() -> Path:
    """The state folder of this user: `$HEADRACE_HOME` or `~/.headrace`, made with mode 0700."""
    home = Path(os.environ.get("HEADRACE_HOME") or Path.home() / ".headrace")
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"cannot make the state folder {home}: {error.strerror}; set HEADRACE_HOME to another"
        ) from None
    return home


def resolve(ref: SecretRef) -> str:
    """The secret's text without white space around it; raises `ConfigError` naming the place."""
    if ref.env is not None:
        text = os.environ.get(ref.env, "").strip()
        if not text:
            raise ConfigError(f"the environment variable {ref.env} is not set or empty")
        return text
    return _read(Path(ref.file or "").expanduser())


def admin_token(ref: SecretRef | None = None) -> str:
    """The token of /admin/v1; without a reference this user's own, made on first use."""
    token = resolve(ref) if ref is not None else own_secret(headrace_home() / "admin.token")
    if not (token.isascii() and token.isprintable()):
        raise ConfigError("the admin token should be printable ASCII: it is sent in a header")
    return token


def cluster_secret(ref: SecretRef | None = None) -> bytes:
    """The secret of both ends of a link, 32 bytes.

    A reference comes first; then Ray's token, which every node of a cluster has; then a file of
    this user. A derived secret is used, not Ray's token itself: a leak of one must not open the
    other.
    """
    text = ray_token() if ref is None else resolve(ref)
    if text is None:
        text = own_secret(headrace_home() / "cluster.secret")
    return hmac.digest(text.encode(), b"headrace cluster secret 1", hashlib.sha256)


def ray_token() -> str | None:
    """Ray's authentication token by Ray's own order of places, None when it has none."""
    if os.environ.get("RAY_AUTH_MODE", "").lower() == "disabled":
        return None
    if token := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return token
    if path := os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return _read(Path(path))
    default = ray_token_file()
    return _read(default) if default.is_file() else None


def ray_token_file() -> Path:
    """Where Ray looks for its token when no variable names a place."""
    return Path.home() / ".ray" / "auth_token"


def own_secret(path: Path) -> str:
    """The secret in this file; the first process makes it (mode 0600), others read it."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    except FileExistsError:
        # The other process may still be writing.
        deadline_s = time.monotonic() + _WAIT_S
        while path.stat().st_size == 0 and time.monotonic() < deadline_s:
            time.sleep(0.01)
        return _read(path)
    except OSError as error:
        raise ConfigError(f"cannot make {path}: {error.strerror}") from None
    token = secrets.token_hex(32)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(token)
    return token


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_SECRET_BYTES + 1)
        text = content.decode().strip()
    except OSError as error:
        raise ConfigError(f"cannot read the secret file {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"the secret file {path} is not UTF-8 text") from None
    if not text:
        raise ConfigError(f"the secret file {path} is empty; remove it or write the secret")
    if len(content) > MAX_SECRET_BYTES:
        raise ConfigError(f"the secret file {path} is larger than {MAX_SECRET_BYTES} bytes")
    return text
