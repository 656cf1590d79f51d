"""The config's types, its cross checks and the places in its YAML, all without Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from gateway.config_checks import Finding, cross_check
from gateway.config_file import check_document, validate
from gateway.yaml_source import ConfigFileError, Problem, read_source
from headrace.config.args import (
    MAX_SLOTS,
    Args,
    Listen,
    ModelConfig,
    PoolConfig,
    SlotClass,
    split_address,
)
from headrace.config.types import SecretRef
from headrace.errors import ConfigError


def args(**values: Any) -> Args:
    return Args.model_validate({"schema": 1, "store": "memory://store", **values})


def pool(**models: dict[str, Any]) -> PoolConfig:
    return PoolConfig.model_validate({"models": models})


def mistakes(found: list[Finding]) -> list[tuple[str, str]]:
    return [(".".join(map(str, each.path)), each.message) for each in found if not each.warning]


def problems_of(text: str, tmp_path: Path, kind: type[Args] | type[PoolConfig]) -> list[Problem]:
    """What `validate` says about a file that is only our part."""
    file = tmp_path / "part.yaml"
    file.write_text(text)
    source = read_source(file)
    found: list[Problem] = []
    validate(kind, source.value, source, (), found)
    return sorted(found)


def store(tmp_path: Path, *files: str) -> str:
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes(b"")
    return str(tmp_path)


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        ("127.0.0.1:8080", ("127.0.0.1", 8080)),
        ("[::1]:0", ("::1", 0)),
        ("a-host.example:65535", ("a-host.example", 65_535)),
    ],
)
def test_an_address_is_split(address: str, parts: tuple[str, int]) -> None:
    assert split_address(address) == parts


@pytest.mark.parametrize(
    "address",
    [
        "",
        "8080",
        ":8080",
        "host:",
        "host:65536",
        "::1:80",
        "[no]:80",
        "a b:1",
        "h:٣",
        "a..b:1",
        "-a:1",
    ],
)
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match=r"should"):
        split_address(address)


def test_two_listeners_cannot_share_a_port() -> None:
    with pytest.raises(ValidationError, match="`http` and `admin` both use port 9"):
        Listen(http="127.0.0.1:9", admin="0.0.0.0:9")
    assert Listen(http="127.0.0.1:0", grpc="127.0.0.1:0").http == "127.0.0.1:0"
    assert Listen(http="127.0.0.1:9", grpc="127.0.0.2:9").grpc == "127.0.0.2:9"


def test_everything_listens_on_loopback_unless_said_otherwise() -> None:
    hosts = {split_address(address)[0] for address in Listen().model_dump(exclude={"tls"}).values()}
    assert hosts == {"127.0.0.1"}


@pytest.mark.parametrize("value", [{}, {"file": "f", "env": "E"}, {"env": ""}])
def test_a_secret_has_exactly_one_place(value: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        SecretRef.model_validate(value)


def test_min_alone_is_also_the_max() -> None:
    model = ModelConfig.model_validate({"replicas": {"min": 3}})
    none = ModelConfig.model_validate({"replicas": {"min": 0}})
    assert (model.replicas.max, none.replicas.max) == (3, 1)


@pytest.mark.parametrize(
    ("given", "min_warm_max"),
    [
        ({}, (1, 0, 1)),
        ({"count": 3}, (3, 0, 3)),
        ({"count": "3"}, (3, 0, 3)),
        ({"count": 0}, (0, 0, 0)),
        ({"min": 2}, (2, 0, 2)),
        ({"warm": 2}, (1, 2, 2)),
        ({"min": 0, "warm": 1, "max": 4}, (0, 1, 4)),
        ({"max": MAX_SLOTS}, (1, 0, MAX_SLOTS)),
    ],
)
def test_slots_of_a_class_are_told_in_full_or_in_short(
    given: dict[str, Any], min_warm_max: tuple[int, int, int]
) -> None:
    slots = SlotClass.model_validate(given)
    assert (slots.min, slots.warm, slots.max) == min_warm_max
    assert slots.least == max(min_warm_max[:2])
    assert SlotClass.model_validate(slots.model_dump()) == slots


@pytest.mark.parametrize(
    ("text", "path", "words"),
    [
        ("min: 5, max: 3", "slots.cpu", "`min` (5) should not be above `max` (3)"),
        ("warm: 4, max: 3", "slots.cpu", "`warm` (4) should not be above `max` (3)"),
        ("max: 0", "slots.cpu", "`min` (1) should not be above `max` (0)"),
        ("count: 2, max: 3", "slots.cpu", "give either it or those"),
        ("count: 2, warm: 1", "slots.cpu", "give either it or those"),
        ("count: -1", "slots.cpu.count", "greater than or equal to 0"),
        (f"max: {MAX_SLOTS + 1}", "slots.cpu.max", "less than or equal to 10000"),
        ("memory: much", "slots.cpu.memory", "byte string"),
        ("memory: 1kB", "slots.cpu.memory", "greater than or equal to 1048576"),
    ],
)
def test_slots_that_cannot_be_are_refused_in_one_problem(
    tmp_path: Path, text: str, path: str, words: str
) -> None:
    (problem,) = problems_of(f"schema: 1\nslots: {{cpu: {{{text}}}, gpu: {{}}}}\n", tmp_path, Args)
    assert problem.path == path and words in problem.message


def test_a_model_larger_than_its_slots_is_refused() -> None:
    slots = {"cpu": {"count": 2, "memory": "1GiB"}}
    model = {"runtime": "onnx", "memory": "2GiB"}
    ((path, message),) = mistakes(cross_check(args(slots=slots), pool(tagger=model)))
    assert path == "pool.models.tagger.memory" and "1.0GiB" in message
    assert cross_check(args(slots=slots), pool(tagger=model | {"memory": "1GiB"})) == []


def test_a_class_has_room_for_as_many_models_as_its_most_slots_hold() -> None:
    three = {"runtime": "onnx", "replicas": {"min": 3}}
    assert not mistakes(cross_check(args(slots={"cpu": {"min": 1, "max": 3}}), pool(tagger=three)))
    found = mistakes(cross_check(args(slots={"cpu": {"min": 1, "max": 2}}), pool(tagger=three)))
    assert ("pool.models.tagger.replicas.min", "found 3; the class 'cpu' has 2 slots") in found


def test_models_and_slots_that_fit_give_no_finding() -> None:
    two = {"runtime": "onnx", "replicas": {"min": 2}}
    assert cross_check(args(slots={"cpu": {"count": 3}}), pool(tagger=two)) == []


def test_a_class_without_a_spare_slot_gives_a_warning_unless_versions_swap_in_place() -> None:
    slots, model = {"cpu": {"count": 1}}, {"runtime": "onnx"}
    (finding,) = cross_check(args(slots=slots), pool(tagger=model))
    assert finding.warning and "waits for a free one" in finding.message
    for fixed in ({"swap": "in-place"}, {"versions": [1]}):
        assert cross_check(args(slots=slots), pool(tagger=model | fixed)) == []


def test_versions_that_labels_name_need_room_too() -> None:
    model = {"runtime": "onnx", "labels": {"stable": 1, "new": 2}}
    findings = cross_check(args(slots={"cpu": {"count": 1}}), pool(tagger=model))
    assert "the guarantees need 2 slots" in findings[0].message


def test_a_runtime_goes_to_its_default_class() -> None:
    found = mistakes(cross_check(args(), pool(tagger={"runtime": "tensorflow"})))
    ((path, message),) = found
    assert path == "pool.models.tagger.slot_class"
    assert "'tensorflow', the default of its runtime" in message and "known: cpu" in message


def test_minimums_of_all_versions_are_added_up() -> None:
    three = {"runtime": "onnx", "versions": [1, 2, 3]}
    found = mistakes(cross_check(args(slots={"cpu": {"count": 2}}), pool(tagger=three)))
    ((path, message),) = found
    assert path == "args.slots.cpu" and message.endswith("at most 2 are there: tagger 3 = 3")


def test_guarantees_are_added_up_in_parts_of_slots() -> None:
    slots = {"cpu": {"max": 2, "memory": "1GiB", "max_models": 10}}
    big = {"runtime": "onnx", "memory": "700MiB", "replicas": {"min": 2}}
    small = {"runtime": "onnx", "memory": "300MiB"}
    assert not mistakes(cross_check(args(slots=slots), pool(big=big, a=small, b=small)))
    models = pool(big=big, a=small, b=small, c=small)
    ((path, message),) = mistakes(cross_check(args(slots=slots), models))
    assert path == "args.slots.cpu" and "need 2.246 slots of class cpu, at most 2" in message
    assert "big 2 x 0.684 + a 1 x 0.293 + b 1 x 0.293 + c 1 x 0.293" in message
    alone = pool(big=big, a=small | {"exclusive": True})
    ((_, message),) = mistakes(cross_check(args(slots=slots), alone))
    assert message.endswith("big 2 x 0.684 + a 1 = 2.367")


def test_a_model_that_sleeps_is_guaranteed_nothing() -> None:
    asleep = {"runtime": "onnx", "replicas": {"min": 0, "max": 3}}
    assert not mistakes(cross_check(args(slots={"cpu": {"count": 1}}), pool(a=asleep, b=asleep)))


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        ("no_such_module:Policy", "No module named 'no_such_module'"),
        ("autoscale.policy:Absent", "has no attribute 'Absent'"),
        ("headrace.config.args:Listen", "has no method `expected`"),
        ("tests.gateway.broken_policy:Policy", "SyntaxError"),
    ],
)
def test_a_policy_that_cannot_be_used_is_refused(
    policy: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_policy.py").write_text("class:\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    policy = policy.replace("tests.gateway.broken", "broken")
    model = {"runtime": "onnx", "scaling": {"policy": policy}}
    ((path, message),) = mistakes(cross_check(args(slots={"cpu": {"count": 2}}), pool(m=model)))
    assert path == "pool.models.m.scaling.policy" and words in message


def test_shares_and_leases_that_have_no_effect_are_warnings() -> None:
    models = {"m": {"runtime": "onnx", "share": {"group": "vision"}}}
    config = PoolConfig.model_validate(
        {"models": models, "shares": {"visoin": 2, "leases": 1}, "leases": {"max_slots": 4}}
    )
    slots = {"cpu": {"min": 1, "warm": 2, "max": 5}}
    group, most = cross_check(args(slots=slots), config)
    assert group.warning and group.path == ("pool", "shares", "visoin")
    assert group.message == "no model is in the group 'visoin'; did you mean 'vision'?"
    assert most.warning and "no class can lend more than 3" in most.message


def test_leases_that_contradict_themselves_are_refused() -> None:
    config = PoolConfig.model_validate({"leases": {"grace_s": 20, "max_grace_s": 10}})
    ((path, message),) = mistakes(cross_check(args(), config))
    assert path == "pool.leases.grace_s" and message == "found 20; `max_grace_s` is 10"
    ((path, message),) = mistakes(
        cross_check(args(slots={"cpu": {"count": 2}}), pool(leases={"runtime": "onnx"}))
    )
    assert path == "pool.models.leases" and "rename the model" in message


def test_models_of_unknown_runtime_count_against_all_slots() -> None:
    ((path, message),) = mistakes(cross_check(args(), pool(a={}, b={})))
    assert path == "args.slots" and "2 placements" in message and "hold 1" in message


def test_the_files_of_a_store_tell_the_runtime(tmp_path: Path) -> None:
    here = store(tmp_path, "tagger/1/model.onnx", "tagger/2/saved_model.pb")
    ((path, message),) = mistakes(cross_check(args(store=here), pool(tagger={})))
    assert path == "pool.models.tagger.slot_class" and "'tensorflow'" in message


def test_what_the_store_lacks_is_only_a_warning(tmp_path: Path) -> None:
    here = store(tmp_path, "tagger/1/model.onnx")
    models = pool(taggr={"runtime": "onnx"}, tagger={"runtime": "onnx", "versions": [1, 7]})
    slots = {"cpu": {"count": 3}}
    found = cross_check(args(store=here, slots=slots), models)
    assert all(each.warning for each in found)
    said = " ".join(each.message for each in found)
    assert "did you mean 'tagger'" in said and "no version 7" in said


def test_an_admin_port_off_loopback_is_a_warning() -> None:
    (finding,) = cross_check(args(listen={"admin": "0.0.0.0:8082"}), pool())
    assert finding.warning and "token would travel in clear" in finding.message


def test_fields_are_checked_together_even_when_others_are_wrong(tmp_path: Path) -> None:
    text = "schema: 1\nlisten: {http: 'h:1', grpc: 'h:1'}\nlimits: {drain_s: soon}\nstroe: x\n"
    found = problems_of(text, tmp_path, Args)
    assert [(each.line, each.path) for each in found] == [
        (2, "listen"),
        (3, "limits.drain_s"),
        (4, "stroe"),
    ]
    assert "found 'soon'; should be a valid number" in found[1].message
    assert "did you mean 'store'" in found[2].message


def test_a_wrong_schema_does_not_hide_what_else_is_wrong(tmp_path: Path) -> None:
    text = "schema: 2\nlimits: {default_deadline_s: 9, max_deadline_s: 5}\n"
    assert [each.path for each in problems_of(text, tmp_path, Args)] == ["schema", "limits"]


def test_a_key_that_was_left_out_is_named(tmp_path: Path) -> None:
    (problem,) = problems_of("log_level: info\n", tmp_path, Args)
    assert problem.path == "schema" and "required" in problem.message


def test_what_a_union_allows_is_told_in_one_problem(tmp_path: Path) -> None:
    (problem,) = problems_of("schema: 1\ngateways: several\n", tmp_path, Args)
    assert problem.path == "gateways" and "'several'" in problem.message
    assert "'auto'" in problem.message and "integer" in problem.message


@pytest.mark.parametrize(
    "text",
    [
        "schema: 1\nsecret: hunter2\n",
        "schema: 1\nadmin_token: [hunter2]\n",
        "schema: 1\nadmin_token: {file: {x: hunter2}}\n",
        "schema: 1\nsecret: {env: [hunter2]}\n",
        "schema: 1\nsecret: {env: A, file: hunter2}\n",
        "schema: 1\nsecret: 12345\nadmin_token: !!binary aHVudGVyMg==\n",
    ],
)
def test_a_secret_that_stands_in_the_file_is_not_repeated(tmp_path: Path, text: str) -> None:
    found = problems_of(text, tmp_path, Args)
    assert found and not any(s in str(p) for p in found for s in ("hunter2", "12345"))


def test_a_refused_document_does_not_repeat_a_secret() -> None:
    application = {
        "import_path": "gateway.app:build",
        "name": "a",
        "args": {"schema": 1, "secret": "hunter2", "admin_token": {"token": "hunter2"}},
    }
    with pytest.raises(ConfigError, match="secret") as found:
        check_document({"applications": [application]}, "a")
    assert "hunter2" not in found.value.message


@pytest.mark.parametrize(
    "document",
    [{}, {"applications": None}, {"applications": []}, {"applications": [{"name": "a"}]}],
)
def test_a_document_without_the_application_is_refused(document: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="'a'"):
        check_document(document, "a")


@pytest.mark.parametrize(
    "part", [{"args": 5}, {"args": None}, {"deployments": 5}, {"deployments": ["Pool"]}]
)
def test_a_document_of_wrong_types_is_refused(part: dict[str, Any]) -> None:
    application = {"import_path": "gateway.app:build", "name": "a", "args": {"schema": 1}, **part}
    with pytest.raises(ConfigError, match="not valid"):
        check_document({"applications": [application]}, "a")


@pytest.mark.parametrize("applications", [5, "a", ["a"], {"name": "a"}])
def test_applications_that_are_no_list_are_refused(applications: Any) -> None:
    with pytest.raises(ConfigError, match="`applications` should be a list of mappings"):
        check_document({"applications": applications}, "a")


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        (b"", 1, "empty"),
        (b"a: 1\nb: [1\nc: 2\n", 3, "not valid YAML"),
        (b"a: 1\n\tb: 2\n", 2, "not valid YAML"),
        (b"a: 1\nb: &x [*x]\n", 2, "an alias refers to what contains it"),
        (b"a: 2026-99-99\n", 0, "not valid YAML"),
        (b"a: !!python/object:os.system {}\n", 1, "not valid YAML"),
        (b"a: \xff\n", 1, "not UTF-8"),
        (b"[" * 5000, 0, "nests too deeply"),
    ],
)
def test_what_is_no_yaml_is_one_problem(tmp_path: Path, text: bytes, line: int, words: str) -> None:
    (tmp_path / "f.yaml").write_bytes(text)
    with pytest.raises(ConfigFileError) as found:
        read_source(tmp_path / "f.yaml")
    (problem,) = found.value.problems
    assert problem.line == line and words in problem.message


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigFileError, match="is a folder"):
        read_source(tmp_path)


def test_keys_that_stand_twice_are_told_with_both_lines(tmp_path: Path) -> None:
    (tmp_path / "f.yaml").write_text("a: {x: 1}\nb:\n  - c: 1\n    c: 2\na: 3\n")
    found = read_source(tmp_path / "f.yaml").duplicates
    assert [(each.line, each.path) for each in found] == [(4, "b[0].c"), (5, "a")]
    assert "first on line 3" in found[0].message and "first on line 1" in found[1].message


def test_shared_memory_is_allowed_in_short_or_with_a_prefix(tmp_path: Path) -> None:
    allowed = Args.model_validate({"schema": 1, "shared_memory": True}).shared_memory
    assert allowed is not None and (allowed.prefix, allowed.user) == ("", None)
    assert Args.model_validate({"schema": 1, "shared_memory": False}).shared_memory is None
    narrow = Args.model_validate({"schema": 1, "shared_memory": {"prefix": "triton_", "user": 7}})
    assert narrow.shared_memory is not None and narrow.shared_memory.prefix == "triton_"
    (problem,) = problems_of("schema: 1\nshared_memory: {prefix: a/b}\n", tmp_path, Args)
    assert problem.path == "shared_memory.prefix"
    (problem,) = problems_of("schema: 1\nshared_memory: some\n", tmp_path, Args)
    assert problem.path == "shared_memory"
