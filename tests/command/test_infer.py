"""`headrace infer`: pictures and JSON bodies to a server of the test, answers in words."""

from __future__ import annotations

import io
import json
import socket
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from command.cli import main
from command.infer import InferenceClient, describe, image_request, read_labels
from headrace.errors import ConfigError, DeadlineExceeded, HeadraceError, InvalidArgument

SCORES = {"name": "scores", "datatype": "FP32", "shape": [1, 3], "data": [0.1, 0.7, 0.2]}
ANSWER = {"model_name": "m", "model_version": "1", "outputs": [SCORES]}


def picture(width: int = 64, height: int = 40, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), (255, 0, 10)).save(file, kind)
    return file.getvalue()


def metadata(datatype: str, *shape: int, inputs: int = 1) -> dict[str, Any]:
    one = {"name": "x", "datatype": datatype, "shape": list(shape)}
    return {"name": "m", "inputs": [one] * inputs}


class Server(HTTPServer):
    """Open Inference on loopback: knows one image model and remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[str, str, bytes]] = []
        self.keys: list[str | None] = []

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    """Metadata for GET, the same scores for every POST to a model that is not `gone`."""

    server: Server

    def do_GET(self) -> None:
        self.answer(metadata("UINT8", -1, -1, -1, 3))

    def do_POST(self) -> None:
        self.answer(ANSWER)

    def answer(self, value: dict[str, Any]) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.asked.append((self.command, self.path, body))
        self.server.keys.append(self.headers.get("Authorization"))
        gone, closed = "/gone" in self.path, "/closed" in self.path
        error = {"error": f"model {'gone' if gone else 'closed'} is not known"}
        content = json.dumps(error if gone or closed else value).encode()
        self.send_response(404 if gone else 401 if closed else 200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Keep the test's output clean."""


@contextmanager
def serving() -> Iterator[Server]:
    with Server() as server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def client(answer: Callable[[httpx.Request], httpx.Response]) -> InferenceClient:
    return InferenceClient("h:1", transport=httpx.MockTransport(answer))


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("HEADRACE_KEY", raising=False)


