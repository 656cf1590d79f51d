"""Protobuf messages of which only names are read, with google.protobuf as the judge.

What it reads we have to read alike; what it refuses is refused later, where the whole is parsed.
"""

from __future__ import annotations

import random
import zlib

from google.protobuf.message import DecodeError

from headrace.errors import HeadraceError, InvalidArgument
from headrace.protocols.elements import check_message
from headrace.protocols.targets import (
    KnownTargets,
    infer_target,
    multi_inference_tasks,
    scan_infer_target,
    scan_serving_target,
    serving_target,
)
from headrace.protocols.wire import delimited, message
from tests.fuzz.mutation import Mutator
from tests.fuzz.runner import Target
from tests.fuzz.targets.bodies import PROTO, PROTO_WORDS, SPECS
from tests.fuzz.valid import ValidBodies, changed_message

NAMES = {
    4: "inference.ModelInferRequest",
    5: "tensorflow.serving.PredictRequest",
    6: "tensorflow.serving.ClassificationRequest",
    7: "tensorflow.serving.RegressionRequest",
}
METHODS = {5: "predict", 6: "classify", 7: "regress"}
MULTI = 8
OURS = ("names no model", "model version must be a number", "at least 0", "not both")
"""What we refuse although it is a message."""
GROUPS = ("wire type",)
"""Groups are refused: no message of ours has had any."""


class Messages(Target):
    """An input is the number of the call and a body."""

    name = "messages"

    def __init__(self, source: random.Random) -> None:
        self._source, self._valid = source, ValidBodies(source)

    def make(self) -> bytes:
        source = self._source
        number = source.choice((*PROTO, MULTI))
        call = 6 if number == MULTI else number
        body, _ = self._valid.body(call, source.choice(SPECS))
        if source.randrange(2):
            spec = message("tensorflow.serving.ModelSpec")(name=source.choice(("m", "n", "")))
            if source.randrange(2):
                spec.version.value = source.choice((0, 1, 7, -1))
            if source.randrange(3) == 0:
                spec.version_label = "stable"
            body = delimited(1, spec.SerializeToString()) + body
        if number == MULTI:
            task = delimited(1, delimited(1, b"m")) + delimited(
                2, source.choice((b"tensorflow/serving/classify", b"tensorflow/serving/regress"))
            )
            body = delimited(1, task) * source.choice((1, 2, 17)) + body
        for _ in range(source.choice((0, 1, 1, 2))):
            body = changed_message(source, body)
        if source.randrange(4) == 0:
            body = Mutator(source, [body], PROTO_WORDS).make()
        return bytes([number]) + body

    async def run(self, data: bytes) -> None:
        number, body = data[:1], data[1:]
        if number == bytes([MULTI]):
            self._multi(body)
        elif number and number[0] in NAMES:
            self._single(number[0], body)

    def _single(self, number: int, body: bytes) -> None:
        check_message(body, NAMES[number], len(body))
        scan = scan_infer_target
        if number != 4:
            method = METHODS[number]

            def scan(body: bytes) -> object:  # type: ignore[misc]
                return scan_serving_target(body, method)

        try:
            path, seen = scan(body)
            assert 0 <= seen <= len(body)
            name = infer_target(body)[1] if number == 4 else ""
            if number != 4:
                assert serving_target(body, METHODS[number]) == path
        except InvalidArgument as error:
            refusal = error.message
            path = None
        self._same_beginnings(number, body, scan)
        try:
            judged = message(NAMES[number]).FromString(body)
        except DecodeError:
            return
        if path is None:
            assert any(word in refusal for word in (*OURS, *GROUPS)), refusal
            return
        if number == 4:
            version = str(path.version or "")
            assert (path.model, name) == (judged.model_name, judged.id)
            assert version == judged.model_version.lstrip("0") or path.version == 0
        else:
            spec = judged.model_spec
            label = spec.version_label if spec.HasField("version_label") else None
            number_ = spec.version.value if spec.HasField("version") else None
            assert (path.model, path.version, path.label) == (spec.name, number_, label)

    @staticmethod
    def _same_beginnings(number: int, body: bytes, scan: object) -> None:
        """A target that is known by its beginning is the one that a whole scan finds."""
        known = KnownTargets(scan)  # type: ignore[arg-type]
        source = random.Random(zlib.crc32(body))
        for _ in range(3):
            try:
                found = known.find(body)
            except InvalidArgument:
                found = None
            try:
                expected = scan(body)[0]  # type: ignore[operator]
            except InvalidArgument:
                expected = None
            assert found == expected
            changed = bytearray(body)
            for _ in range(source.randrange(1, 4)):
                if changed:
                    changed[source.randrange(len(changed))] = source.randrange(256)
            body = bytes(changed)

    @staticmethod
    def _multi(body: bytes) -> None:
        try:
            tasks = multi_inference_tasks(body, 64 * 1024, 2000)
        except HeadraceError as error:
            assert error.http_status in (400, 413), error
            return
        assert 0 < len(tasks) <= 16
        for path, request in tasks:
            assert serving_target(request, path.method) == path
