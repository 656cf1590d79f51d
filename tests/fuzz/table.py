"""The targets by their names."""

from __future__ import annotations

from tests.fuzz.runner import Target
from tests.fuzz.targets.bodies import Bundles, JsonBodies, ProtoBodies
from tests.fuzz.targets.messages import Messages

TARGETS: dict[str, type[Target]] = {
    kind.name: kind for kind in (JsonBodies, ProtoBodies, Bundles, Messages)
}
