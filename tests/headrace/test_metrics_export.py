from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families
from structlog.testing import capture_logs

from headrace.metrics import Recorder
from headrace.metrics_export import RETIRED, Exporter, merge, summaries

CHILD = """
import sys
from pathlib import Path
from headrace.metrics import Recorder
from headrace.metrics_export import Exporter

recorder = Recorder("gateway")
for _ in range(int(sys.argv[2])):
    recorder.request(("digits", 1, "rest", 200, "free", 0.0015, None))
recorder.request(("digits", 1, "rest", 503, "free", 0.0015, None))
recorder.gauges({"digits": 2}, {})
Exporter(recorder, Path(sys.argv[1])).write()
print("written", flush=True)
sys.stdin.read()
"""


@contextmanager
def child(folder: Path, requests: int) -> Iterator[None]:
    """A process that has counted and stays until the end of the block."""
    command = [sys.executable, "-c", CHILD, str(folder), str(requests)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == b"written\n"
        yield
        process.stdin.close()


def sample(text: str, name: str, **labels: str) -> float | None:
    """The one sample with this name and (at least) these labels."""
    found = [
        entry.value
        for family in text_string_to_metric_families(text)
        for entry in family.samples
        if entry.name == name and labels.items() <= entry.labels.items()
    ]
    assert len(found) <= 1
    return found[0] if found else None


def test_two_processes_are_added_up_and_the_ended_stay_counted(tmp_path: Path) -> None:
    with ExitStack() as both:
        both.enter_context(child(tmp_path, 3))
        both.enter_context(child(tmp_path, 4))
        text = merge(tmp_path)
        assert sample(text, "headrace_requests_total", code="200") == 7
        assert sample(text, "headrace_in_flight") == 4
        assert (sample(text, "headrace_process_resident_bytes", role="gateway") or 0) > 1e7
    for _ in range(2):
        text = merge(tmp_path)
        assert sample(text, "headrace_requests_total", code="200") == 7
        assert sample(text, "headrace_request_seconds_count") == 9
        assert sample(text, "headrace_in_flight") is None
    assert [path.name for path in tmp_path.glob("*.json")] == [RETIRED]


def test_summaries_join_all_processes(tmp_path: Path) -> None:
    with child(tmp_path, 3), child(tmp_path, 4):
        summary = summaries(tmp_path)
    assert summary["digits"] == {
        "requests": 9,
        "errors": 2,
        "p50_ms": 1.5,
        "p99_ms": 1.99,
        "in_flight": 4,
        "queued": 0,
    }


def test_an_ended_process_is_counted_once_when_folding_was_cut_off(tmp_path: Path) -> None:
    with child(tmp_path, 3):
        [path] = tmp_path.glob("gateway-*.json")
        content = path.read_bytes()
    merge(tmp_path)
    path.write_bytes(content)  # as if the process that folded it had died before removing it
    assert sample(merge(tmp_path), "headrace_requests_total", code="200") == 3
    assert not path.exists()


def test_a_new_process_folds_what_earlier_ones_left(tmp_path: Path) -> None:
    with child(tmp_path, 1):
        pass
    Exporter(Recorder("slot"), tmp_path)
    assert [path.name for path in tmp_path.glob("*.json")] == [RETIRED]


def test_writes_only_when_something_changed(tmp_path: Path) -> None:
    recorder = Recorder("slot")
    exporter = Exporter(recorder, tmp_path, memory_bytes=lambda: 1 << 20)
    assert exporter.write()
    assert not exporter.write()
    before = exporter.path.read_bytes()
    recorder.batch("m", 1, 4)
    assert exporter.write()
    assert exporter.path.read_bytes() != before


async def test_a_thread_that_is_late_writes_nothing_older(tmp_path: Path) -> None:
    recorder = Recorder("slot")
    exporter = Exporter(recorder, tmp_path, memory_bytes=lambda: 1 << 20)
    free = threading.Event()
    with ThreadPoolExecutor(1) as threads:
        asyncio.get_running_loop().set_default_executor(threads)
        threads.submit(free.wait, 10)
        recorder.batch("m", 1, 4)
        exported = asyncio.create_task(exporter.export())
        await asyncio.sleep(0)
        assert not exporter.path.exists()
        recorder.batch("m", 1, 4)
        assert exporter.write()
        free.set()
        await exported
        assert sample(merge(tmp_path), "headrace_batch_rows_count") == 2
        recorder.batch("m", 1, 4)
        await exporter.export()
        assert sample(merge(tmp_path), "headrace_batch_rows_count") == 3


def test_histograms_are_cumulative_and_end_at_infinity(tmp_path: Path) -> None:
    recorder = Recorder("slot")
    for rows in (1, 2, 4, 100_000):
        recorder.batch("m", 1, rows)
    Exporter(recorder, tmp_path).write()
    text = merge(tmp_path)
    assert sample(text, "headrace_batch_rows_bucket", le="1.0") == 1
    assert sample(text, "headrace_batch_rows_bucket", le="4.0") == 3
    assert sample(text, "headrace_batch_rows_bucket", le="+Inf") == 4
    assert sample(text, "headrace_batch_rows_sum", model="m", version="1") == 100_007


def test_damaged_and_foreign_files_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "slot-1-1.json").write_bytes(b'{"schema":1,"sam')
    (tmp_path / "slot-2-2.json").write_bytes(b'{"schema":99,"samples":{}}')
    assert sample(merge(tmp_path), "headrace_requests_total") is None


def test_a_missing_folder_has_no_samples(tmp_path: Path) -> None:
    assert summaries(tmp_path / "none") == {}
    assert "headrace_requests_total" in merge(tmp_path / "none")


async def test_a_process_whose_metrics_cannot_be_written_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "metrics"
    recorder = Recorder("slot")
    exporter = Exporter(recorder, folder, memory_bytes=lambda: 1 << 20)
    folder.rename(tmp_path / "away")
    with capture_logs() as logs:
        for _ in range(2):
            recorder.batch("m", 1, 4)
            await exporter.export()
    assert [line["event"] for line in logs] == ["metrics_not_written"]
    (tmp_path / "away").rename(folder)
    await exporter.export()
    assert sample(merge(folder), "headrace_batch_rows_count", model="m") == 2
