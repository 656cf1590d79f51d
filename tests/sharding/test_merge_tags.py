from __future__ import annotations

import itertools
import random
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from sharding.merge_tags import TagRules, merge_tags
from sharding.parts import PartResult, Segment, Tag, TagScore, TimedTags

RULES = TagRules()
SCORES = st.dictionaries(st.sampled_from(["cat", "dog", "sea"]), st.floats(0, 1), max_size=3)


def frames(fps: float, scores: list[dict[str, float]]) -> list[TimedTags]:
    return [
        TimedTags(
            n / fps, n / fps + 1 / fps, tuple(TagScore(label, s) for label, s in named.items())
        )
        for n, named in enumerate(scores)
    ]


def parts(found: list[TimedTags], borders: set[int]) -> list[PartResult]:
    """The frames in segments that begin at these places."""
    cuts = sorted({0, len(found), *(border for border in borders if border < len(found))})
    return [
        PartResult(
            Segment(n, found[a].start_s, found[b - 1].end_s, (), 1.0), frames=tuple(found[a:b])
        )
        for n, (a, b) in enumerate(itertools.pairwise(cuts))
    ]


def scenes(fps: float, plan: list[tuple[str, float]], **noise: float) -> list[dict[str, float]]:
    """For each frame the label of its scene at 0.8, and what else is in `noise`."""
    return [{label: 0.8, **noise} for label, length_s in plan for _ in range(round(length_s * fps))]


@given(
    st.lists(SCORES, min_size=1, max_size=50),
    st.sampled_from([1.0, 2.0, 3.0, 25.0]),
    st.sets(st.integers(1, 49)),
    st.randoms(use_true_random=False),
)
@settings(max_examples=80, deadline=None)
def test_segment_borders_are_invisible(
    scores: list[dict[str, float]], fps: float, borders: set[int], chance: random.Random
) -> None:
    found = frames(fps, scores)
    cut = parts(found, borders)
    once = merge_tags(parts(found, set()), RULES)
    assert merge_tags(chance.sample(cut, len(cut)), RULES) == once
    assert merge_tags(cut + cut[:1], RULES) == once


@given(
    st.lists(st.tuples(st.sampled_from("abcd"), st.integers(3, 12)), min_size=1, max_size=6),
    st.sampled_from([2.0, 5.0, 12.5]),
)
@settings(max_examples=60, deadline=None)
def test_ranges_end_within_a_second_of_the_truth(plan: list[tuple[str, int]], fps: float) -> None:
    merged = merge_tags(
        parts(frames(fps, scenes(fps, [(a, float(b)) for a, b in plan])), {7}), RULES
    )
    truth: list[Tag] = []
    now_s = 0.0
    for label, length_s in plan:
        if truth and truth[-1].label == label:
            truth[-1] = replace(truth[-1], end_s=now_s + length_s)
        else:
            truth.append(Tag(label, 0.8, now_s, now_s + length_s))
        now_s += length_s
    assert [tag.label for tag in merged] == [tag.label for tag in truth]
    for tag, real in zip(merged, truth, strict=True):
        assert abs(tag.start_s - real.start_s) <= 1 and abs(tag.end_s - real.end_s) <= 1


def test_one_frame_s_whim_is_no_tag_and_makes_no_hole() -> None:
    scores = scenes(4.0, [("sea", 5.0)])
    scores[6] = {"king penguin": 0.9}
    (tag,) = merge_tags(parts(frames(4.0, scores), set()), RULES)
    assert (tag.label, tag.start_s, tag.end_s) == ("sea", 0, 5)


def test_a_tag_lasts_below_on_but_does_not_begin_there() -> None:
    between = [{"cat": 0.3}] * 4
    found = frames(2.0, [*between, *[{"cat": 0.9}] * 4, *between, {}, {}, {}, *between])
    (tag,) = merge_tags(parts(found, {5}), RULES)
    assert (tag.start_s, tag.end_s) == (0, 6)
    assert merge_tags(parts(frames(2.0, between), set()), RULES) == []


def test_short_and_weak_ranges_are_left_out() -> None:
    found = parts(frames(2.0, scenes(2.0, [("cat", 2.0), ("sea", 6.0)], dog=0.25)), set())
    assert [tag.label for tag in merge_tags(found, RULES)] == ["cat", "sea"]
    longer = replace(RULES, min_length_s=3.0)
    assert [tag.label for tag in merge_tags(found, longer)] == ["sea"]
    weak = replace(RULES, on=0.2, off=0.2, min_score=0.3)
    assert [tag.label for tag in merge_tags(found, weak)] == ["cat", "sea"]


def test_top_k_keeps_the_labels_with_most() -> None:
    found = parts(frames(2.0, scenes(2.0, [("cat", 2.0), ("sea", 6.0), ("cat", 5.0)])), set())
    best = merge_tags(found, replace(RULES, top_k=1))
    assert [tag.label for tag in best] == ["cat", "cat"]
    assert merge_tags(found, replace(RULES, classes={"sea"}))[0].label == "sea"


def test_a_missing_part_ends_a_range_but_a_lost_frame_does_not() -> None:
    found = frames(2.0, scenes(2.0, [("sea", 12.0)]))
    lost = merge_tags(parts(found[:6] + found[7:], set()), RULES)
    assert [(tag.start_s, tag.end_s) for tag in lost] == [(0, 12)]
    missing = merge_tags(parts(found[:6] + found[14:], set()), RULES)
    assert [(tag.start_s, tag.end_s) for tag in missing] == [(0, 3), (7, 12)]
    assert merge_tags([], RULES) == []
