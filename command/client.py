"""HTTP clients of a running instance: the one that all commands use, and that of the admin API."""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self
from urllib.parse import quote, urlencode

import httpx

from command import tls
from headrace.errors import (
    DeadlineExceeded,
    HeadraceError,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
)

JsonObject = dict[str, Any]

LOAD_S = 180.0
"""Time-out of loads, which are answered when the model is ready; the pool gives up before this."""
ERRORS: dict[int, type[HeadraceError]] = {
    Unauthenticated.http_status: Unauthenticated,
    PermissionDenied.http_status: Unauthenticated,
    DeadlineExceeded.http_status: DeadlineExceeded,
}
"""Errors by the statuses that have an exit code of their own."""


class NothingAnswers(Unavailable):
    """Raised when no gateway is there at all, or it cut the connection."""


class TlsFailed(NothingAnswers):
    """Raised when one end does not trust the other, or speaks no TLS."""


def connection(address: str, trust: ssl.SSLContext | None) -> dict[str, Any]:
    """What httpx's clients of a listener want to know; TLS is spoken where there is `trust`."""
    return {
        "base_url": f"http://{address}" if trust is None else f"https://{address}",
        # Without TLS reading certificates would take 50 ms.
        "verify": trust or False,
        "trust_env": False,
    }


@contextmanager
def mapped_errors(
    address: str, path: str, late: type[HeadraceError] = DeadlineExceeded
) -> Iterator[None]:
    """Turn httpx's errors into ours; `late` is raised when an answer is not there in time."""
    try:
        yield
    except httpx.ReadTimeout as error:
        raise late(f"{address} has not answered {path} in time") from error
    except (httpx.HTTPError, ssl.SSLError) as error:  # httpx passes on some of those
        if (reason := tls.failure(error, address)) is not None:
            raise TlsFailed(reason) from error
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            reason = f"nothing answers on {address} ({type(error).__name__}); is Headrace up?"
            raise NothingAnswers(reason) from error
        reason = f"{address} has not answered {path} ({type(error).__name__})"
        raise NothingAnswers(reason) from error


def bearer(token: str) -> dict[str, str]:
    """The header with an API key or token; none for ""."""
    return {"Authorization": f"Bearer {token}"} if token else {}


class HttpClient:
    """One keep-alive connection to a listener; proxies of the environment are ignored.

    Every call raises `HeadraceError`: `Unavailable` where nothing answers, `Unauthenticated` for a
    refused token, `DeadlineExceeded` for no answer within `timeout_s`, else what the server said.
    """

    def __init__(
        self,
        address: str,
        token: str = "",
        *,
        trust: ssl.SSLContext | None = None,
        timeout_s: float = 5.0,
        connect_s: float | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.address = address
        self._http = httpx.Client(
            headers=bearer(token),
            timeout=httpx.Timeout(timeout_s, connect=timeout_s if connect_s is None else connect_s),
            transport=transport,
            **connection(address, trust),
        )

    def ask(self, method: str, path: str, **request: Any) -> JsonObject:
        """The JSON object that is answered; `request` as httpx takes it."""
        with self.stream(method, path, **request) as response:
            response.read()
            return self.parse(response, path, response.text)

    @contextmanager
    def stream(self, method: str, path: str, **request: Any) -> Iterator[httpx.Response]:
        """An answer without an error status, whose body is still to be read."""
        with (
            mapped_errors(self.address, path),
            self._http.stream(method, path, **request) as response,
        ):
            if response.is_error:
                response.read()
                try:
                    said = str(response.json()["error"])
                except (ValueError, KeyError, TypeError):
                    said = ""
                raise self.refusal(response.status_code, path, said, response.text)
            yield response

    def parse(self, response: httpx.Response, path: str, text: str) -> JsonObject:
        """The JSON object of an answer, or of a line of it."""
        try:
            found = json.loads(text)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise self.refusal(response.status_code, path, "", text)
        return found

    def refusal(self, status: int, path: str, said: str, text: str) -> HeadraceError:
        """The error for an answer that is none; `said` is its message, `text` its whole body."""
        kind = ERRORS.get(status, HeadraceError)
        return kind(f"{status} from {path}: {said or text[:200]}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()


class AdminClient(HttpClient):
    """The admin API, `/admin/v1`, and the model repository's routes."""

    def status(self) -> JsonObject:
        """Slots, models and gateways."""
        return self.ask("GET", "/admin/v1/status")

    def pool(self) -> JsonObject:
        """Who has slots and why: `{classes, accounts, groups, leases, decisions}`."""
        return self.ask("GET", "/admin/v1/pool")

    def shutdown(self) -> None:
        """Drain and delete the application."""
        self.ask("POST", "/admin/v1/shutdown")

    def apply(self, document: Mapping[str, Any]) -> None:
        """Give the running system a changed config document."""
        self.ask("PUT", "/admin/v1/config", json=document)

    def load(self, model: str) -> None:
        """Load a model of the store, or load it anew if its files have changed; waits for it."""
        self.ask("POST", f"/v2/repository/models/{_quoted(model)}/load", timeout=LOAD_S)

    def unload(self, model: str) -> None:
        """Serve a model no more."""
        self.ask("POST", f"/v2/repository/models/{_quoted(model)}/unload", timeout=LOAD_S)

    def roll_back(self, model: str) -> JsonObject:
        """Serve the version before: `{model, from, to, warm}`."""
        return self.ask("POST", f"/admin/v1/models/{_quoted(model)}/rollback", timeout=LOAD_S)

    def keys(self) -> JsonObject:
        """All API keys: `{keys}`."""
        return self.ask("GET", "/admin/v1/keys")

    def create_key(self, wanted: Mapping[str, Any]) -> JsonObject:
        """A new API key; its text is `key`."""
        return self.ask("POST", "/admin/v1/keys", json=wanted)

    def revoke_key(self, key: str) -> JsonObject:
        """End a key, named by id or name."""
        return self.ask("POST", f"/admin/v1/keys/{_quoted(key)}/revoke")

    def rotate_key(self, key: str, grace_s: float) -> JsonObject:
        """A new key in place of one; its text is `key`."""
        return self.ask("POST", f"/admin/v1/keys/{_quoted(key)}/rotate", json={"grace_s": grace_s})

    def audit(self, filters: Mapping[str, Any]) -> JsonObject:
        """Decisions of the audit log, newest first: `{records}`; `filters` as the path has them."""
        return self.ask("GET", f"/admin/v1/audit?{urlencode(filters)}")

    def audit_summary(self, filters: Mapping[str, Any]) -> JsonObject:
        """Counts of the audit log by caller: `{total, callers_seen, callers}`."""
        return self.ask("GET", f"/admin/v1/audit/summary?{urlencode(filters)}")

    def parse(self, response: httpx.Response, path: str, text: str) -> JsonObject:
        return super().parse(response, path, text or "{}")

    def refusal(self, status: int, path: str, said: str, text: str) -> HeadraceError:
        kind = ERRORS.get(status, HeadraceError)
        if kind is Unauthenticated:
            return Unauthenticated(f"{self.address} refused the admin token")
        if status < 400:
            return HeadraceError(f"what answers on {self.address} is not Headrace's admin listener")
        reason = f": {said}" if said else f" to {path}"
        return kind(f"{self.address} answered {status}{reason}")


def _quoted(name: str) -> str:
    return quote(name, safe="")
