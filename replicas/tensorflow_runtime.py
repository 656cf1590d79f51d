"""Run SavedModels with TensorFlow; the only importer of `tensorflow`."""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import structlog

from headrace.errors import InternalError, InvalidArgument, ModelLoadError, NotFound
from headrace.protocols.datatypes import is_supported
from headrace.runtimes import TENSORFLOW
from headrace.spec import BYTES, ModelSpec, Signature, Tensor, TensorSpec
from replicas.runtime import Runtime, RuntimeSettings, without_places

# Read by TensorFlow while it is imported; 2 keeps errors only.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# Keras takes 40 % of the import and 100 MB, and SavedModels run without it; this leaves it out.
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")

import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow.core.protobuf import config_pb2, saved_model_pb2

# The same for its log from Python, which advises exporters of models.
tf.get_logger().setLevel(logging.ERROR)

log = structlog.get_logger()

_SERVE = "serve"
_DEFAULT = "serving_default"
_PREDICT = "tensorflow/serving/predict"
_OWN = "__saved_model"  # signatures that initialise and train
_REASON_CHARS = 200
_CALLABLES = 64
"""Cap on prepared calls of a TensorFlow 1 signature, one for each combination of outputs."""
_STACK_TRACE = re.compile(
    r"\n\s*(?:Original stack trace for|Errors may have originated from|Function call stack:)"
)
_ROOT_ERROR = re.compile(r"^\s*\(\d+\) [A-Za-z_ ]+: +", re.MULTILINE)
_NOISE = re.compile(
    r"\{\{function_node [^}]*\}\}|\[Op:[^\]]*\](?: name: ?\S*)?|\[\[\{\{.*"
    r"| in binary running on \S+(?=\.)"  # the name of this host
)
_NO_REASON = re.compile(
    r"\s|$|Graph execution error:|Detected at node |Node: '|<stack traces unavailable>|File "
    r"|Hint: |\d+ root error\(s\) found|\d+ successful operations|\d+ derived errors|Traceback "
)
"""Lines that name a place in a graph or a source instead of an error."""
# A damaged SavedModel fails wherever the loader first stumbles over it.
_LOAD_ERRORS = (
    tf.errors.OpError,
    OSError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    RuntimeError,
)


def load(path: Path, name: str, version: int, settings: RuntimeSettings) -> Runtime:
    """Load the SavedModel in `path`; raises `ModelLoadError` with one sentence."""
    where = f"model {name} version {version}"
    _configure_process(settings)
    graph = _serving_graph(path, where)
    spec = _model_spec(graph, name, version, settings, where)
    try:
        # Exports of TensorFlow 2 hold objects. Only a session runs all graphs of TensorFlow 1.
        if graph.HasField("object_graph_def"):
            model = tf.saved_model.load(os.fspath(path), tags=list(graph.meta_info_def.tags))
            functions = {name: _object_function(model.signatures[name]) for name in spec.signatures}
        else:
            model, functions = _open_graph(path, graph, spec, settings)
    except _LOAD_ERRORS as error:
        raise ModelLoadError(
            f"{where}: the SavedModel is damaged, incomplete or not supported: "
            f"{_reason(error, path)}"
        ) from error
    return TensorFlowRuntime(model, functions, spec, path)


Function = Callable[[Mapping[str, Tensor], Sequence[str]], dict[str, Tensor]]
"""Runs a signature: inputs and names of outputs in, outputs out."""


