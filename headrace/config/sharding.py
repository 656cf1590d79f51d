"""What a request may ask of a large input, and what a model's config says of it."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from headrace.config.types import Strict

MAX_PARTS = 4096
"""Default cap on the parts of a request: their plan stays under 1 MB."""
MAX_SCALE = 4.0
"""Cap on the enlargement of a picture: more interpolated pixels help no detector."""
STRIDE = 32
"""Divisor of sides and origins of tiles: the largest stride of the usual detectors."""


def _whole_strides(pixels: int) -> int:
    if pixels % STRIDE:
        nearest = max(STRIDE, round(pixels / STRIDE) * STRIDE)
        raise ValueError(f"should be a multiple of {STRIDE} pixels, such as {nearest}")
    return pixels


def _once_each(scales: tuple[float, ...]) -> tuple[float, ...]:
    if len(set(scales)) < len(scales):
        raise ValueError("names a scale twice")
    return scales


Score = Annotated[float, Field(ge=0, le=1)]
TileSide = Annotated[int, Field(ge=64, le=16_384), AfterValidator(_whole_strides)]
Overlap = Annotated[int, Field(ge=0, le=8192), AfterValidator(_whole_strides)]
Scale = Annotated[float, Field(ge=1 / 64, le=MAX_SCALE)]
Scales = Annotated[tuple[Scale, ...], Field(min_length=1, max_length=8), AfterValidator(_once_each)]
FrameRate = Annotated[float, Field(gt=0, le=240)]
Moment = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
ImportPath = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_\-]*$|^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]
"""Name of a built-in class, or `package.module:Name`."""


class ProcessOptions(Strict):
    """A request's options, by default those of the model's config.

    `classes` are class ids or labels. `partial: allow` answers with the parts that were done.
    `strict_type` refuses a file that is not what its content type says.
    """

    threshold: Score | None = None
    top_k: Annotated[int, Field(ge=1, le=10_000)] | None = None
    classes: Annotated[tuple[int | str, ...], Field(min_length=1, max_length=1000)] | None = None
    tile: TileSide | None = None
    overlap: Overlap | None = None
    scales: Scales | None = None
    fps: FrameRate | None = None
    start_s: Moment = 0.0
    end_s: Moment | None = None
    partial: Literal["allow", "refuse"] = "refuse"
    strict_type: bool | None = None

    @model_validator(mode="after")
    def _range_is_one(self) -> Self:
        if self.end_s is not None and self.end_s <= self.start_s:
            raise ValueError("`end_s` should be above `start_s`")
        if self.tile is not None and self.overlap is not None and self.overlap >= self.tile:
            raise ValueError("`overlap` should be below `tile`")
        return self


class ShardingLimits(Strict):
    """Limits of a large input; beyond one the answer is 413 with the limit."""

    max_pixels: int = Field(default=400_000_000, ge=1, le=100_000_000_000)
    max_duration_s: Annotated[float, Field(gt=0, le=1e6)] = 4 * 3600.0
    max_frames: int = Field(default=100_000, ge=1, le=10_000_000)
    max_parts: int = Field(default=MAX_PARTS, ge=1, le=100_000)
    max_upload_bytes: int = Field(default=4 * 1024**3, ge=1024)


class BoxMerging(Strict):
    """How boxes of several tiles become one (`sharding.merge_boxes.BoxRules`)."""

    iou: Annotated[float, Field(gt=0, lt=1)] = 0.5
    margin: Annotated[float, Field(ge=0, le=1024)] = 16.0


class TagMerging(Strict):
    """How labels of frames become ranges of time (`sharding.merge_tags.TagRules`).

    A range begins where a label scores `high` and ends where it falls below `low`. A request's
    `threshold` stands in for `high`, and `low` keeps its ratio to it.
    """

    high: Score = 0.4
    low: Score = 0.2
    smooth_s: Annotated[float, Field(ge=0, le=60)] = 1.0
    min_length_s: Annotated[float, Field(ge=0, le=3600)] = 0.5
    min_score: Score = 0.3

    @model_validator(mode="after")
    def _low_below_high(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"`low` ({self.low:g}) should not be above `high` ({self.high:g})")
        return self


class ShardingConfig(Strict):
    """How a model's large inputs are split, run and merged.

    `preprocess`, `postprocess` and `merge` name built-ins or import paths; `merge` follows `kind`
    where it is not given. `labels` is a file of the model's version with a label on each line.
    A shard gets at most (1 + `epsilon`) times the mean number of parts: the busiest one decides
    when all are done, and a tighter bound moves few more parts when shards come and go.
    """

    kind: Literal["image-tiles", "video-segments"]
    tile: TileSide = 1024
    overlap: Overlap = 256
    scales: Scales = (1.0,)
    fps: FrameRate = 2.0
    segment_s: Annotated[float, Field(gt=0, le=3600)] = 10.0
    preprocess: ImportPath | None = None
    postprocess: ImportPath | None = None
    merge: ImportPath | None = None
    labels: Annotated[str, Field(min_length=1, max_length=255)] | None = None
    threshold: Score = 0.3
    top_k: Annotated[int, Field(ge=1, le=10_000)] | None = None
    strict_type: bool = False
    epsilon: Annotated[float, Field(ge=0, le=100)] = 0.05
    boxes: BoxMerging = BoxMerging()
    tags: TagMerging = TagMerging()
    limits: ShardingLimits = ShardingLimits()

    @field_validator("labels")
    @classmethod
    def _inside_the_version(cls, labels: str | None) -> str | None:
        if labels is not None and (labels.startswith("/") or ".." in labels.split("/")):
            raise ValueError("should be a path inside the model's version, such as labels.txt")
        return labels

    @model_validator(mode="after")
    def _overlap_below_tile(self) -> Self:
        if self.overlap >= self.tile:
            raise ValueError(
                f"`overlap` ({self.overlap}) should be below `tile` ({self.tile}): a quarter of "
                "it is usual"
            )
        return self

    @property
    def merger(self) -> str:
        """The name of the merger: `merge`, or by default the one for `kind`."""
        return self.merge or ("boxes" if self.kind == "image-tiles" else "tags")

    def strict(self, options: ProcessOptions) -> bool:
        """Whether a file has to be what its content type says."""
        return self.strict_type if options.strict_type is None else options.strict_type

    def tiling(self, options: ProcessOptions) -> tuple[int, int, tuple[float, ...]]:
        """Tile, overlap and scales of a request; raises `ValueError` where they do not fit."""
        tile = options.tile or self.tile
        overlap = self.overlap if options.overlap is None else options.overlap
        if overlap >= tile:
            raise ValueError(f"`overlap` ({overlap}) should be below `tile` ({tile})")
        return tile, overlap, options.scales or self.scales
