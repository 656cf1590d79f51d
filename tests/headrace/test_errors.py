"""Foreign text in error messages."""

from __future__ import annotations

from typing import Any

import pytest

from headrace.errors import listed, quoted


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a", "'a'"),
        ("x" * 200, "'" + "x" * 80 + "…'"),
        (1, "1"),
        (1.5, "1.5"),
        (True, "true"),
        (None, "null"),
        ({"a": 1}, "an object"),
        ([1], "an array"),
        (2**300, "a very large integer"),
    ],
)
def test_quoted(value: Any, text: str) -> None:
    assert quoted(value) == text


def test_listed_is_short() -> None:
    assert listed([]) == "none"
    assert listed(["a", "b"]) == "'a', 'b'"
    assert listed(str(i) for i in range(30)).endswith("'19', and 10 more")
