"""What the load tests ask of a running Headrace's admin listener: keys, processes, metrics."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import httpx

from loadtests.headrace import BadAnswer, Running

ANSWER_S = 10.0
KEY_LIMIT_S = 5.0
"""A new key is known everywhere within a second; then something is wrong."""

KEY_S = 86_400.0
"""A key ends by itself where a load test could not revoke it."""

POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Admin:
    """The listener's base URL and its token."""

    url: str
    token: str

    @classmethod
    def of(cls, server: Running) -> Admin:
        """That of a server which the load test has started."""
        if server.token_file is None:
            raise ValueError("this server has no admin listener")
        return cls(server.admin, server.token_file.read_text(encoding="utf-8").strip())

    def make_key(self, name: str, tier: str) -> str:
        """A new API key; raises `BadAnswer`."""
        wanted = {"name": name, "tier": tier, "expires_in_s": KEY_S}
        return str(self._ask("POST", "/admin/v1/keys", wanted)["key"])

    def revoke_key(self, name: str) -> None:
        """End a key, named by id or name; raises `BadAnswer`."""
        self._ask("POST", f"/admin/v1/keys/{name}/revoke")

    def gateway_pids(self) -> list[int]:
        """The process numbers of the gateways; raises `BadAnswer`."""
        return [int(gateway["pid"]) for gateway in self._ask("GET", "/admin/v1/status")["gateways"]]

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels; raises `BadAnswer`."""
        return metric_sum(self._answer("GET", "/metrics").text, name)

    def _ask(self, method: str, path: str, document: Any = None) -> dict[str, Any]:
        answer: dict[str, Any] = self._answer(method, path, document).json()
        return answer

    def _answer(self, method: str, path: str, document: Any = None) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.token}"}
        where = f"{self.url}{path}"
        try:
            answer = httpx.request(method, where, json=document, headers=headers, timeout=ANSWER_S)
        except httpx.TransportError as error:
            raise BadAnswer(f"{where}: {type(error).__name__}: {error}") from error
        if answer.status_code >= 400:
            raise BadAnswer(f"{where} answered {answer.status_code}: {answer.text[:200]}")
        return answer


def metric_sum(text: str, name: str) -> float:
    """The sum of a metric over its labels in Prometheus' text; 0 if it is not there."""
    lines = (line for line in text.splitlines() if line.startswith((f"{name} ", f"{name}{{")))
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


def wait_for_key(url: str, model: str, key: str) -> None:
    """Until the gateway at `url` knows the key; raises `BadAnswer` after some seconds."""
    limit_s = time.monotonic() + KEY_LIMIT_S
    where = f"{url}/v2/models/{model}"
    while True:
        answer = httpx.get(where, headers={"X-API-Key": key}, timeout=ANSWER_S)
        if answer.status_code == 200:
            return
        if time.monotonic() > limit_s:
            raise BadAnswer(f"{where} answered {answer.status_code} to a new key")
        time.sleep(POLL_S)
