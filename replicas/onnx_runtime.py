"""Run ONNX models with ONNX Runtime; the only importer of `onnxruntime`."""

from __future__ import annotations

import ctypes
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as state

from headrace.errors import InternalError, InvalidArgument, ModelLoadError, NotFound
from headrace.runtimes import ONNX
from headrace.spec import BFLOAT16, BYTES, ModelSpec, Signature, Tensor, TensorSpec
from replicas.runtime import Runtime, RuntimeSettings, without_places
from replicas.verification import check_external_data

SIGNATURE = "serving_default"

# Inputs this large make the arena give its memory back after the run: a 1024x1024 run through six
# convolutions left 132 MB in the process without this, 66 MB with it. Not before another run of
# the same size: the demo's face detector took 200 ms a tile with it and 143 ms without, since every
# page came from the kernel again.
_SHRINK_ABOVE_BYTES = 8 << 20
_REASON_CHARS = 200
_PADDED_BYTES = 16 << 20
"""Cap on a tensor of strings padded to the longest one."""
_FATAL = 4
_ONNX_BFLOAT16 = 16
"""Number of bfloat16 in ONNX's TensorProto."""

_DTYPES = {
    **{
        f"tensor({name})": np.dtype(name)
        for name in (
            *("bool", "int8", "int16", "int32", "int64"),
            *("uint8", "uint16", "uint32", "uint64", "float16"),
        )
    },
    "tensor(float)": np.dtype(np.float32),
    "tensor(double)": np.dtype(np.float64),
    "tensor(bfloat16)": BFLOAT16,
    "tensor(string)": BYTES,
}

# ONNX Runtime's exceptions share no base; its Python layer adds ValueError and RuntimeError.
_ERRORS: tuple[type[Exception], ...] = (
    *(
        error
        for error in vars(state).values()
        if isinstance(error, type) and issubclass(error, Exception)
    ),
    ValueError,
    RuntimeError,
)
_OUR_FAULT = re.compile(r"Failed to allocate|bad_alloc|CUDA|CUDNN|CUBLAS")
_NOISE = re.compile(
    r"^.* was false\. "  # the condition of an assertion, before a sentence
    r"|\[ONNXRuntimeError\] : \d+ : \w+ : "  # the status, which the error's type tells too
    r"|Load model from .*? failed:"
    r"|[\w/\-]+\.(?:cc|h|hpp|cpp|cu):\d+ "  # a place in its source
    r"|[\w:*&<>, ]*\bonnxruntime::[^()]*\([^()]*\)(?: const)? "
    r"|Error in execution: "
    r"| Please fix either the inputs/outputs or the model\."
)

# Identity of a float tensor: the smallest model to try a provider with.
_PROBE = (
    b"\x08\x03\x12\x00:9\n\x10\n\x01x\x12\x01y\x22\x08Identity\x12\x01gZ\x10\n\x01x\x12\x0b\n\t"
    b"\x08\x01\x12\x05\n\x03\x12\x01Nb\x10\n\x01y\x12\x0b\n\t\x08\x01\x12\x05\n\x03\x12\x01NB"
    b"\x04\n\x00\x10\x07"
)


def load(path: Path, name: str, version: int, settings: RuntimeSettings) -> Runtime:
    """Load `path/model.onnx`; raises `ModelLoadError` with one sentence."""
    where = f"model {name} version {version}"
    model_file = path / ONNX.file
    if not model_file.is_file():
        raise ModelLoadError(f"{where}: {model_file.name} is missing")
    check_external_data(model_file, where)
    providers = _providers(settings.device)
    options = _session_options(settings)
    try:
        # Without enable_fallback=0 a failing provider is replaced silently, and prints.
        session = ort.InferenceSession(
            os.fspath(model_file), options, providers=providers, enable_fallback=0
        )
    except _ERRORS as error:
        raise ModelLoadError(
            f"{where}: {model_file.name} is truncated, not an ONNX model or not supported: "
            f"{_reason(error)}"
        ) from error
    spec = _model_spec(session, name, version, settings, where)
    return OnnxRuntime(
        session,
        spec,
        bound_to="cuda" if settings.device == "cuda" else None,
        single_threaded=settings.device == "cpu" and options.intra_op_num_threads == 1,
    )


