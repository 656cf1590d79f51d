"""Makes one target of the catalogue: fetch its files, build in a work folder, put it in place."""

import importlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import mkdtemp

from artifact import SUMS, is_current, publish, seal, sha256_of
from catalog import Job, Target
from sources import BuildError, fetch, work_folder

PHASES = 3  # fetch, build, publish

Builder = Callable[[Job], None]
Report = Callable[[int, str], None]


def inputs_of(target: Target, base: Path) -> dict[str, str]:
    """Everything that decides what the target looks like, as sha256 by name."""
    inputs = {name: sha256_of(base / name) for name in target.code}
    for source in target.sources:
        inputs |= {f"{source.label}/{file.path}": file.sha256 for file in source.files}
    for need in target.needs:
        sums = base / "cache" / need / SUMS
        inputs[f"{need}/{SUMS}"] = sha256_of(sums) if sums.is_file() else "not built"
    return inputs


def is_built(target: Target, base: Path) -> bool:
    """Whether the target stands as it would be built now."""
    return is_current(base / target.folder, inputs_of(target, base))


def make(target: Target, base: Path, report: Report, builder: Builder | None = None) -> None:
    """Build `target` under `base` and put it in place of what stood there.

    `report` is called with the number of finished phases and what happens now.

    Raises:
        BuildError: it could not be built; what stood there before still stands.
    """
    cache = base / "cache"
    files: dict[str, Path] = {}
    for source in target.sources:
        report(0, f"fetching {source.label}")
        files |= fetch(source, cache)
    report(1, "loading the tools")
    work = Path(mkdtemp(dir=work_folder(cache), prefix=f"{target.name}-"))
    try:
        job = Job(target.version or "", files, work, cache, lambda text: report(1, text))
        (builder or _load_builder(target))(job)
        report(2, "writing sums")
        seal(work, inputs_of(target, base))
        publish(work, base / target.folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    report(PHASES, "done")


def _load_builder(target: Target) -> Builder:
    try:
        module = importlib.import_module(Path(target.code[0]).stem)
    except ModuleNotFoundError as error:
        raise BuildError(
            f"The Python package {error.name} is not installed here: run the build with the "
            "project's own environment, set up with the extra [demo]."
        ) from error
    builder: Builder = module.build
    return builder


def write_beside(targets: Sequence[Target], base: Path) -> None:
    """Write repository/NAME/README.md, and its config.pbtxt if it has one, for every model of which
    a version is built."""
    for name in dict.fromkeys(target.name for target in targets if target.version):
        versions = [target for target in targets if target.name == name]
        built = [target for target in versions if (base / target.folder).is_dir()]
        if built:
            texts = {"README.md": _readme(built, base), "config.pbtxt": built[0].config}
            for file, text in texts.items():
                path = base / "repository" / name / file
                if text and (not path.is_file() or path.read_text(encoding="utf-8") != text):
                    path.write_text(text, encoding="utf-8")


def _readme(versions: Sequence[Target], base: Path) -> str:
    first = versions[0]
    lines = [f"# {first.name}", "", first.about, "", "Built by `python models/build.py` from:", ""]
    lines += [f"- {source.registry}: {source.label}" for source in first.sources]
    for target in versions:
        metrics = base / target.folder / "metrics.json"
        if metrics.is_file():
            lines += ["", f"Version {target.version}, measured when it was built:", ""]
            values = json.loads(metrics.read_text(encoding="utf-8"))
            lines += [f"- {what}: {value}" for what, value in values.items()]
    lines += ["", "Inputs, outputs and licences stand in models/README.md.", ""]
    return "\n".join(lines)
