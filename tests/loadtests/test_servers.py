from __future__ import annotations

from pathlib import Path

import orjson
import yaml

from gateway.config import Args, PoolConfig
from loadtests.exchange import LENGTH_HEADER
from loadtests.mlp import write_bodies
from loadtests.servers import Contender, Site, headrace_config
from loadtests.startup import read_config


def site_in(folder: Path) -> Site:
    return Site(folder, folder / "store", folder / "model.onnx", write_bodies(folder))


def test_the_generated_config_is_a_valid_headrace_config(tmp_path: Path) -> None:
    document = yaml.safe_load(headrace_config(site_in(tmp_path), 64, [9001, 9002, 9003]))
    [application] = document["applications"]
    arguments = Args.model_validate(application["args"])
    [pool] = application["deployments"]
    models = PoolConfig.model_validate(pool["user_config"]).models
    assert (arguments.listen.http, arguments.listen.admin) == ("127.0.0.1:9001", "127.0.0.1:9003")
    assert (arguments.gateways, arguments.slots["cpu"].count) == (1, 1)
    assert models["mlp"].batching.max_rows == 64
    assert read_config(document) == ("http://127.0.0.1:9001", {"mlp"})


def test_all_bodies_carry_the_same_row(tmp_path: Path) -> None:
    predict, infer, binary = (body.file.read_bytes() for body in site_in(tmp_path).bodies)
    [row] = orjson.loads(predict)["instances"]
    assert orjson.loads(infer)["inputs"][0]["data"] == row
    length = int(dict(write_bodies(tmp_path)[2].headers)[LENGTH_HEADER])
    assert len(binary) - length == 784 * 4
    assert orjson.loads(binary[:length])["inputs"][0]["parameters"]["binary_data_size"] == 784 * 4


def test_mosec_gets_the_json_body_on_its_own_path(tmp_path: Path) -> None:
    site = site_in(tmp_path)
    [body] = Contender("mosec", 1).bodies(site)
    assert body.path == "/inference"
    assert body.file == site.bodies[0].file
    assert [each.label for each in Contender("headrace", 64).bodies(site)] == [
        "TFS JSON",
        "v2 JSON",
        "v2 binary",
    ]
