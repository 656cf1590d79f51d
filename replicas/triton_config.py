"""Triton's `config.pbtxt` beside a model's version folders, and the labels of its classes.

Names, formats, dims, reshapes and label files of inputs and outputs are read, and
`max_batch_size`. Fields that repeat the model's own files are checked, others are listed as
ignored. Outputs that the configuration does not list are not served.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from google.protobuf import text_format

from headrace.errors import ModelLoadError, listed, quoted
from headrace.protocols.datatypes import config_name
from headrace.protocols.metadata import default_signature
from headrace.protocols.wire import POOL, message
from headrace.runtimes import runtime_of
from headrace.spec import ModelSpec, Tensor, TensorSpec, shown_shape
from replicas.listing import MAX_BESIDE_BYTES
from replicas.runtime import Runtime

CONFIG = "config.pbtxt"
LABELS = "labels.txt"
"""Labels of the output with as many classes, where the configuration names no file."""

_READ = frozenset({"name", "platform", "backend", "max_batch_size", "input", "output"})
_TENSOR_READ = frozenset({"name", "data_type", "format", "dims", "reshape", "label_filename"})
_STRINGS_AND_COMMENTS = re.compile(r"\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'|#[^\n]*")
_REASON_CHARS = 200

Files = Callable[[str], bytes | None]
"""Reads a file by its name, beside the model or in its version's folder; None without one."""
Shape = tuple[int | None, ...]


def own_file(folder: Path, name: str) -> bytes | None:
    """A file of the version's folder, whose links were checked; None without one."""
    path = folder / name
    try:
        if not path.is_file():
            return None
        if path.stat().st_size > MAX_BESIDE_BYTES:
            raise ModelLoadError(f"{name} is larger than {MAX_BESIDE_BYTES} bytes")
        return path.read_bytes()
    except OSError as error:
        raise ModelLoadError(f"{quoted(name)} cannot be read: {error.strerror}") from error


def configured(runtime: Runtime, text: bytes | None, files: Files) -> Runtime:
    """The runtime as its `config.pbtxt` (None: it has none) describes it.

    Raises `ModelLoadError` for a configuration that is broken or does not fit the model.
    """
    spec = runtime.spec
    if text is not None:
        config = _read(text)
        # protobuf does not tell a `max_batch_size` of 0 from an absent one.
        written = b"max_batch_size" in _STRINGS_AND_COMMENTS.sub("", text.decode()).encode()
        spec = _applied(config, config.max_batch_size if written else None, spec)
    spec = _with_labels(spec, files)
    return runtime if spec == runtime.spec else ConfiguredRuntime(runtime, spec)


class ConfiguredRuntime:
    """A runtime behind the shapes of its configuration: tensors are reshaped."""

    def __init__(self, runtime: Runtime, spec: ModelSpec) -> None:
        self._runtime = runtime
        self.spec = spec
        self.single_threaded = runtime.single_threaded
        # By signature; those of the model itself take what comes.
        self._reshaped = {
            name: {each.name: each for each in (*signature.inputs, *signature.outputs)}
            for name, signature in spec.signatures.items()
            if any(each.reshape is not None for each in (*signature.inputs, *signature.outputs))
        }

    def run(
        self,
        signature: str,
        inputs: Mapping[str, Tensor],
        outputs: Sequence[str],
        more: bool = False,
    ) -> dict[str, Tensor]:
        """Compute the named outputs, in the shapes that callers see."""
        reshaped = self._reshaped.get(signature)
        if reshaped is None:
            return self._runtime.run(signature, inputs, outputs, more)
        batched = self.spec.batches(self.spec.signatures[signature])
        given = {
            name: _reshape(tensor, reshaped[name], batched, inward=True)
            for name, tensor in inputs.items()
        }
        return {
            name: _reshape(tensor, reshaped[name], batched, inward=False)
            for name, tensor in self._runtime.run(signature, given, outputs, more).items()
        }

    def close(self) -> None:
        self._runtime.close()


def _reshape(tensor: Tensor, spec: TensorSpec, batched: bool, *, inward: bool) -> Tensor:
    """From dims to the model's own shape, or back; free sizes keep their order."""
    if spec.reshape is None or spec.shape is None:
        return tensor
    leading = tensor.shape[:1] if batched else ()
    outside, inside = spec.shape[len(leading) :], spec.reshape
    source, target = (outside, inside) if inward else (inside, outside)
    sizes = tensor.shape[len(leading) :]
    free = iter([size for size, known in zip(sizes, source, strict=True) if known is None])
    return tensor.reshape((*leading, *(next(free) if s is None else s for s in target)))


