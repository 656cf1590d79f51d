"""Rendezvous hashing: which member serves a key, moving few keys when members change."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b


def rank(key: bytes, members: Sequence[str]) -> list[str]:
    """Members from the best for `key` to the worst; the same in every process.

    Highest random weight (Thaler and Ravishankar, "Using name-based mappings to increase hit
    rates", 1998): removing a member moves only its keys, each to the next of its rank.
    """
    return sorted(members, key=lambda member: (_weight(key, member), member), reverse=True)


def choose(key: bytes, members: Sequence[str]) -> str:
    """The first of `rank`; raises `ValueError` without members."""
    if not members:
        raise ValueError("no members to choose from")
    return max(members, key=lambda member: (_weight(key, member), member))


def _weight(key: bytes, member: str) -> bytes:
    """64 bits of blake2b(member, key); bytes compare as the big-endian numbers they are."""
    digest = _started(member).copy()
    digest.update(key)
    return digest.digest()


@lru_cache(maxsize=4096)
def _started(member: str) -> blake2b:
    """Hash state after the member's name, which all keys share; callers copy it."""
    name = member.encode()
    return blake2b(len(name).to_bytes(4, "big") + name, digest_size=8)
