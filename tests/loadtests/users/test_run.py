from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from PIL import Image

from loadtests.messages import CACHE_VARIABLE
from loadtests.processes import free_ports
from loadtests.users.__main__ import Refused, check_host, check_system, main, parse_users


@pytest.mark.parametrize(
    "host", ["http://127.0.0.1:8080", "http://localhost:1", "http://[::1]:80", "https://127.9.9.9"]
)
def test_this_machine_is_a_host_to_load(host: str) -> None:
    assert check_host(f"{host}/", allow_remote=False) == host


@pytest.mark.parametrize(
    "host", ["http://10.0.0.1:80", "http://example.org", "http://127.0.0.1.example.org"]
)
def test_another_machine_is_refused_unless_allowed(host: str) -> None:
    with pytest.raises(Refused, match="--allow-remote"):
        check_host(host, allow_remote=False)
    assert check_host(host, allow_remote=True) == host


@pytest.mark.parametrize("host", ["127.0.0.1:8080", "ftp://127.0.0.1", ""])
def test_what_is_no_address_is_refused_even_when_remote_is_allowed(host: str) -> None:
    with pytest.raises(Refused, match="must look like"):
        check_host(host, allow_remote=True)


def test_users_are_numbers_of_at_least_one() -> None:
    assert parse_users("1,4,16") == [1, 4, 16]
    for text in ("", "1,x", "0", "4,-1"):
        with pytest.raises(click.BadParameter, match="--users"):
            parse_users(text)


def test_missing_pictures_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    with pytest.raises(Refused, match="build the models first"):
        check_system("http://127.0.0.1:1", ("OpenInference",))


def test_nobody_at_home_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (300, 200)).save(tmp_path / "pictures" / "coffee.png")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    [port] = free_ports(1)
    with pytest.raises(Refused, match=r"no system answers at .*: start it with `make serve`"):
        check_system(f"http://127.0.0.1:{port}", ("OpenInference",))


def test_a_refusal_ends_the_command_with_status_one() -> None:
    result = CliRunner().invoke(main, ["--host", "http://10.0.0.1"])
    assert result.exit_code == 1
    assert result.output.strip().count("\n") == 0
    assert "10.0.0.1 is not this machine" in result.output
