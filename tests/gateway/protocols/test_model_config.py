from __future__ import annotations

from typing import Any

import pytest

from gateway.config import Batching, Latest, ModelConfig
from gateway.errors import InvalidArgument, Unimplemented
from gateway.protocols.metadata import openinference_config
from gateway.protocols.model_config import overridden
from tests.gateway.protocols.specs import one_input

BASE = ModelConfig(batching=Batching(max_rows=8, max_wait_s=0.5), labels={"stable": 1})


@pytest.mark.parametrize(
    ("policy", "versions"),
    [
        ({"all": {}}, "all"),
        ({"latest": {"num_versions": 2}}, Latest(latest=2)),
        ({"latest": {}}, Latest(latest=1)),
        ({"specific": {"versions": ["1", 3]}}, (1, 3)),
    ],
)
def test_a_version_policy_is_taken_over(policy: dict[str, Any], versions: Any) -> None:
    assert overridden(BASE, {"version_policy": policy}).versions == versions


def test_batching_is_taken_over_and_the_rest_stays() -> None:
    document = {
        "name": "m",
        "platform": "onnxruntime_onnx",
        "max_batch_size": 16,
        "dynamic_batching": {"max_queue_delay_microseconds": "2000"},
    }
    new = overridden(BASE, document)
    assert new.batching == Batching(max_rows=16, max_wait_s=0.002)
    assert new.labels == BASE.labels and new.versions == BASE.versions
    assert overridden(BASE, {"dynamic_batching": {}}) == BASE


def test_what_the_configuration_endpoint_says_may_be_sent_back() -> None:
    shown = openinference_config(one_input())
    assert {"dynamic_batching", "model_transaction_policy", "response_cache"} <= shown.keys()
    assert overridden(BASE, shown).batching.max_rows == shown["max_batch_size"]


@pytest.mark.parametrize(
    ("document", "error", "words"),
    [
        ({"instance_group": []}, Unimplemented, "instance_group"),
        ({"versions": [1]}, Unimplemented, "versions"),
        ({"response_cache": {"enable": True}}, Unimplemented, "response_cache"),
        ({"dynamic_batching": {"delay": 3}}, Unimplemented, "dynamic_batching.delay"),
        ({"version_policy": {"latest": {"count": 2}}}, Unimplemented, "latest.count"),
        ({"version_policy": {"specific": {"version": [2]}}}, Unimplemented, "specific.version"),
        ({"version_policy": {"all": {"of": 2}}}, Unimplemented, "all.of"),
        ({"version_policy": {"latest": 2}}, InvalidArgument, "latest"),
        ({"version_policy": {"specific": {}}}, InvalidArgument, "at least one version"),
        ({"max_batch_size": "many"}, InvalidArgument, "max_batch_size"),
        ({"max_batch_size": -1}, InvalidArgument, "batching.max_rows"),
        ({"dynamic_batching": 3}, InvalidArgument, "dynamic_batching"),
        ({"version_policy": {"newest": {}}}, InvalidArgument, "version_policy"),
        ({"version_policy": {"latest": {"num_versions": 0}}}, InvalidArgument, "versions"),
    ],
)
def test_what_cannot_be_overridden_is_named(
    document: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        overridden(BASE, document)
