"""`headrace process` and `headrace jobs` against a server that speaks the contract."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import StringIO
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest
from click.testing import CliRunner
from PIL import Image
from rich.console import Console

from command.cli import main
from command.media_client import MediaClient
from command.process import POLLS_S, follow
from command.terminal import WorkProgress
from headrace.errors import DeadlineExceeded, HeadraceError, Unavailable
from tests.sharding.media_files import clip

CUP = {"box": [10.0, 20.0, 110.0, 90.5], "score": 0.87654, "class": 41, "label": "cup"}
SPOON = {"box": [100.0, 5.0, 120.0, 60.0], "score": 0.91, "class": 44, "label": "spoon"}
PLACE = {"part": 0, "box": [0, 0, 160, 120], "shard": "cpu-1", "seconds": 0.1, "cached": False}
PLAN = {"event": "plan", "parts": 2, "kind": "image-tiles", "shards": 1, "notes": []}
PARTS = [
    {**PLACE, "event": "part", "done": 1, "parts": 2, "boxes": [CUP]},
    {**PLACE, "event": "part", "part": 1, "done": 2, "parts": 2, "boxes": [], "cached": True},
]
RESULT = {
    "model": "objects",
    "version": 3,
    "boxes": [CUP, SPOON],
    "shards": [PLACE, {**PLACE, "part": 1, "cached": True}],
    "notes": ["what is transparent was taken as white"],
    "timing": {"split_s": 0.01, "merge_s": 0.02, "total_s": 0.5},
    "width": 160,
    "height": 120,
    "duration_s": 0.0,
}
EVENTS = [PLAN, *PARTS, {"event": "result", "result": RESULT}]
TAGS = {
    "model": "tagger",
    "version": 1,
    "tags": [
        {"label": "espresso", "score": 0.95, "start_s": 1.0, "end_s": 2.0},
        {"label": "tripod", "score": 0.5, "start_s": 0.0, "end_s": 1.0},
    ],
    "shards": [],
    "missing": [{"part": 1, "reason": "died", "start_s": 1.5, "end_s": 2.0}],
    "width": 160,
    "height": 96,
    "duration_s": 2.0,
}


def job(state: str, done: int = 0, **more: Any) -> dict[str, Any]:
    progress = {"done": done, "parts": 2}
    return {
        **{"id": "J1", "state": state, "model": "objects", "created": 0.0, "eta_s": None},
        "progress": progress,
        **more,
    }


class Server(ThreadingHTTPServer):
    """Answers each request with the next of `answers`: a status and lines."""

    def __init__(self, *answers: tuple[int, list[Any]]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers = list(answers)
        self.asked: list[tuple[str, Mapping[str, str], bytes]] = []

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that left early is what some tests are about."""

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    """Remembers what it was asked."""

    server: Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {name.lower(): text for name, text in self.headers.items()}
        self.server.asked.append((f"{self.command} {self.path}", headers, body))
        status, lines = self.server.answers.pop(0)
        self.send_response(status)
        self.end_headers()
        for line in lines:
            self.wfile.write(json.dumps(line).encode() + b"\n")

    do_GET = do_DELETE = do_POST

    def log_message(self, format: str, *args: Any) -> None:
        """Keep the test's output clean."""


@contextmanager
def serving(*answers: tuple[int, list[Any]]) -> Iterator[Server]:
    with Server(*answers) as server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("HEADRACE_KEY", raising=False)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "cup.png"
    Image.new("RGB", (160, 120), (200, 120, 40)).save(path)
    return path


