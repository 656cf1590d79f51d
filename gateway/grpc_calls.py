"""How a gRPC method is offered: bytes in, bytes out, and every error as a status with details."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import grpc
import structlog

from gateway.errors import HeadraceError, InternalError, Unimplemented
from gateway.grpc_prediction import Context, refuse

log = structlog.get_logger()

Unary = Callable[[bytes, Context], Awaitable[bytes]]
Gate = Callable[[Context], None]
Stream = Callable[[Context], Awaitable[None]]
ServerStream = Callable[[bytes, Context], Awaitable[None]]
Handlers = Mapping[str, Any]
"""By full method name, grpc's own RpcMethodHandler."""


def unary(method: Unary, gate: Gate | None = None) -> Any:
    """The handler of a method with one request and one answer; `gate` may refuse its caller."""

    async def call(body: bytes, context: Context) -> bytes:
        try:
            if gate is not None:
                gate(context)
            return await method(body, context)
        except HeadraceError as error:
            failed = error
        except Exception as error:  # the boundary: what is not ours stays inside
            failed = _unexpected(method, error)
        await refuse(context, failed)

    return grpc.unary_unary_rpc_method_handler(call)


def stream(method: Stream) -> Any:
    """The handler of a method with a stream of requests and one of answers."""

    async def call(_: object, context: Context) -> None:
        await _guarded(method, context)

    return grpc.stream_stream_rpc_method_handler(call)


def server_stream(method: ServerStream) -> Any:
    """The handler of a method with one request and a stream of answers."""

    async def call(body: bytes, context: Context) -> None:
        await _guarded(method, body, context)

    return grpc.unary_stream_rpc_method_handler(call)


async def _guarded(method: Callable[..., Awaitable[None]], *arguments: Any) -> None:
    try:
        return await method(*arguments)
    except HeadraceError as error:
        failed = error
    except grpc.aio.BaseError:
        raise  # the connection's own errors: nobody is left to tell
    except Exception as error:  # the boundary: what is not ours stays inside
        failed = _unexpected(method, error)
    await refuse(arguments[-1], failed)


def unimplemented(sentence: str) -> Any:
    """The handler of a method that Headrace does not offer."""

    async def refused(body: bytes, context: Context) -> bytes:
        raise Unimplemented(sentence)

    return unary(refused)


def _unexpected(method: Callable[..., Any], error: Exception) -> InternalError:
    log.error("request_failed", method=method.__name__, exc_info=error)
    return InternalError("internal error")
