"""The house keeps its shape: imports go one way, heavy libraries stay in their rooms."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ORDER = (
    *("headrace", "headrace.protocols", "headrace.link"),
    *("sharding", "replicas", "autoscale", "gateway", "command"),
)
"""A package imports only from itself and from those before it; CONTRIBUTING.md says so."""
LONGEST_CHAIN = 12
"""Modules of which each imports the next; a reader at the top has so many floors below."""
ROOMS = tuple(name for name in ORDER if "." not in name)


def imports(path: Path) -> set[str]:
    """The modules that a file imports, wherever in the file."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def modules() -> dict[str, Path]:
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): path
        for room in ROOMS
        for path in (ROOT / room).rglob("*.py")
    }


def test_only_the_command_line_imports_the_composition_root() -> None:
    users = {name for name, path in modules().items() if "gateway.app" in imports(path)}
    assert users <= {"command.cli", "command.launch", "gateway.ray_cluster"}


def test_packages_import_only_from_those_before_them() -> None:
    def place(module: str) -> int:
        return max(i for i, name in enumerate(ORDER) if f"{module}.".startswith(f"{name}."))

    for name, path in modules().items():
        strays = {
            m
            for m in imports(path)
            if m.split(".")[0] in ROOMS and place(m) > place(name) and m not in ORDER
        }
        assert not strays, f"{name} imports {sorted(strays)}, which come after it in {ORDER}"


def test_chains_of_imports_are_short_and_no_circles() -> None:
    """Imports inside functions count too: they only hide a circle."""
    files = modules()
    left = {name: imports(path) & files.keys() - {name} for name, path in files.items()}
    floors = 0
    while free := {name for name, needed in left.items() if not needed & left.keys()}:
        left = {name: needed for name, needed in left.items() if name not in free}
        floors += 1
    assert not left, f"these import each other, or modules that do: {sorted(left)}"
    assert floors <= LONGEST_CHAIN


def test_no_class_name_stands_for_two_things() -> None:
    found: dict[str, list[str]] = {}
    for name, path in modules().items():
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found.setdefault(node.name, []).append(name)
    assert not {name: users for name, users in found.items() if len(users) > 1}


def test_all_log_through_one_set_up() -> None:
    users = {name for name, path in modules().items() if "logging.getLogger(" in path.read_text()}
    # Loggers of libraries, which are told how much to say.
    assert users == {"headrace.logs", "gateway.ray_cluster"}


@pytest.mark.parametrize(
    ("library", "rooms"),
    [
        ("onnxruntime", {"replicas.onnx_runtime"}),
        ("tensorflow", {"replicas.tensorflow_runtime"}),
    ],
)
def test_a_runtime_library_has_one_importer(library: str, rooms: set[str]) -> None:
    users = {
        name
        for name, path in modules().items()
        if any(m.split(".")[0] == library for m in imports(path))
    }
    assert users == rooms


def test_nobody_imports_the_folders_that_are_not_installed() -> None:
    for name, path in modules().items():
        strays = {m for m in imports(path) if m.split(".")[0] in ("models", "loadtests", "tests")}
        assert not strays, f"{name} imports {sorted(strays)}"


def test_pure_modules_load_without_heavy_libraries() -> None:
    pure = [
        *("headrace.link.frames", "headrace.link.handshake", "headrace.link.router"),
        "headrace.protocols.calls",
        *("sharding.hashing", "autoscale.ledger", "autoscale.policy", "replicas.batcher"),
    ]
    code = (
        f"import sys\nfor name in {pure!r}: __import__(name)\n"
        "heavy = {'ray', 'tensorflow', 'onnxruntime', 'fastapi', 'uvicorn', 'grpc'}\n"
        "sys.exit(' '.join(sorted(heavy & set(sys.modules))) or 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_pool_gateway_and_slot_load_without_extras() -> None:
    """Each extra is imported by what needs it, when it is needed."""
    extras = ["av", "onnxruntime", "PIL", "python_multipart", "pyvips", "redis", "tensorflow"]
    loaded = ["autoscale.pool", "gateway.deployment", "replicas.slot"]
    code = (
        f"import sys\nsys.modules.update(dict.fromkeys({extras!r}))\n"
        f"for name in {loaded!r}: __import__(name)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