class OnnxRuntime:
    """A session with the one signature `serving_default`.

    With `bound_to` inputs are copied once to that device, and outputs come back.
    """

    def __init__(
        self,
        session: ort.InferenceSession,
        spec: ModelSpec,
        bound_to: str | None = None,
        *,
        single_threaded: bool = False,
    ) -> None:
        self._session: Any = session
        self.single_threaded = single_threaded
        self.spec = spec
        signature = spec.signatures[SIGNATURE]
        self._text_outputs = {each.name for each in signature.outputs if each.dtype == BYTES}
        dtypes = {each.dtype for each in signature.inputs + signature.outputs}
        self._has_bfloat16 = BFLOAT16 in dtypes
        # IO binding knows no strings; the plain run copies numeric tensors to the device as well.
        self._bound_to = None if dtypes & {BYTES, BFLOAT16} else bound_to
        self._shrinking = ort.RunOptions()
        if bound_to is None:
            self._shrinking.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")

    def run(
        self,
        signature: str,
        inputs: Mapping[str, Tensor],
        outputs: Sequence[str],
        more: bool = False,
    ) -> dict[str, Tensor]:
        """Compute the named outputs; raises `NotFound` for any signature but `serving_default`."""
        where = f"model {self.spec.name} version {self.spec.version}"
        if signature != SIGNATURE:
            raise NotFound(f"{where} has no signature {signature!r}; it has {SIGNATURE!r}")
        feed, size = {}, 0
        for name, value in inputs.items():
            feed[name] = value if value.dtype != BYTES else _to_text(name, value)
            size += value.nbytes
        options = self._shrinking if size > _SHRINK_ABOVE_BYTES and not more else None
        try:
            if self._bound_to:
                results = self._bound_run(feed, outputs)
            elif self._has_bfloat16:
                results = self._bfloat16_run(feed, outputs, options)
            else:
                results = self._session.run(list(outputs), feed, options)
        except UnicodeDecodeError as error:
            raise InvalidArgument(
                f"{where} gave a string that is not UTF-8, which ONNX Runtime cannot hand over"
            ) from error
        except _ERRORS as error:
            reason = _reason(error)
            if _OUR_FAULT.search(reason):
                raise InternalError(f"{where} failed: {reason}") from error
            raise InvalidArgument(f"{where} refused the inputs: {reason}") from error
        named = dict(zip(outputs, results, strict=False))
        for name in self._text_outputs & named.keys():
            named[name] = _from_text(named[name])
        return named

    def close(self) -> None:
        self._session = None

    def _bfloat16_run(
        self, feed: dict[str, Tensor], outputs: Sequence[str], options: ort.RunOptions | None
    ) -> list[Tensor]:
        """Run on `OrtValue`s, which bfloat16 needs; its results are read at their addresses."""
        held = {}
        for name, value in feed.items():
            if value.dtype == BFLOAT16:
                bits = np.ascontiguousarray(value).view(np.uint16)
                held[name] = ort.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, _ONNX_BFLOAT16)
            else:
                held[name] = ort.OrtValue.ortvalue_from_numpy(value)
        results: list[Tensor] = []
        for answer in self._session.run_with_ort_values(list(outputs), held, options):
            if answer.data_type() == "tensor(bfloat16)":
                content = ctypes.string_at(answer.data_ptr(), answer.tensor_size_in_bytes())
                results.append(np.frombuffer(content, BFLOAT16).reshape(answer.shape()))
            else:
                results.append(answer.numpy())
        return results

    def _bound_run(self, feed: dict[str, Tensor], outputs: Sequence[str]) -> list[Tensor]:
        binding = self._session.io_binding()
        for name, value in feed.items():
            held = ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(value), self._bound_to, 0)
            binding.bind_ortvalue_input(name, held)
        for name in outputs:
            binding.bind_output(name, "cpu")
        self._session.run_with_iobinding(binding)
        results: list[Tensor] = binding.copy_outputs_to_cpu()
        return results


def _session_options(settings: RuntimeSettings) -> ort.SessionOptions:
    threads = max(1, math.floor(settings.cores))
    # A thread that spins between runs takes a core that somebody else was promised, unless the
    # slot has whole cores and the machine has them. Affinity is the process's: threads inherit it.
    owns_cores = settings.cores == threads and threads <= len(os.sched_getaffinity(0))
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if owns_cores else "0")
    options.add_session_config_entry("session.load_model_format", "ONNX")
    # A memory pattern is kept for every combination of input shapes, without bound.
    options.enable_mem_pattern = False
    options.log_severity_level = _FATAL  # what goes wrong reaches us as an exception
    return options


def _providers(device: str) -> list[Any]:
    if device == "cpu":
        return ["CPUExecutionProvider"]
    if device != "cuda":
        raise ModelLoadError(f"device {device!r} is unknown; it must be 'cpu' or 'cuda'")
    if reason := _why_no_cuda():
        raise ModelLoadError(reason)
    # EXHAUSTIVE, the default search, times every convolution anew for each shape that arrives.
    cuda = {"arena_extend_strategy": "kSameAsRequested", "cudnn_conv_algo_search": "HEURISTIC"}
    return [("CUDAExecutionProvider", cuda), "CPUExecutionProvider"]


