"""Mergers, which make one answer of the parts' results: built in or a user's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from headrace.config.sharding import ProcessOptions, ShardingConfig
from headrace.config.types import import_named
from sharding.merge_boxes import BoxRules, merge_boxes
from sharding.merge_tags import TagRules, merge_tags
from sharding.parts import PartResult


def box_rules(config: ShardingConfig, options: ProcessOptions) -> BoxRules:
    """How the boxes of a request are merged."""
    return BoxRules(
        threshold=config.threshold if options.threshold is None else options.threshold,
        iou=config.boxes.iou,
        top_k=options.top_k or config.top_k,
        classes=options.classes,
        margin=config.boxes.margin,
    )


def tag_rules(config: ShardingConfig, options: ProcessOptions) -> TagRules:
    """How the tags of a request are merged."""
    on, off, min_score = config.tags.high, config.tags.low, config.tags.min_score
    if options.threshold is not None:
        factor = options.threshold / on if on else 1.0
        on, off, min_score = options.threshold, off * factor, min_score * factor
    return TagRules(
        on=on,
        off=off,
        smooth_s=config.tags.smooth_s,
        min_length_s=config.tags.min_length_s,
        min_score=min_score,
        top_k=options.top_k or config.top_k,
        classes=None if options.classes is None else {str(each) for each in options.classes},
    )


class MergerError(ValueError):
    """Raised when a name leads to no merger."""


@dataclass(frozen=True, slots=True)
class Whole:
    """What was split: `width` and `height` in pixels as shown, `duration_s` for a video."""

    width: int
    height: int
    duration_s: float = 0.0


@runtime_checkable
class Merger(Protocol):
    """Makes the answer of a job from its parts' results.

    The order of `results` is that of their arrival and should not matter; with `partial: allow`
    some are missing. The answer is JSON; `shards` and `missing` are added to it afterwards. An
    example, named in a config as `merge: my_package.counting:Count`:

        class Count:
            def merge(self, results, whole, options, config):
                return {"count": sum(len(result.boxes) for result in results)}
    """

    def merge(
        self,
        results: Sequence[PartResult],
        whole: Whole,
        options: ProcessOptions,
        config: ShardingConfig,
    ) -> Mapping[str, Any]:
        """The answer's own fields."""
        ...


class BoxMerger:
    """`boxes`: the objects of a picture, in its pixels."""

    def merge(
        self,
        results: Sequence[PartResult],
        whole: Whole,
        options: ProcessOptions,
        config: ShardingConfig,
    ) -> Mapping[str, Any]:
        boxes = merge_boxes(results, whole.width, whole.height, box_rules(config, options))
        return {"boxes": [box.answer() for box in boxes]}


class TagMerger:
    """`tags`: the labels of a video with their ranges of time."""

    def merge(
        self,
        results: Sequence[PartResult],
        whole: Whole,
        options: ProcessOptions,
        config: ShardingConfig,
    ) -> Mapping[str, Any]:
        return {"tags": [tag.answer() for tag in merge_tags(results, tag_rules(config, options))]}


BUILT_IN: Mapping[str, Callable[[], Merger]] = {"boxes": BoxMerger, "tags": TagMerger}


def find_merger(name: str) -> Merger:
    """A merger by its built-in name or as `package.module:Class`, which is made without arguments.

    Raises `MergerError`.
    """
    if name in BUILT_IN:
        return BUILT_IN[name]()
    if ":" not in name:
        raise MergerError(
            f"there is no merger {name!r}: use {' or '.join(sorted(BUILT_IN))}, or name your own "
            "as package.module:Class"
        )
    # A user's module may raise anything at all while it is imported or its class is made.
    try:
        merger = import_named(name)()
    except Exception as error:
        raise MergerError(f"the merger {name!r} could not be made: {error!r}") from error
    if not isinstance(merger, Merger):
        raise MergerError(f"the merger {name!r} has no method `merge`")
    return merger
