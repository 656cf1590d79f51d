from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from headrace.config.sharding import ProcessOptions, ShardingConfig
from sharding.merge import box_rules, tag_rules

TILES = {"kind": "image-tiles"}


def test_an_empty_config_of_each_kind_is_whole() -> None:
    tiles = ShardingConfig.model_validate(TILES)
    assert (tiles.tile, tiles.overlap, tiles.scales, tiles.merger) == (1024, 256, (1.0,), "boxes")
    video = ShardingConfig.model_validate({"kind": "video-segments", "fps": 4})
    assert (video.merger, video.fps) == ("tags", 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "audio"}, "image-tiles"),
        ({"tile": 1000}, "multiple of 32 pixels, such as 992"),
        ({"tile": 32}, "greater than or equal to 64"),
        ({"overlap": 1024}, "`overlap` .1024. should be below `tile` .1024."),
        ({"scales": []}, "at least 1 item"),
        ({"scales": [1, 1.0]}, "names a scale twice"),
        ({"scales": [0]}, "greater than or equal to"),
        ({"fps": 0}, "greater than 0"),
        ({"merge": "no path!"}, "pattern"),
        ({"labels": "../secret"}, "inside the model's version"),
        ({"labels": "/etc/passwd"}, "inside the model's version"),
        ({"tags": {"high": 0.1}}, "`low` .0.2. should not be above `high` .0.1."),
        ({"limits": {"max_pixels": 0}}, "greater than or equal to 1"),
        ({"titel": 1}, "Extra inputs are not permitted"),
    ],
)
def test_a_wrong_value_of_the_config_is_told(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ShardingConfig.model_validate({**TILES, **change})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 1.1}, "less than or equal to 1"),
        ({"top_k": 0}, "greater than or equal to 1"),
        ({"classes": []}, "at least 1 item"),
        ({"start_s": 2, "end_s": 2}, "`end_s` should be above `start_s`"),
        ({"start_s": float("nan")}, "finite|greater"),
        ({"tile": 64, "overlap": 64}, "`overlap` should be below `tile`"),
        ({"partial": "maybe"}, "'allow' or 'refuse'"),
        ({"colour": "red"}, "Extra inputs are not permitted"),
    ],
)
def test_a_wrong_option_is_told(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ProcessOptions.model_validate(options)


def test_options_stand_before_the_config() -> None:
    config = ShardingConfig.model_validate({**TILES, "threshold": 0.5, "boxes": {"iou": 0.3}})
    assert config.tiling(ProcessOptions()) == (1024, 256, (1.0,))
    asked = ProcessOptions.model_validate(
        {"tile": 512, "overlap": 0, "threshold": 0.0, "classes": ["cat", 3], "top_k": 7}
    )
    assert config.tiling(asked) == (512, 0, (1.0,))
    rules = box_rules(config, asked)
    assert (rules.threshold, rules.iou, rules.top_k, rules.classes) == (0, 0.3, 7, ("cat", 3))
    assert box_rules(config, ProcessOptions()).threshold == 0.5


def test_a_smaller_tile_than_the_config_s_overlap_is_refused() -> None:
    config = ShardingConfig.model_validate(TILES)
    with pytest.raises(ValueError, match=r"`overlap` \(256\) should be below `tile` \(128\)"):
        config.tiling(ProcessOptions(tile=128))


def test_a_request_s_threshold_moves_the_tags_rules_together() -> None:
    config = ShardingConfig.model_validate({"kind": "video-segments"})
    rules = tag_rules(config, ProcessOptions(threshold=0.8, classes=("cat", 3)))
    assert (rules.on, rules.off, rules.min_score) == pytest.approx((0.8, 0.4, 0.6))
    assert rules.classes == {"cat", "3"}
    assert tag_rules(config, ProcessOptions()).on == config.tags.high