def _read(text: bytes) -> Any:
    try:
        return text_format.Parse(
            text.decode("utf-8"), message("inference.ModelConfig")(), descriptor_pool=POOL
        )
    except UnicodeDecodeError as error:
        raise ModelLoadError(f"{CONFIG} is not UTF-8 text") from error
    except text_format.ParseError as error:
        said = " ".join(str(error).split())[:_REASON_CHARS]
        raise ModelLoadError(f"{CONFIG} is not a model configuration: {said}") from error


def _applied(config: Any, row_limit: int | None, spec: ModelSpec) -> ModelSpec:
    """The spec with a parsed configuration applied; raises `ModelLoadError`."""
    if config.name not in ("", spec.name):
        raise ModelLoadError(
            f"{CONFIG}: name is {quoted(config.name)}, but the folder is '{spec.name}'"
        )
    known = default_signature(spec)
    # An output that is not listed is not served, so it may lack the rows.
    served = replace(
        known,
        inputs=_served(config.input, known.inputs),
        outputs=_served(config.output, known.outputs),
    )
    if row_limit is not None:
        if row_limit < 0:
            raise ModelLoadError(f"{CONFIG}: max_batch_size must be at least 0, not {row_limit}")
        if row_limit and not spec.batches(served):
            raise ModelLoadError(
                f"{CONFIG}: max_batch_size is {row_limit}, but not all inputs and outputs of the "
                "model begin with the same free dimension; it must be 0"
            )
        spec = replace(spec, max_rows=min(row_limit, spec.max_rows), row_limit=row_limit)
    batched = spec.batches(served)
    signature = replace(
        known,
        inputs=_tensors("input", config.input, known.inputs, batched),
        outputs=_tensors("output", config.output, known.outputs, batched),
    )
    missing = {each.name for each in known.required} - {each.name for each in signature.inputs}
    if missing:
        raise ModelLoadError(f"{CONFIG} lists inputs, but not {listed(sorted(missing))}")
    return replace(
        spec,
        signatures={
            name: signature if each is known else each for name, each in spec.signatures.items()
        },
        ignored=tuple(_ignored(config, spec)),
    )


