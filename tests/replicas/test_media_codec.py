"""Parts of pictures and videos as a slot reads them, on files that are there."""

from __future__ import annotations

import json
import threading
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace.errors import DeadlineExceeded, InternalError
from headrace.protocols.tensors import Call, InferenceRequest
from headrace.spec import ModelSpec, Signature, TensorSpec
from replicas import media_codec
from replicas.media_codec import MediaCodec
from sharding.parts import Segment, video_document
from sharding.video import VideoLimits, probe
from tests.sharding.media_files import clip, kind_of

UINT8, FLOAT = np.dtype(np.uint8), np.dtype(np.float32)
SIGNATURE = Signature(
    "serving_default",
    (TensorSpec("images", UINT8, (None, 224, 224, 3)),),
    (TensorSpec("scores", FLOAT, (None, 2)),),
)
MODEL = ModelSpec("tagger", 1, "onnx", {"serving_default": SIGNATURE})
CALL = Call("part")


def tile(key: str, labels: str | None = None) -> tuple[bytes, Call]:
    """A small one; what follows the JSON is its pixels."""
    head: dict[str, Any] = {
        "kind": "tile",
        "width": 2,
        "height": 2,
        "preprocess": "imagenet-224",
        "postprocess": "class-scores",
        "labels": labels,
        "key": key,
    }
    text = json.dumps(head).encode()
    return text + bytes(12), replace(CALL, json_length=len(text))


def segment(path: Path, times_s: tuple[float, ...], **more: Any) -> bytes:
    """The part with these frames."""
    info = probe(path, kind_of(path), VideoLimits())
    start_s = max(each for each in info.keyframes_s if each <= times_s[0])
    part = Segment(0, start_s, times_s[-1] + 0.1, times_s, 0.1)
    head = {
        "kind": "segment",
        "path": str(path),
        "segment": asdict(part),
        "video": video_document(info, part),
        "preprocess": "imagenet-224",
        "postprocess": "class-scores",
        "labels": None,
        "key": "00",
    }
    return json.dumps({**head, **more}).encode()


def answer(codec: MediaCodec, request: InferenceRequest) -> Any:
    """What is told of scores that name the second class."""
    scores = np.tile(np.array([0.0, 0.9], np.float32), (request.rows or 1, 1))
    return json.loads(bytes(codec.encode(request, {"scores": scores}, MODEL).body))


def test_a_segment_is_decoded_into_one_input_of_all_its_frames(tmp_path: Path) -> None:
    path = clip(tmp_path / "clip.mp4")
    codec = MediaCodec(tmp_path, tmp_path)
    request = codec.decode(segment(path, (0.1, 0.2, 0.3)), CALL, MODEL)
    assert (request.rows, request.inputs["images"].shape) == (3, (3, 224, 224, 3))
    frames = answer(codec, request)["frames"]
    assert [frame[0] for frame in frames] == pytest.approx([0.1, 0.2, 0.3])
    assert frames[0][2] == [["1", pytest.approx(0.9)]]


def test_after_the_deadline_no_more_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = clip(tmp_path / "clip.mp4")
    codec = MediaCodec(tmp_path, tmp_path)
    with pytest.raises(DeadlineExceeded, match="while the segment"):
        codec.decode(segment(path, (0.1,), within_s=0.0), CALL, MODEL)
    # And whoever waits for a decoder gives up then too.
    monkeypatch.setattr(media_codec, "_decoding", threading.Semaphore(0))
    with pytest.raises(DeadlineExceeded, match="before the segment"):
        codec.decode(segment(path, (0.1,), within_s=0.01), CALL, MODEL)


@pytest.mark.parametrize("place", ["../outside.mp4", "link.mp4"])
def test_no_file_beside_the_spool_is_opened(tmp_path: Path, place: str) -> None:
    spool = tmp_path / "spool"
    spool.mkdir()
    outside = clip(tmp_path / "outside.mp4")
    (spool / "link.mp4").symlink_to(outside)
    head = json.loads(segment(outside, (0.1,)))
    body = json.dumps({**head, "path": str(spool / place)}).encode()
    with pytest.raises(InternalError, match="spool"):
        MediaCodec(tmp_path, spool).decode(body, CALL, MODEL)


def test_kept_results_are_bounded_by_their_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    codec = MediaCodec(tmp_path, tmp_path)
    one = len(json.dumps(answer(codec, codec.decode(*tile("0"), MODEL))))
    monkeypatch.setattr(media_codec, "KEPT_BYTES", 3 * one)
    for key in ("1", "2", "3", "3"):
        answer(codec, codec.decode(*tile(key), MODEL))
    kept = [key for key in "0123" if codec.kept(*tile(key)) is not None]
    assert kept == ["1", "2", "3"]


def test_labels_are_read_anew_for_a_version_whose_files_changed(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("cat\ndog\n")
    before = MediaCodec(tmp_path, tmp_path).decode(*tile("1", "labels.txt"), MODEL)
    (tmp_path / "labels.txt").write_text("Katze\nKöter\n", encoding="utf-8")
    after = MediaCodec(tmp_path, tmp_path).decode(*tile("1", "labels.txt"), MODEL)
    assert (before.encoding.labels, after.encoding.labels) == (["cat", "dog"], ["Katze", "Köter"])
