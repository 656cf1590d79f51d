"""How a gRPC method is offered: a function of bytes and context, and what comes before it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial

from gateway.grpc.calls import Call, Method
from gateway.grpc.prediction import Context

Unary = Callable[[bytes, Context], Awaitable[bytes]]
Gate = Callable[[Context], None]
Stream = Callable[[Context], Awaitable[None]]
ClientStream = Callable[[Context], Awaitable[bytes]]
ServerStream = Callable[[bytes, Context], Awaitable[None]]
Handlers = Mapping[str, Method]
"""By full method name."""


@dataclass(frozen=True, slots=True)
class TaskMethod:
    """A method that runs as a task; `gate` may refuse its caller before the message is read."""

    run: Callable[[bytes, Call], Awaitable[bytes | None]]
    streamed: bool = False
    gate: Gate | None = None

    def check(self, call: Call) -> None:
        """See `Method`."""
        if self.gate is not None:
            self.gate(call)

    def reserve(self, call: Call, length: int) -> None:
        """See `Method`."""
        call.hold(length)

    def start(self, call: Call, message: bytes) -> None:
        """See `Method`."""
        call.run(partial(self.run, message, call))


def unary(method: Unary, gate: Gate | None = None) -> Method:
    """A method with one request and one answer."""
    return TaskMethod(method, gate=gate)


def server_stream(method: ServerStream, gate: Gate | None = None) -> Method:
    """A method with one request and a stream of answers, which it writes."""
    return TaskMethod(method, gate=gate)


def client_stream(method: ClientStream, gate: Gate | None = None) -> Method:
    """A method with a stream of requests, which it reads, and one answer."""
    return TaskMethod(lambda _, call: method(call), streamed=True, gate=gate)


def stream(method: Stream, gate: Gate | None = None) -> Method:
    """A method with a stream of requests, which it reads, and one of answers, which it writes."""
    return TaskMethod(lambda _, call: method(call), streamed=True, gate=gate)