@cache
def _why_no_cuda() -> str:
    """Why a session gets no CUDA, "" if it does; asked once per process.

    A build for CUDA lists the provider on any machine, and a session silently falls back: only
    the providers of an existing session are true.
    """
    provider = "CUDAExecutionProvider"
    if provider not in ort.get_available_providers():
        return "device 'cuda' needs onnxruntime-gpu in place of onnxruntime: install headrace[gpu]"
    ort.preload_dlls()
    options = ort.SessionOptions()
    options.log_severity_level = _FATAL
    try:
        session = ort.InferenceSession(_PROBE, options, providers=[provider], enable_fallback=0)
        if provider in session.get_providers():
            return ""
        reason = "the session fell back to the CPU"
    except _ERRORS as error:
        reason = _reason(error)
    return (
        "device 'cuda' does not work here; check the GPU, its driver, CUDA and cuDNN, "
        f"or set device: cpu ({reason})"
    )


def _model_spec(
    session: Any, name: str, version: int, settings: RuntimeSettings, where: str
) -> ModelSpec:
    inputs, outputs = session.get_inputs(), session.get_outputs()
    # Inputs with an initializer; those of a dtype that callers cannot send are left out.
    optional = [each for each in session.get_overridable_initializers() if each.type in _DTYPES]
    signature = Signature(
        name=SIGNATURE,
        inputs=(
            *(_tensor_spec(each, f"{where}: input") for each in inputs),
            *(replace(_tensor_spec(each, where), optional=True) for each in optional),
        ),
        outputs=tuple(_tensor_spec(each, f"{where}: output") for each in outputs),
    )
    taken = {each.dtype for each in signature.inputs}
    if BYTES in taken and BFLOAT16 in {*taken, *(each.dtype for each in signature.outputs)}:
        raise ModelLoadError(
            f"{where} takes strings beside bfloat16, which ONNX Runtime's Python layer cannot run"
        )
    return ModelSpec(
        name=name,
        version=version,
        platform=ONNX.platform,
        signatures={SIGNATURE: signature},
        default_signature=SIGNATURE,
        max_rows=settings.max_rows if _rows_are_free(inputs, outputs, optional) else 0,
    )


def _tensor_spec(argument: Any, where: str) -> TensorSpec:
    dtype = _DTYPES.get(argument.type)
    if dtype is None:
        raise ModelLoadError(
            f"{where} {argument.name} is a {argument.type}; only tensors of bool, integers, "
            "float16, bfloat16, float32, float64 and string can be served"
        )
    # ONNX Runtime shows a scalar and an unknown rank alike: taken as unknown.
    shape = tuple(size if isinstance(size, int) else None for size in argument.shape) or None
    return TensorSpec(argument.name, dtype, shape)


def _rows_are_free(inputs: Sequence[Any], outputs: Sequence[Any], optional: Sequence[Any]) -> bool:
    """Whether every tensor begins with one and the same free dimension.

    Optional inputs may lack it, but must not have another free dimension in its place.
    """
    if not inputs or not all(argument.shape for argument in (*inputs, *outputs)):
        return False
    free = [each for each in optional if each.shape and not isinstance(each.shape[0], int)]
    leading = {argument.shape[0] for argument in (*inputs, *outputs, *free)} - {None}
    return len(leading) <= 1 and all(isinstance(size, str) for size in leading)


def _to_text(name: str, value: Tensor) -> Tensor:
    """Strings as ONNX Runtime reads them.

    Its Python layer takes text, bytes of equal length as they are, and bytes of other lengths up to
    the first NUL.
    """
    elements: list[bytes] = value.reshape(-1).tolist()
    try:
        text = np.array([element.decode() for element in elements], dtype=object)
        return text.reshape(value.shape)
    except UnicodeDecodeError:
        lengths = {len(element) for element in elements}
    if len(lengths) == 1:
        return np.array(elements, np.dtype((np.void, lengths.pop()))).reshape(value.shape)
    padded = max(lengths) + 1
    if padded * len(elements) > _PADDED_BYTES or any(b"\0" in element for element in elements):
        raise InvalidArgument(
            f"input {name} holds bytes that are not UTF-8 text; ONNX Runtime takes such strings "
            "only if all of a request have the same length, or are short and without NUL bytes"
        )
    return np.array(elements, np.dtype((np.bytes_, padded))).reshape(value.shape)


def _from_text(value: Tensor) -> Tensor:
    return np.array([text.encode() for text in value.flat], dtype=object).reshape(value.shape)


def _reason(error: Exception) -> str:
    """What ONNX Runtime says, on one line, without its status, places and signatures."""
    text = " ".join(str(error).rpartition("Status Message: ")[2].split())
    return without_places(_NOISE.sub("", text))[:_REASON_CHARS]
