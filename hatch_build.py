"""Compiles the modules listed in `[tool.headrace.compiled]` with mypyc, in checkouts and wheels.

`python hatch_build.py` compiles a checkout (`make compiled`); for a wheel hatchling calls
`CompiledModules`. Where something is missing for it, or HEADRACE_COMPILED is 0, nothing is compiled
and the same code runs interpreted.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOT = Path(__file__).parent
TOOLS = ("mypyc", "setuptools", "numpy", "uvicorn")
"""The compiler, and packages that stand for all whose types it reads."""

# setuptools compiles one file after the other; several at once take half the time.
SETUP = """
import os, sys
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from mypyc.build import mypycify
from setuptools import setup
from setuptools.command.build_ext import build_ext

class Build(build_ext):
    def build_extensions(self):
        one_by_one = self.compiler.compile
        def compile(sources, **options):
            with ThreadPoolExecutor(os.cpu_count()) as threads:
                objects = threads.map(lambda source: one_by_one([source], **options), sources)
                return list(chain.from_iterable(objects))
        self.compiler.compile = compile
        super().build_extensions()

target, *sources = sys.argv[1:]
sys.argv = ["setup.py", "build_ext", "--build-lib", target, "--build-temp", target + "/objects"]
setup(name="headrace", packages=[], cmdclass={"build_ext": Build}, ext_modules=mypycify(
    ["--config-file=pyproject.toml", *sources], opt_level="1", debug_level="0",
    target_dir=target + "/c", group_name="headrace", multi_file=True))
"""


def what_is_missing() -> str | None:
    """What keeps this machine from compiling, or None."""
    if os.environ.get("HEADRACE_COMPILED") == "0":
        return "HEADRACE_COMPILED=0"
    missing = [name for name in TOOLS if find_spec(name) is None]
    if missing:
        return f"{' and '.join(missing)} not installed"
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    if shutil.which(compiler) is None:
        return f"no C compiler ({compiler})"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return "no header files of Python"
    return None


def compile_modules(root: Path) -> str:
    """Compile what is listed unless that is done; the folder, relative to `root`.

    What the compiler says of code that it refuses is the message of a `SystemExit`.
    """
    compiled = _load(root / "headrace" / "compiled.py")
    settings = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["headrace"]["compiled"]
    sources = [name.replace(".", "/") + ".py" for name in settings["modules"]]
    digests = {each: compiled.digest(root / each) for each in sources}
    folder = root / compiled.FOLDER
    done = folder / compiled.SOURCES
    if compiled.why_not(root) is None and json.loads(done.read_bytes()) == digests:
        return str(compiled.FOLDER)
    print(f"compiling {len(sources)} modules, about a minute", flush=True)
    with tempfile.TemporaryDirectory() as built:
        command = [sys.executable, "-c", SETUP, built, *sources]
        ran = subprocess.run(command, cwd=root, capture_output=True, text=True)
        if ran.returncode:
            raise SystemExit(f"{ran.stdout}{ran.stderr}\nthe modules cannot be compiled")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for file in Path(built).rglob("*.so"):
            module = file.relative_to(built).with_name(file.name.partition(".")[0])
            shutil.copy(file, folder / (".".join(module.parts) + compiled.SUFFIX))
    done.write_text(json.dumps(digests, indent=1))
    return str(compiled.FOLDER)


def _load(source: Path) -> ModuleType:
    """One module, without its package."""
    spec = spec_from_file_location(source.stem, source)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class CompiledModules(BuildHookInterface[Any]):
    """Puts the compiled modules into a wheel, which is then for one Python on one platform."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        # An editable installation runs the checkout, which `make compiled` compiles.
        if version == "editable":
            return
        if (missing := what_is_missing()) is not None:
            self.app.display_warning(f"nothing is compiled: {missing}")
            return
        build_data["artifacts"].append(f"/{compile_modules(Path(self.root))}/")
        build_data["pure_python"] = False
        build_data["infer_tag"] = True


if __name__ == "__main__":
    if (missing := what_is_missing()) is not None:
        print(f"nothing is compiled, Headrace runs slower: {missing}")
    else:
        compile_modules(ROOT)
