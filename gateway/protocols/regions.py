"""What is answered about Triton's shared memory regions while there can be none."""

from __future__ import annotations

from gateway.errors import InvalidArgument, NotFound, Unimplemented
from gateway.protocols.quoting import quoted


def unknown_region(kind: str, name: str) -> NotFound:
    """Nobody has registered a region of this name; `kind` is `system` or `cuda`."""
    return NotFound(f"Unable to find {kind} shared memory region: {quoted(name)}")


def registration_is_off(name: str) -> Unimplemented:
    """System regions need the config's consent."""
    return Unimplemented(
        f"failed to register shared memory region {quoted(name)}: "
        "shared memory is off here; send tensors in the request"
    )


def cuda_is_refused(name: str) -> InvalidArgument:
    """The processes that compute are not the one that is asked, and most have no GPU."""
    return InvalidArgument(
        f"failed to register CUDA shared memory region: {quoted(name)}, GPUs not supported: "
        "a GPU's memory is not taken from clients; send tensors in the request"
    )
