"""Secrets: private files, references, and the order of places; never in an error."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.config.types import SecretRef
from headrace.errors import ConfigError
from headrace.secrets import admin_token, cluster_secret, own_secret, resolve

VARIABLES = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "HEADRACE_HOME")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state folder of its own, and no token of Ray's."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HEADRACE_HOME", str(tmp_path / "state"))
    return tmp_path / "state"


def test_the_first_makes_a_private_file_and_the_second_reads_it(home: Path) -> None:
    first = admin_token()
    file = home / "admin.token"
    assert admin_token() == first and len(first) >= 32
    assert file.stat().st_mode & 0o777 == 0o600 and home.stat().st_mode & 0o777 == 0o700


def test_references_are_resolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "secret"
    file.write_text(" from a file\n")
    monkeypatch.setenv("TOKEN", "from the environment")
    assert resolve(SecretRef(file=str(file))) == "from a file"
    assert resolve(SecretRef(env="TOKEN")) == "from the environment"


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="NOT_SET"):
        resolve(SecretRef(env="NOT_SET"))
    with pytest.raises(ConfigError, match="gone"):
        resolve(SecretRef(file=str(tmp_path / "gone")))


def test_a_file_that_is_no_secret_is_refused_without_its_content(tmp_path: Path) -> None:
    file = tmp_path / "picture"
    file.write_bytes(b"\xff\xd8 sensitive")
    with pytest.raises(ConfigError) as found:
        resolve(SecretRef(file=str(file)))
    assert "sensitive" not in found.value.message


def test_the_clusters_secret_comes_from_the_nearest_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = cluster_secret()
    monkeypatch.setenv("RAY_AUTH_TOKEN", "r" * 32)
    of_ray = cluster_secret()
    monkeypatch.setenv("MINE", "m")
    explicit = cluster_secret(SecretRef(env="MINE"))
    assert len({own, of_ray, explicit}) == 3 and {len(own), len(of_ray)} == {32}
    assert of_ray != b"r" * 32
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    assert cluster_secret() == own == cluster_secret()


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("")
    with pytest.raises(ConfigError, match="empty"):
        own_secret(tmp_path / "empty")
