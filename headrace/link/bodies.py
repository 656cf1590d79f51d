"""Bodies that travel in parts: one that is being sent, one that is arriving."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from headrace.errors import LinkError
from headrace.link.frames import PART_BYTES, Buffer, Item, Reply

WINDOW_BYTES = 1024 * 1024
"""How far a stream may run ahead of its receiver."""

Message = TypeVar("Message", Item, Reply)


@dataclass(slots=True)
class Outgoing:
    """A body that is being sent in parts."""

    stream_id: int
    buffers: deque[memoryview]
    window_bytes: int = WINDOW_BYTES

    def next_part(self) -> memoryview:
        """Take the next part, as large as the window allows."""
        head = self.buffers[0]
        part = head[: min(PART_BYTES, self.window_bytes)]
        self.window_bytes -= len(part)
        if len(part) == len(head):
            self.buffers.popleft()
        else:
            self.buffers[0] = head[len(part) :]
        return part


class Incoming(Generic[Message]):
    """A message whose body is still arriving."""

    __slots__ = ("body", "granted", "message")

    def __init__(self, message: Message) -> None:
        self.message: Message = message
        self.body = bytearray()
        self.granted = 0

    def add(self, part: Buffer, *, last: bool) -> Message | None:
        """The message, once it is whole; raises `LinkError` when the lengths do not add up."""
        self.body += part
        if len(self.body) > self.message.length or (last and len(self.body) < self.message.length):
            raise LinkError(f"a streamed body of {len(self.body)}, not {self.message.length} bytes")
        return replace(self.message, body=self.body) if last else None
