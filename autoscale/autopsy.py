"""Why a slot died while it was loading, as far as its last words tell; pure."""

from __future__ import annotations

from headrace.snapshot import Evidence, FailureKind, State
from replicas.last_words import EXIT_CODE, Words

NEAR = 0.9
"""Memory is sampled: the last sample of a slot that ran out of it is somewhat below the limit."""


def autopsy(slot_class: str, state: State, held: int, words: Words | None) -> tuple[str, Evidence]:
    """One sentence, and what it rests on. `held` counts what the slot held, this one included.

    Without `words` (the slot was on another node, or never wrote any) nothing is known.
    """
    begin = f"the slot died while it was {state.lower()}"
    if words is None:
        return begin, Evidence(FailureKind.DIED, slot_class, alone=held <= 1)
    memory, limit = words.memory_bytes, words.limit_bytes
    kind, text = FailureKind.DIED, begin
    if words.exit_code == EXIT_CODE:
        kind = FailureKind.MEMORY
        text = f"the slot was ended while it was {state.lower()}: it took {_of(memory, limit)}"
    elif limit and memory >= NEAR * limit:
        kind, text = FailureKind.MEMORY, f"{begin}: it took {_of(memory, limit)}"
    alone = max(held, words.held) <= 1
    return text, Evidence(
        kind, slot_class, words.exit_code, memory, limit, alone=alone, lines=words.lines
    )


def _of(memory_bytes: int, limit_bytes: int) -> str:
    return f"{memory_bytes / 2**20:.0f} MB of memory, its limit is {limit_bytes / 2**20:.0f} MB"
