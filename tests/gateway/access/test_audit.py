"""The audit log on real files: what a line holds, folding, rotation, full disks, lost folders."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from gateway.access.audit import (
    MAX_TEXT,
    PIECE_BYTES,
    PROCESSES,
    QUEUE,
    AuditLog,
    AuditRecord,
    AuditWriter,
    audit_files,
    encode_line,
    fold,
    iso_time,
)
from headrace import journal
from headrace.config.args import Audit

NOW_S = 1_800_000_000.25
BASE = AuditRecord(
    request_id="r-1",
    caller="key:abc",
    name="Ada",
    tier="standard",
    address="10.0.0.1",
    model="digits",
    version=2,
    protocol="v2",
    cost=1.5,
    decision="refused",
    reason="rate",
    code=429,
)


class ByHand(AuditLog):
    """An audit log whose thread does nothing: the test drains it, at the time that it says."""

    def _run(self) -> None:
        pass


def record(**changes: Any) -> AuditRecord:
    return BASE._replace(**changes)


def by_hand(folder: Path, **settings: Any) -> ByHand:
    return ByHand(Audit(**settings), folder, "gateway-1", clock=lambda: NOW_S)


def lines(folder: Path) -> list[dict[str, Any]]:
    files = sorted(folder.glob("*.jsonl"))
    return [orjson.loads(line) for file in files for line in file.read_bytes().splitlines()]


def test_a_record_is_one_line_of_known_fields(tmp_path: Path) -> None:
    phases = {"queue": 0.0015, "total": 0.25}
    log = AuditLog(Audit(), tmp_path, "gateway-1", clock=lambda: NOW_S)
    log.write(record(decision="allowed", reason="", code=200, bytes_in=7, phases_s=phases))
    log.close()
    (line,) = lines(tmp_path)
    assert line.pop("latency_ms") == {"queue": 1.5, "total": 250.0}
    assert line == {
        "time": "2027-01-15T08:00:00.250Z",
        **{name: value for name, value in BASE._asdict().items() if name != "phases_s"},
        **{"decision": "allowed", "reason": "", "code": 200, "bytes_in": 7},
    }
    assert log.counts() == (1, 0)


def test_files_and_folder_are_private_and_named_by_process_and_start(tmp_path: Path) -> None:
    folder = tmp_path / "state" / "audit"
    log = AuditLog(Audit(), folder, "gateway-1", clock=lambda: NOW_S)
    assert not folder.exists()
    log.write(BASE)
    log.close()
    (file,) = folder.iterdir()
    assert file.name == "gateway-1-20270115T080000250-000001.jsonl"
    assert (file.stat().st_mode & 0o777, folder.stat().st_mode & 0o777) == (0o600, 0o700)


HOSTILE = st.text(st.characters(exclude_categories=["Cs"]), max_size=400) | st.sampled_from(
    ['"}\n{"decision":"allowed"}\n', "\x1b]0;x\x07", "\x9b2J", "\u2028\u2029\x85", "\0" * 300]
)


@given(
    texts=st.lists(HOSTILE, min_size=9, max_size=9),
    version=st.integers(0, 2**53),
    cost=st.floats(allow_nan=False, allow_infinity=False),
)
def test_hostile_strings_take_one_line_and_read_back_equal(
    texts: list[str], version: int, cost: float
) -> None:
    names = ("request_id", "caller", "name", "tier", "address", "model", "protocol", "reason")
    given = dict(zip(names, texts, strict=False))
    line = encode_line(NOW_S, record(**given, version=version, cost=cost))
    (only,) = line.decode("ascii").splitlines()
    assert only.isprintable() or "\x7f" in only
    assert len(line) + PIECE_BYTES < 64 * 1024
    found = orjson.loads(line)
    assert {name: found[name] for name in names} == {
        name: text[:MAX_TEXT] for name, text in given.items()
    }
    assert (found["version"], found["cost"], found["decision"]) == (version, cost, "refused")


def test_what_json_cannot_say_is_replaced() -> None:
    line = orjson.loads(encode_line(NOW_S, record(model="a\ud800é", cost=float("nan"))))
    assert (line["model"], line["cost"]) == ("a?é", None)


def test_only_what_was_allowed_is_sampled(tmp_path: Path) -> None:
    draws = iter([0.0, 0.249, 0.25, 0.9])
    log = ByHand(Audit(sample=0.25), tmp_path, "p", lambda: NOW_S, lambda: next(draws))
    assert [log.wants("allowed") for _ in range(4)] == [True, True, False, False]
    assert log.wants("refused") and log.wants("failed") and log.wants("cancelled")


def test_a_flood_is_folded_and_its_sum_is_right(tmp_path: Path) -> None:
    log = by_hand(tmp_path)
    for number in range(10_000):
        caller = "ip:6.6.6.6" if number % 10 else "key:abc"
        log.write(record(caller=caller, request_id=str(number)))
    log._drain(0.0)
    found = lines(tmp_path)
    assert len(found) == 2 * 10_000 / journal.BATCH
    flood = [line for line in found if line["caller"] == "ip:6.6.6.6"]
    assert sum(line["count"] for line in flood) == 9_000 and flood[0]["request_id"] == "1"
    assert log.counts() == (10_000, 0)


@pytest.mark.parametrize(
    "other",
    [
        {"caller": "key:abd"},
        {"decision": "failed"},
        {"reason": "quota"},
        {"code": 503},
        {"model": "price"},
    ],
)
def test_what_differs_is_not_folded(other: dict[str, Any]) -> None:
    batch = [(NOW_S, BASE), (NOW_S, record(**other)), (NOW_S + 0.1, BASE)]
    assert [count for _, _, count in fold(batch)] == [2, 1]


def test_allowed_ones_seconds_and_unbelieved_addresses_stay_apart() -> None:
    allowed = record(decision="allowed", reason="", code=200)
    assert len(fold([(NOW_S, allowed)] * 3)) == 3
    assert len(fold([(NOW_S, BASE), (NOW_S + 1, BASE)])) == 2
    strangers = [record(caller="", address=f"10.0.0.{n % 2}", reason="credential") for n in (1, 2)]
    assert len(fold([(NOW_S, each) for each in strangers])) == 2


def test_a_flood_over_many_models_is_folded_too() -> None:
    batch = [(NOW_S, record(model=f"m{number}")) for number in range(1000)]
    found = fold(batch)
    assert [each.model for _, each, _ in found] == [*(f"m{n}" for n in range(8)), "*"]
    assert sum(count for _, _, count in found) == 1000 and found[-1][2] == 992


def test_a_full_queue_drops_and_counts(tmp_path: Path) -> None:
    log = by_hand(tmp_path)
    for _ in range(QUEUE + 5):
        log.write(BASE)
    log._drain(0.0)
    assert log.counts() == (QUEUE, 5)


def test_close_writes_what_is_left_and_takes_no_more(tmp_path: Path) -> None:
    log = AuditLog(Audit(), tmp_path, "gateway-1")
    for number in range(2500):
        log.write(record(decision="allowed", request_id=str(number)))
    log.close()
    log.write(BASE)
    log.close()
    assert [line["request_id"] for line in lines(tmp_path)] == [str(n) for n in range(2500)]
    assert log.counts() == (2500, 1)


def test_a_record_that_cannot_be_encoded_is_counted_and_the_log_goes_on(tmp_path: Path) -> None:
    log = by_hand(tmp_path)
    log.write(record(version=object()))
    with capture_logs() as said:
        log._drain(0.0)
    log.write(BASE)
    log._drain(0.0)
    assert log.counts() == (1, 1) and [line["event"] for line in said] == ["audit_batch_lost"]


def test_files_rotate_within_their_size_and_number(tmp_path: Path) -> None:
    log = by_hand(tmp_path, max_file_bytes=64 * 1024, files=3)
    for number in range(2000):
        log.write(record(decision="allowed", request_id=str(number)))
    log._drain(0.0)
    files = sorted(tmp_path.iterdir())
    assert len(files) == 3 and all(file.stat().st_size <= 64 * 1024 for file in files)
    numbers = [int(line["request_id"]) for line in lines(tmp_path)]
    assert numbers == list(range(numbers[0], 2000)) and numbers[0] > 0


def test_the_folder_stays_bounded_over_many_processes(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("somebody else's")
    for number in range(PROCESSES + 5):
        writer = AuditWriter(tmp_path, f"p-{number}", max_file_bytes=99, files=1, started_s=number)
        writer.append(b"{}\n")
        writer.close()
    kept = [file.process for file in audit_files(tmp_path)]
    assert kept == [f"p-{number}" for number in range(5, PROCESSES + 5)]
    assert (tmp_path / "notes.txt").exists()


def test_a_folder_that_cannot_be_made_drops_until_it_can(tmp_path: Path) -> None:
    folder = tmp_path / "audit"
    folder.write_text("in the way")
    log = by_hand(folder)
    with capture_logs() as said:
        for now_s in (0.0, 0.5, 1.0):
            log.write(BASE)
            log._drain(now_s)
        folder.unlink()
        log.write(BASE)
        log._drain(1.5)  # It does not try again so soon.
        log.write(BASE)
        log._drain(2.0)
    assert log.counts() == (1, 4) and len(lines(folder)) == 1
    assert [line["event"] for line in said] == ["audit_log_fails", "audit_log_works_again"]
    assert said[1]["dropped"] == 4


@pytest.mark.parametrize("how", ["removed", "moved", "emptied"])
def test_a_lost_folder_is_made_again(tmp_path: Path, how: str) -> None:
    folder = tmp_path / "audit"
    log = by_hand(folder)
    log.write(BASE)
    log._drain(0.0)
    if how == "moved":
        folder.rename(tmp_path / "elsewhere")
    elif how == "removed":
        shutil.rmtree(folder)
    else:
        next(folder.iterdir()).unlink()
    log.write(record(request_id="r-2"))
    log._drain(0.2)
    assert [line["request_id"] for line in lines(folder)] == ["r-2"]
    assert log.counts() == (2, 0)


def test_a_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    folder = tmp_path / "audit"
    folder.mkdir()
    (folder / "gateway-1-20270115T080000250-000001.jsonl").symlink_to(victim)
    log = by_hand(folder)
    log.write(BASE)
    log._drain(0.0)
    assert victim.read_text() == "precious" and log.counts() == (1, 0)


CHILD = """
import json, os, resource, sys
from pathlib import Path
from tests.gateway.access.test_audit import by_hand, record, lines

