"""Finding records again: order, filters, torn lines, and files that come and go meanwhile."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.access import audit_reader
from gateway.access.audit import AuditRecord, AuditWriter, audit_files, encode_line
from gateway.access.audit_reader import Query, find, lines_backwards, parse_since, summarize
from tests.gateway.access.test_audit import BASE, NOW_S, record

START_S = NOW_S - 1000


def write(folder: Path, process: str, *records: tuple[float, AuditRecord, int]) -> None:
    """Files of at most some four lines, as if they had been written at these times."""
    writer = AuditWriter(folder, process, max_file_bytes=1700, files=100, started_s=START_S)
    for time_s, each, count in records:
        writer.append(encode_line(time_s, each, count))
    writer.close()
    for file in audit_files(folder):
        # Each file has at least one line, and the last one tells when it was written.
        times = [parse_since(line[9:33].decode(), 0) for line in file.path.read_bytes().split()]
        os.utime(file.path, (times[-1], times[-1]))


def at(second: float, count: int = 1, **changes: Any) -> tuple[float, AuditRecord, int]:
    return START_S + second, record(request_id=f"{second:g}", **changes), count


def ids(folder: Path, query: Query = Query(), limit: int = 1000) -> list[str]:  # noqa: B008
    return [each["request_id"] for each in find(folder, query, limit)]


def test_the_newest_of_all_processes_come_first(tmp_path: Path) -> None:
    write(tmp_path, "gateway-a", *(at(n) for n in range(0, 40, 2)))
    write(tmp_path, "gateway-b", *(at(n) for n in range(1, 40, 2)))
    assert len(audit_files(tmp_path)) > 6
    assert ids(tmp_path) == [str(n) for n in reversed(range(40))]
    assert ids(tmp_path, limit=3) == ["39", "38", "37"]


def test_nothing_is_found_without_a_folder(tmp_path: Path) -> None:
    assert ids(tmp_path / "none") == []
    assert summarize(tmp_path / "none", Query(), 10)["callers"] == []


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (Query(caller="key:a"), ["1"]),
        (Query(caller="key:a*"), ["2", "1"]),
        (Query(caller="key:"), ["2", "1"]),
        (Query(caller="ip:10.0."), ["4", "3"]),
        (Query(caller="ip:10.0.0.1"), ["3"]),
        (Query(caller="ip:10.0.0.2"), ["4"]),
        (Query(caller="ip:10.0.0.3"), []),
        (Query(caller="i*"), ["4", "3"]),
        (Query(caller='jwt:"\n\x85'), ["5"]),
        (Query(caller="rate"), []),
        (Query(decision="failed"), ["5"]),
        (Query(reason="credential"), ["4"]),
        (Query(model="price"), ["2"]),
        (Query(since_s=START_S + 2, until_s=START_S + 4), ["3", "2"]),
        (Query(caller="key:", model="price", decision="refused", reason="rate"), ["2"]),
    ],
)
def test_filters(tmp_path: Path, query: Query, expected: list[str]) -> None:
    write(
        tmp_path,
        "gateway-a",
        at(1, caller="key:a", address="10.0.0.3"),
        at(2, caller="key:ab", model="price", address="10.0.0.3"),
        at(3, caller="ip:10.0.0.1", address="10.0.0.1"),
        at(4, caller="", address="10.0.0.2", reason="credential"),
        at(5, caller='jwt:"\n\x85', decision="failed", reason="", address="10.0.0.3"),
    )
    assert ids(tmp_path, query) == expected


def test_torn_and_foreign_lines_are_passed_over(tmp_path: Path) -> None:
    write(tmp_path, "gateway-a", *(at(n) for n in range(3)))
    (file,) = audit_files(tmp_path)
    whole = file.path.read_bytes()
    foreign = b'[1]\n{"time":5}\n{"time":"\xff"}\n{"time":"x","caller":1,"decision":"y"}\n\n'
    file.path.write_bytes(whole[100:] + foreign + encode_line(*at(7)) + whole[:100])
    assert ids(tmp_path) == ["7", "2", "1"]


def test_old_files_are_not_read_when_only_new_ones_are_asked_for(tmp_path: Path) -> None:
    write(tmp_path, "gateway-a", *(at(n * 10) for n in range(50)))
    oldest = audit_files(tmp_path)[0].path
    oldest.write_bytes(encode_line(*at(485)))
    os.utime(oldest, ns=(0, 0))
    assert ids(tmp_path, Query(since_s=START_S + 480)) == ["490", "480"]
    assert "485" in ids(tmp_path)


def test_reading_stops_at_what_is_too_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "gateway-a", *(at(n * 100) for n in range(10)))
    for file in audit_files(tmp_path):
        os.utime(file.path, (NOW_S, NOW_S))
    read: set[Path] = set()
    block = audit_reader._block

    def watched(path: Path, start: int, length: int) -> bytes:
        read.add(path)
        return block(path, start, length)

    monkeypatch.setattr(audit_reader, "_block", watched)
    assert ids(tmp_path, Query(since_s=START_S + 850)) == ["900"]
    assert len(read) < len(audit_files(tmp_path))


def test_a_search_goes_on_while_files_are_rotated_away(tmp_path: Path) -> None:
    write(tmp_path, "gateway-a", *(at(n) for n in range(20)))
    stream = audit_reader._streams(tmp_path, Query())[0]
    assert next(stream)["request_id"] == "19"
    for file in audit_files(tmp_path)[:-2]:
        file.path.unlink()
    left = [each["request_id"] for each in stream]
    assert left and left == [str(n) for n in range(18, 18 - len(left), -1)] and len(left) < 19


@given(st.lists(st.binary(max_size=9)), st.integers(1, 12))
def test_lines_backwards_are_the_lines_in_any_block_size(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes], block: int
) -> None:
    file = tmp_path_factory.getbasetemp() / "lines"
    file.write_bytes(b"\n".join(pieces))
    assert list(lines_backwards(file, block)) == file.read_bytes().split(b"\n")[::-1]


def test_a_file_without_line_ends_is_not_collected(tmp_path: Path) -> None:
    file = tmp_path / "damaged"
    file.write_bytes(b"\n" + b"x" * (1 << 20) + b"\nlast")
    found = list(lines_backwards(file))
    assert found[0] == b"last" and max(map(len, found)) < 4 * audit_reader.MAX_LINE_BYTES


def test_the_summary_adds_up_counts_the_most_refused_first(tmp_path: Path) -> None:
    write(
        tmp_path,
        "gateway-a",
        at(1, caller="key:a", decision="allowed", reason="", code=200),
        at(2, caller="ip:6.6.6.6", count=900),
        at(3, caller="ip:6.6.6.6", count=50, reason="concurrency"),
        at(4, caller="key:a", count=3),
        at(5, caller="key:b"),
    )
    write(tmp_path, "gateway-b", at(2.5, caller="ip:6.6.6.6", count=100))
    answer = summarize(tmp_path, Query(), 2)
    flood, second = answer["callers"]
    assert (flood["caller"], flood["tier"]) == ("ip:6.6.6.6", BASE.tier)
    assert flood["decisions"] == {"allowed": 0, "refused": 1050, "cancelled": 0, "failed": 0}
    assert flood["reasons"] == {"rate": 1000, "concurrency": 50}
    assert (flood["first"][-7:], flood["last"][-7:]) == ("22.250Z", "23.250Z")
    assert (second["caller"], second["decisions"]["refused"]) == ("key:a", 3)
    assert answer["callers_seen"] == 3 and answer["total"]["decisions"]["refused"] == 1054


def test_a_summary_tells_only_so_many_callers_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_reader, "MAX_CALLERS", 2)
    write(tmp_path, "gateway-a", *(at(n, caller=f"ip:{n}") for n in range(5)))
    answer = summarize(tmp_path, Query(), 10)
    assert len(answer["callers"]) == answer["callers_seen"] == 2
    assert answer["total"]["decisions"]["refused"] == 5


@pytest.mark.parametrize(
    ("text", "expected_s"),
    [
        ("90s", NOW_S - 90),
        ("10m", NOW_S - 600),
        (" 2 h ", NOW_S - 7200),
        ("1.5d", NOW_S - 129_600),
        ("999999999d", 0.0),
        ("2027-01-15T08:00:00.250Z", NOW_S),
        ("2027-01-15 10:00:00.250+02:00", NOW_S),
        ("2027-01-15T08:00:00.250", NOW_S),
        ("2027-01-15", NOW_S - 28_800.25),
    ],
)
def test_times_are_ago_or_iso(text: str, expected_s: float) -> None:
    assert parse_since(text, NOW_S) == expected_s


@pytest.mark.parametrize("text", ["", "10", "m", "-5m", "10 weeks", "yesterday", "2027-13-01"])
def test_other_times_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="10m"):
        parse_since(text, NOW_S)
