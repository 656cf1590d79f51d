"""Packages that one build needs and the serving environment must not have."""

import importlib
import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sources import pip, work_folder

LOCKS = Path(__file__).parent.parent / "lock"


def side_package(name: str, cache: Path) -> Any:
    """Import a package from the cache, installed there from `lock/<name>.txt` when it is missing.

    pandas is such a one: Ray Serve imports it where it finds it, 32 MiB in each of its processes.
    """
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    folder = cache / "packages" / f"{name}-{version}"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=work_folder(cache)) as room:
            target = Path(room) / "target"
            lock = LOCKS / f"{name}.txt"
            options = ["--no-deps", "--require-hashes", "--quiet", "--target", str(target)]
            pip(["install", *options, "--requirement", str(lock)], Path(room), name)
            os.replace(target, folder)
    if str(folder) not in sys.path:
        # Last, so that it shadows nothing of the environment.
        sys.path.append(str(folder))
    return importlib.import_module(name)
