"""What parameters of an Open Inference request mean, over HTTP as over gRPC."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from headrace.errors import InvalidArgument, Unimplemented, quoted
from headrace.protocols.checks import find_signature, match_signature
from headrace.spec import ModelSpec, Signature

_SEQUENCE = ("sequence_id", "sequence_start", "sequence_end")


def signature_of(
    model: ModelSpec, parameters: Mapping[str, Any], inputs: Collection[str]
) -> Signature:
    """The signature that the parameters name, else the one that takes these inputs.

    Raises `InvalidArgument`, and `Unimplemented` for a request that belongs to a sequence.
    """
    if any(parameters.get(name) for name in _SEQUENCE):
        raise Unimplemented("sequences are not supported: requests are answered one by one")
    if "signature_name" in parameters:
        return find_signature(model, parameters["signature_name"])
    return match_signature(model, inputs)


def refuse_unsupported(parameters: Mapping[str, Any], where: str) -> None:
    """Raises `Unimplemented` for what an input or output asks for that nobody answers."""
    if "shared_memory_region" in parameters:
        raise Unimplemented(f"{where}: shared memory is off here; send the data")


def timeout_s_of(parameters: Mapping[str, Any]) -> float | None:
    """The `timeout` parameter in seconds; it comes in microseconds, 0 meaning none."""
    timeout = parameters.get("timeout", 0)
    if type(timeout) is not int or not 0 <= timeout < 2**63:
        raise InvalidArgument(
            f"'timeout' must be a number of microseconds of at least 0, not {quoted(timeout)}"
        )
    return timeout / 1e6 or None