def infer(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["infer", *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.exit_code, result.output


def test_a_picture_is_sent_as_binary_and_its_best_scores_are_told(tmp_path: Path) -> None:
    (tmp_path / "cat.png").write_bytes(picture(64, 40))
    with serving() as server:
        file = str(tmp_path / "cat.png")
        code, output = infer("m", "--image", file, "--http", server.address, "--top", "2")
    assert code == 0 and output.splitlines() == ["scores  FP32[1, 3]", "  0.700  1", "  0.200  2"]
    (asked, (method, path, body)) = server.asked
    assert asked[:2] == ("GET", "/v2/models/m") and (method, path) == ("POST", "/v2/models/m/infer")
    header, data = json.JSONDecoder().raw_decode(body.decode("latin-1"))[0], body[-64 * 32 * 3 :]
    assert header["inputs"][0]["shape"] == [1, 32, 64, 3] and data == b"\xff\x00\x0a" * 64 * 32


def test_a_body_is_sent_as_it_is_to_the_path_of_its_protocol(tmp_path: Path) -> None:
    body = b' {"instances":[[1.0]]}'
    (tmp_path / "body.json").write_bytes(body)
    with serving() as server:
        file = str(tmp_path / "body.json")
        code, output = infer("m", "--http", server.address, "--version", "2", "--json", file)
    assert code == 0 and json.loads(output) == ANSWER
    assert server.asked == [("POST", "/v1/models/m/versions/2:predict", body)]


def test_json_without_a_file_prints_the_whole_answer(tmp_path: Path) -> None:
    (tmp_path / "cat.png").write_bytes(picture())
    with serving() as server:
        file = str(tmp_path / "cat.png")
        code, output = infer("m", "--image", file, "--http", server.address, "--json")
    assert code == 0 and json.loads(output) == ANSWER


def test_a_refusal_is_told_in_the_servers_words(tmp_path: Path) -> None:
    (tmp_path / "body.json").write_text('{"instances": [1]}')
    with serving() as server:
        code, output = infer("gone", "--http", server.address, "--json", f"{tmp_path}/body.json")
    assert code == 1 and "404 from /v1/models/gone:predict: model gone is not known" in output


def test_the_key_of_a_file_or_the_environment_is_sent_with_every_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cat.png").write_bytes(picture())
    (tmp_path / "key").write_text("from-file\n")
    with serving() as server:
        where = ("m", "--image", str(tmp_path / "cat.png"), "--http", server.address)
        assert infer(*where)[0] == 0
        monkeypatch.setenv("HEADRACE_KEY", "from-environment")
        assert infer(*where)[0] == 0
        assert infer(*where, "--key-file", str(tmp_path / "key"))[0] == 0
    expected = [None, "Bearer from-environment", "Bearer from-file"]
    assert server.keys == [key for key in expected for _ in range(2)]


def test_a_key_is_in_no_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "body.json").write_text('{"instances": [1]}')
    monkeypatch.setenv("HEADRACE_KEY", "hr_secret")
    with serving() as server:
        where = ("--http", server.address, "--json", f"{tmp_path}/body.json")
        refused = infer("closed", *where)
        monkeypatch.setenv("HEADRACE_KEY", "hr_secret\u00e9")
        unfit = infer("m", *where)
    nobody = infer("m", *where, "--key-file", f"{tmp_path}/none")
    monkeypatch.setenv("HEADRACE_KEY", "hr_secret")
    away = infer("m", *where)
    assert [each[0] for each in (refused, unfit, nobody, away)] == [5, 3, 3, 4]
    assert "401 from /v1/models/closed:predict" in refused[1]
    assert "printable ASCII" in unfit[1] and "cannot read the secret file" in nobody[1]
    assert not any("secret_" in each[1] or "hr_" in each[1] for each in (refused, unfit, away))


def test_nobody_there_is_exit_code_4(tmp_path: Path) -> None:
    (tmp_path / "body.json").write_text('{"instances": [1]}')
    with serving() as server:
        pass
    code, output = infer("m", "--http", server.address, "--json", f"{tmp_path}/body.json")
    assert code == 4 and "is Headrace up?" in output


@pytest.mark.parametrize("address", ["nowhere", "h:port", "a b:1", "[::1:80"])
def test_what_is_no_address_is_wrong_usage(tmp_path: Path, address: str) -> None:
    (tmp_path / "body.json").write_text('{"instances": [1]}')
    code, output = infer("m", "--http", address, "--json", f"{tmp_path}/body.json")
    assert code == 2 and "host" in output


@pytest.mark.parametrize("arguments", [["m"], ["m", "--json"], ["m", "--image", "no.png"]])
def test_nothing_to_send_is_wrong_usage(arguments: list[str]) -> None:
    assert infer(*arguments)[0] == 2


def test_a_missing_body_is_one_sentence(tmp_path: Path) -> None:
    code, output = infer("m", "--http", "h:1", "--json", f"{tmp_path}/no.json")
    assert code == 1 and "no.json: No such file" in output


def test_a_body_of_neither_protocol_is_refused_without_asking() -> None:
    asked: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(200, json={})

    with pytest.raises(InvalidArgument, match="`instances`, `inputs` or"):
        client(answer).infer_json("m", None, b'{"rows": [1]}')
    assert not asked


@pytest.mark.parametrize(
    ("response", "words"),
    [
        (httpx.Response(200, text="<html>"), "200 from /v1/models/m:predict: <html>"),
        (httpx.Response(200, json=[1]), r"200 from /v1/models/m:predict: \[1\]"),
        (httpx.Response(503, text=""), "503 from"),
    ],
)
def test_an_answer_that_is_no_prediction_is_told(response: httpx.Response, words: str) -> None:
    with pytest.raises(HeadraceError, match=words):
        client(lambda _: response).infer_json("m", None, b'{"instances": [1]}')


def test_an_answer_that_comes_too_late_is_exit_code_6(tmp_path: Path) -> None:
    (tmp_path / "body.json").write_text('{"instances": [1]}')
    with socket.create_server(("127.0.0.1", 0)) as silent:
        where = f"127.0.0.1:{silent.getsockname()[1]}"
        code, output = infer(
            "m", "--http", where, "--json", f"{tmp_path}/body.json", "--timeout", "0.05"
        )
    assert code == 6 and f"{where} has not answered /v1/models/m:predict in time" in output


def test_an_answer_after_the_servers_deadline_is_late_too() -> None:
    with pytest.raises(DeadlineExceeded, match="504 from /v1/models/m:predict"):
        client(lambda _: httpx.Response(504)).infer_json("m", None, b'{"instances": [1]}')


@pytest.mark.parametrize(
    ("wanted", "shape", "dtype"),
    [
        (metadata("UINT8", -1, 224, 200, 3), [1, 224, 200, 3], np.uint8),
        (metadata("UINT8", -1, -1, -1, 3), [1, 32, 64, 3], np.uint8),
        (metadata("FP32", -1, 3, -1, -1), [1, 3, 32, 64], np.float32),
        (metadata("FP32", 1, 3, 28, 30), [1, 3, 28, 30], np.float32),
    ],
)
def test_a_picture_takes_the_shape_that_the_model_asks_for(
    wanted: dict[str, Any], shape: list[int], dtype: type[np.generic]
) -> None:
    header, data = image_request(wanted, picture(64, 40))
    assert header["inputs"][0]["shape"] == shape
    pixels = np.frombuffer(data, dtype).reshape(shape)
    channel = pixels[:, 0] if dtype is np.float32 else pixels[..., 0]
    assert (channel == 255).all()


def test_a_large_picture_is_made_smaller_where_the_size_is_free() -> None:
    header, _ = image_request(metadata("UINT8", -1, -1, -1, 3), picture(2000, 1000))
    assert header["inputs"][0]["shape"] == [1, 256, 512, 3]


def test_a_model_of_bytes_gets_the_file_itself() -> None:
    header, data = image_request(metadata("BYTES", -1), b"any file")
    assert header["inputs"][0]["shape"] == [1] and data == struct.pack("<I", 8) + b"any file"


@pytest.mark.parametrize(
    "wanted",
    [metadata("FP32", -1, 4), metadata("UINT8", -1, -1, -1, 3, inputs=2), {"name": "m"}],
)
def test_a_model_that_takes_no_picture_is_named(wanted: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="send --json instead"):
        image_request(wanted, picture())


def huge() -> bytes:
    """The beginning of a PNG that would unfold to 1.2 GB."""
    head = b"IHDR" + struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    checked = struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))
    return b"\x89PNG\r\n\x1a\n" + checked + struct.pack(">I", 9) + b"IDAT" + bytes(9)


