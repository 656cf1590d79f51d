"""What the soak asks: JSON and binary tensors over HTTP, gRPC, and now and then a picture.

All speak TLS and show one key; every answer is checked.
"""

from __future__ import annotations

import asyncio
import itertools
import ssl
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

import grpc
import numpy as np
import orjson

from loadtests.bench.mlp import (
    INFER,
    INPUT,
    NAME,
    OUTPUT,
    TFS,
    V2,
    Body,
    infer_message,
    one_row,
    read_answer,
)
from loadtests.clients import request_head
from loadtests.headrace import Running
from loadtests.kills import ANSWER_S, BROKEN, REFUSED, Asked, Caller
from loadtests.messages import Message, Values, WrongAnswer, cached, read_predictions
from loadtests.sharding.inputs import jpeg, lighter, pixels_of

FACES = "faces"
PICTURE = "motorcycle_left"
LEVELS = 50
"""So many pictures that differ, and of which no part is in a cache for the others."""
KEPT, ANEW, CALLS = 2, 1, 2
"""Clients for each form of body that keep their connection, and that do not; those of gRPC."""
PAUSE_S, PICTURE_PAUSE_S = 0.05, 5.0
ENDED = ("Socket closed", "Connection reset", "Broken pipe", "recvmsg", "andshake failed", "EOF")
"""In what grpcio says of a connection that ended under a call."""


@dataclass(frozen=True, slots=True)
class Question:
    """A request over HTTP; `check` raises `WrongAnswer` for another answer than the right one."""

    sort: str
    message: Message
    check: Callable[[bytes], None]


@dataclass(frozen=True, slots=True)
class Failure:
    """A request that was not answered as it must be."""

    sort: str
    asked: Asked


def questions(bodies: Sequence[Body], answer: Values, model: str = NAME) -> list[Question]:
    """The perceptron's row as TensorFlow Serving's JSON and as a binary tensor, by `model`."""

    def check_rows(body: bytes) -> None:
        compare(read_predictions(body, OUTPUT), answer)

    def check_tensor(body: bytes) -> None:
        compare(np.frombuffer(body[-4 * answer.size :], "<f4").astype(float), answer)

    checks = {(TFS, "tfs.json"): check_rows, (V2, "v2.bin"): check_tensor}
    return [
        Question(
            body.label,
            Message(
                body.path.replace(f"/{NAME}", f"/{model}"),
                body.file.read_bytes(),
                dict(body.headers),
            ),
            checks[body.protocol, body.file.name],
        )
        for body in bodies
        if (body.protocol, body.file.name) in checks
    ]


def compare(values: Values, answer: Values) -> None:
    """Raises `WrongAnswer`."""
    if values.size != answer.size or not np.allclose(values.ravel(), answer.ravel(), atol=1e-4):
        raise WrongAnswer(f"the answer is {values.ravel()[:10].tolist()}")


def check_parts(body: bytes) -> None:
    """A picture's answer says where each part was done."""
    if not orjson.loads(body).get("shards"):
        raise WrongAnswer(f"no part was done: {body[:200]!r}")


class GrpcCaller:
    """A client of the gRPC port with a connection of its own; a new one when that broke."""

    def __init__(self, address: str, root: bytes) -> None:
        self._address, self._trust = address, grpc.ssl_channel_credentials(root)
        self._channel: grpc.aio.Channel | None = None
        self._connected_s = 0.0

    async def ask(self, message: bytes, key: str) -> tuple[Asked, bytes]:
        """What became of a call of ModelInfer, and the answer's message."""
        sent_s, error, answer = time.monotonic(), "", b""
        if self._channel is None:
            own = [("grpc.use_local_subchannel_pool", 1)]
            self._connected_s = sent_s
            self._channel = grpc.aio.secure_channel(self._address, self._trust, options=own)
        try:
            call = self._channel.unary_unary(INFER)
            answer = await call(message, timeout=ANSWER_S, metadata=[("x-api-key", key)])
        except grpc.aio.AioRpcError as failed:
            error = error_of(failed.code(), failed.details() or "")
            await self.close()
        return Asked(self._connected_s, sent_s, time.monotonic(), error), answer

    async def close(self) -> None:
        if self._channel is not None:
            await self._channel.close()
        self._channel = None


