"""Split, hash, shards and merge as one, with real models in real slots."""

from __future__ import annotations

import asyncio
import io
import json
import shutil
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from headrace.errors import (
    DeadlineExceeded,
    HeadraceError,
    InvalidArgument,
    NotFound,
    PayloadTooLarge,
    Unavailable,
    UnsupportedMedia,
)
from headrace.link.plane import DataPlane
from headrace.snapshot import ModelVersion, State
from sharding.deployment import MAX_OPEN
from sharding.shards import ShardDied, Shards
from sharding.split import PictureSource
from sharding.upload import Event, MediaJob
from tests.house import until
from tests.sharding.stage_house import (
    FACES,
    PICTURES,
    REPOSITORY,
    TAGGER,
    StageHouse,
    open_stage,
)

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

        async def tell(event: Event) -> None:
            if event["event"] == "part":
                seen[event["shard"]] += 1
                if seen["a"] == 2 and "a" in stage.house.services:
                    await stage.house.kill_slot("a")
                    stage.follow()

        result = await stage.stage.run(job, tell)
    assert len(result["shards"]) == len(whole["shards"])
    assert "missing" not in result
    assert len(result["boxes"]) == len(whole["boxes"])
    assert seen["b"] > seen["a"]


@pytest.fixture
def two_versions(tmp_path: Path) -> Path:
    """A store with `faces` twice."""
    for version in ("1", "2"):
        shutil.copytree(REPOSITORY / "faces" / "1", tmp_path / "store" / "faces" / version)
    return tmp_path / "store"


async def taken_over(
    stage: StageHouse, job: MediaJob, *, stays: bool
) -> tuple[list[str], dict[str, Any]]:
    """The kinds of a request's events and its result, if version 2 takes over in the middle."""
    kinds: list[str] = []

    async def tell(event: Event) -> None:
        kinds.append(event["event"])
        if kinds.count("part") == 1 and event["event"] == "part":
            await take_over(stage, "c", stays=stays)

    return kinds, await stage.stage.run(job, tell)


async def test_a_request_goes_on_with_the_version_that_it_began_with(
    tmp_path: Path, two_versions: Path
) -> None:
    async with open_stage(tmp_path, "a", "b", store=two_versions) as stage:
        job = stage.job("faces", png(TWO), tile=512, overlap=128)
        kinds, result = await taken_over(stage, job, stays=True)
    assert (result["version"], result["notes"], kinds.count("plan")) == (1, [], 1)
    assert {shard["shard"] for shard in result["shards"]} == {"a", "b"}
    assert len(result["boxes"]) == 2


async def test_where_nobody_has_that_version_any_more_all_parts_begin_anew(
    tmp_path: Path, two_versions: Path
) -> None:
    async with open_stage(tmp_path, "a", "b", store=two_versions) as stage:
        job = stage.job("faces", png(TWO), tile=512, overlap=128)
        kinds, result = await taken_over(stage, job, stays=False)
    assert (result["version"], kinds.count("plan")) == (2, 2)
    assert result["notes"] == ["version 1 was taken over meanwhile: all parts began anew"]
    assert {shard["shard"] for shard in result["shards"]} == {"c"}
    assert [shard["part"] for shard in result["shards"]] == list(range(len(result["shards"])))
    assert len(result["boxes"]) == 2


async def test_a_version_that_was_named_is_not_replaced_by_another_one(
    tmp_path: Path, two_versions: Path
) -> None:
    async with open_stage(tmp_path, "a", "b", store=two_versions) as stage:
        job = replace(stage.job("faces", png(TWO), tile=512, overlap=128), version=1)
        with pytest.raises(NotFound):
            await taken_over(stage, job, stays=False)


async def test_with_partial_allow_what_was_done_is_kept(tmp_path: Path, two_versions: Path) -> None:
    async with open_stage(tmp_path, "a", "b", store=two_versions) as stage:
        job = stage.job("faces", png(TWO), tile=512, overlap=128, partial="allow")
        _, result = await taken_over(stage, job, stays=False)
    assert result["version"] == 1 and result["shards"]
    assert {each["reason"] for each in result["missing"]} == {"version 1 was taken over meanwhile"}