def headrace(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, [str(each) for each in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.exit_code, result.stdout, result.stderr


def client(answer: Callable[[httpx.Request], httpx.Response]) -> MediaClient:
    return MediaClient("h:1", transport=httpx.MockTransport(answer))


def test_a_picture_is_sent_and_its_boxes_are_told_the_surest_first(photo: Path) -> None:
    with serving((200, EVENTS)) as server:
        code, output, _ = headrace("process", "objects", photo, "--http", server.address)
    assert code == 0
    lines = output.splitlines()
    assert lines[0] == ("objects/3: 2 boxes in 0.50 s (2 parts on 1 shard, 1 from the cache)")
    assert lines[2].split() == ["spoon", "0.910", "100.0", "5.0", "120.0", "60.0"]
    assert lines[3].split() == ["cup", "0.877", "10.0", "20.0", "110.0", "90.5"]
    assert lines[4] == "note: what is transparent was taken as white"
    ((asked, headers, body),) = server.asked
    assert asked == "POST /v1/models/objects:process" and body == photo.read_bytes()
    assert headers["content-type"] == "image/png" and "authorization" not in headers
    assert headers["accept"] == "application/x-ndjson"
    assert headers["content-length"] == str(len(body))
    assert headers["x-request-timeout-seconds"] == "600"


def test_options_are_sent_as_the_server_reads_them(photo: Path) -> None:
    asked = "--threshold 0.5 --top-k 7 --classes cup,3 --tile 512 --overlap 128 --scales 1,0.5"
    more = "--fps 4 --start 1.5 --end 9 --partial --version 2 --timeout 30"
    with serving((200, EVENTS)) as server:
        code, _, _ = headrace(
            "process", "objects", photo, "--http", server.address, *asked.split(), *more.split()
        )
    assert code == 0
    ((path, headers, _),) = server.asked
    assert path == "POST /v1/models/objects/versions/2:process"
    assert headers["x-request-timeout-seconds"] == "30"
    assert json.loads(headers["x-headrace-options"]) == {
        "threshold": 0.5,
        "top_k": 7,
        "classes": ["cup", 3],
        "tile": 512,
        "overlap": 128,
        "scales": [1.0, 0.5],
        "fps": 4.0,
        "start_s": 1.5,
        "end_s": 9.0,
        "partial": "allow",
    }


@pytest.mark.parametrize(
    "arguments",
    [
        ["--overlap", "33"],
        ["--threshold", "2"],
        ["--scales", "big"],
        ["--start", "5", "--end", "4"],
        ["--draw", "out.gif"],
        ["--draw", "no/such/folder/out.png"],
        ["--http", "nowhere"],
    ],
)
def test_wrong_options_are_wrong_usage_before_anything_is_sent(
    photo: Path, arguments: list[str]
) -> None:
    code, _, errors = headrace("process", "m", photo, "--http", "127.0.0.1:1", *arguments)
    assert code == 2 and "Error" in errors


def test_the_key_is_sent_from_a_file_or_the_environment(
    photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "key").write_text("from-file\n")
    monkeypatch.setenv("HEADRACE_KEY", "from-environment")
    with serving((200, EVENTS), (200, EVENTS)) as server:
        where = ("process", "objects", photo, "--http", server.address)
        codes = [headrace(*where)[0], headrace(*where, "--key-file", tmp_path / "key")[0]]
    assert codes == [0, 0]
    sent = [headers["authorization"] for _, headers, _ in server.asked]
    assert sent == ["Bearer from-environment", "Bearer from-file"]
    missing = headrace(*where, "--key-file", tmp_path / "none")
    assert missing[0] == 3 and "cannot read the secret file" in missing[2]


def test_json_is_the_result_alone(photo: Path) -> None:
    with serving((200, EVENTS)) as server:
        code, output, _ = headrace("process", "objects", photo, "--http", server.address, "--json")
    assert code == 0 and json.loads(output) == RESULT


@pytest.mark.parametrize(
    ("status", "code"), [(404, 1), (413, 1), (401, 5), (403, 5), (504, 6), (500, 1)]
)
def test_a_refusal_is_told_in_the_servers_words(photo: Path, status: int, code: int) -> None:
    with serving((status, [{"error": "that is not how"}])) as server:
        found, _, errors = headrace("process", "m", photo, "--http", server.address)
    assert found == code
    assert f"Error: {status} from /v1/models/m:process: that is not how" in errors


def test_an_error_after_some_parts_is_told_too(photo: Path) -> None:
    late = {"event": "error", "status": 504, "error": "1 of 2 parts were done"}
    with serving((200, [*EVENTS[:2], late])) as server:
        code, output, errors = headrace("process", "objects", photo, "--http", server.address)
    assert code == 6 and not output and "1 of 2 parts were done" in errors


def test_an_answer_without_a_result_was_cut(photo: Path) -> None:
    with serving((200, EVENTS[:2])) as server:
        code, _, errors = headrace("process", "objects", photo, "--http", server.address)
    assert code == 1 and "before the result" in errors


def test_nobody_there_is_exit_code_4(photo: Path) -> None:
    with serving() as server:
        pass
    code, _, errors = headrace("process", "m", photo, "--http", server.address)
    assert code == 4 and "is Headrace up?" in errors


def test_boxes_are_drawn_on_the_picture(photo: Path, tmp_path: Path) -> None:
    target = tmp_path / "found.png"
    with serving((200, EVENTS)) as server:
        code, _, errors = headrace(
            "process", "objects", photo, "--http", server.address, "--draw", target
        )
    assert code == 0 and f"drawn to {target}" in errors
    with Image.open(target) as drawn:
        assert drawn.size == (960, 720)  # enlarged six times for its labels
        assert len(drawn.convert("RGB").getcolors(100_000) or ()) > 3


def test_tags_are_told_in_order_and_drawn_along_the_time(tmp_path: Path) -> None:
    file, target = clip(tmp_path / "clip.mp4"), tmp_path / "tags.png"
    with serving((200, [{"event": "result", "result": TAGS}])) as server:
        code, output, _ = headrace(
            "process", "tagger", file, "--http", server.address, "--draw", target
        )
    assert code == 0
    lines = output.splitlines()
    assert lines[2].split() == ["tripod", "0.500", "0.00", "1.00"]
    assert lines[3].split() == ["espresso", "0.950", "1.00", "2.00"]
    assert lines[4] == "part 1 (1.50 s to 2.00 s) was not done: died"
    assert server.asked[0][1]["content-type"] == "video/mp4"
    with Image.open(target) as drawn:
        assert drawn.width == 1600


def test_an_answer_of_another_kind_cannot_be_drawn(photo: Path, tmp_path: Path) -> None:
    answer = {"model": "m", "version": 1, "count": 3, "shards": []}
    with serving((200, [{"event": "result", "result": answer}])) as server:
        code, output, errors = headrace(
            "process", "m", photo, "--http", server.address, "--draw", tmp_path / "x.png"
        )
    assert code == 1 and "m/1: done" in output and "neither boxes nor tags" in errors


def test_a_job_is_followed_to_its_result(photo: Path) -> None:
    answers: list[tuple[int, list[Any]]] = [
        (202, [{"id": "J1", "state": "queued", "model": "objects"}]),
        (200, [job("done", 2, result=RESULT)]),
    ]
    with serving(*answers) as server:
        code, output, _ = headrace(
            "process", "objects", photo, "--async", "--http", server.address, "--json"
        )
    assert code == 0 and json.loads(output) == RESULT
    asked = [each for each, _, _ in server.asked]
    assert asked == ["POST /v1/models/objects:process", "GET /v1/jobs/J1"]
    assert server.asked[0][1]["prefer"] == "respond-async"


def test_a_job_is_asked_for_less_and_less_often() -> None:
    slept: list[float] = []
    shown: list[int] = []
    answers = [job("running", 1)] * 6 + [job("done", 2, result=RESULT)]
    asked = iter(answers)
    asking = client(lambda _: httpx.Response(200, json=next(asked)))
    result = follow(
        asking, job("queued"), lambda each: shown.append(each["progress"]["done"]), slept.append
    )
    assert result == RESULT
    assert slept == [*POLLS_S, POLLS_S[-1], POLLS_S[-1]] and shown == [0, 1, 1, 1, 1, 1, 1, 2]


@pytest.mark.parametrize(
    ("state", "more", "words"),
    [
        ("failed", {"error": {"status": 415, "error": "no such codec"}}, "failed: no such codec"),
        ("cancelled", {}, "J1 is cancelled"),
    ],
)
def test_a_job_without_a_result_says_why(state: str, more: dict[str, Any], words: str) -> None:
    with pytest.raises(HeadraceError, match=words):
        follow(client(lambda _: httpx.Response(500)), job(state, **more), lambda _: None)


def test_ctrl_c_leaves_the_job_alone() -> None:
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(HeadraceError, match="headrace jobs J1"):
        follow(client(lambda _: httpx.Response(500)), job("running"), lambda _: None, interrupt)


def test_jobs_are_listed_shown_and_cancelled() -> None:
    running = job("running", 1, eta_s=4.2)
    answers: list[tuple[int, list[Any]]] = [
        (200, [{"jobs": [running, job("failed")]}]),
        (200, [{"jobs": []}]),
        (200, [running]),
        (200, [job("done", 2, result=RESULT)]),
        (200, [job("cancelled", 1)]),
    ]
    with serving(*answers) as server:
        at = ("--http", server.address)
        listed, none = headrace("jobs", *at), headrace("jobs", *at)
        shown, done = headrace("jobs", "J1", *at), headrace("jobs", "J1", *at)
        cancelled = headrace("jobs", "J1", "--cancel", "--json", *at)
    rows = [line.split() for line in listed[1].splitlines()]
    assert rows[1] == ["J1", "objects", "running", "1/2", "4", "1970-01-01", "00:00"]
    assert rows[2][2] == "failed" and "no jobs are listed" in none[1]
    assert shown[1] == "J1 (objects): running, 1 of 2 parts, about 4 s left\n"
    assert "J1 (objects): done" in done[1] and "spoon" in done[1]
    assert json.loads(cancelled[1])["state"] == "cancelled"
    assert server.asked[-1][0] == "DELETE /v1/jobs/J1"
    assert headrace("jobs", "--cancel", *at)[0] == 2


def test_a_file_that_shrinks_meanwhile_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "big.png"
    path.write_bytes(bytes(3 * 1024 * 1024))

    def shrink(_: int) -> None:
        path.write_bytes(b"")

    with (
        serving((200, EVENTS)) as server,
        MediaClient(server.address) as asking,
        pytest.raises(HeadraceError, match="became shorter while it was sent"),
    ):
        list(asking.process("m", None, path, "{}", shrink))


def test_what_goes_wrong_on_the_way_is_one_of_our_errors(photo: Path) -> None:
    def cut(request: httpx.Request) -> httpx.Response:
        raise httpx.RemoteProtocolError("cut", request=request)

    def late(request: httpx.Request) -> httpx.Response:
        raise httpx.ReadTimeout("late", request=request)

    with pytest.raises(Unavailable, match="RemoteProtocolError"):
        list(client(cut).process("m", None, photo, "{}"))
    with pytest.raises(DeadlineExceeded, match="in time"):
        client(late).jobs()
    with pytest.raises(HeadraceError, match="200 from /v1/jobs: <html>"):
        client(lambda _: httpx.Response(200, text="<html>")).jobs()


def test_the_bar_tells_of_the_upload_and_then_of_the_parts(photo: Path) -> None:
    text = StringIO()
    console = Console(file=text, force_terminal=True, width=100, color_system=None)
    with WorkProgress(console, photo) as progress:
        task = progress._bar.tasks[0]
        progress.sent(photo.stat().st_size // 2)
        assert 0.4 < task.completed / (task.total or 1) < 0.6 and "of" in task.fields["figures"]
        progress.sent(photo.stat().st_size - photo.stat().st_size // 2)
        assert task.description == "waiting" and task.total is None
        progress.event(PLAN)
        assert task.description == "2 parts on 1 shard"
        assert [task.completed, task.total] == [0, 2]
        progress.event(PARTS[0])
        progress.event({**PARTS[1], "error": "died"})
        assert task.completed == 2
        assert task.fields["figures"] == "2 of 2, 1 from the cache, 1 failed"
    assert "sending cup.png" in text.getvalue() or "2 parts on 1 shard" in text.getvalue()
