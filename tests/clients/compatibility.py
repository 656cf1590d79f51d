"""What of its peers' protocols Headrace offers, as a table that is checked row by row.

`python -m tests.clients.compatibility` writes `docs/compatibility.md` from it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from headrace.protocols.wire import message

PAGE = Path(__file__).resolve().parents[2] / "docs" / "compatibility.md"
Offer = Literal["yes", "config", "no"]
OFFERS: Mapping[Offer, str] = {"yes": "yes", "config": "if configured", "no": "no"}
"""`config`: where the configuration says so. The row names the key and asks without it."""


@dataclass(frozen=True, slots=True)
class Http:
    """A request to the public HTTP listener, and what its answer must be."""

    method: str
    path: str
    body: Any = None
    status: int = 200
    says: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def content(self) -> bytes | None:
        """The body's bytes; documents are JSON."""
        if self.body is None or isinstance(self.body, bytes):
            return self.body
        return json.dumps(self.body).encode()


@dataclass(frozen=True, slots=True)
class Grpc:
    """A call to the gRPC listener, and what its answer must be."""

    method: str
    request: bytes = b""
    code: str = "OK"
    says: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """One thing that a client may ask for, and what it gets."""

    what: str
    offered: Offer
    answer: str
    ask: Http | Grpc


@dataclass(frozen=True, slots=True)
class Section:
    """A protocol, and which clients speak it."""

    title: str
    clients: str
    rows: tuple[Row, ...]


def tensors(**more: Any) -> dict[str, Any]:
    """A v2 request for `affine`."""
    return {
        "inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]
    } | more


def packed(kind: str, /, **fields: Any) -> bytes:
    """A gRPC request message."""
    found: bytes = message(kind)(**fields).SerializeToString()
    return found


def render(sections: Iterable[Section]) -> str:
    """The page."""
    parts = [HEAD]
    for section in sections:
        rows = [f"| {row.what} | {OFFERS[row.offered]} | {row.answer} |" for row in section.rows]
        table = "\n".join(
            ("| what | offered | how, or what is answered instead |", "| --- | --- | --- |", *rows)
        )
        parts.append(f"## {section.title}\n\n{section.clients}\n\n{table}")
    return "\n\n".join(parts) + "\n"


HEAD = """# Compatibility

Clients of TensorFlow Serving, Triton and KServe work by changing the address. This page tells per
protocol what is offered, what is not, and what is answered instead. It is made from the table in
`tests/clients/compatibility.py` (`python -m tests.clients.compatibility`); a test asks a gateway
for each row of it."""

V1 = "/v1/models/affine"
V2 = "/v2/models/affine"
TRITON = "/inference.GRPCInferenceService/"
PREDICTION = "/tensorflow.serving.PredictionService/"
SERVING = "/tensorflow.serving.ModelService/"
INSTANCES = {"instances": [[1, 2, 3, 4]]}
FLOATS = b"\0\0\x80?\0\0\0@\0\0@@\0\0\x80@"
NAMED = packed("inference.ModelMetadataRequest", name="affine")


def binary_request() -> Http:
    """A v2 request with its tensor as bytes, and its answer's too."""
    tensor = {"name": "x", "shape": [1, 4], "datatype": "FP32"}
    document = {
        "inputs": [tensor | {"parameters": {"binary_data_size": len(FLOATS)}}],
        "parameters": {"binary_data_output": True},
    }
    head = json.dumps(document).encode()
    length = {"Inference-Header-Content-Length": str(len(head))}
    return Http("POST", f"{V2}/infer", head + FLOATS, says="binary_data_size", headers=length)


def infer_message(**more: Any) -> bytes:
    """A ModelInferRequest for `affine` with raw contents."""
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 4]}
    fields = {"model_name": "affine", "inputs": [tensor], "raw_input_contents": [FLOATS]}
    return packed("inference.ModelInferRequest", **(fields | more))


def spec(**more: Any) -> dict[str, Any]:
    """The model spec of a TensorFlow Serving request."""
    return {"model_spec": {"name": "affine"} | more}


def predict_message(**more: Any) -> bytes:
    """A PredictRequest for `affine`."""
    shape = {"dim": [{"size": 1}, {"size": 4}]}
    tensor = {"dtype": 1, "tensor_shape": shape, "tensor_content": FLOATS}
    return packed("tensorflow.serving.PredictRequest", inputs={"x": tensor}, **spec(**more))