def error_of(code: grpc.StatusCode, details: str) -> str:
    """What became of a call that failed, in the words of `Asked`."""
    if code is grpc.StatusCode.UNAVAILABLE:
        if "Connection refused" in details:
            return REFUSED
        if any(words in details for words in ENDED):
            return BROKEN
    return f"{code.name}: {details}"


class Load:
    """Asks while a block lasts; `worst_s` is the longest wait since it was set to 0."""

    def __init__(
        self, server: Running, root: Path, key: str, bodies: Sequence[Body], answer: Values
    ) -> None:
        self.key = key
        self.requests: Counter[str] = Counter()
        self.failures: list[Failure] = []
        self.worst_s = 0.0
        self._server, self._host = server, urlsplit(server.url).netloc
        self._root = root.read_bytes()
        self._trust = ssl.create_default_context(cafile=str(root))
        self._questions, self._answer = questions(bodies, answer), answer
        self._over = asyncio.Event()

    @asynccontextmanager
    async def asking(self) -> AsyncIterator[None]:
        """What is asked when the block ends is still answered."""
        self._over.clear()
        async with asyncio.TaskGroup() as group:
            for question in self._questions:
                for number in range(KEPT + ANEW):
                    group.create_task(self._ask_often(question, number < KEPT))
            for _ in range(CALLS):
                group.create_task(self._call_often())
            group.create_task(self._send_pictures())
            try:
                yield
            finally:
                self._over.set()

    async def ask_once(self, question: Question) -> None:
        """Over a connection of its own."""
        with closing(self._caller(keep=False)) as caller:
            await self._ask(question, caller)

    async def _ask_often(self, question: Question, keep: bool) -> None:
        with closing(self._caller(keep)) as caller:
            while not self._over.is_set():
                await self._ask(question, caller)
                await self._pause(PAUSE_S)

    async def _send_pictures(self) -> None:
        [file] = cached(f"pictures/{PICTURE}.png")
        pixels = pixels_of(file)
        path, headers = f"/v1/models/{FACES}:process", {"Content-Type": "image/jpeg"}
        with closing(self._caller(keep=True)) as caller:
            for number in itertools.count():
                if self._over.is_set():
                    return
                picture = await asyncio.to_thread(jpeg, lighter(pixels, number % LEVELS))
                message = Message(path, picture, headers)
                await self._ask(Question("picture", message, check_parts), caller)
                await self._pause(PICTURE_PAUSE_S)

    async def _call_often(self) -> None:
        row = one_row().astype("<f4")[np.newaxis]
        message = infer_message(NAME, INPUT, "FP32", row)
        caller = GrpcCaller(self._server.grpc, self._root)
        try:
            while not self._over.is_set():
                asked, answer = await caller.ask(message, self.key)
                self._count("gRPC", asked, answer, self._check_message)
                await self._pause(PAUSE_S)
        finally:
            await caller.close()

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._over.wait()

    def _check_message(self, message: bytes) -> None:
        compare(read_answer(message, OUTPUT), self._answer)

    def _caller(self, keep: bool) -> Caller:
        return Caller(self._server.url, keep, self._trust)

    async def _ask(self, question: Question, caller: Caller) -> None:
        head = request_head(question.message, self._host, {"X-API-Key": self.key})
        asked, answer = await caller.ask(head, question.message.body)
        self._count(question.sort, asked, answer, question.check)

    def _count(
        self, sort: str, asked: Asked, answer: bytes, check: Callable[[bytes], None]
    ) -> None:
        self.requests[sort] += 1
        if not asked.error:
            self.worst_s = max(self.worst_s, asked.ended_s - asked.sent_s)
            try:
                check(answer)
            except (WrongAnswer, ValueError) as wrong:
                asked = replace(asked, error=f"wrong answer: {wrong}")
        elif answer:
            asked = replace(asked, error=f"{asked.error}: {answer[:200].decode(errors='replace')}")
        if asked.error:
            self.failures.append(Failure(sort, asked))
