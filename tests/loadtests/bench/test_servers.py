from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx
import numpy as np
import orjson
import psutil
import pytest
import yaml

from headrace.config.args import Args, ModelConfig, PoolConfig
from loadtests.bench.footprint import read_config
from loadtests.bench.mlp import one_row, write_bodies
from loadtests.bench.servers import (
    MODELS,
    OFF,
    SERVERS,
    check_answer,
    end_sessions,
    read_values,
    sessions_below,
)
from loadtests.bench.tasks import JSON, RAW, TFS_JSON, Site, mlp_task
from loadtests.headrace import BadAnswer, Running, headrace_config
from loadtests.messages import LENGTH_HEADER
from replicas.onnx_runtime import load
from replicas.runtime import RuntimeSettings


@contextmanager
def answering(status: int, body: bytes) -> Iterator[Running]:
    """A server that gives every POST the same answer."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        yield Running(f"http://127.0.0.1:{server.server_port}")
        thread.join()


def test_the_generated_config_is_a_valid_headrace_config(tmp_path: Path) -> None:
    document = yaml.safe_load(headrace_config(tmp_path, MODELS, 2, [9001, 9002, 9003]))
    [application] = document["applications"]
    arguments = Args.model_validate(application["args"])
    [pool] = application["deployments"]
    models = PoolConfig.model_validate(pool["user_config"]).models
    assert (arguments.listen.http, arguments.listen.admin) == ("127.0.0.1:9001", "127.0.0.1:9003")
    assert arguments.listen.grpc == "127.0.0.1:9002"
    assert (arguments.gateways, arguments.slots["cpu"].count) == (1, 2)
    assert models == {"mlp": ModelConfig()}, "what a user has by default"
    assert read_config(document) == ("http://127.0.0.1:9001", {"mlp"})


def test_the_right_answer_is_what_onnx_runtime_computes(tmp_path: Path) -> None:
    site = Site.made(tmp_path)
    runtime = load(site.model.parent, "mlp", 1, RuntimeSettings())
    row = one_row().astype(np.float32)[np.newaxis]
    [output] = runtime.run("serving_default", {"x": row}, ["y"]).values()
    assert site.answer.shape == (1, 10)
    assert np.allclose(output, site.answer, atol=1e-5)


@pytest.mark.parametrize(
    ("status", "body"),
    [(503, b'{"error": "busy"}'), (200, b"not JSON"), (200, b'{"predictions": [[1.0]]}')],
)
def test_a_server_that_answers_wrongly_is_not_measured(
    tmp_path: Path, status: int, body: bytes
) -> None:
    site = Site.made(tmp_path)
    with answering(status, body) as server, pytest.raises(BadAnswer, match=r"/v1/models/mlp"):
        check_answer(server, site.bodies[0], site.answer)


def test_all_bodies_carry_the_same_row(tmp_path: Path) -> None:
    predict, infer, binary = (body.file.read_bytes() for body in Site.made(tmp_path).bodies)
    [row] = orjson.loads(predict)["instances"]
    assert orjson.loads(infer)["inputs"][0]["data"] == row
    length = int(dict(write_bodies(tmp_path)[2].headers)[LENGTH_HEADER])
    assert len(binary) - length == 784 * 4
    assert orjson.loads(binary[:length])["inputs"][0]["parameters"]["binary_data_size"] == 784 * 4


def test_each_server_is_sent_its_own_form_on_its_own_path(tmp_path: Path) -> None:
    task = mlp_task(JSON, Site.made(tmp_path))
    paths = {str(s): (s.body(task).label, s.body(task).path) for s in SERVERS if JSON in s.takes}
    assert paths[str(OFF)] == ("TFS JSON", "/v1/models/mlp:predict")
    assert paths["mosec, batch 64"] == ("TFS JSON", "/inference")
    assert paths["Triton, Python backend"] == ("v2 JSON", "/v2/models/mlp/infer")


@pytest.mark.parametrize(
    ("form", "content"),
    [(RAW, np.array([0.25, 0.75], "<f4").tobytes()), (TFS_JSON, b"[[0.25, 0.75]]")],
)
def test_answers_without_a_protocol_are_read_as_rows(
    tmp_path: Path, form: str, content: bytes
) -> None:
    body = mlp_task(JSON, Site.made(tmp_path)).bodies[form]
    assert read_values(httpx.Response(200, content=content), body, "y").tolist() == [[0.25, 0.75]]


def test_processes_that_began_sessions_of_their_own_are_ended_too() -> None:
    command = ["sh", "-c", "setsid sh -c 'echo $$; exec sleep 600' & wait"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as leader:
        assert leader.stdout is not None
        sleeper = psutil.Process(int(leader.stdout.readline()))
        sessions = sessions_below(leader.pid)
        assert len(sessions) == 2
        leader.kill()
        assert sleeper.is_running()
        end_sessions(sessions)
        sleeper.wait(10)
    assert not sleeper.is_running()
