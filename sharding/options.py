"""From a config and a request's options to the rules that results are merged by."""

from __future__ import annotations

from headrace.config.sharding import ProcessOptions, ShardingConfig
from sharding.merge_boxes import BoxRules
from sharding.merge_tags import TagRules


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
        share = options.threshold / on if on else 1.0
        on, off, min_score = options.threshold, off * share, min_score * share
    return TagRules(
        on=on,
        off=off,
        smooth_s=config.tags.smooth_s,
        min_length_s=config.tags.min_length_s,
        min_score=min_score,
        top_k=options.top_k or config.top_k,
        classes=None if options.classes is None else {str(each) for each in options.classes},
    )
