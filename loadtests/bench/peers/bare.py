"""The bare path: what the design of gateway, bundles and slot can reach, without any protection.

A uvicorn protocol hands each body over without ASGI; bodies that wait cross a Unix socket together
to one process that parses them with simdjson, runs them as one batch and writes the answers. There
are no limits, deadlines, errors or metrics. BENCH_PORTS names the port, BENCH_FOLDER a folder for
the socket; runs in our own environment.
"""

from __future__ import annotations

import asyncio
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import simdjson
import uvicorn
import uvloop
from numpy.typing import NDArray
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from loadtests.bench.peers.onnx_model import RAW, ROWS, OnnxModel

SOCKET = os.path.join(os.environ.get("BENCH_FOLDER", "."), "bare.sock")
BUNDLES = 2
"""In flight at once: one is parsed while the answers of the other are sent."""

LENGTH = struct.Struct("<I")


def join(bodies: Sequence[bytes]) -> bytes:
    """A bundle: its length in bytes, the number of bodies, their lengths, and then the bodies."""
    sizes = [len(body) for body in bodies]
    numbers = (4 * (len(sizes) + 1) + sum(sizes), len(sizes), *sizes)
    return b"".join((struct.pack(f"<{len(numbers)}I", *numbers), *bodies))


def split(bundle: memoryview) -> list[memoryview]:
    """The bodies of a bundle that lies behind its length."""
    [count] = LENGTH.unpack_from(bundle)
    bodies, start = [], 4 * (count + 1)
    for size in struct.unpack_from(f"<{count}I", bundle, 4):
        bodies.append(bundle[start : start + size])
        start += size
    return bodies


class Bundles(asyncio.Protocol):
    """One end of a connection that carries bundles."""

    transport: asyncio.Transport

    def __init__(self, received: Callable[[Bundles, list[memoryview]], None]) -> None:
        self._received = received
        self._buffer = bytearray()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while len(self._buffer) >= 4:
            end = 4 + LENGTH.unpack_from(self._buffer)[0]
            if len(self._buffer) < end:
                return
            bundle = memoryview(bytes(self._buffer[4:end]))
            del self._buffer[:end]
            self._received(self, split(bundle))

    def send(self, bodies: Sequence[bytes]) -> None:
        self.transport.write(join(bodies))


class Slot:
    """Runs each bundle as one batch."""

    def __init__(self) -> None:
        self._model = OnnxModel()
        self._parser = simdjson.Parser()

    def answer(self, connection: Bundles, bodies: list[memoryview]) -> None:
        rows = np.concatenate([self._row(body) for body in bodies])
        answers = self._model.run(rows.astype(self._model.dtype, copy=False))
        connection.send([self._model.encode(answer) for answer in answers])

    def _row(self, body: memoryview) -> NDArray[Any]:
        if RAW:
            return self._model.decode(body)[np.newaxis]
        document: Any = self._parser.parse(bytes(body))
        numbers = document["instances"].as_buffer(of_type="d")
        return np.frombuffer(numbers).reshape(1, *self._model.shape)

    async def serve(self) -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_unix_server(lambda: Bundles(self.answer), SOCKET)
        await server.serve_forever()


class Queue:
    """Bodies that wait for one of the connections to the slot."""

    def __init__(self) -> None:
        self._waiting: list[tuple[bytes, HttpProtocol]] = []
        self._free: list[Bundles] = []
        self._sent: dict[Bundles, list[tuple[bytes, HttpProtocol]]] = {}

    async def connect(self) -> None:
        loop = asyncio.get_running_loop()
        while len(self._free) < BUNDLES:
            try:
                _, connection = await loop.create_unix_connection(
                    lambda: Bundles(self.answered), SOCKET
                )
            except OSError:
                await asyncio.sleep(0.05)
            else:
                self._free.append(connection)

    def add(self, body: bytes, asker: HttpProtocol) -> None:
        self._waiting.append((body, asker))
        self._send()

    def answered(self, connection: Bundles, answers: list[memoryview]) -> None:
        self._free.append(connection)
        for (_, asker), answer in zip(self._sent.pop(connection), answers, strict=True):
            asker.answer(answer)
        self._send()

    def _send(self) -> None:
        while self._free and self._waiting:
            taken, self._waiting = self._waiting[:ROWS], self._waiting[ROWS:]
            connection = self._free.pop()
            self._sent[connection] = taken
            connection.send([body for body, _ in taken])


QUEUE = Queue()
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n%b"
TYPE = b"application/octet-stream" if RAW else b"application/json"


class HttpProtocol(HttpToolsProtocol):
    """uvicorn's protocol, but every request is a prediction, whose body goes into the queue."""

    def on_headers_complete(self) -> None:
        self._parts: list[bytes] = []

    def on_body(self, body: bytes) -> None:
        self._parts.append(body)

    def on_message_complete(self) -> None:
        parts = self._parts
        QUEUE.add(parts[0] if len(parts) == 1 else b"".join(parts), self)

    def answer(self, body: memoryview) -> None:
        if not self.transport.is_closing():
            self.transport.write(HEAD % (TYPE, len(body), body))


async def application(scope: Any, receive: Any, send: Any) -> None:
    """ASGI for uvicorn's start and end alone."""
    await receive()
    await QUEUE.connect()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await send({"type": "lifespan.shutdown.complete"})


def main() -> None:
    if sys.argv[1:] == ["slot"]:
        uvloop.run(Slot().serve())
        return
    with subprocess.Popen([sys.executable, "-m", "loadtests.bench.peers.bare", "slot"]) as slot:
        port = int(os.environ["BENCH_PORTS"].split(",")[0])
        uvicorn.run(
            application,
            port=port,
            http=HttpProtocol,
            loop="uvloop",
            log_level="warning",
            access_log=False,
        )
        slot.terminate()


if __name__ == "__main__":
    main()
