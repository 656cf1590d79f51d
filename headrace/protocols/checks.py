"""Checks of decoded requests in every protocol: signature, names, dtypes, shapes, rows."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

from headrace.errors import InvalidArgument, listed, quoted
from headrace.protocols.datatypes import datatype_name
from headrace.spec import ModelSpec, Signature, Tensor, TensorSpec, shown_shape


def find_signature(model: ModelSpec, name: object) -> Signature:
    """The signature of that name; "" means the default one. Raises `InvalidArgument`."""
    if not isinstance(name, str):
        raise InvalidArgument("'signature_name' must be a string")
    signature = model.signatures.get(name or model.default_signature)
    if signature is None:
        raise InvalidArgument(
            f"model '{model.name}' has no signature {quoted(name or model.default_signature)}; "
            f"it has {listed(model.signatures)}"
        )
    return signature


def match_signature(model: ModelSpec, inputs: Collection[str]) -> Signature:
    """The default signature, unless exactly one other takes these inputs and it does not."""
    default = find_signature(model, "")
    names = set(inputs)
    if _takes(default, names):
        return default
    others = [signature for signature in model.signatures.values() if _takes(signature, names)]
    return others[0] if len(others) == 1 else default


def _takes(signature: Signature, names: AbstractSet[str]) -> bool:
    if names == signature.input_names:
        return True
    return {spec.name for spec in signature.required} <= names <= signature.input_names


def check_inputs(signature: Signature, inputs: Mapping[str, Tensor]) -> int | None:
    """The rows that all inputs share; raises `InvalidArgument` for names, dtypes and shapes.

    None means that the request cannot be batched: a first dimension is fixed, differs or is 0, a
    shape is not the signature's, or an input with rows is left out.
    """
    if inputs.keys() != signature.input_names:
        check_names(signature, inputs)
    rows: set[int | None] = set()
    for spec in signature.inputs:
        free = spec.shape and spec.shape[0] is None
        tensor = inputs.get(spec.name)
        if tensor is not None:
            fits = check_tensor(spec, tensor, signature.shapes_bind)
            rows.add(tensor.shape[0] if fits and free else None)
        elif free:
            rows.add(None)
    return (rows.pop() or None) if len(rows) == 1 else None


def check_names(signature: Signature, names: Iterable[str]) -> None:
    """Raises `InvalidArgument` for an unknown name, and for a missing one that is not optional."""
    given = set(names)
    wanted = [spec.name for spec in signature.inputs]
    missing = [spec.name for spec in signature.required if spec.name not in given]
    if missing:
        raise InvalidArgument(
            f"missing inputs: {listed(missing)}; "
            f"signature '{signature.name}' takes {listed(wanted)}"
        )
    unknown = sorted(given - set(wanted))
    if unknown:
        raise InvalidArgument(
            f"unknown inputs: {listed(unknown)}; "
            f"signature '{signature.name}' takes {listed(wanted)}"
        )


def given_inputs(rows: Sequence[Mapping[str, Any]], signature: Signature) -> tuple[TensorSpec, ...]:
    """The inputs that all rows name; raises `InvalidArgument` for one that only some name."""
    given = tuple(spec for spec in signature.inputs if spec.name in rows[0])
    for spec in signature.inputs:
        if sum(spec.name in row for row in rows) not in (0, len(rows)):
            raise InvalidArgument(f"input '{spec.name}' must be in all rows or in none")
    return given


def check_tensor(spec: TensorSpec, tensor: Tensor, shapes_bind: bool = True) -> bool:
    """Whether the shape fits; `InvalidArgument` for a wrong dtype, or a wrong shape that binds."""
    if tensor.dtype != spec.dtype:
        raise InvalidArgument(
            f"input '{spec.name}' must be {datatype_name(spec.dtype)}, "
            f"not {datatype_name(tensor.dtype)}"
        )
    if spec.shape is None or tensor.shape == spec.shape:
        return True
    if len(tensor.shape) == len(spec.shape) and all(
        want is None or want == have for want, have in zip(spec.shape, tensor.shape, strict=True)
    ):
        return True
    if shapes_bind:
        raise InvalidArgument(
            f"input '{spec.name}' has shape {list(tensor.shape)}, "
            f"but the model takes {shown_shape(spec.shape)}"
        )
    return False


def find_output(signature: Signature, name: object) -> TensorSpec:
    """The output's spec; raises `InvalidArgument` for an unknown name."""
    for spec in signature.outputs:
        if spec.name == name:
            return spec
    raise InvalidArgument(
        f"unknown output {quoted(name)}; signature '{signature.name}' gives "
        f"{listed(spec.name for spec in signature.outputs)}"
    )
