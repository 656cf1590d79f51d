from __future__ import annotations

import pytest

from loadtests.headrace import Running


def test_a_peer_has_no_admin_listener() -> None:
    with pytest.raises(ValueError, match="no admin listener"):
        _ = Running("http://127.0.0.1:1").admin
