"""Split, hash, shards and merge as one, with real models in real slots."""

from __future__ import annotations

import asyncio
import io
from collections import Counter
from contextlib import aclosing

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from gateway.errors import (
    DeadlineExceeded,
    HeadraceError,
    InvalidArgument,
    NotFound,
    PayloadTooLarge,
    UnsupportedMedia,
)
from tests.house import until
from tests.sharding.stage_house import FACES, PICTURES, TAGGER, StageHouse, open_stage

Pixels = NDArray[np.uint8]


def mosaic(faces: tuple[tuple[int, int], ...], size: tuple[int, int] = (1536, 1024)) -> Pixels:
    """The astronaut at each place (x, y) on grey noise."""
    rng = np.random.default_rng(3)
    whole = rng.integers(90, 130, (size[1], size[0], 3), dtype=np.uint8)
    astronaut = np.asarray(Image.open(PICTURES / "astronaut.png").convert("RGB"))
    for x, y in faces:
        whole[y : y + 512, x : x + 512] = astronaut
    return whole


def png(pixels: Pixels) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


TWO = mosaic(((32, 64), (900, 400)))


async def test_faces_of_a_large_picture_are_found_over_two_shards_and_then_in_the_cache(
    tmp_path: object,
) -> None:
    async with open_stage(tmp_path, "a", "b") as stage:  # type: ignore[arg-type]
        job = stage.job("faces", png(TWO), tile=512, overlap=128)
        events, result = await stage.run(job)
        plan = events[0]
        parts = [event for event in events if event["event"] == "part"]
        assert (plan["event"], plan["shards"]) == ("plan", 2)
        assert plan["parts"] == len(parts) == len(result["shards"])
        assert [event["done"] for event in parts] == list(range(1, len(parts) + 1))
        boxes = sorted(box["box"] for box in result["boxes"])
        assert len(boxes) == 2
        # Where the astronaut's face lies in its picture, as the whole picture shows it.
        for box, (x, y) in zip(boxes, ((32, 64), (900, 400)), strict=True):
            assert np.allclose(box, [181 + x, 58 + y, 269 + x, 177 + y], atol=4)
        assert {shard["shard"] for shard in result["shards"]} == {"a", "b"}
        again = (await stage.run(job))[1]
        assert all(shard["cached"] for shard in again["shards"])
        assert again["boxes"] == result["boxes"]
        changed = TWO.copy()
        changed[0:40, 0:40] = 0
        third = (await stage.run(stage.job("faces", png(changed), tile=512, overlap=128)))[1]
    assert [shard["part"] for shard in third["shards"] if not shard["cached"]] == [0]


async def test_a_shard_that_dies_in_the_middle_loses_nothing(tmp_path: object) -> None:
    async with open_stage(tmp_path, "a", "b") as stage:  # type: ignore[arg-type]
        whole = (await stage.run(stage.job("faces", png(TWO), tile=256, overlap=64)))[1]
        other = TWO.copy()
        other[:, :, 0] ^= 1
        job = stage.job("faces", png(other), tile=256, overlap=64)
        seen: Counter[str] = Counter()
        async with aclosing(stage.stage.process(job)) as events:
            async for event in events:
                if event["event"] == "part":
                    seen[event["shard"]] += 1
                    if seen["a"] == 2 and "a" in stage.house.services:
                        await stage.house.kill_slot("a")
                        stage.follow()
                elif event["event"] == "result":
                    result = event["result"]
    assert len(result["shards"]) == len(whole["shards"])
    assert "missing" not in result
    assert len(result["boxes"]) == len(whole["boxes"])
    assert seen["b"] > seen["a"]


async def test_closing_the_request_takes_its_parts_from_the_shards(tmp_path: object) -> None:
    async with open_stage(tmp_path, "a") as stage:  # type: ignore[arg-type]
        job = stage.job("faces", png(TWO), tile=256, overlap=64)
        async with aclosing(stage.stage.process(job)) as events:
            async for event in events:
                if event["event"] == "part":
                    break
        await until(lambda: len(stage.plane.router) == 0)
        placements = list(stage.house.services["a"]._placements)
        await until(lambda: all(len(each.engine) == 0 for each in placements))
        assert (await stage.run(stage.job("faces", png(TWO))))[1]["boxes"]