async def take_over(stage: StageHouse, slot: str, *, stays: bool) -> None:
    """Version 2 answers from now on, in a slot of its own; slots may still hold version 1."""
    house = stage.house
    await house.add_slot(slot)
    assert await house.place(slot, "faces", 2, FACES) is State.READY
    view = house.snapshot.models["faces"]
    versions = tuple(replace(each, served=each.version == 2) for each in view.versions)
    placements = [p for p in house.snapshot.placements if stays or p.version == 2]
    house.publish(
        replace(
            house.snapshot,
            placements=tuple(placements),
            models={"faces": replace(view, versions=versions, default=2)},
        )
    )
    stage.follow()
    await until(lambda: stage.plane.reaches(slot))


async def test_cancelling_the_request_takes_its_parts_from_the_shards(tmp_path: object) -> None:
    async with open_stage(tmp_path, "a") as stage:  # type: ignore[arg-type]
        job = stage.job("faces", png(TWO), tile=256, overlap=64)
        begun = asyncio.Event()

        async def tell(event: Event) -> None:
            if event["event"] == "part":
                begun.set()

        work = asyncio.create_task(stage.stage.run(job, tell))
        await begun.wait()
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        await until(lambda: len(stage.plane.router) == 0)
        placements = list(stage.house.services["a"]._placements)
        await until(lambda: all(len(each.engine) == 0 for each in placements))
        assert (await stage.run(stage.job("faces", png(TWO))))[1]["boxes"]


async def test_a_deadline_is_one_for_all_parts(tmp_path: object) -> None:
    async with open_stage(tmp_path, "a") as stage:  # type: ignore[arg-type]
        with pytest.raises(DeadlineExceeded):
            await stage.run(stage.job("faces", png(TWO), timeout_s=0.2, tile=256, overlap=64))
        await until(lambda: len(stage.plane.router) == 0)


async def test_with_partial_allow_a_deadline_leaves_what_is_there(tmp_path: object) -> None:
    async with open_stage(tmp_path, "a") as stage:  # type: ignore[arg-type]
        asked = {"tile": 256, "overlap": 64, "partial": "allow"}
        # Nobody takes parts any more after the second, so that only the deadline ends it.
        job = stage.job("faces", png(TWO), timeout_s=5.0, **asked)
        stage.stage._shards = _Stuck(stage.plane, after=2)
        _, result = await stage.run(job)
        assert len(result["shards"]) == 2
        assert {each["reason"] for each in result["missing"]} == {"not done in time"}
        stage.stage._shards = _Stuck(stage.plane, after=0)
        with pytest.raises(DeadlineExceeded, match="0 of"):
            await stage.run(replace(job, timeout_s=0.5))
        assert not stage.plane.router.load()["faces"]


class _Stuck(Shards):
    """Shards that answer so many parts and then none."""

    def __init__(self, plane: DataPlane, after: int) -> None:
        super().__init__(plane)
        self._left = after

    async def ask(self, *arguments: Any) -> dict[str, object]:
        self._left -= 1
        if self._left < 0:
            await asyncio.Event().wait()
        return await super().ask(*arguments)


async def test_waiting_for_its_turn_counts_for_the_deadline(tmp_path: object) -> None:
    async with open_stage(tmp_path, "a") as stage:  # type: ignore[arg-type]
        for _ in range(MAX_OPEN):
            await stage.stage._open.acquire()
        with pytest.raises(DeadlineExceeded):
            await stage.run(stage.job("faces", png(TWO[:64, :64]), timeout_s=0.05))


async def test_tiles_that_no_link_takes_are_refused_before_they_are_read(
    tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PictureSource, "key", None)
    async with open_stage(tmp_path, "a") as stage:  # type: ignore[arg-type]
        stage.plane.max_body_bytes = 1_000_000
        with pytest.raises(PayloadTooLarge, match="smaller `tile`"):
            await stage.run(stage.job("faces", png(TWO)))


async def test_a_part_that_ends_its_shards_ends_two_at_most(tmp_path: object) -> None:
    async with open_stage(tmp_path, "a", "b", "c") as stage:  # type: ignore[arg-type]
        stage.stage._shards = poison = _Poison(stage.plane)
        with pytest.raises(Unavailable, match="2 slots died while they worked on part 0"):
            await stage.run(stage.job("faces", png(TWO[:64, :64])))
        assert len(poison.died) == len(set(poison.died)) == 2
        assert not stage.stage.gangs.suspects.locked()


class _Poison(Shards):
    """Every part ends its slot."""

    died: ClassVar[list[str]] = []

    async def ask(
        self, job: Any, version: ModelVersion, slot_id: str, *_: Any
    ) -> dict[str, object]:
        self.died.append(slot_id)
        raise ShardDied(f"slot {slot_id} died")


