"""What is shipped: wheels, the locks, the image's steps, the make targets."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from headrace.compiled import SWITCH, status

ROOT = Path(__file__).parent.parent
PACKAGES = {"headrace", "sharding", "replicas", "autoscale", "gateway", "command"}


def build_wheel(folder: Path, *, compiled: bool) -> Path:
    """A wheel of this tree; a compiled one takes what `make setup` has compiled."""
    for name in (*PACKAGES, "pyproject.toml", "hatch_build.py", "README.md", "tests", "models"):
        source = ROOT / name
        skip = shutil.ignore_patterns("__pycache__", "repository", "cache")
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=skip)
        else:
            shutil.copy(source, folder / name)
    environment = os.environ if compiled else {**os.environ, SWITCH: "0"}
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
    (wheel,) = folder.glob("headrace-*.whl")
    return wheel


def run_installed(wheel: Path, folder: Path) -> str:
    """How the hot modules run once the wheel is installed, without our checkout."""
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*install, "--target", str(folder), str(wheel)], check=True)
    code = "import gateway.http.lane, replicas.engine, headrace.compiled as c; print(c.status)"
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()


def test_a_wheel_without_compiled_modules_is_for_every_platform(tmp_path: Path) -> None:
    wheel = build_wheel(tmp_path, compiled=False)
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (entry_points,) = [n for n in names if n.endswith("entry_points.txt")]
        scripts = archive.read(entry_points).decode()
    tops = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert tops == PACKAGES and "headrace = command.cli:main" in scripts
    assert "headrace/errors.py" in names and not any(name.endswith(".so") for name in names)
    assert run_installed(wheel, tmp_path / "installed") == "interpreted: not compiled"


@pytest.mark.skipif(status != "compiled", reason=f"this checkout runs {status}")
def test_a_wheel_with_compiled_modules_runs_them(tmp_path: Path) -> None:
    wheel = build_wheel(tmp_path, compiled=True)
    assert f"-cp3{sys.version_info.minor}-" in wheel.name
    assert run_installed(wheel, tmp_path / "installed") == "compiled"


def test_a_checkout_is_compiled_where_that_is_possible() -> None:
    missing = subprocess.run(
        [sys.executable, "-c", "import hatch_build; print(hatch_build.what_is_missing() or '')"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    if not missing and "was edited" not in status:
        assert status == "compiled"
    else:
        assert status.startswith("interpreted: ")


@pytest.mark.parametrize(
    ("lock", "has", "has_not"),
    [
        ("cpu.txt", ("onnxruntime", "tensorflow-cpu"), ("onnxruntime-gpu", "tensorflow")),
        ("runtime.txt", ("onnxruntime", "tensorflow-cpu"), ("onnxruntime-gpu", "tensorflow")),
        ("gpu.txt", ("onnxruntime-gpu", "tensorflow"), ("onnxruntime", "tensorflow-cpu")),
        ("pandas.txt", ("pandas",), ("numpy",)),
        ("runtime-gpu.txt", ("onnxruntime-gpu", "tensorflow"), ("onnxruntime", "tensorflow-cpu")),
    ],
)
def test_locks_have_hashes_and_no_addresses(
    lock: str, has: tuple[str, ...], has_not: tuple[str, ...]
) -> None:
    text = (ROOT / "lock" / lock).read_text()
    blocks = re.split(r"\n(?=\S)", text.strip())
    names = {block.split("==")[0] for block in blocks}
    assert all("--hash=sha256:" in block for block in blocks)
    assert "://" not in text
    assert names >= set(has) and not names & set(has_not)


def test_the_image_takes_its_steps_from_the_script() -> None:
    text = (ROOT / "Dockerfile").read_text()
    runs = re.findall(r"^RUN (.*)$", text, re.MULTILINE)
    allowed = ("deploy/image_steps.sh ", "/tmp/image_steps.sh ")
    assert runs and all(run.startswith(allowed) for run in runs)
    assert {"cpu", "gpu"} <= set(re.findall(r"^FROM \S+ AS (\S+)$", text, re.MULTILINE))
    assert re.search(r"^USER (?!root)\w+$", text, re.MULTILINE) and "HEALTHCHECK" in text


def test_the_images_steps_refuse_to_go_on_after_a_failure() -> None:
    for script in ("image_steps.sh", "image_check.sh", "lock.sh"):
        assert "set -euo pipefail" in (ROOT / "deploy" / script).read_text()
    result = subprocess.run(
        [str(ROOT / "deploy" / "image_steps.sh"), "install", "/nonexistent.txt", "/nonexistent"],
        capture_output=True,
        check=False,
    )
    assert result.returncode != 0


def test_make_help_lists_the_targets() -> None:
    text = subprocess.run(
        ["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for target in ("serve", "test", "setup", "models", "lint", "types", "bench", "loadtest"):
        assert f"make {target} " in text


def test_ci_runs_what_the_readme_says() -> None:
    assert "make test" in (ROOT / ".ci" / "run").read_text()
    assert "`make test`" in (ROOT / "README.md").read_text()
