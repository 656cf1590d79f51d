"""The configs that docs/security.md advises are valid, and nothing in them is warned of."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.config_checks import Finding, cross_check
from headrace.config.args import Args, PoolConfig

PAGE = Path(__file__).parents[2] / "docs" / "security.md"
BLOCKS = re.compile(r"^```yaml\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def advised() -> list[dict[str, Any]]:
    return [yaml.safe_load(block) for block in BLOCKS.findall(PAGE.read_text())]


def warnings(args: Args, pool: PoolConfig) -> list[Finding]:
    """What the check would tell on a machine where the files are."""
    elsewhere = (("args", "store"), ("args", "listen", "tls"))
    return [each for each in cross_check(args, pool) if each.path not in elsewhere]


def test_the_page_has_configs_of_both_kinds() -> None:
    assert [list(block) for block in advised()] == [["args"], ["auth"], ["args"]]


@pytest.mark.parametrize("number", [0, 2])
def test_nothing_is_warned_of_in_what_the_page_advises(number: int) -> None:
    blocks = advised()
    args, pool = Args(**blocks[number]["args"]), PoolConfig(**blocks[1])
    assert warnings(args, pool) == []
    clear = args.model_copy(update={"listen": args.listen.model_copy(update={"tls": None})})
    assert {each.path[-1] for each in warnings(clear, PoolConfig())} >= {
        "http",
        "grpc",
        "anonymous",
    }
