"""What tests of the running pool share: its config, its processes, what its status says."""

from __future__ import annotations

import os
import sys
from typing import Any

import httpx
import psutil

from tests.system.running import Running

QUICK = {"target_in_flight": 1, "look_back_s": 0.2, "down_delay_s": 0.3, "idle_s": 0.5}
"""A model that follows its load within moments."""


def number_from(variable: str, usual: float) -> float:
    """How much of a test to run, from the environment."""
    return float(os.environ.get(variable, usual))


def elastic(least: int, most: int, **scaling: Any) -> dict[str, Any]:
    """A model that follows its load."""
    return {"replicas": {"min": least, "max": most}, "scaling": {**QUICK, **scaling}}


def status(system: Running) -> dict[str, Any]:
    """Empty while nothing answers, as in the moment after a gateway's death."""
    try:
        return system.status()
    except httpx.HTTPError:
        return {}


def slot_pids(system: Running, slot_class: str = "cpu") -> set[int]:
    """The processes of the slots of a class that are not about to leave."""
    slots = status(system).get("slots", [])
    return {s["pid"] for s in slots if s["state"] == "UP" and s["slot_class"] == slot_class}


def model_state(system: Running, model: str) -> str:
    """The state of its version 1."""
    models = {each["name"]: each for each in status(system).get("models", [])}
    return (
        str(models[model]["versions"][0]["state"]) if models.get(model, {}).get("versions") else ""
    )


def titled(system: Running, title: str) -> dict[int, psutil.Process]:
    """The processes of the tree whose title has this in it."""
    system.remember()
    found = {}
    for process in system.tree:
        try:
            if process.status() != psutil.STATUS_ZOMBIE and title in " ".join(process.cmdline()):
                found[process.pid] = process
        except psutil.Error:
            continue
    return found


def tell(what: str) -> None:
    """pytest shows it when a test fails, and with `-s`."""
    sys.stdout.write(f"{what}\n")