TENSORFLOW_REST = Section(
    "TensorFlow Serving, REST",
    "Paths are `/v1/models/{name}[/versions/{n}|/labels/{label}]` and what is told below.",
    (
        Row(
            "`:predict`, rows",
            "yes",
            "`instances` are answered with `predictions`",
            Http("POST", f"{V1}:predict", INSTANCES, says='{"predictions":[[3.0,5.0,7.0,9.0]]}'),
        ),
        Row(
            "`:predict`, columns",
            "yes",
            "`inputs` are answered with `outputs`",
            Http("POST", f"{V1}:predict", {"inputs": [[1, 2, 3, 4]]}, says='{"outputs":[[3.0'),
        ),
        Row(
            "`:predict` with `signature_name`",
            "yes",
            "an unknown one is 400",
            Http("POST", f"{V1}:predict", INSTANCES | {"signature_name": "no"}, 400, "signature"),
        ),
        Row(
            "versions and labels in the path",
            "yes",
            "an unknown version is 404, `Servable not found for request: Specific(name, version)`",
            Http("POST", f"{V1}/versions/9:predict", INSTANCES, 404, "Specific(affine, 9)"),
        ),
        Row(
            "an unknown model",
            "yes",
            "404, `Servable not found for request: Latest(name)`",
            Http("POST", "/v1/models/no:predict", INSTANCES, 404, "request: Latest(no)"),
        ),
        Row(
            "`:classify` and `:regress`",
            "yes",
            "for signatures of that method, and for every TensorFlow signature of one string, "
            "which gets the serialized examples; else 400 tells what the signature lacks",
            Http("POST", f"{V1}:classify", {"examples": [{"x": 1.0}]}, 400, "error"),
        ),
        Row(
            "status",
            "yes",
            "of all versions, with KServe's `name` and `ready`; or of one",
            Http("GET", V1, says="AVAILABLE"),
        ),
        Row(
            "`/metadata`",
            "yes",
            "signatures with the tensors' names in the graph",
            Http("GET", f"{V1}/metadata", says="signature_def"),
        ),
        Row(
            "verbs in capitals, and other paths below `/v1/`",
            "no",
            "400, `Malformed request: METHOD path`",
            Http("POST", f"{V1}:Predict", INSTANCES, 400, "Malformed request: POST"),
        ),
    ),
)

TENSORFLOW_GRPC = Section(
    "TensorFlow Serving, gRPC",
    "`tensorflow.serving.PredictionService` and `ModelService`.",
    (
        Row(
            "`Predict`",
            "yes",
            "`model_spec` of the answer names the version and the signature that answered",
            Grpc(f"{PREDICTION}Predict", predict_message(), says="affine"),
        ),
        Row(
            "`Predict` with a version",
            "yes",
            "an unknown one is NOT_FOUND",
            Grpc(
                f"{PREDICTION}Predict",
                predict_message(version={"value": 9}),
                "NOT_FOUND",
                "Servable not found for request: Specific(affine, 9)",
            ),
        ),
        Row(
            "`Classify`",
            "yes",
            "as over REST",
            Grpc(
                f"{PREDICTION}Classify",
                packed("tensorflow.serving.ClassificationRequest", **spec()),
                "INVALID_ARGUMENT",
            ),
        ),
        Row(
            "`Regress`",
            "yes",
            "as over REST",
            Grpc(
                f"{PREDICTION}Regress",
                packed("tensorflow.serving.RegressionRequest", **spec()),
                "INVALID_ARGUMENT",
            ),
        ),
        Row(
            "`MultiInference`",
            "yes",
            "all tasks by one version of one model",
            Grpc(
                f"{PREDICTION}MultiInference",
                packed("tensorflow.serving.MultiInferenceRequest"),
                "INVALID_ARGUMENT",
            ),
        ),
        Row(
            "`GetModelMetadata`",
            "yes",
            "the field `signature_def`",
            Grpc(
                f"{PREDICTION}GetModelMetadata",
                packed(
                    "tensorflow.serving.GetModelMetadataRequest",
                    metadata_field=["signature_def"],
                    **spec(),
                ),
                says="signature_def",
            ),
        ),
        Row(
            "`GetModelStatus`",
            "yes",
            "of all versions, or of one",
            Grpc(
                f"{SERVING}GetModelStatus",
                packed("tensorflow.serving.GetModelStatusRequest", **spec()),
            ),
        ),
        Row(
            "`HandleReloadConfigRequest`",
            "config",
            "PERMISSION_DENIED without `repository.control: public`; the models are those of the "
            "store, so a `base_path` elsewhere is refused",
            Grpc(
                f"{SERVING}HandleReloadConfigRequest",
                packed("tensorflow.serving.ReloadConfigRequest"),
                "PERMISSION_DENIED",
                "repository.control",
            ),
        ),
        Row(
            "`SessionService`, streamed predictions",
            "no",
            "UNIMPLEMENTED",
            Grpc("/tensorflow.serving.SessionService/SessionRun", b"", "UNIMPLEMENTED"),
        ),
    ),
)

