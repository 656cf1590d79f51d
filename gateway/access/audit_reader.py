"""Search of the audit log, newest line first, while it is written and its files rotate.

Files are read backwards in blocks, and not kept open between two blocks: one that is deleted
meanwhile just ends. Torn and foreign lines are skipped.
"""

from __future__ import annotations

import heapq
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import chain, groupby, islice
from pathlib import Path
from typing import Any

import orjson

from gateway.access.audit import VERDICTS, AuditFile, Verdict, audit_files, iso_time

BLOCK_BYTES = 64 * 1024
MAX_LINE_BYTES = 64 * 1024
"""Cap on a line: the log writes none as long, so a longer one is damage and is skipped."""
SLACK_S = 60.0
"""Tolerance for clocks that are set back, and for records written later than made."""
MAX_CALLERS = 100_000
"""Cap on the callers of a summary."""

_TIME = b'{"time":"'
_TIME_END = len(_TIME) + len("2026-01-31T23:59:59.999Z")
_AGO = re.compile(r"(\d{1,9}(?:\.\d{1,3})?)\s*([smhd])")
_UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_PLAIN = re.compile(r"[ !#-\[\]-~]*")
"""Text that JSON does not escape."""

Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Query:
    """A filter of records; None for any. Times are seconds since 1970, `until_s` is excluded.

    A `caller` that ends in `.`, `:` or `*` is a prefix: `ip:10.0.`, `key:`. A request whose
    credential was refused has no caller; it is found by `ip:` and its address.
    """

    caller: str | None = None
    since_s: float | None = None
    until_s: float | None = None
    decision: Verdict | None = None
    reason: str | None = None
    model: str | None = None

    def matches(self, record: Record) -> bool:
        """Whether a record matches; its time is checked elsewhere."""
        if (
            self.decision not in (None, record["decision"])
            or self.reason not in (None, record.get("reason"))
            or self.model not in (None, record.get("model"))
        ):
            return False
        if self.caller is not None and self.caller.endswith((".", ":", "*")):
            return who(record).startswith(self.caller.removesuffix("*"))
        return self.caller is None or who(record) == self.caller

    def needles(self) -> tuple[bytes, ...]:
        """Bytes that a matching line holds: a search for them is cheaper than parsing."""
        caller = (self.caller or "").removesuffix("*")
        # Without `ip:`, as in the address of a refused credential.
        begin = "" if "ip:".startswith(caller) else caller.removeprefix("ip:")
        wanted = (begin, self.decision, self.reason, self.model)
        return tuple(each.encode() for each in wanted if each and _PLAIN.fullmatch(each))


def parse_since(text: str, now_s: float) -> float:
    """Seconds since 1970 of `10m`, `2h`, `1d` ago or of an ISO time, UTC unless it says otherwise.

    Raises `ValueError`.
    """
    text = text.strip()
    if (ago := _AGO.fullmatch(text)) is not None:
        return max(0.0, now_s - float(ago[1]) * _UNITS_S[ago[2]])
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError("should be like 30s, 10m, 2h, 1d or 2026-01-31T12:00:00Z") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def find(folder: Path, query: Query, limit: int) -> list[Record]:
    """The newest matching records, newest first; raises `OSError` if the folder is unreadable."""
    streams = _streams(folder, query)
    newest_first = heapq.merge(*streams, key=lambda record: record["time"], reverse=True)
    return list(islice(newest_first, limit))


def summarize(folder: Path, query: Query, limit: int) -> dict[str, Any]:
    """Counts of the callers with the most refusals, and of all together; raises `OSError`.

    Allowed requests count as written, which is a sample. `callers_seen` stops at `MAX_CALLERS`;
    later callers count in the total alone.
    """
    total = _Sum("", "", "")
    callers: dict[str, _Sum] = {}
    for record in chain.from_iterable(_streams(folder, query)):
        total.add(record)
        caller = who(record)
        known = callers.get(caller)
        if known is None:
            if len(callers) >= MAX_CALLERS:
                continue
            known = _Sum(caller, record.get("name", ""), record.get("tier", ""))
            callers[caller] = known
        known.add(record)
    worst = heapq.nlargest(limit, callers.values(), key=_Sum.rank)
    return {
        "total": total.told(),
        "callers_seen": len(callers),
        "callers": [
            {"caller": each.caller, "name": each.name, "tier": each.tier, **each.told()}
            for each in worst
        ],
    }


def who(record: Mapping[str, Any]) -> str:
    """The caller, or the address where a credential was refused."""
    return record.get("caller") or f"ip:{record.get('address', '')}"


@dataclass(slots=True)
class _Sum:
    caller: str
    name: str
    tier: str
    decisions: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    first: str = ""
    last: str = ""

    def add(self, record: Record) -> None:
        count, time = record.get("count", 1), record["time"]
        self.decisions[record["decision"]] += count
        if record.get("reason"):
            self.reasons[record["reason"]] += count
        self.first = min(self.first or time, time)
        self.last = max(self.last, time)

    def rank(self) -> tuple[int, int]:
        return self.decisions["refused"], self.decisions.total()

    def told(self) -> dict[str, Any]:
        return {
            "decisions": {each: self.decisions[each] for each in VERDICTS},
            "reasons": dict(self.reasons.most_common()),
            "first": self.first,
            "last": self.last,
        }


def _streams(folder: Path, query: Query) -> list[Iterator[Record]]:
    """The matching records of each process, newest first."""
    oldest_ns = 0 if query.since_s is None else int((query.since_s - SLACK_S) * 1e9)
    files = [file for file in audit_files(folder) if file.modified_ns >= oldest_ns]
    files.sort(key=lambda file: (file.process, file.started, file.number), reverse=True)
    by_process = groupby(files, key=lambda file: file.process)
    return [_records(tuple(group), query) for _, group in by_process]


def _records(files: tuple[AuditFile, ...], query: Query) -> Iterator[Record]:
    since = "" if query.since_s is None else iso_time(query.since_s)
    until = "~" if query.until_s is None else iso_time(query.until_s)
    enough = b"" if query.since_s is None else iso_time(query.since_s - SLACK_S).encode()
    needles = query.needles()
    for line in chain.from_iterable(lines_backwards(file.path) for file in files):
        if not line.startswith(_TIME):
            continue
        if line[len(_TIME) : _TIME_END] < enough:
            return
        if all(needle in line for needle in needles):
            record = _parse(line)
            if record is not None and since <= record["time"] < until and query.matches(record):
                yield record


def _parse(line: bytes) -> Record | None:
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    valid = (
        isinstance(record, dict)
        and all(isinstance(record.get(name), str) for name in ("time", "caller", "decision"))
        and isinstance(record.get("count", 1), int)
    )
    return record if valid else None


def lines_backwards(path: Path, block_bytes: int = BLOCK_BYTES) -> Iterator[bytes]:
    """The lines of a file, last one first, without line ends; stops where it cannot be read."""
    rest = b""
    with suppress(OSError):
        position = path.stat().st_size
        while position > 0:
            start = max(0, position - block_bytes)
            rest, *lines = (_block(path, start, position - start) + rest).split(b"\n")
            position = start
            yield from reversed(lines)
            if len(rest) > MAX_LINE_BYTES:
                rest = b""
        yield rest


def _block(path: Path, start: int, length: int) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        return os.pread(fd, length, start)
    finally:
        os.close(fd)
