"""Asks a gateway with kserve's own clients and prints what they say as one JSON object.

Usage: ask_kserve HTTP GRPC, each as host:port; runs where kserve is.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable
from typing import Any

import httpx
import numpy as np
from kserve import (
    InferenceGRPCClient,
    InferenceRESTClient,
    InferInput,
    InferRequest,
    RESTConfig,
)
from kserve.protocol.infer_type import RequestedOutput

from tests.system.running import ROW


def request(*, binary: bool) -> Any:
    """One row, as raw bytes that ask for raw bytes, or as typed contents."""
    if binary:
        tensor = InferInput("x", [1, 4], "FP32")
        tensor.set_data_from_numpy(np.array([ROW], np.float32))
    else:
        tensor = InferInput("x", [1, 4], "FP32", data=ROW)
    outputs = [RequestedOutput("y", parameters={"binary_data": True})] if binary else None
    return InferRequest("affine", [tensor], request_id="seven", request_outputs=outputs)


def told(answer: Any) -> dict[str, Any]:
    """An answer in plain values."""
    [output] = answer.outputs
    return {
        "id": answer.id,
        "model": answer.model_name,
        "version": answer.model_version,
        "values": output.as_numpy().tolist(),
    }


async def refused(call: Awaitable[Any]) -> str:
    """What the client says of a call that must fail."""
    try:
        await call
    except httpx.HTTPStatusError as error:
        return str(error)
    return ""


async def ask_v1(base: str) -> dict[str, Any]:
    """TensorFlow Serving's REST protocol, KServe's v1."""
    rows = {"instances": [ROW]}
    async with InferenceRESTClient(RESTConfig(protocol="v1")) as client:
        return {
            "live": await client.is_server_live(base),
            "model_ready": await client.is_model_ready(base, "affine"),
            "nobody_ready": await refused(client.is_model_ready(base, "nobody")),
            "predict": await client.infer(base, rows, model_name="affine"),
            "refused": await refused(client.infer(base, rows, model_name="nobody")),
        }


async def ask_v2(base: str) -> dict[str, Any]:
    """Open Inference Protocol over HTTP."""
    async with InferenceRESTClient(RESTConfig(protocol="v2")) as client:
        return {
            "live": await client.is_server_live(base),
            "ready": await client.is_server_ready(base),
            "model_ready": await client.is_model_ready(base, "affine"),
            "nobody_ready": await client.is_model_ready(base, "nobody"),
            "binary": told(await client.infer(base, request(binary=True), model_name="affine")),
            "json": told(await client.infer(base, request(binary=False), model_name="affine")),
            "refused": await refused(client.infer(base, request(binary=True), model_name="nobody")),
        }


async def ask_grpc(address: str) -> dict[str, Any]:
    """Open Inference Protocol over gRPC."""
    async with InferenceGRPCClient(address) as client:
        return {
            "live": await client.is_server_live(),
            "ready": await client.is_server_ready(),
            "model_ready": await client.is_model_ready("affine"),
            "nobody_ready": await client.is_model_ready("nobody"),
            "raw": told(await client.infer(request(binary=True))),
            "typed": told(await client.infer(request(binary=False))),
        }


async def main(http: str, grpc: str) -> None:
    """Ask over all three."""
    base = f"http://{http}"
    answers = {
        "v1": await ask_v1(base),
        "v2": await ask_v2(base),
        "grpc": await ask_grpc(grpc),
    }
    sys.stdout.write(json.dumps(answers))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