TRITON_HTTP = Section(
    "Open Inference Protocol v2 and Triton's extensions, HTTP",
    "Paths are `/v2` and `/v2/models/{name}[/versions/{n}]` and what is told below.",
    (
        Row(
            "server metadata",
            "yes",
            "the name is `triton`, as its examples demand; the version is Headrace's",
            Http("GET", "/v2", says='"name":"triton"'),
        ),
        Row("`/v2/health/live`", "yes", "", Http("GET", "/v2/health/live")),
        Row("`/v2/health/ready`", "yes", "503 before", Http("GET", "/v2/health/ready")),
        Row("`/ready` of a model", "yes", "503 while it is not", Http("GET", f"{V2}/ready")),
        Row("metadata of a model", "yes", "", Http("GET", V2, says='"platform"')),
        Row(
            "`/infer` with JSON",
            "yes",
            "numbers flat or nested; FP16 and BF16 have no JSON form; BYTES are text",
            Http("POST", f"{V2}/infer", tensors(), says='"data":[3.0,5.0,7.0,9.0]'),
        ),
        Row(
            "`/infer` with binary tensors",
            "yes",
            "all data types, BF16 where the model takes it; BYTES that are not UTF-8 as well",
            binary_request(),
        ),
        Row(
            "`/infer` with a raw body",
            "yes",
            "`Inference-Header-Content-Length: 0`, for models of one input whose shape can be told "
            "from the number of bytes",
            Http(
                "POST",
                f"{V2}/infer",
                FLOATS,
                says='"model_name"',
                headers={"Inference-Header-Content-Length": "0"},
            ),
        ),
        Row(
            "`parameters`",
            "yes",
            "scalars; lists and objects are 400. `timeout` (µs) and `priority` hold",
            Http("POST", f"{V2}/infer", tensors(parameters={"a": []}), 400, "a"),
        ),
        Row(
            "an unknown model",
            "yes",
            "404, `Request for unknown model: 'name' …`",
            Http("POST", "/v2/models/no/infer", tensors(), 404, "Request for unknown model: 'no'"),
        ),
        Row(
            "classification (`parameters.classification`)",
            "yes",
            "BYTES `value:index`, or `value:index:label` where the model has labels",
            Http(
                "POST",
                f"{V2}/infer",
                tensors(outputs=[{"name": "y", "parameters": {"classification": 2}}]),
                says='"9.000000:3","7.000000:2"',
            ),
        ),
        Row(
            "sequences (`sequence_id`)",
            "no",
            "requests are independent of each other: 501",
            Http("POST", f"{V2}/infer", tensors(parameters={"sequence_id": 7}), 501, "sequence"),
        ),
        Row("`/stats`", "yes", "", Http("GET", f"{V2}/stats", says='"inference_count"')),
        Row(
            "`/config`",
            "yes",
            "every field with its default; `config.pbtxt` says `dims`, `format`, `reshape`, "
            "labels, `max_batch_size` and which outputs are served; the rest is named as ignored",
            Http("GET", f"{V2}/config", says='"max_batch_size"'),
        ),
        Row(
            "`/v2/repository/index`",
            "yes",
            "the models of the store and those that are served; `ready` leaves these alone",
            Http("POST", "/v2/repository/index", {"ready": True}, says='"affine"'),
        ),
        Row(
            "`/v2/repository/models/{name}/load` and `/unload`",
            "config",
            "403 without `repository.control: public`, but on the admin listener",
            Http("POST", "/v2/repository/models/affine/load", {}, 403, "repository.control"),
        ),
        Row(
            "system shared memory",
            "config",
            "`shared_memory: true` offers it to clients on the gateway's machine; without it no "
            "region is listed, and registering one is 501",
            Http("GET", "/v2/systemsharedmemory/status", says="[]"),
        ),
        Row(
            "CUDA shared memory",
            "no",
            "no region is listed; registering one is 400",
            Http("POST", "/v2/cudasharedmemory/region/r/register", {}, 400, "failed to register"),
        ),
        Row(
            "`/v2/trace/setting`",
            "yes",
            "can be read; tracing is `OFF`",
            Http("GET", "/v2/trace/setting", says='"trace_level"'),
        ),
        Row(
            "`/v2/logging`",
            "yes",
            "can be read; the configuration sets it",
            Http("GET", "/v2/logging", says='"log_info"'),
        ),
        Row(
            "`/generate` and `/generate_stream`",
            "no",
            "404",
            Http("POST", f"{V2}/generate", {}, 404),
        ),
    ),
)

