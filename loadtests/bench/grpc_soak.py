"""Drive a gRPC server with real grpcio clients for long, and count what is lost.

As lively, honest clients do it: over one channel, with answers of all sizes, deadlines that pass
and calls that are cancelled in between. `python -m loadtests.bench.grpc_soak` starts the gateway.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import grpc
import numpy as np
import uvloop
from onnx import TensorProto, helper
from tritonclient.grpc import service_pb2

from loadtests.bench.mlp import INFER, ask, infer_message, write_version
from loadtests.headrace import ANSWER_S, headrace

STREAM_INFER = "/inference.GRPCInferenceService/ModelStreamInfer"
NAME = "zeros"
SIZES = (25, 25, 25, 250, 2500, 25_000)
"""Numbers in an answer: 100 B to 100 KB of float32."""
IN_FLIGHT = (1, 8, 64)
CALL_S = 30.0
TOO_LATE = ("DEADLINE_EXCEEDED", "UNAVAILABLE: the deadline would pass")
"""Right answers to a call with a short deadline."""
LATEST_S = 0.004
"""Latest deadline or cancellation: they come before the answer, with it, and after it."""


@dataclass(frozen=True, slots=True)
class Question:
    """A request message, and the length of a right answer."""

    message: bytes
    answer_bytes: int


@dataclass(slots=True)
class Tally:
    """What became of the calls or messages; `reconnected` counts connections beyond the first."""

    in_flight: int
    answered: int = 0
    expired: int = 0
    cancelled: int = 0
    reconnected: int = 0
    seconds: float = 0.0
    lost: Counter[str] = field(default_factory=Counter)

    @property
    def failed(self) -> int:
        return self.lost.total()

    def count(self, answer: bytes, question: Question) -> None:
        if len(answer) == question.answer_bytes:
            self.answered += 1
        else:
            self.lost[f"{len(answer)} bytes, not {question.answer_bytes}"] += 1

    def line(self, what: str) -> str:
        done = self.answered + self.expired + self.cancelled + self.failed
        return (
            f"{what}, {self.in_flight} in flight: {done} in {self.seconds:.1f} s, "
            f"{self.answered} answered, {self.expired} expired, {self.cancelled} cancelled, "
            f"{self.failed} lost, {self.reconnected} reconnections"
        )


@asynccontextmanager
async def watched_channel(address: str, tally: Tally) -> AsyncIterator[Any]:
    """One channel that is connected, with one connection as long as the server keeps it."""
    async with grpc.aio.insecure_channel(address) as channel:

        async def watch() -> None:
            state = grpc.ChannelConnectivity.READY
            while True:
                await channel.wait_for_state_change(state)
                state = channel.get_state()
                tally.reconnected += state is not grpc.ChannelConnectivity.READY

        await channel.channel_ready()
        watching = asyncio.create_task(watch())
        began_s = time.monotonic()
        try:
            yield channel
        finally:
            tally.seconds = time.monotonic() - began_s
            watching.cancel()


async def call_often(
    address: str, method: str, questions: Sequence[Question], calls: int, in_flight: int
) -> Tally:
    """Unary calls; of 20 one has a deadline that may pass, and one is cancelled."""
    tally, source = Tally(in_flight), random.Random(in_flight)
    numbers = iter(range(calls))

    async def caller(ask: Any) -> None:
        for number in numbers:
            question, soon_s = source.choice(questions), source.uniform(0.0, LATEST_S)
            hurried, fickle = number % 20 == 7, number % 20 == 13
            call = ask(question.message, timeout=soon_s if hurried else CALL_S)
            if fickle:
                asyncio.get_running_loop().call_later(soon_s, call.cancel)
            try:
                tally.count(await call, question)
            except asyncio.CancelledError:
                if not fickle:
                    raise
                tally.cancelled += 1
            except grpc.RpcError as error:
                reason = f"{error.code().name}: {error.details()}"
                if hurried and reason.startswith(TOO_LATE):
                    tally.expired += 1
                else:
                    tally.lost[reason] += 1

    async with watched_channel(address, tally) as channel, asyncio.TaskGroup() as group:
        for _ in range(in_flight):
            group.create_task(caller(channel.unary_unary(method)))
    return tally


async def stream_often(
    address: str, method: str, questions: Sequence[Question], messages: int, in_flight: int
) -> Tally:
    """One stream of messages, of which `in_flight` are not answered yet at any time."""
    tally, source = Tally(in_flight), random.Random(in_flight)
    asked = [source.choice(questions) for _ in range(messages)]
    async with watched_channel(address, tally) as channel:
        call = channel.stream_stream(method)()
        unsent = iter(asked)
        try:
            for question in itertools.islice(unsent, in_flight):
                await call.write(question.message)
            for question in asked:
                answer = await call.read()
                if answer is grpc.aio.EOF:
                    reason = f"the stream ended: {await call.details()}"
                    raise grpc.aio.AioRpcError(await call.code(), None, None, details=reason)
                tally.count(answer, question)
                following = next(unsent, None)
                if following is not None:
                    await call.write(following.message)
            await call.done_writing()
        except grpc.RpcError as error:
            tally.lost[f"{error.code().name}: {error.details()}"] += messages - tally.answered
    return tally


def write_model(store: Path) -> None:
    """Write an ONNX model that answers `length` [1] with zeros, [length]."""
    inputs = [helper.make_tensor_value_info("length", TensorProto.INT64, [1])]
    outputs = [helper.make_tensor_value_info("zeros", TensorProto.FLOAT, ["length"])]
    node = helper.make_node("ConstantOfShape", ["length"], ["zeros"])
    write_version(store, NAME, helper.make_graph([node], NAME, inputs, outputs))


def infer_messages(address: str) -> list[Question]:
    """A request for each of `SIZES`, with the length of the answer that the gateway gives now."""
    questions = []
    for size in SIZES:
        request = infer_message(NAME, "length", "INT64", np.array([size], "<i8"))
        questions.append(Question(request, len(ask(address, request, ANSWER_S))))
    return questions


def streamed(question: Question) -> Question:
    """The same over a stream, where the answer is a field of another message."""
    answer = service_pb2.ModelInferResponse.FromString(b"")
    empty = service_pb2.ModelStreamInferResponse(infer_response=answer).ByteSize()
    # Each seven bits of the length take a byte, of which the empty answer's has one.
    varint = max(1, -(-question.answer_bytes.bit_length() // 7))
    return Question(question.message, empty + varint - 1 + question.answer_bytes)


@click.command(help=__doc__, context_settings={"show_default": True})
@click.option("--calls", default=200_000, help="Unary calls in all.")
@click.option("--messages", default=50_000, help="Messages of a stream in all.")
def main(calls: int, messages: int) -> None:
    tallies = []
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        store = Path(folder) / "store"
        write_model(store)
        with headrace(Path(folder), store, {NAME: {}}) as server:
            questions = infer_messages(server.grpc)
            ahead = [streamed(question) for question in questions]
            for run, method, asked, count, what in (
                (call_often, INFER, questions, calls, "calls"),
                (stream_often, STREAM_INFER, ahead, messages, "messages of one stream"),
            ):
                for in_flight in IN_FLIGHT:
                    part = count // len(IN_FLIGHT) + 1
                    tally = uvloop.run(run(server.grpc, method, asked, part, in_flight))
                    tallies.append(tally)
                    click.echo(tally.line(what))
    for reason, lost in sum((tally.lost for tally in tallies), Counter[str]()).items():
        click.echo(f"lost {lost}: {reason}", err=True)
    if any(tally.failed or tally.reconnected for tally in tallies):
        raise click.ClickException("calls were lost")


if __name__ == "__main__":
    main()
