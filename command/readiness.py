"""Progress of a start, read from answers of the admin API."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace.config.args import Args, PoolConfig
from headrace.errors import HeadraceError

SETTLED = frozenset({"READY", "SLEEPING", "FAILED", "END"})


class StartFailed(HeadraceError):
    """Raised when Ray Serve could not bring up the application."""


@dataclass(frozen=True, slots=True)
class VersionState:
    """One model version of a status answer."""

    model: str
    version: int
    state: str
    reason: str = ""
    load_s: float = 0.0

    def __str__(self) -> str:
        return f"{self.model}/{self.version}" if self.version else self.model


def version_states(status: Mapping[str, Any]) -> list[VersionState]:
    """All versions; a model without any has a version 0.

    Version 0 is FAILED where the answer has a reason, else PENDING: the store is not read yet.
    """
    found: list[VersionState] = []
    for model in status["models"]:
        if not model["versions"]:
            state = "FAILED" if model["reason"] else "PENDING"
            found.append(VersionState(model["name"], 0, state, model["reason"] or _coming(model)))
        found += [
            VersionState(
                model["name"],
                version["version"],
                version["state"],
                version.get("reason", ""),
                version.get("load_s", 0.0),
            )
            for version in model["versions"]
        ]
    return found


def _coming(model: Mapping[str, Any]) -> str:
    """Versions of the store that are not taken up yet, and why."""
    incomplete = model.get("incomplete", {})
    return ", ".join(f"version {number}: {reason}" for number, reason in incomplete.items())


def unsettled(states: list[VersionState], pool: PoolConfig) -> list[str]:
    """Models that must hold a slot and are neither READY nor FAILED in all their versions."""
    waiting: list[str] = []
    for name, model in pool.models.items():
        mine = [state for state in states if state.model == name]
        settled = bool(mine) and all(state.state in SETTLED for state in mine)
        if model.replicas.min > 0 and not settled:
            waiting.append(name)
    return waiting


def example_request(args: Args, states: list[VersionState], http: str) -> str:
    """A `curl` command: the smallest prepared body of a READY model, else its metadata."""
    tls, curl = args.listen.tls, f"curl -s http://{http}"
    if tls is not None and tls.http:
        shown = " --cert CLIENT.pem" if tls.client_ca is not None else ""
        curl = f"curl -s --cacert CA.pem{shown} https://{http}"
    ready = {state.model for state in states if state.state == "READY"}
    folder = Path(args.store).parent / "cache" / "requests"
    bodies = sorted(folder.glob("*.json"), key=lambda file: file.stat().st_size)
    for body in bodies:
        model = _model_of(body.stem, {state.model for state in states})
        path = request_path(body.read_bytes(), model) if model in ready else None
        if path is not None:
            return f"{curl}{path} -d @{body}"
    about = f"/models/{min(ready)}" if ready else ""
    return f"{curl}/v2{about}"


def _model_of(stem: str, models: set[str]) -> str:
    """`tagger_tf` for `tagger_tf_coffee`: the longest model name that the stem begins with."""
    fitting = [name for name in models if stem == name or stem.startswith(f"{name}_")]
    return max(fitting, key=len, default="")


def request_path(body: bytes, model: str, version: str | None = None) -> str | None:
    """Path for a JSON body, by the keys of either protocol; None where it has neither's."""
    try:
        value = json.loads(body)
    except ValueError:
        return None
    if not isinstance(value, dict):
        return None
    inputs = value.get("inputs")
    of_version = f"/versions/{version}" if version else ""
    if isinstance(inputs, list) and inputs and all(_is_tensor(item) for item in inputs):
        return f"/v2/models/{model}{of_version}/infer"
    if "examples" in value:
        verb = "regress" if value.get("signature_name") == "regress" else "classify"
        return f"/v1/models/{model}{of_version}:{verb}"
    if "instances" in value or inputs is not None:
        return f"/v1/models/{model}{of_version}:predict"
    return None


def _is_tensor(item: Any) -> bool:
    return isinstance(item, dict) and {"name", "datatype", "shape"} <= item.keys()
