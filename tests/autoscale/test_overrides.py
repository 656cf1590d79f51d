from __future__ import annotations

from autoscale.overrides import Overrides
from headrace.config.args import Batching, ModelConfig
from headrace.snapshot import Override

BASE = ModelConfig()
OTHER = ModelConfig(batching=Batching(max_rows=5))


def test_without_overrides_the_config_counts() -> None:
    assert Overrides().effective({"m": BASE}) == {"m": BASE}


def test_a_load_adds_or_replaces_and_an_unload_takes_away() -> None:
    overrides = Overrides()
    overrides.load("extra", OTHER)
    overrides.unload("m")
    assert overrides.effective({"m": BASE}) == {"extra": OTHER}
    overrides.load("m", None)
    overrides.unload("extra")
    assert overrides.effective({"m": BASE}) == {"m": BASE}
    overrides.load("extra", None)
    assert overrides.effective({"m": BASE}) == {"m": BASE, "extra": OTHER}


def test_a_load_ends_a_rollback_and_rollbacks_add_up() -> None:
    overrides = Overrides()
    overrides.reject("m", [3])
    overrides.reject("m", [2, 3])
    assert overrides.rejected("m") == {2, 3} and overrides.rejected("other") == frozenset()
    overrides.load("m", None)
    assert overrides.rejected("m") == frozenset() and overrides.memory() == {}


def test_an_order_is_put_back_unless_something_newer_was_said() -> None:
    overrides = Overrides()
    overrides.reject("m", [3])
    before = overrides.memory()
    overrides.serve_only({"m": OTHER, "n": OTHER, "new": OTHER}, ["m", "n"])
    said = overrides.memory()
    overrides.unload("n")
    overrides.put_back(["m", "n", "new", "absent"], said, before)
    assert overrides.memory() == {
        "m": Override(rejected=(3,)),
        "n": Override(config=OTHER, unloaded=True),
    }


def test_serve_only_unloads_the_rest() -> None:
    overrides = Overrides()
    overrides.reject("n", [1])
    overrides.serve_only({"n": OTHER}, ["m", "n"])
    assert overrides.effective({"m": BASE, "n": BASE}) == {"n": OTHER}
    assert overrides.rejected("n") == frozenset()


def test_what_an_earlier_pool_knew_gives_way_to_what_was_said_since() -> None:
    overrides = Overrides()
    overrides.unload("m")
    overrides.restore({"m": Override(rejected=(2,)), "n": Override(unloaded=True)})
    assert overrides.memory() == {"m": Override(unloaded=True), "n": Override(unloaded=True)}
    overrides.forget(["n", "absent"])
    assert overrides.memory() == {"m": Override(unloaded=True)}
