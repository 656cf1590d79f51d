"""Made-up inputs are legal, and may be refused; recorded requests are run and may not."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from headrace.errors import InternalError, InvalidArgument, ModelLoadError
from headrace.spec import BYTES, ModelSpec, Signature, Tensor, TensorSpec
from replicas.warmup import PICTURE_PNG, synthetic_inputs, warm_up

FLOAT = np.dtype(np.float32)


class FakeRuntime:
    """Records its runs; raises `error` in each of them if there is one."""

    single_threaded = False

    def __init__(
        self, *signatures: Signature, error: Exception | None = None, max_rows: int = 0
    ) -> None:
        named = {each.name: each for each in signatures}
        self.spec = ModelSpec("demo", 1, "fake", named, max_rows=max_rows)
        self.runs: list[tuple[str, list[str], list[str]]] = []
        self.inputs: list[Mapping[str, Tensor]] = []
        self._error = error

    def run(
        self,
        signature: str,
        inputs: Mapping[str, Tensor],
        outputs: Sequence[str],
        more: bool = False,
    ) -> dict[str, Tensor]:
        self.runs.append((signature, sorted(inputs), list(outputs)))
        self.inputs.append(inputs)
        if self._error is not None:
            raise self._error
        return {}

    def close(self) -> None:
        raise AssertionError("a warm-up closes nothing")


def signature(*inputs: TensorSpec, name: str = "serving_default") -> Signature:
    return Signature(name, inputs, (TensorSpec("y", FLOAT, (None,)),))


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((None, 10), (3, 10)),
        ((None, None), (3, 1)),
        ((2, None), (2, 1)),
        ((None, None, None, 3), (3, 64, 64, 3)),
        ((None, 3, None, None), (3, 3, 64, 64)),
        ((1, 224, 224, 3), (1, 224, 224, 3)),
        ((), ()),
    ],
)
def test_synthetic_inputs_fill_free_dimensions(
    shape: tuple[int | None, ...], expected: tuple[int, ...]
) -> None:
    made = synthetic_inputs(signature(TensorSpec("x", FLOAT, shape)), rows=3)
    assert made is not None
    assert made["x"].shape == expected
    assert made["x"].dtype == FLOAT
    assert not made["x"].any()


def test_synthetic_inputs_give_a_picture_to_an_input_named_for_one() -> None:
    specs = (TensorSpec("image_bytes", BYTES, (None,)), TensorSpec("text", BYTES, (None, 1)))
    made = synthetic_inputs(signature(*specs), rows=2)
    assert made is not None
    assert made["image_bytes"].tolist() == [PICTURE_PNG, PICTURE_PNG]
    assert made["text"].tolist() == [[b""], [b""]]
    assert Image.open(BytesIO(PICTURE_PNG)).convert("RGB").getpixel((7, 7)) == (255, 0, 0)


def test_synthetic_inputs_are_none_when_a_rank_is_unknown() -> None:
    assert synthetic_inputs(signature(TensorSpec("x", FLOAT, None)), rows=1) is None


def test_warm_up_runs_every_signature_that_it_can() -> None:
    one = signature(TensorSpec("x", FLOAT, (None,)))
    two = signature(TensorSpec("z", FLOAT, (None,)), name="second")
    unknown = signature(TensorSpec("x", FLOAT, None), name="unknown")
    runtime = FakeRuntime(one, unknown, two)
    warm_up(runtime)
    assert runtime.runs == [("serving_default", ["x"], ["y"]), ("second", ["z"], ["y"])]


def test_warm_up_goes_on_when_a_model_refuses_zeros() -> None:
    specs = TensorSpec("x", FLOAT, (None,))
    runtime = FakeRuntime(
        signature(specs), signature(specs, name="second"), error=InvalidArgument("no zeros")
    )
    warm_up(runtime)
    assert [name for name, _, _ in runtime.runs] == ["serving_default", "second"]


def test_warm_up_raises_what_is_not_about_the_inputs() -> None:
    runtime = FakeRuntime(signature(TensorSpec("x", FLOAT, ())), error=InternalError("no memory"))
    with pytest.raises(InternalError, match="no memory"):
        warm_up(runtime)


def write_request(folder: Path, name: str, document: object) -> None:
    (folder / "warmup").mkdir(exist_ok=True)
    (folder / "warmup" / name).write_text(json.dumps(document))


def test_recorded_requests_are_run_in_place_of_made_up_ones(tmp_path: Path) -> None:
    spec = TensorSpec("x", FLOAT, (None, 2))
    runtime = FakeRuntime(signature(spec), signature(spec, name="second"))
    write_request(tmp_path, "a.json", {"instances": [[1, 2]]})
    write_request(tmp_path, "b.json", {"signature_name": "second", "inputs": [[3, 4]]})
    warm_up(runtime, tmp_path)
    assert runtime.runs == [("serving_default", ["x"], ["y"]), ("second", ["x"], ["y"])]
    assert [given["x"].tolist() for given in runtime.inputs] == [[[1, 2]], [[3, 4]]]


def test_made_up_requests_are_run_where_none_is_recorded(tmp_path: Path) -> None:
    runtime = FakeRuntime(signature(TensorSpec("x", FLOAT, (None, 2))))
    warm_up(runtime, tmp_path)
    assert [given["x"].tolist() for given in runtime.inputs] == [[[0, 0]]]


def test_a_recorded_request_runs_no_more_rows_than_a_batch_holds(tmp_path: Path) -> None:
    runtime = FakeRuntime(signature(TensorSpec("x", FLOAT, (None, 1))), max_rows=2)
    write_request(tmp_path, "a.json", {"instances": [[1], [2], [3]]})
    warm_up(runtime, tmp_path)
    assert [given["x"].tolist() for given in runtime.inputs] == [[[1], [2]]]


@pytest.mark.parametrize("error", [InvalidArgument("not so"), InternalError("not so")])
def test_a_recorded_request_that_the_model_refuses_fails_the_version(
    tmp_path: Path, error: Exception
) -> None:
    runtime = FakeRuntime(signature(TensorSpec("x", FLOAT, (None, 1))), error=error)
    write_request(tmp_path, "a.json", {"instances": [[1]]})
    write_request(tmp_path, "b.json", {"instances": [[1]]})
    with pytest.raises(ModelLoadError, match=r"^warm-up request warmup/a\.json: not so$"):
        warm_up(runtime, tmp_path)
    assert len(runtime.runs) == 1


def test_a_recorded_request_that_is_for_another_model_fails_the_version(tmp_path: Path) -> None:
    runtime = FakeRuntime(signature(TensorSpec("x", FLOAT, (None, 1))))
    write_request(tmp_path, "a.json", {"inputs": {"z": [[1]]}})
    with pytest.raises(ModelLoadError, match=r"^warm-up request warmup/a\.json: missing inputs"):
        warm_up(runtime, tmp_path)
    assert runtime.runs == []