@pytest.mark.parametrize(
    "file", [b"", b"no picture", picture()[:-60], picture(kind="GIF")[:20], huge()]
)
def test_what_is_no_picture_is_one_sentence(file: bytes) -> None:
    with pytest.raises(InvalidArgument, match="not a picture that Pillow reads"):
        image_request(metadata("UINT8", -1, -1, -1, 3), file)


def test_scores_become_labels_and_other_values_stay() -> None:
    boxes = {
        "name": "boxes",
        "datatype": "FP32",
        "shape": [2, 4],
        "data": [0.5, 1.0, 2.0, 3.25] * 2,
    }
    words = {"name": "words", "datatype": "BYTES", "shape": [1], "data": ["cat"]}
    found = describe({"outputs": [SCORES, boxes, words]}, ["dog", "cat"], 2)
    assert [output.lines for output in found] == [
        ("0.700  cat", "0.200  2"),
        ("0.5, 1, … (8 values)",),
        ("cat",),
    ]


def test_labels_stand_with_the_version_or_the_model(tmp_path: Path) -> None:
    assert read_labels(str(tmp_path), "m", "1") == []
    (tmp_path / "m" / "1").mkdir(parents=True)
    (tmp_path / "m" / "labels.txt").write_text("a\nb\n")
    assert read_labels(str(tmp_path), "m", "1") == ["a", "b"]
    (tmp_path / "m" / "1" / "labels.txt").write_text("ä\n", encoding="utf-8")
    assert read_labels(str(tmp_path), "m", "1") == ["ä"]
    (tmp_path / "m" / "002").mkdir()
    (tmp_path / "m" / "002" / "labels.txt").write_text("c\n")
    assert read_labels(str(tmp_path), "m", "2") == ["c"]
