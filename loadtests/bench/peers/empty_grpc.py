"""A grpc.aio server that answers ModelInfer with nothing; runs in our own environment.

The yardstick: what gRPC itself leaves to a gateway written in Python. The port is the second of
BENCH_PORTS.
"""

from __future__ import annotations

import os
from typing import Any

import grpc
import uvloop

SERVICE = "inference.GRPCInferenceService"


async def infer(body: bytes, context: Any) -> bytes:
    return b""


async def serve(port: int) -> None:
    """Answer until stopped; like the gateway on uvloop."""
    server = grpc.aio.server()
    method = grpc.unary_unary_rpc_method_handler(infer)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(SERVICE, {"ModelInfer": method}),)
    )
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.run(serve(int(os.environ["BENCH_PORTS"].split(",")[1])))