async def test_a_deadline_is_one_for_all_parts(tmp_path: object) -> None:
    async with open_stage(tmp_path, "a") as stage:  # type: ignore[arg-type]
        with pytest.raises(DeadlineExceeded):
            await stage.run(stage.job("faces", png(TWO), timeout_s=0.2, tile=256, overlap=64))
        await until(lambda: len(stage.plane.router) == 0)


@pytest.mark.parametrize(
    ("content", "kind", "sentence"),
    [
        (b"", InvalidArgument, "empty"),
        (b"nothing that is a picture", UnsupportedMedia, "unknown"),
        (png(TWO)[:200_000], InvalidArgument, "damaged|cut off"),
        (b"%PDF-1.7 and more", UnsupportedMedia, "PDF"),
    ],
)
async def test_bad_uploads_are_refused_and_the_next_is_served(
    tmp_path: object, content: bytes, kind: type[HeadraceError], sentence: str
) -> None:
    async with open_stage(tmp_path, "a") as stage:  # type: ignore[arg-type]
        with pytest.raises(kind, match=sentence):
            await stage.run(stage.job("faces", content))
        assert (await stage.run(stage.job("faces", png(TWO[:512, :512]))))[1]["width"] == 512


async def test_unknown_models_and_pictures_beyond_the_limits(tmp_path: object) -> None:
    assert FACES.sharding is not None
    small = FACES.sharding.model_copy(
        update={"limits": FACES.sharding.limits.model_copy(update={"max_pixels": 100_000})}
    )
    config = FACES.model_copy(update={"sharding": small})
    async with open_stage(tmp_path, "a", config=config) as stage:  # type: ignore[arg-type]
        with pytest.raises(NotFound):
            await stage.run(stage.job("nobody", png(TWO)))
        with pytest.raises(PayloadTooLarge, match=r"0\.1|100"):
            await stage.run(stage.job("faces", png(TWO)))


async def test_the_first_request_wakes_the_model_through_the_pool(tmp_path: object) -> None:
    async with open_stage(tmp_path, "a") as stage:  # type: ignore[arg-type]
        snapshot = stage.house.snapshot
        stage.plane.apply(_without_placements(stage))
        asked = asyncio.create_task(stage.run(stage.job("faces", png(TWO[:512, :512]))))
        await until(lambda: stage.plane.router.held() == {"faces": 1})
        stage.plane.apply(snapshot)
        assert (await asked)[1]["width"] == 512
        assert stage.plane.router.held() == {}


def _without_placements(stage: StageHouse):  # type: ignore[no-untyped-def]
    from dataclasses import replace

    return replace(stage.house.snapshot, placements=())


async def test_a_videos_scenes_are_tagged_in_their_ranges(tmp_path: object) -> None:

    async with open_stage(tmp_path, "a", "b", model="tagger", config=TAGGER) as stage:  # type: ignore[arg-type]
        job = stage.job("tagger", clip(("coffee", "chelsea")), fps=4)
        events, result = await stage.run(job)
    tags = {tag["label"]: tag for tag in result["tags"]}
    assert tags["espresso"]["start_s"] <= 0.5 and 2.0 <= tags["espresso"]["end_s"] <= 4.0
    assert events[0]["kind"] == "video-segments"


def clip(names: tuple[str, ...], seconds: float = 3.0, fps: int = 12) -> bytes:
    """Each picture for so many seconds."""
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width = stream.height = 256
        stream.pix_fmt = "yuv420p"
        stream.gop_size = fps
        for name in names:
            picture = Image.open(PICTURES / f"{name}.png").convert("RGB").resize((256, 256))
            for _ in range(round(seconds * fps)):
                frame = av.VideoFrame.from_ndarray(np.asarray(picture), format="rgb24")
                container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getvalue()
