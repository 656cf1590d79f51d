"""The targets by their names."""

from __future__ import annotations

from tests.fuzz.runner import Target
from tests.fuzz.targets.bodies import Bundles, JsonBodies, ProtoBodies
from tests.fuzz.targets.config import Config
from tests.fuzz.targets.http1 import Http1
from tests.fuzz.targets.http2 import Http2
from tests.fuzz.targets.link import Link
from tests.fuzz.targets.media import Media
from tests.fuzz.targets.messages import Messages

TARGETS: dict[str, type[Target]] = {
    kind.name: kind
    for kind in (JsonBodies, ProtoBodies, Bundles, Messages, Link, Http1, Http2, Config, Media)
}
