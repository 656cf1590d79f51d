"""Config files: whatever stands in one, `headrace check` accepts it or says what is wrong."""

from __future__ import annotations

import contextlib
import io
import json
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel

from command.cli import main
from command.options import Exit
from headrace.config.args import Args, PoolConfig
from tests.fuzz.mutation import Mutator
from tests.fuzz.runner import Target
from tests.fuzz.valid import ODD, changed_json
from tests.gateway.test_config_file import GOOD

DEMO = Path(__file__).resolve().parents[3] / "examples" / "demo.yaml"
VALUES: tuple[Any, ...] = (
    *ODD,
    *("8MiB", "5s", "1e400", "127.0.0.1:0", "[::1]:99999", "auto", "off", "../x", "a:b", "~", "ä"),
    *({"file": "/nowhere"}, {"env": "X"}, {"min": 0, "max": 2}, [{}], {"": ""}, {"1": 1}),
)
WORDS = (
    *(b"&a ", b"*a", b"<<: *a", b"!!python/object:os.system x", b"!!binary x", b"? ", b": ", b"- "),
    *(
        b"2026-99-99",
        b"2001-12-14t21:59:43.10-05:00",
        b"0o17",
        b"0x",
        b".nan",
        b"~",
        b"yes",
        b"|\n",
    ),
    *(b"\t", b"%YAML 9.9\n", b"---\n", b"...\n", b"\xff", b"\xef\xbb\xbf", b"\x00", b"\xc2\x85"),
    *(b"{", b"}", b"[", b"]", b",", b"'", b'"', b"#", b">-\n", b"\n  ", b"190:20:30", b"1_000"),
    *(b"models:", b"tiers:", b"slots:", b"listen:", b"sharding:", b"replicas:", b"applications:"),
)


def names_of(*models: type[BaseModel]) -> list[str]:
    """The names of all fields, at any depth."""
    found: dict[str, None] = {}
    seen: set[type[BaseModel]] = set()

    def look(kind: Any) -> None:
        if isinstance(kind, type) and issubclass(kind, BaseModel) and kind not in seen:
            seen.add(kind)
            for name, field in kind.model_fields.items():
                found[field.alias or name] = None
                look(field.annotation)
        for part in get_args(kind):
            look(part)

    for model in models:
        look(model)
    return list(found)


class Config(Target):
    """An input is a file."""

    name = "config"

    def __init__(self, source: random.Random) -> None:
        self._source = source
        texts = [GOOD.encode(), DEMO.read_bytes()]
        self._documents = [yaml.safe_load(text) for text in texts]
        self._names = names_of(Args, PoolConfig)
        self._texts = Mutator(source, texts, (*WORDS, *(f"{n}: ".encode() for n in self._names)))

    async def start(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._file = Path(self._folder.name) / "headrace.yaml"
        import ray.serve.schema  # noqa: F401 - the first file that is checked waits for it

    async def stop(self) -> None:
        self._folder.cleanup()

    def make(self) -> bytes:
        source = self._source
        if source.randrange(3) == 0:
            return self._texts.make()
        document = self._documents[source.randrange(5) == 0]
        for _ in range(source.choice((1, 1, 2, 3))):
            document = changed_json(source, document, self._names, VALUES)
        if source.randrange(2):
            with contextlib.suppress(ValueError):  # half of a surrogate pair
                return yaml.safe_dump(document, allow_unicode=True).encode()
        return json.dumps(document).encode()

    async def run(self, data: bytes) -> None:
        self._file.write_bytes(data)
        with _terminal() as shown:
            try:
                main(["check", str(self._file), "--json"], prog_name="headrace")
            except SystemExit as ended:
                assert ended.code in (Exit.OK, Exit.CONFIG_INVALID), ended.code
        found = json.loads(shown.getvalue())
        assert found["valid"] == (not found["problems"]), found
        for problem in found["problems"]:
            assert 0 <= problem["line"] <= data.count(b"\n") + data.count(b"\r") + 2
            assert len(problem["message"]) < 2000


@contextlib.contextmanager
def _terminal() -> Iterator[io.BytesIO]:
    shown = io.BytesIO()
    text = io.TextIOWrapper(shown, "utf-8", write_through=True)
    with contextlib.redirect_stdout(text):
        yield shown
    text.detach()