def _served(entries: Any, known: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
    names = {entry.name for entry in entries}
    return tuple(each for each in known if not names or each.name in names)


def _tensors(
    kind: str, entries: Any, known: tuple[TensorSpec, ...], batched: bool
) -> tuple[TensorSpec, ...]:
    """The tensors as listed; all tensors of the model where none is."""
    by_name = {each.name: each for each in known}
    found: dict[str, TensorSpec] = {}
    for entry in entries:
        where = f"{CONFIG}: {kind} {quoted(entry.name)}"
        if entry.name not in by_name:
            raise ModelLoadError(
                f"{where} is none of the model's, which has {listed(sorted(by_name))}"
            )
        if entry.name in found:
            raise ModelLoadError(f"{where} is listed twice")
        found[entry.name] = _tensor(entry, by_name[entry.name], batched, where)
    return tuple(found.values()) or known


def _tensor(entry: Any, spec: TensorSpec, batched: bool, where: str) -> TensorSpec:
    fields = type(entry).DESCRIPTOR.fields_by_name
    data_type = fields["data_type"].enum_type.values_by_number[entry.data_type].name
    if data_type not in ("TYPE_INVALID", config_name(spec.dtype)):
        raise ModelLoadError(
            f"{where} is {data_type}, but the model's is {config_name(spec.dtype)}"
        )
    spec = _shaped(entry, spec, batched, where)
    if "format" not in fields:
        return replace(spec, label_filename=entry.label_filename)
    order = fields["format"].enum_type.values_by_number[entry.format].name
    if entry.format and len(spec.shape or ()) != 3 + batched:
        raise ModelLoadError(f"{where} is {order}, which needs three dims")
    return replace(spec, format=order)


def _shaped(entry: Any, spec: TensorSpec, batched: bool, where: str) -> TensorSpec:
    """The spec with the entry's dims and reshape."""
    dims, reshape = _sizes(entry.dims, f"{where}: dims"), None
    if entry.HasField("reshape"):
        reshape = _sizes(entry.reshape.shape, f"{where}: reshape")
        if not dims:
            raise ModelLoadError(f"{where} has a reshape, which needs dims")
        if not batched and not reshape:
            raise ModelLoadError(f"{where}: reshape must not be empty without a batch dimension")
        if _chunks(dims) != _chunks(reshape):
            raise ModelLoadError(
                f"{where} has different size for dims {shown_shape(dims)} and "
                f"reshape {shown_shape(reshape)}"
            )
    if not dims:
        return spec
    leading: Shape = (None,) if batched else ()
    inside = _fitting(dims if reshape is None else reshape, spec, len(leading), where)
    outside = inside if reshape is None else dims
    return replace(spec, shape=(*leading, *outside), reshape=reshape)


def _sizes(values: Any, where: str) -> Shape:
    for size in values:
        if size < 1 and size != -1:
            raise ModelLoadError(f"{where} must hold integers of at least 1, or -1, not {size}")
    return tuple(None if size == -1 else size for size in values)


def _chunks(shape: Shape) -> list[int]:
    """Elements between free sizes: a reshape must not change their number."""
    chunks = [1]
    for size in shape:
        if size is None:
            chunks.append(1)
        else:
            chunks[-1] *= size
    return chunks


def _fitting(dims: Shape, spec: TensorSpec, leading: int, where: str) -> Shape:
    """The dims, with the model's own sizes where they are free; raises where they contradict."""
    if spec.shape is None:
        return dims
    own = spec.shape[leading:]
    if len(own) != len(dims) or any(
        want != have for want, have in zip(dims, own, strict=True) if None not in (want, have)
    ):
        raise ModelLoadError(
            f"{where} has the shape {shown_shape(dims)}, but the model's is {shown_shape(own)}"
            + (" without the batch dimension" if leading else "")
        )
    return tuple(have if want is None else want for want, have in zip(dims, own, strict=True))


def _ignored(config: Any, spec: ModelSpec) -> Iterator[str]:
    """Fields that are set and have no effect; the model's files tell its runtime."""
    runtime = runtime_of(spec.platform)
    if config.platform not in ("", spec.platform):
        yield "platform"
    if config.backend not in ("", runtime.backend if runtime else ""):
        yield "backend"
    for field, value in config.ListFields():
        if field.name in ("input", "output"):
            unread = {
                each.name
                for entry in value
                for each, _ in entry.ListFields()
                if each.name not in _TENSOR_READ
            }
            yield from (f"{field.name}.{name}" for name in sorted(unread))
        elif field.name not in _READ:
            is_message = field.message_type is not None and not field.is_repeated
            if not is_message or value.ByteSize():  # `dynamic_batching { }` asks for nothing
                yield field.name


def _with_labels(spec: ModelSpec, files: Files) -> ModelSpec:
    """The spec with the labels of its outputs, from the files that they name or from `LABELS`."""
    common = files(LABELS)
    common_labels = [] if common is None else _labels(common, LABELS)
    labels: dict[str, Sequence[str]] = {}
    signatures = {}
    for name, signature in spec.signatures.items():
        outputs = []
        for output in signature.outputs:
            row = (output.shape or (None,))[int(spec.batches(signature)) :]
            classes = None if None in row else math.prod(size or 0 for size in row)
            if output.label_filename:
                labels[output.name] = _named_labels(output, files)
            elif common_labels and classes == len(common_labels):
                labels[output.name] = common_labels
                output = replace(output, label_filename=LABELS)
            outputs.append(output)
        signatures[name] = replace(signature, outputs=tuple(outputs))
    return replace(spec, signatures=signatures, labels=labels) if labels else spec


def _named_labels(output: TensorSpec, files: Files) -> list[str]:
    name = output.label_filename
    where = f"{CONFIG}: output {quoted(output.name)} has its labels in {quoted(name)}"
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name:
        raise ModelLoadError(f"{where}, which is outside of the model's folder")
    content = files(name)
    if content is None:
        raise ModelLoadError(
            f"{where}, which is neither beside the version folders nor in this one"
        )
    return _labels(content, name)


def _labels(content: bytes, name: str) -> list[str]:
    """A label on each line."""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ModelLoadError(f"{name} is not UTF-8 text") from error
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()
    return [line.removesuffix("\r") for line in lines]