async def test_a_slot_that_goes_with_its_part_is_told_apart(tmp_path: object) -> None:
    async with open_stage(tmp_path, "a") as stage:  # type: ignore[arg-type]
        shards, job = Shards(stage.plane), stage.job("faces", png(TWO))
        pixels = TWO[:1024, :1024].tobytes()
        head = {"kind": "tile", "width": 1024, "height": 1024, "key": "00"}
        text = json.dumps({**head, "preprocess": "centerface", "postprocess": "centerface"})
        await until(lambda: stage.plane.reaches("a"))
        asking = asyncio.create_task(
            shards.ask(
                job, ModelVersion("faces", 1), "a", text.encode(), (pixels,), time.monotonic() + 30
            )
        )
        await until(lambda: asking.done() or stage.plane.router.in_slots)
        await stage.house.kill_slot("a")
        with pytest.raises(ShardDied):
            await asking


async def test_a_segment_that_is_all_damage_does_not_refuse_the_rest(tmp_path: object) -> None:
    async with open_stage(tmp_path, "a", model="tagger", config=TAGGER) as stage:  # type: ignore[arg-type]
        video = clip(("coffee", "chelsea"))
        stage.stage._shards = _Blank(stage.plane, 2)
        _, result = await stage.run(stage.job("tagger", video, fps=4))
        assert any("no frame from 2" in note for note in result["notes"])
        assert "espresso" in {tag["label"] for tag in result["tags"]}
        stage.stage._shards = _Blank(stage.plane, 0)
        with pytest.raises(InvalidArgument, match="no frame"):
            await stage.run(stage.job("tagger", video, fps=4))


class _Blank(Shards):
    """Nothing can be decoded from `begins_s` on."""

    def __init__(self, plane: DataPlane, begins_s: float) -> None:
        super().__init__(plane)
        self._begins_s = begins_s

    async def ask(
        self, job: Any, version: ModelVersion, slot_id: str, head: bytes, *more: Any
    ) -> dict[str, object]:
        times_s = json.loads(head)["segment"]["times_s"]
        if times_s[0] >= self._begins_s:
            raise InvalidArgument(f"no frame from {times_s[0]:.1f} s on can be decoded")
        return await super().ask(job, version, slot_id, head, *more)


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
        await until(lambda: stage.plane.router.without_slot() == {"faces": 1})
        stage.plane.apply(snapshot)
        assert (await asked)[1]["width"] == 512
        assert stage.plane.router.without_slot() == {}


def _without_placements(stage: StageHouse):  # type: ignore[no-untyped-def]
    return replace(stage.house.snapshot, placements=())


async def test_a_videos_scenes_are_tagged_in_their_ranges(tmp_path: object) -> None:

    async with open_stage(tmp_path, "a", "b", model="tagger", config=TAGGER) as stage:  # type: ignore[arg-type]
        job = stage.job("tagger", clip(("coffee", "chelsea")), fps=4)
        events, result = await stage.run(job)
    tags = {tag["label"]: tag for tag in result["tags"]}
    assert tags["espresso"]["start_s"] <= 0.5 and 2.0 <= tags["espresso"]["end_s"] <= 4.0
    cats = [tag for tag in result["tags"] if tag["label"] != "espresso"]
    assert {tag["label"] for tag in cats} <= {"tabby", "tiger cat", "Egyptian cat"}, "no stray tag"
    assert min(tag["start_s"] for tag in cats) == pytest.approx(3.0, abs=1.0)
    assert max(tag["end_s"] for tag in cats) == pytest.approx(6.0, abs=1.0)
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


async def test_a_shard_that_stops_is_asked_while_there_is_no_other(tmp_path: Path) -> None:
    async with open_stage(tmp_path, "a", "b") as house:
        shards, snapshot = Shards(house.plane), house.plane.snapshot
        version = shards.version("faces", None)

        def members(*stopping: str) -> list[str]:
            slots = [replace(s, draining=s.slot_id in stopping) for s in snapshot.slots]
            house.plane.apply(replace(snapshot, slots=tuple(slots), number=snapshot.number + 1))
            return shards.members(version, "node")

        assert members() == ["a", "b"]
        assert members("a") == ["b"]
        assert members("a", "b") == ["a", "b"]
