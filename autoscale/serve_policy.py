"""Autoscaling policy for Ray Serve: the number of slots that the pool sets.

Serve pickles this module by value and runs it in its controller, so it imports nothing of Headrace.
"""

from __future__ import annotations

import threading
import time
import weakref
from typing import Any

import ray

NAMESPACE = "headrace"
WATCH_S = 5.0
"""Longest wait of a call for new targets."""

_ANSWER_S = 3 * WATCH_S
_RETRY_S = 0.2


def actor_name(application: str) -> str:
    """Name of the actor that holds an application's targets."""
    return f"{application}-slot-targets"


class SlotPolicy:
    """Policy of one slot class's deployment.

    A call only reads a field; a thread waits for the next target. Until there is one the number of
    replicas stays, also after a restart of Serve's controller.
    """

    def __init__(self, slot_class: str) -> None:
        self.slot_class = slot_class
        self.target: int | None = None
        self.thread: threading.Thread | None = None

    def __call__(self, ctx: Any) -> tuple[int, dict[str, Any]]:
        """Number of replicas, and no state for Serve to keep."""
        if self.thread is None:
            # The application's name is known only here.
            name = actor_name(ctx.app_name or "")
            arguments = (weakref.ref(self), self.slot_class, name)
            self.thread = threading.Thread(target=_follow, args=arguments, daemon=True)
            self.thread.start()
        return (ctx.target_num_replicas if self.target is None else self.target), {}


def _follow(policy: weakref.ref[SlotPolicy], slot_class: str, name: str) -> None:
    """Keep the target up to date until Serve drops the policy."""
    actor: Any = None
    known = -1
    while policy() is not None:
        try:
            if actor is None:
                actor, known = ray.get_actor(name, namespace=NAMESPACE), -1
            known, targets = ray.get(actor.watch.remote(known), timeout=_ANSWER_S)
        except Exception:  # Ray raises many kinds; the pool makes the actor anew
            actor = None
            time.sleep(_RETRY_S)
            continue
        living = policy()
        if living is not None and slot_class in targets:
            living.target = targets[slot_class]
        del living  # or this thread would keep it alive while it waits