folder, how = Path(sys.argv[1]) / "audit", sys.argv[2]
log, filler = by_hand(folder), folder.parent / "filler"

def flush(count, now_s):
    for number in range(count):
        log.write(record(decision="allowed"))
    log._drain(now_s)

def fill():
    if how == "limit":
        size = next(folder.iterdir()).stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 1000, resource.RLIM_INFINITY))
        return
    with filler.open("wb", buffering=0) as file:
        while True:
            try:
                file.write(bytes(4096))
            except OSError:
                return

def clear():
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    filler.unlink(missing_ok=True)

flush(3, 0.0)
fill()
for second in range(5):
    flush(50, second)
files = len(list(folder.iterdir()))
clear()
flush(2, 10.0)
print(json.dumps({"statistics": log.counts(), "lines": len(lines(folder)), "files": files}))
"""


def after_full_disk(folder: Path, how: str, *before: str) -> dict[str, Any]:
    """What remains of 3 records, 250 on a full disk and 2 more once there is room."""
    command = [*before, sys.executable, "-c", CHILD, str(folder), how]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    answer: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return answer


EXPECTED = {"statistics": [5, 250], "lines": 5, "files": 1}


def test_a_file_that_may_not_grow_loses_only_what_came_meanwhile(tmp_path: Path) -> None:
    assert after_full_disk(tmp_path, "limit") == EXPECTED


def test_a_full_disk_loses_only_what_came_meanwhile(tmp_path: Path) -> None:
    mount = 'mount -t tmpfs -o size=64k none "$0" && exec "$@"'
    before = ("unshare", "-Urm", "sh", "-c", mount, str(tmp_path))
    try:
        subprocess.run([*before, "true"], check=True, capture_output=True, timeout=10)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no file system of its own can be mounted here")
    assert after_full_disk(tmp_path, "disk", *before) == EXPECTED


def test_times_sort_as_text() -> None:
    assert iso_time(-1e12) < iso_time(0.001) < iso_time(NOW_S) < iso_time(1e15)
    assert iso_time(NOW_S + 0.0009) == "2027-01-15T08:00:00.250Z"
