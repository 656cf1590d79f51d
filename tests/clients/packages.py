"""Client packages that must stay out of the environment, each in a folder of its own.

kserve brings pandas and kubernetes, and tensorflow-serving-api wants a TensorFlow that shares its
folder with ours: neither may come near a process that serves.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ROOT / "models" / "cache" / "packages"
INSTALL_S = 300.0
SCRIPT_S = 60.0
LAST_ON_PATH = """
import runpy, sys
sys.path.append(sys.argv.pop(1))
runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
"""
"""Behind the environment's own packages, so that these win where both have one."""


def side_packages(lock: str) -> Path:
    """The folder with the packages of `lock/<lock>.txt`, installed there when it is missing."""
    folder = PACKAGES / f"{lock}-{sys.version_info.major}.{sys.version_info.minor}"
    if not folder.is_dir():
        PACKAGES.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=PACKAGES, prefix=".") as room:
            target = Path(room) / "target"
            pip = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check"]
            options = ["--no-deps", "--require-hashes", "--quiet", "--target", str(target)]
            _run([*pip, *options, "-r", str(ROOT / "lock" / f"{lock}.txt")], INSTALL_S)
            os.replace(target, folder)
    return folder


def run_with(lock: str, module: str, arguments: Sequence[str]) -> str:
    """What a module of this folder prints when it runs in a process with those packages."""
    command = [sys.executable, "-c", LAST_ON_PATH, str(side_packages(lock))]
    return _run([*command, f"tests.clients.{module}", *arguments], SCRIPT_S)


def _run(command: Sequence[str], limit_s: float) -> str:
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=limit_s, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
