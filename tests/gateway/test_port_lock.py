"""A port belongs to one system; its gateways share it."""

from __future__ import annotations

import pytest

from gateway.errors import ConfigError
from gateway.port_lock import PortLock

PORT = 1
"""No listener is opened here, so any number does; nothing real uses this one."""


def test_gateways_of_one_system_share_a_port_and_others_are_told() -> None:
    first, second = PortLock(PORT, "system one"), PortLock(PORT, "system one")
    with pytest.raises(ConfigError, match="port 1 is in use by another Headrace"):
        PortLock(PORT, "system two")
    first.release()
    with pytest.raises(ConfigError):
        PortLock(PORT, "system two")
    second.release()
    PortLock(PORT, "system two").release()
