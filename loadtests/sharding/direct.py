"""A demo model in a process of its own without any server: a whole input at once, or its parts.

`python -m loadtests.sharding.direct whole MODEL FILE` is the replica that does not split: it takes
the whole input and, with `--memory`, ends like a slot at its limit. `parts MODEL FILE`
times what a shard does for each part, one after the other. Both print JSON. `tiles MODEL FILE` does
for every line that it reads what a shard does for some tiles, and prints the seconds it took.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from hashlib import blake2b
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnxruntime
from numpy.typing import NDArray

from headrace.config.sharding import ShardingConfig
from headrace.process import be_nice
from loadtests.headrace import REPOSITORY
from loadtests.sharding.inputs import SHARDING, pixels_of
from loadtests.sharding.memory import peak_bytes
from replicas.last_words import MemoryWatch
from sharding.merge import box_rules
from sharding.merge_boxes import merge_boxes
from sharding.parts import Box, Edges, PartResult, Tile
from sharding.postprocess import load_postprocessor
from sharding.preprocess import load_preprocessor
from sharding.split import PictureSource, Source, VideoSource
from sharding.upload import MediaJob, Upload
from sharding.video_frames import frames

TILES, SIDE = 8, 1024
BATCH = 8
"""Rows of a run for a segment's frames, as the model's config says."""


class Direct:
    """A model with what its config says of large inputs; one thread."""

    def __init__(self, model: str) -> None:
        self.config = ShardingConfig.model_validate(SHARDING[model])
        folder = REPOSITORY / model / "1"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            folder / "model.onnx", options, providers=["CPUExecutionProvider"]
        )
        self._names = [each.name for each in self._session.get_outputs()]
        self._before = load_preprocessor(str(self.config.preprocess))
        self._after = load_postprocessor(str(self.config.postprocess))
        labels = self.config.labels
        self._labels = (folder / labels).read_text().splitlines() if labels else ()
        self.short_side = self._before.short_side

    def boxes(self, rgb: NDArray[np.uint8]) -> tuple[Box, ...]:
        """What is found in pixels, uint8 [h, w, 3]."""
        outputs = self._run(self._before(rgb))
        found = self._after(outputs, (rgb.shape[1], rgb.shape[0]), self._labels)
        return tuple(each for each in found if isinstance(each, Box))

    def tags(self, pictures: Iterator[NDArray[np.uint8]], batch: int) -> int:
        """Tag frames, `batch` in a run; the number of frames."""
        rows = [self._before(rgb) for rgb in pictures]
        for first in range(0, len(rows), batch):
            mine = rows[first : first + batch]
            inputs = {name: np.concatenate([row[name] for row in mine]) for name in mine[0]}
            outputs = self._run(inputs)
            for row in range(len(mine)):
                own = {name: tensor[row : row + 1] for name, tensor in outputs.items()}
                self._after(own, (0, 0), self._labels)
        return len(rows)

    def _run(self, inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        return dict(zip(self._names, self._session.run(self._names, inputs), strict=True))


def opened(direct: Direct, path: Path, folder: Path) -> Source:
    """The file, split as the stage does it."""
    content = path.read_bytes()
    upload = Upload(str(path), len(content), blake2b(content, digest_size=32).hexdigest())
    job = MediaJob("", upload)
    if direct.config.kind == "image-tiles":
        return PictureSource(job, direct.config, folder, lambda: None)
    return VideoSource(job, direct.config, lambda: None)


def shown(direct: Direct, source: Source, part: Any) -> Iterator[NDArray[np.uint8]]:
    assert isinstance(source, VideoSource)
    path = Path(source._upload.path)
    for frame in frames(path, source._info, part, short_side=direct.short_side):
        yield frame.pixels


class NoWords:
    """Nobody listens to what this process says last."""

    loading = False

    def finish(self, exit_code: int, memory_bytes: int) -> None: ...

    def refresh(self, memory_bytes: int) -> None: ...


@click.group(help=__doc__)
def main() -> None: ...


@main.command()
@click.argument("model", type=click.Choice(tuple(SHARDING)))
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--memory", default=0, help="Bytes; 0 for no limit.")
def whole(model: str, path: Path, memory: int) -> None:
    """The whole input in one run: `{"boxes", "frames", "peak_bytes"}`."""
    if memory:
        MemoryWatch(memory, NoWords()).start()  # type: ignore[arg-type]
    direct = Direct(model)
    boxes: list[Box] = []
    count = 0
    if direct.config.kind == "image-tiles":
        boxes = whole_boxes(direct, pixels_of(path))
    else:
        with tempfile.TemporaryDirectory() as folder:
            source = opened(direct, path, Path(folder))
            pictures = (rgb for part in source.plan for rgb in shown(direct, source, part))
            count = direct.tags(pictures, batch=1_000_000)
    told = {"boxes": [asdict(each) for each in boxes], "frames": count}
    print(json.dumps(told | {"peak_bytes": peak_bytes("self")}))


def whole_boxes(direct: Direct, rgb: NDArray[np.uint8]) -> list[Box]:
    """The picture as one tile, by the rules that its tiles are merged by."""
    height, width = rgb.shape[:2]
    tile = Tile(0, 1.0, 0, 0, width, height, Edges(), (0, 0, width, height))
    rules = box_rules(direct.config, MediaJob("", Upload("", 0, "")).options)
    return merge_boxes([PartResult(tile, direct.boxes(rgb))], width, height, rules)


@main.command()
@click.argument("model", type=click.Choice(tuple(SHARDING)))
@click.argument("path", type=click.Path(path_type=Path))
def parts(model: str, path: Path) -> None:
    """`{"sizes", "work_s", "open_s", "send_s"}`: by part, but for opening the file.

    A size is in pixels or in frames.
    """
    direct = Direct(model)
    with tempfile.TemporaryDirectory() as folder:
        begin_s = time.perf_counter()
        source = opened(direct, path, Path(folder))
        keys = [source.key(part) for part in source.plan]
        open_s = time.perf_counter() - begin_s
        work_s, send_s = [], []
        for part, key in zip(source.plan, keys, strict=True):
            begin_s = time.perf_counter()
            _, rest = source.body(part, key)
            sent_s = time.perf_counter()
            if direct.config.kind == "image-tiles":
                size = (part.height, part.width, 3)  # type: ignore[union-attr]
                direct.boxes(np.frombuffer(rest[0], np.uint8).reshape(size))
            else:
                direct.tags(shown(direct, source, part), BATCH)
            work_s.append(time.perf_counter() - sent_s)
            send_s.append(sent_s - begin_s)
        source.close()
    sizes = [
        part.width * part.height if isinstance(part, Tile) else len(part.times_s)
        for part in source.plan
    ]
    told = {"sizes": sizes, "work_s": work_s, "open_s": open_s, "send_s": send_s}
    print(json.dumps(told))


@main.command()
@click.argument("model", type=click.Choice(tuple(SHARDING)))
@click.argument("path", type=click.Path(path_type=Path))
def tiles(model: str, path: Path) -> None:
    """Seconds that some tiles take, for every line that comes in."""
    be_nice()  # as shards are
    direct, tile = Direct(model), pixels_of(path)[:SIDE, :SIDE]
    for _ in sys.stdin:
        begin_s = time.perf_counter()
        for _ in range(TILES):
            direct.boxes(tile)
        print(time.perf_counter() - begin_s, flush=True)


if __name__ == "__main__":
    main()
