"""How a slot shares what it can hold among the gateways that ask. Pure."""

from __future__ import annotations

from collections.abc import Mapping


def share(capacity: int, demands: Mapping[str, int]) -> dict[str, int]:
    """Credits by gateway: proportional to demand, at least one each, else as much as fits.

    `demands` counts each gateway's requests in flight and waiting. Where nobody wants anything
    the capacity is split evenly, so that the first requests need not ask first. The sum stays
    within `capacity`, but for the one credit that everybody keeps.
    """
    if not demands:
        return {}
    total = sum(demands.values())
    if not total:
        return dict.fromkeys(demands, max(1, capacity // len(demands)))
    spare = max(0, capacity - len(demands))
    return {name: 1 + spare * demand // total for name, demand in demands.items()}
