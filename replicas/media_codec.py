"""The codec of parts of a picture or video: a tile's pixels or a segment's place in, findings out.

The slot decodes a segment from the spooled file itself, so that frames do not cross the cluster.
Findings are kept by the part's key, and an equal part is answered from there.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from headrace.errors import DeadlineExceeded, InternalError, InvalidArgument
from headrace.protocols.tensors import Call, Codec, Encoded, InferenceRequest
from headrace.spec import ModelSpec, Tensor

if TYPE_CHECKING:
    from replicas.batcher import Pending
    from sharding.parts import TimedTags
    from sharding.postprocess import Postprocessor
    from sharding.preprocess import Preprocessor

KEPT_RESULTS = 4096
KEPT_BYTES = 32 * 1024 * 1024
"""Limits on the findings that are kept for a model version, in number and in size."""
DECODERS = 2
"""Segments that a slot decodes at once; more would take more memory and no less time."""

_decoding = threading.BoundedSemaphore(DECODERS)


@dataclass(slots=True)
class _Note:
    """Notes for the answer: sizes, and times by row."""

    key: str
    postprocess: str
    labels: Sequence[str]
    size: tuple[int, int]
    spans_s: tuple[tuple[float, float], ...] = ()
    report: Mapping[str, Any] | None = None
    more: bool = False


class MediaCodec(Codec):
    """The codec of one loaded model version, whose files lie in `folder`. Used by any thread.

    `spool` is where files of the stage lie; nothing else is opened.
    """

    def __init__(self, folder: Path, spool: Path) -> None:
        self._folder, self._spool = folder, spool
        self._kept: OrderedDict[str, bytes] = OrderedDict()
        self._kept_bytes = 0
        # With the codec they go when the version's files change.
        self._labels: dict[str, Sequence[str]] = {}
        self._lock = threading.Lock()

    def kept(self, body: bytes | memoryview, call: Call) -> Encoded | None:
        """The answer to an equal part, if one is kept."""
        key = str(_head(body, call)[0].get("key", ""))
        with self._lock:
            found = self._kept.get(key)
            if found is None:
                return None
            self._kept.move_to_end(key)
        return Encoded(found[:-1] + b', "cached": true}')

    def decode(self, body: bytes | memoryview, call: Call, model: ModelSpec) -> InferenceRequest:
        """Pixels, or the frames of a segment, as the model's inputs; one row for each.

        Raises `InvalidArgument` for what cannot be decoded.
        """
        head, pixels = _head(body, call)
        preprocess = _preprocessor(head["preprocess"])
        signature = model.signatures[model.default_signature]
        labels = self._labels_in(head.get("labels"))
        if head["kind"] == "tile":
            size = (int(head["width"]), int(head["height"]))
            rgb = np.frombuffer(pixels, np.uint8).reshape(size[1], size[0], 3)
            more = bool(head.get("more"))
            note = _Note(head["key"], head["postprocess"], labels, size, more=more)
            return InferenceRequest(signature, preprocess(rgb), 1, encoding=note)
        until_s = time.monotonic() + float(head.get("within_s", math.inf))
        left_s = max(0.0, until_s - time.monotonic())
        if not _decoding.acquire(timeout=min(left_s, threading.TIMEOUT_MAX)):
            raise DeadlineExceeded("the deadline passed before the segment was decoded")
        try:
            inputs, note = self._segment(head, preprocess, labels, until_s)
        finally:
            _decoding.release()
        return InferenceRequest(signature, inputs, len(note.spans_s), encoding=note)

    def more_follow(self, pending: Pending) -> bool:
        """Whether the stage has more parts of the same input for this slot."""
        note: _Note = pending.request.encoding
        return note.more

    def _segment(
        self,
        head: Mapping[str, Any],
        preprocess: Preprocessor,
        labels: Sequence[str],
        until_s: float,
    ) -> tuple[dict[str, Tensor], _Note]:
        from sharding.parts import segment_of, video_of
        from sharding.video_frames import DecodeReport, frames

        def check() -> None:
            # Nobody can be told to stop decoding, but after the deadline nobody waits.
            if time.monotonic() >= until_s:
                raise DeadlineExceeded("the deadline passed while the segment was decoded")

        path = Path(head["path"]).resolve()
        if self._spool.resolve() not in path.parents:
            raise InternalError("the file of a segment does not lie in the spool")
        segment, report = segment_of(head["segment"]), DecodeReport()
        inputs: dict[str, Tensor] = {}
        spans: list[tuple[float, float]] = []
        size = (0, 0)
        shown = frames(
            path,
            video_of(head["video"]),
            segment,
            short_side=preprocess.short_side,
            report=report,
            check=check,
        )
        for frame in shown:
            size = (frame.pixels.shape[1], frame.pixels.shape[0])
            for name, row in preprocess(frame.pixels).items():
                if not spans:
                    inputs[name] = np.empty((len(segment.times_s), *row.shape[1:]), row.dtype)
                inputs[name][len(spans)] = row[0]
            spans.append((frame.time_s, frame.time_s + segment.step_s))
        if not spans:
            raise InvalidArgument(
                f"no frame from {segment.times_s[0]:.1f} to {segment.times_s[-1]:.1f} s can be "
                "decoded"
            )
        told = None
        if report.corrupt or report.missing:
            told = {"corrupt": report.corrupt, "missing": report.missing}
        note = _Note(head["key"], head["postprocess"], labels, size, tuple(spans), told)
        return {name: rows[: len(spans)] for name, rows in inputs.items()}, note

    def encode(
        self, request: InferenceRequest, outputs: Mapping[str, Tensor], model: ModelSpec
    ) -> Encoded:
        """Findings as JSON, in the form of `sharding.parts`."""
        from sharding.parts import Box, TagScore, TimedTags, findings_document

        note: _Note = request.encoding
        postprocess = _postprocessor(note.postprocess)
        boxes: list[Box] = []
        timed: list[TimedTags] = []
        for row in range(request.rows or 1):
            mine = {name: tensor[row : row + 1] for name, tensor in outputs.items()}
            found = postprocess(mine, note.size, note.labels)
            if note.spans_s:
                tags = tuple(each for each in found if isinstance(each, TagScore))
                if len(tags) < len(found):
                    raise InternalError("the postprocessor of a video gave boxes, not tags")
                timed.append(TimedTags(*note.spans_s[row], tags))
            else:
                boxes += [each for each in found if isinstance(each, Box)]
        body = json.dumps(findings_document(boxes, timed, note.report)).encode()
        self._keep(note.key, body)
        return Encoded(body)

    def _keep(self, key: str, body: bytes) -> None:
        with self._lock:
            self._kept_bytes += len(body) - len(self._kept.pop(key, b""))
            self._kept[key] = body
            while len(self._kept) > KEPT_RESULTS or self._kept_bytes > KEPT_BYTES:
                self._kept_bytes -= len(self._kept.popitem(last=False)[1])

    def _labels_in(self, name: str | None) -> Sequence[str]:
        """Labels of the model's file, one a line; none without a file name."""
        if name is None:
            return ()
        if name not in self._labels:
            try:
                text = (self._folder / name).read_text(encoding="utf-8")
            except OSError as error:
                raise InvalidArgument(
                    f"the model has no labels {name!r}: {error.strerror}"
                ) from error
            self._labels[name] = text.splitlines()
        return self._labels[name]


def _head(body: bytes | memoryview, call: Call) -> tuple[dict[str, Any], memoryview]:
    """The JSON part and the pixels behind it."""
    view = memoryview(body)
    length = call.json_length if call.json_length is not None else len(view)
    head: dict[str, Any] = json.loads(bytes(view[:length]))
    return head, view[length:]


@lru_cache(maxsize=64)
def _preprocessor(name: str) -> Preprocessor:
    from sharding.preprocess import load_preprocessor

    return load_preprocessor(name)


@lru_cache(maxsize=64)
def _postprocessor(name: str) -> Postprocessor:
    from sharding.postprocess import load_postprocessor

    return load_postprocessor(name)
