"""The config file: every mistake at once, each with its line, its field path and a way out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.config_file import check_document, load_config
from gateway.yaml_source import ConfigFileError
from headrace.errors import ConfigError

ROOT = Path(__file__).parent.parent.parent

GOOD = """\
proxy_location: Disabled
applications:
  - name: headrace
    import_path: gateway.app:build
    args:
      schema: 1
      slots: {cpu: {count: 2, cpus: 0.5}}
      store: memory://store
    deployments:
      - name: Pool
        user_config:
          models:
            tagger: {runtime: onnx}
"""


def problems(tmp_path: Path, text: str) -> list[str]:
    """What is wrong with a file of this text."""
    file = tmp_path / "headrace.yaml"
    file.write_text(text)
    with pytest.raises(ConfigFileError) as found:
        load_config(file)
    return [str(problem) for problem in found.value.problems]


@pytest.mark.parametrize(
    ("found", "wrong", "told"),
    [
        (
            "- name: Pool\n        user_config",
            "- Pool\n      - user_config",
            "deployments[0]: should be a mapping",
        ),
        (
            "- name: headrace\n",
            "- headrace\n  - name: headrace\n",
            "applications[0]: found 'headrace'; should be a mapping",
        ),
        ("headrace\n    import", '"x\\ud83d"\n    import', "applications[0].name: holds '\\ud83d'"),
        ("runtime: onnx", '"\\udfff": 1', "tagger: holds '\\udfff', which is no character"),
    ],
)
def test_what_serve_s_own_checks_trip_over_is_told(
    tmp_path: Path, found: str, wrong: str, told: str
) -> None:
    text = GOOD.replace(found, wrong)
    assert text != GOOD
    assert any(told in problem for problem in problems(tmp_path, text))


def test_the_demo_is_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    config = load_config("examples/demo.yaml")
    assert set(config.pool.models) >= {"tagger", "tagger_tf", "digits", "price", "faces"}
    assert config.args.listen.http == "127.0.0.1:8080"


def test_a_good_file_has_defaults(tmp_path: Path) -> None:
    file = tmp_path / "headrace.yaml"
    file.write_text(GOOD)
    config = load_config(file)
    assert config.application == "headrace" and config.args.gateways == 1
    assert config.pool.models["tagger"].batching.max_rows == 32


def test_all_mistakes_are_told_at_once_with_their_lines(tmp_path: Path) -> None:
    text = GOOD.replace("schema: 1", "schema: 1\n      listen: {htp: 127.0.0.1:1}")
    text = text.replace("cpus: 0.5", "cpus: -1").replace("{runtime: onnx}", "{runtime: onyx}")
    found = problems(tmp_path, text)
    assert len(found) == 3
    assert any(":7: " in f and "args.listen.htp" in f and "did you mean 'http'" in f for f in found)
    assert any(":8: " in f and "slots.cpu.cpus" in f and "-1" in f for f in found)
    assert any(":14: " in f and "models.tagger.runtime" in f and "'onnx'" in f for f in found)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("{runtime: onnx}", "{slot_class: gpu}", ["slot class 'gpu'", "args.slots"]),
        ("{runtime: onnx}", "{runtime: onnx, replicas: {min: 3, max: 2}}", ["`min` (3)", "(2)"]),
        ("{runtime: onnx}", "{runtime: onnx, replicas: {min: 3, max: 3}}", ["2 slots"]),
        ("{runtime: onnx}", "{runtime: onnx, routing: {policy: hash}}", ["header"]),
        ("schema: 1", "schema: 1\n      listen: {http: nowhere}", ["host:port"]),
        ("schema: 1", "schema: 1\n      listen: {http: 127.0.0.1:9, grpc: 127.0.0.1:9}", ["9"]),
        ("cpus: 0.5", "cpus: 0.5, pin: true", ["pin"]),
        ("schema: 1", "schema: 2", ["schema"]),
        ("gateway.app:build", "gateway.app:bild", ["import_path: gateway.app:build"]),
        ("schema: 1", "schema: 1\n      schema: 1", ["schema"]),
        ("schema: 1", "schema: [1", [""]),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, old: str, new: str, words: list[str]) -> None:
    found = problems(tmp_path, GOOD.replace(old, new))
    assert found and all(any(word in each for each in found) for word in words), found


def test_minimums_that_do_not_fit_are_summed_up(tmp_path: Path) -> None:
    more = "{runtime: onnx}\n            b: {runtime: onnx}\n            c: {runtime: onnx}"
    found = problems(tmp_path, GOOD.replace("{runtime: onnx}", more))
    assert any("3" in each and "2" in each for each in found), found


def test_a_secret_in_place_of_its_reference_is_not_shown(tmp_path: Path) -> None:
    found = problems(tmp_path, GOOD.replace("schema: 1", "schema: 1\n      secret: hunter2"))
    assert found and not any("hunter2" in each for each in found)


def test_a_missing_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.yaml") as found:
        load_config(tmp_path / "nothing.yaml")
    assert "\n" not in found.value.message


def test_a_document_must_configure_the_running_application() -> None:
    document: dict[str, Any] = yaml.safe_load(GOOD)
    check_document(document, "headrace")
    with pytest.raises(ConfigError, match="'other'"):
        check_document(document, "other")
    document["applications"][0]["deployments"][0]["user_config"]["models"]["tagger"] = {"x": 1}
    with pytest.raises(ConfigError, match="tagger"):
        check_document(document, "headrace")
