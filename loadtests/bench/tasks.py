"""What the servers are asked: a small perceptron over three forms of body, and a real picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort

from loadtests.bench.mlp import (
    NAME,
    OUTPUT,
    RAW_TYPE,
    TFS,
    V2,
    Body,
    mlp_graph,
    one_row,
    right_answer,
    write_bodies,
    write_grpc_body,
    write_version,
)
from loadtests.headrace import copy_models
from loadtests.messages import (
    CLASSES,
    TAGGER,
    Values,
    check_classes,
    load_pictures,
    tagger_message,
)

JSON, BINARY, PICTURE, GRPC = "MLP JSON", "MLP binary", "tagger picture", "MLP gRPC"
TASKS = (JSON, BINARY, PICTURE, GRPC)
TFS_JSON, V2_JSON, V2_BINARY, RAW, V2_GRPC = "TFS JSON", "v2 JSON", "v2 binary", "raw", "v2 gRPC"
"""Forms of body; `raw` is a row's numbers alone, and so is its answer."""

SEEN = "coffee"
"""The picture that is sent."""


@dataclass(frozen=True, slots=True)
class Site:
    """Where one run of the benchmark keeps its files; `answer` is what the perceptron must say.

    `bodies` are for HTTP, `grpc` for gRPC.
    """

    folder: Path
    store: Path
    model: Path
    bodies: tuple[Body, ...]
    grpc: Body
    answer: Values

    @classmethod
    def made(cls, folder: Path) -> Site:
        model = write_version(folder / "store", NAME, mlp_graph())
        bodies, grpc = write_bodies(folder), write_grpc_body(folder)
        return cls(folder, folder / "store", model, bodies, grpc, right_answer(model))


@dataclass(frozen=True, slots=True)
class Task:
    """One kind of request: a model with one output, its bodies by form, and the right answer."""

    name: str
    model: str
    file: Path
    output: str
    bodies: Mapping[str, Body]
    answer: Values


def mlp_task(name: str, site: Site) -> Task:
    """The perceptron, with its row in each form of body."""
    raw = site.folder / "mlp.raw"
    raw.write_bytes(one_row().astype("<f4").tobytes())
    bodies = {body.label: body for body in (*site.bodies, site.grpc)}
    bodies[RAW] = Body(RAW, TFS, "predict", "/", raw, (RAW_TYPE,))
    return Task(name, NAME, site.model, OUTPUT, bodies, site.answer)


def picture_task(site: Site) -> Task:
    """A photograph as 150 KB of pixels for the demo's tagger.

    Raises `PicturesMissing` and `NotStarted` where the demo is not built, and `WrongAnswer`.
    """
    [picture] = [each for each in load_pictures() if each.name == SEEN]
    store = copy_models(site.folder, {TAGGER: TAGGER})
    file = store / TAGGER / "1" / "model.onnx"
    session = ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    [scores] = session.run(["scores"], {"images": picture.pixels})
    answer = np.asarray(scores, np.float64)
    check_classes(answer, picture.expected, CLASSES)
    message = tagger_message(picture)
    binary, raw = site.folder / "tagger.bin", site.folder / "tagger.raw"
    binary.write_bytes(message.body)
    raw.write_bytes(picture.pixels.tobytes())
    headers = tuple(message.headers.items())
    bodies = {
        V2_BINARY: Body(V2_BINARY, V2, "infer", message.path, binary, headers),
        RAW: Body(RAW, TFS, "predict", "/", raw, (RAW_TYPE,)),
    }
    return Task(PICTURE, TAGGER, file, "scores", bodies, answer)
