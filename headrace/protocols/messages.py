"""The protobuf messages of both gRPC protocols, in a descriptor pool of our own.

In protobuf's default pool they would clash with those of `tritonclient`, `tensorflow` and
`tensorflow-serving-api`, which may live in the same process.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

DESCRIPTORS = Path(__file__).with_name("proto") / "descriptors.binpb"
"""What `make protos` compiles of the `.proto` files beside it."""


def load_pool(*more: bytes) -> descriptor_pool.DescriptorPool:
    """A new pool with our files and `more` serialized file descriptors."""
    pool = descriptor_pool.DescriptorPool()
    files = descriptor_pb2.FileDescriptorSet.FromString(DESCRIPTORS.read_bytes())
    for file in files.file:
        pool.AddSerializedFile(file.SerializeToString())
    for serialized in more:
        pool.AddSerializedFile(serialized)
    return pool


POOL = load_pool()


@cache
def message(full_name: str) -> Any:
    """The message class of a full name, such as `inference.ModelInferRequest`."""
    return message_factory.GetMessageClass(POOL.FindMessageTypeByName(full_name))