TRITON_GRPC = Section(
    "Open Inference Protocol v2 and Triton's extensions, gRPC",
    "`inference.GRPCInferenceService`.",
    (
        Row("`ServerLive`", "yes", "", Grpc(f"{TRITON}ServerLive")),
        Row("`ServerReady`", "yes", "", Grpc(f"{TRITON}ServerReady")),
        Row(
            "`ModelReady`",
            "yes",
            "false for an unknown model",
            Grpc(f"{TRITON}ModelReady", NAMED, says="\x08\x01"),
        ),
        Row("`ServerMetadata`", "yes", "", Grpc(f"{TRITON}ServerMetadata", says="triton")),
        Row("`ModelMetadata`", "yes", "", Grpc(f"{TRITON}ModelMetadata", NAMED, says="affine")),
        Row(
            "`ModelInfer`",
            "yes",
            "raw and typed contents; the answer has raw ones",
            Grpc(f"{TRITON}ModelInfer", infer_message(), says="affine"),
        ),
        Row(
            "`ModelInfer` of an unknown model",
            "yes",
            "NOT_FOUND, `Request for unknown model: 'name' …`",
            Grpc(
                f"{TRITON}ModelInfer",
                infer_message(model_name="no"),
                "NOT_FOUND",
                "Request for unknown model: 'no'",
            ),
        ),
        Row(
            "`ModelStreamInfer`",
            "yes",
            "one answer for each request; errors of a request stand in its answer",
            Grpc(f"{TRITON}ModelStreamInfer", infer_message(), says="affine"),
        ),
        Row("`ModelConfig`", "yes", "as over HTTP", Grpc(f"{TRITON}ModelConfig", NAMED)),
        Row("`ModelStatistics`", "yes", "", Grpc(f"{TRITON}ModelStatistics", NAMED)),
        Row("`RepositoryIndex`", "yes", "", Grpc(f"{TRITON}RepositoryIndex")),
        *(
            Row(
                f"`{name}`",
                "config",
                "PERMISSION_DENIED without `repository.control: public`",
                Grpc(f"{TRITON}{name}", b"", "PERMISSION_DENIED", "repository.control"),
            )
            for name in ("RepositoryModelLoad", "RepositoryModelUnload")
        ),
        Row(
            "`SystemSharedMemoryStatus`",
            "config",
            "without `shared_memory: true` empty",
            Grpc(f"{TRITON}SystemSharedMemoryStatus"),
        ),
        Row(
            "`SystemSharedMemoryRegister`",
            "config",
            "without `shared_memory: true` UNIMPLEMENTED",
            Grpc(f"{TRITON}SystemSharedMemoryRegister", b"", "UNIMPLEMENTED"),
        ),
        Row(
            "`SystemSharedMemoryUnregister`",
            "config",
            "nothing to do where none is registered",
            Grpc(f"{TRITON}SystemSharedMemoryUnregister"),
        ),
        Row("`CudaSharedMemoryStatus`", "no", "empty", Grpc(f"{TRITON}CudaSharedMemoryStatus")),
        Row(
            "`CudaSharedMemoryRegister`",
            "no",
            "INVALID_ARGUMENT with the reason",
            Grpc(f"{TRITON}CudaSharedMemoryRegister", b"", "INVALID_ARGUMENT", "GPU"),
        ),
        Row(
            "`CudaSharedMemoryUnregister`",
            "no",
            "nothing to do",
            Grpc(f"{TRITON}CudaSharedMemoryUnregister"),
        ),
        Row(
            "`TraceSetting`",
            "yes",
            "can be read; tracing is `OFF`",
            Grpc(f"{TRITON}TraceSetting", says="OFF"),
        ),
        Row(
            "`LogSettings`",
            "yes",
            "can be read; the configuration sets them",
            Grpc(f"{TRITON}LogSettings", says="log_info"),
        ),
        Row(
            "`grpc.health.v1.Health`",
            "yes",
            "of the server and of each service",
            Grpc("/grpc.health.v1.Health/Check", says="\x08\x01"),
        ),
    ),
)

KSERVE = Section(
    "KServe",
    "v2 is the Open Inference Protocol above; v1 shares its paths with TensorFlow Serving.",
    (
        Row(
            "v1 liveness, `GET /`",
            "yes",
            '`{"status": "alive"}`',
            Http("GET", "/", says='"alive"'),
        ),
        Row(
            "v1 `:predict`",
            "yes",
            "as TensorFlow Serving's",
            Http("POST", f"{V1}:predict", INSTANCES, says="predictions"),
        ),
        Row(
            "v1 `:explain`",
            "no",
            "400, `Malformed request: METHOD path`",
            Http("POST", f"{V1}:explain", INSTANCES, 400, "Malformed request"),
        ),
    ),
)

SECTIONS = (TENSORFLOW_REST, TENSORFLOW_GRPC, TRITON_HTTP, TRITON_GRPC, KSERVE)


def main() -> None:
    """Write the page."""
    PAGE.write_text(render(SECTIONS), encoding="utf-8")


if __name__ == "__main__":
    main()
