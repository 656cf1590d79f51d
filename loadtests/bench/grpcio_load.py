"""Drive a gRPC server with grpcio's own client, as Python callers do, and measure what they see.

h2load answers with far fewer frames than grpc-core, and needs less of the processor.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any
from urllib.parse import urlsplit

import grpc
import uvloop

from loadtests.bench.grpc_exchange import FRAME, unframed
from loadtests.bench.h2load import GrpcResult, GrpcTarget
from loadtests.samples import percentile

CALL_S = 30.0
OWN_CONNECTION = (("grpc.use_local_subchannel_pool", 1),)
"""Channels to one address would share a connection."""


def run_grpcio(target: GrpcTarget, connections: int, streams: int, seconds: int) -> GrpcResult:
    """Keep `connections` times `streams` calls in flight for `seconds` from one loop."""
    result: GrpcResult = uvloop.run(_Load(target, seconds).run(connections, streams))
    return result


class _Load:
    def __init__(self, target: GrpcTarget, seconds: float) -> None:
        where = urlsplit(target.url)
        self._address, self._method = where.netloc, where.path
        self._message = unframed(target.body.read_bytes())
        self._answer_bytes = target.answer_bytes - FRAME.size
        self._seconds = seconds
        self._latencies_ms: list[float] = []
        self._errors = 0

    async def run(self, connections: int, streams: int) -> GrpcResult:
        channels = [
            grpc.aio.insecure_channel(self._address, options=OWN_CONNECTION)
            for _ in range(connections)
        ]
        try:
            await asyncio.gather(*(channel.channel_ready() for channel in channels))
            began_s = time.perf_counter()
            async with asyncio.TaskGroup() as group:
                for channel in channels:
                    method = channel.unary_unary(self._method)
                    for _ in range(streams):
                        group.create_task(self._call(method, began_s + self._seconds))
            took_s = time.perf_counter() - began_s
        finally:
            await asyncio.gather(*(channel.close() for channel in channels))
        right = len(self._latencies_ms)
        return GrpcResult(
            connections,
            streams,
            right + self._errors,
            right / took_s,
            percentile(self._latencies_ms, 0.5),
            percentile(self._latencies_ms, 0.99),
            self._errors,
        )

    async def _call(self, method: Any, end_s: float) -> None:
        while (sent_s := time.perf_counter()) < end_s:
            try:
                answer = await method(self._message, timeout=CALL_S)
            except grpc.RpcError:
                self._errors += 1
                continue
            if len(answer) == self._answer_bytes:
                self._latencies_ms.append((time.perf_counter() - sent_s) * 1000)
            else:
                self._errors += 1