class TensorFlowRuntime:
    """A loaded SavedModel; keeps the object alive, since functions only borrow its variables."""

    single_threaded = False

    def __init__(
        self, model: Any, functions: Mapping[str, Function], spec: ModelSpec, folder: Path
    ) -> None:
        self._model = model
        self._functions = dict(functions)
        self.spec = spec
        self._folder = folder

    def run(
        self,
        signature: str,
        inputs: Mapping[str, Tensor],
        outputs: Sequence[str],
        more: bool = False,
    ) -> dict[str, Tensor]:
        """Compute the named outputs; raises `NotFound` for an unknown signature."""
        where = f"model {self.spec.name} version {self.spec.version}"
        function = self._functions.get(signature)
        if function is None:
            known = ", ".join(map(repr, self.spec.signatures))
            raise NotFound(f"{where} has no signature {signature!r}; it has {known}")
        wanted = {spec.name for spec in self.spec.signatures[signature].inputs}
        if inputs.keys() != wanted:
            raise InvalidArgument(
                f"{where} takes the inputs {sorted(wanted)}, not {sorted(inputs)}"
            )
        try:
            return function(inputs, outputs)
        except KeyError as error:
            raise InvalidArgument(f"{where} has no output {error}") from error
        except (tf.errors.InvalidArgumentError, ValueError, TypeError) as error:
            reason = _reason(error, self._folder)
            raise InvalidArgument(f"{where} refused the inputs: {reason}") from error
        except tf.errors.OpError as error:
            raise InternalError(f"{where} failed: {_reason(error, self._folder)}") from error

    def close(self) -> None:
        """Drop the model; TensorFlow keeps part of the memory until the process ends."""
        self._functions.clear()
        if isinstance(self._model, tf.compat.v1.Session):
            self._model.close()
        self._model = None


def _object_function(concrete: Any) -> Function:
    def run(inputs: Mapping[str, Tensor], outputs: Sequence[str]) -> dict[str, Tensor]:
        tensors = {
            name: tf.constant(value, tf.string if value.dtype == BYTES else None)
            for name, value in inputs.items()
        }
        results = concrete(**tensors)
        return {name: _to_array(results[name].numpy()) for name in outputs}

    return run


def _open_graph(
    path: Path, graph: Any, spec: ModelSpec, settings: RuntimeSettings
) -> tuple[Any, dict[str, Function]]:
    """A session with the graph of a TensorFlow 1 export, and its signatures."""
    config = tf.compat.v1.ConfigProto(
        intra_op_parallelism_threads=max(1, math.floor(settings.cores)),
        inter_op_parallelism_threads=1,
        # Graphs may name the device that they were trained on.
        allow_soft_placement=True,
    )
    if settings.device == "cuda":
        config.gpu_options.allow_growth = True
    else:
        config.device_count["GPU"] = 0
    session = tf.compat.v1.Session(graph=tf.Graph(), config=config)
    try:
        with session.graph.as_default():
            tf.compat.v1.saved_model.load(session, graph.meta_info_def.tags, os.fspath(path))
        return session, {
            name: _graph_function(session, signature) for name, signature in spec.signatures.items()
        }
    except BaseException:
        session.close()
        raise


def _graph_function(session: Any, signature: Signature) -> Function:
    fed = [spec.name for spec in signature.inputs]
    tensors = {spec.name: spec.graph_name for spec in signature.outputs}

    @lru_cache(_CALLABLES)
    def prepared(outputs: tuple[str, ...]) -> Any:
        # Unlike `Session.run`, which the public `make_callable` is as soon as something is fed,
        # this leaves shapes to the graph and takes a sixth of the time.
        return session._make_callable_from_options(
            config_pb2.CallableOptions(
                feed=[spec.graph_name for spec in signature.inputs],
                fetch=[tensors[name] for name in outputs],
            )
        )

    def run(inputs: Mapping[str, Tensor], outputs: Sequence[str]) -> dict[str, Tensor]:
        results = prepared(tuple(outputs))(*[inputs[name] for name in fed])
        return {name: _to_array(value) for name, value in zip(outputs, results, strict=True)}

    prepared(tuple(tensors))  # a graph without these tensors is refused now
    return run


def _configure_process(settings: RuntimeSettings) -> None:
    """Set device and thread pools. They belong to the process: the first model decides."""
    threads = max(1, math.floor(settings.cores))
    gpus = tf.config.list_physical_devices("GPU")
    if settings.device == "cuda" and not gpus:
        raise ModelLoadError(
            "device 'cuda' needs the package tensorflow and a GPU that it sees; "
            "install them or set device: cpu"
        )
    try:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
        if settings.device == "cuda":
            for gpu in gpus:
                # The default takes the whole memory of the device at once.
                tf.config.experimental.set_memory_growth(gpu, True)
        else:
            tf.config.set_visible_devices([], "GPU")
    except RuntimeError:
        log.warning("tensorflow_runs_already", wanted=str(settings))


