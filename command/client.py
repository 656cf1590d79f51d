"""The command line's end of /admin/v1: asks a running Headrace, with the token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, urlencode

import click
import httpx

from command import instance
from headrace.config.args import Listen
from headrace.config.types import SecretRef
from headrace.errors import HeadraceError, Unauthenticated, Unavailable
from headrace.secrets import admin_token

Status = dict[str, Any]

ORDER_S = 180.0
"""Loading a model is answered when it is ready; the pool gives up before this."""


class AdminClient:
    """One keep-alive connection to the admin listener; proxies of the environment are ignored."""

    def __init__(
        self,
        address: str,
        token: str,
        *,
        timeout_s: float = 5.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._address = address
        self._http = httpx.Client(
            base_url=f"http://{address}",
            headers={"Authorization": f"Bearer {token}"},
            timeout=timeout_s,
            trust_env=False,
            transport=transport,
        )

    def status(self) -> Status:
        """What the gateway knows of slots and models; raises `HeadraceError`."""
        return self._ask("GET", "/admin/v1/status")

    def pool(self) -> dict[str, Any]:
        """Who has slots and why: `{classes, accounts, groups, leases, decisions}`."""
        return self._ask("GET", "/admin/v1/pool")

    def shutdown(self) -> None:
        """Ask the application to drain and delete itself."""
        self._ask("POST", "/admin/v1/shutdown")

    def apply(self, document: Mapping[str, Any]) -> None:
        """Give the running system a changed config document."""
        self._ask("PUT", "/admin/v1/config", json=document)

    def load(self, model: str) -> None:
        """Load a model of the store, or load it anew if its files have changed; waits for it."""
        self._order(model, "load")

    def unload(self, model: str) -> None:
        """Serve a model no more."""
        self._order(model, "unload")

    def roll_back(self, model: str) -> dict[str, Any]:
        """Serve the version before: `{model, from, to, warm}`."""
        path = f"/admin/v1/models/{quote(model, safe='')}/rollback"
        return self._ask("POST", path, timeout_s=ORDER_S)

    def keys(self) -> dict[str, Any]:
        """All API keys: `{keys}`."""
        return self._ask("GET", "/admin/v1/keys")

    def create_key(self, wanted: Mapping[str, Any]) -> dict[str, Any]:
        """A new API key; its text is `key`."""
        return self._ask("POST", "/admin/v1/keys", json=wanted)

    def revoke_key(self, key: str) -> dict[str, Any]:
        """End a key, named by id or name."""
        return self._ask("POST", f"/admin/v1/keys/{quote(key, safe='')}/revoke")

    def rotate_key(self, key: str, grace_s: float) -> dict[str, Any]:
        """A new key in its place; its text is `key`."""
        path = f"/admin/v1/keys/{quote(key, safe='')}/rotate"
        return self._ask("POST", path, json={"grace_s": grace_s})

    def audit(self, filters: Mapping[str, Any]) -> dict[str, Any]:
        """Decisions of the audit log, newest first: `{records}`; `filters` as the path has them."""
        return self._ask("GET", f"/admin/v1/audit?{urlencode(filters)}")

    def audit_summary(self, filters: Mapping[str, Any]) -> dict[str, Any]:
        """Its counts by caller: `{total, callers_seen, callers}`."""
        return self._ask("GET", f"/admin/v1/audit/summary?{urlencode(filters)}")

    def _order(self, model: str, operation: str) -> None:
        path = f"/v2/repository/models/{quote(model, safe='')}/{operation}"
        self._ask("POST", path, timeout_s=ORDER_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._http.close()

    def _ask(
        self, method: str, path: str, json: Any = None, timeout_s: float | None = None
    ) -> Status:
        patience = httpx.USE_CLIENT_DEFAULT if timeout_s is None else timeout_s
        try:
            response = self._http.request(method, path, json=json, timeout=patience)
        except httpx.ReadTimeout as error:
            raise HeadraceError(f"{self._address} has not answered {path} in time") from error
        except httpx.HTTPError as error:
            raise Unavailable(
                f"nothing answers on {self._address} ({type(error).__name__}); is Headrace up?"
            ) from error
        if response.status_code in (401, 403):
            raise Unauthenticated(f"{self._address} refused the admin token")
        try:
            answer = response.json() if response.content else {}
        except ValueError:
            answer = None
        if response.is_error:
            said = answer.get("error") if isinstance(answer, dict) else None
            reason = f": {said}" if said else f" to {path}"
            raise HeadraceError(f"{self._address} answered {response.status_code}{reason}")
        if not isinstance(answer, dict):
            raise HeadraceError(f"what answers on {self._address} is not Headrace's admin listener")
        return answer


DEFAULTS = Listen()


@dataclass(frozen=True, slots=True)
class Target:
    """Where to ask and with what; `found` is None when only an address is known."""

    admin: str
    http: str
    token: SecretRef | None = None
    path: Path | None = None
    found: instance.Instance | None = None

    def client(self, timeout_s: float = 5.0) -> AdminClient:
        """A client with this target's token."""
        return AdminClient(self.admin, admin_token(self.token), timeout_s=timeout_s)


def find_target(admin: str | None, token_file: str | None) -> Target:
    """The instance at `admin`, else the only one that runs here, else the default ports."""
    token = SecretRef(file=token_file) if token_file else None
    running = list(instance.running())
    if admin is not None:
        running = [entry for entry in running if entry[1].admin == admin]
    if len(running) > 1:
        choices = ", ".join(f"--admin {found.admin}" for _, found in running)
        raise click.UsageError(f"several run here; choose one: {choices}")
    if running:
        path, found = running[0]
        return Target(found.admin, found.http, token or found.admin_token, path, found)
    return Target(admin or DEFAULTS.admin, DEFAULTS.http, token)