def _serving_graph(path: Path, where: str) -> Any:
    """The MetaGraphDef that is tagged `serve`.

    Signatures come from the file and not from the loaded object, which forgets method names.
    """
    file = path / TENSORFLOW.file
    if not file.is_file():
        raise ModelLoadError(f"{where}: {file.name} is missing")
    saved = saved_model_pb2.SavedModel()
    try:
        saved.ParseFromString(file.read_bytes())
    except DecodeError as error:
        raise ModelLoadError(f"{where}: {file.name} is truncated or not a SavedModel") from error
    graphs = [graph for graph in saved.meta_graphs if _SERVE in graph.meta_info_def.tags]
    if graphs:
        # Other graphs are for a device too, with tags such as `serve` and `tpu`.
        return min(graphs, key=lambda graph: len(graph.meta_info_def.tags))
    raise ModelLoadError(
        f"{where}: {file.name} has no graph tagged {_SERVE!r}; export it for serving"
    )


def _model_spec(
    graph: Any, name: str, version: int, settings: RuntimeSettings, where: str
) -> ModelSpec:
    signatures = {
        key: _signature(key, definition, where)
        for key, definition in sorted(graph.signature_def.items())
        if not key.startswith(_OWN)
    }
    if not signatures:
        raise ModelLoadError(f"{where}: the SavedModel has no signature; export it with one")
    batchable = all(_rows_are_free(signature) for signature in signatures.values())
    return ModelSpec(
        name=name,
        version=version,
        platform=TENSORFLOW.platform,
        signatures=signatures,
        default_signature=_DEFAULT if _DEFAULT in signatures else next(iter(signatures)),
        max_rows=settings.max_rows if batchable else 0,
        operations={
            key: definition.outputs[key].name
            for key, definition in sorted(graph.signature_def.items())
            if key.startswith(_OWN) and key in definition.outputs
        },
    )


def _signature(name: str, definition: Any, where: str) -> Signature:
    label = f"{where}: signature {name}"
    return Signature(
        name=name,
        inputs=tuple(
            _tensor_spec(key, info, label) for key, info in sorted(definition.inputs.items())
        ),
        outputs=tuple(
            _tensor_spec(key, info, label) for key, info in sorted(definition.outputs.items())
        ),
        method=definition.method_name or _PREDICT,
        shapes_bind=False,
    )


def _tensor_spec(name: str, info: Any, label: str) -> TensorSpec:
    dtype = tf.dtypes.as_dtype(info.dtype).base_dtype  # a reference to a variable is read
    servable = dtype == tf.string or dtype.is_integer or dtype.is_bool or dtype.is_floating
    plain = BYTES if dtype == tf.string else np.dtype(dtype.as_numpy_dtype) if servable else None
    if info.WhichOneof("encoding") != "name" or plain is None or not is_supported(plain):
        raise ModelLoadError(
            f"{label} has {name} of {dtype.name}; only dense tensors of bool, integers, "
            "float16, bfloat16, float32, float64 and string can be served"
        )
    shape = info.tensor_shape
    sizes = tuple(None if dim.size < 0 else int(dim.size) for dim in shape.dim)
    return TensorSpec(name, plain, None if shape.unknown_rank else sizes, info.name)


def _rows_are_free(signature: Signature) -> bool:
    tensors = signature.inputs + signature.outputs
    return bool(signature.inputs) and all(each.shape and each.shape[0] is None for each in tensors)


def _to_array(value: Any) -> Tensor:
    # A scalar string comes as bare bytes.
    return np.array(value, dtype=object) if isinstance(value, bytes) else np.asarray(value)


def _reason(error: Exception, folder: Path) -> str:
    """TensorFlow's own error in one line, without places in graphs and file systems.

    The first such line; details, such as the tensor that could not be read, are indented.
    """
    text = _ROOT_ERROR.sub("", _STACK_TRACE.split(str(error), maxsplit=1)[0])
    lines = [each for each in text.splitlines() if not _NO_REASON.match(each)]
    said = _NOISE.sub("", lines[0]) if lines else type(error).__name__
    return without_places(said, folder)[:_REASON_CHARS]
