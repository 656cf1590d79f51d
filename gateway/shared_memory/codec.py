"""Triton's shared memory in a request: tensors that lie in regions, taken out and put back.

A slot knows of no regions: inputs in one are put into the body as raw tensors, outputs for one are
asked for as raw tensors and taken out of the answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import orjson

from gateway.shared_memory.regions import RegionPart
from headrace.config.args import Limits
from headrace.errors import InvalidArgument, PayloadTooLarge, quoted
from headrace.link.frames import Body, Buffer
from headrace.protocols.compression import inflate
from headrace.protocols.elements import check_json
from headrace.protocols.json_bodies import read_object, write_json
from headrace.protocols.openinference_json import named_entries, parameters_of, split_body
from headrace.protocols.openinference_proto import raw_contents
from headrace.protocols.raw_tensors import RawTail
from headrace.protocols.targets import parse
from headrace.protocols.tensors import Call

MARK = b"shared_memory_"
"""Bytes in every request that names a region."""
MAX_PARTS = 1024
"""Cap on a request's tensors in regions, because each costs a look at files."""
_REGION, _OFFSET, _SIZE = (MARK.decode() + word for word in ("region", "offset", "byte_size"))


def read_regions(protocol: str, body: bytes, call: Call, limits: Limits) -> RegionRequest | None:
    """What an Open Inference request has in regions, None if nothing.

    Raises `InvalidArgument` or `PayloadTooLarge`.
    """
    found: JsonRegions | ProtoRegions
    if protocol == "openinference_grpc":
        if MARK not in body:
            return None
        request = parse("inference.ModelInferRequest", body, limits.max_elements)
        found = ProtoRegions(request)
    else:
        plain = inflate(body, call.content_encoding, limits.max_body_bytes)
        if call.json_length == 0:
            return None
        text, raw = split_body(plain, call.json_length)
        if MARK not in text:
            return None
        check_json(text, limits.max_elements)
        found = JsonRegions(text, raw, limits.max_elements)
    if (count := len(found.inputs) + len(found.outputs)) > MAX_PARTS:
        raise InvalidArgument(f"{count} tensors lie in shared memory; there may be {MAX_PARTS}")
    return found if count else None


class JsonRegions:
    """A REST request with tensors in regions: `inputs` in order, `outputs` by name."""

    def __init__(self, text: bytes, raw: memoryview, max_elements: int) -> None:
        self._max_elements = max_elements
        self._document = read_object(text)
        self._tail: list[memoryview | None] = []  # None: the next input's bytes
        self.inputs: list[RegionPart] = []
        tail = RawTail(raw)
        for name, entry in named_entries(self._document, "inputs").items():
            self._read_input(name, entry, tail)
        tail.check_end()
        self.outputs: dict[str, RegionPart] = {}
        if self._document.get("outputs"):
            for name, entry in named_entries(self._document, "outputs").items():
                self._read_output(name, entry)

    def _read_input(self, name: str, entry: dict[str, Any], tail: RawTail) -> None:
        where = f"input {quoted(name)}"
        parameters = parameters_of(entry, where)
        part = _part(name, parameters)
        raw_size = parameters.get("binary_data_size")
        if part is None:
            if raw_size is not None:
                self._tail.append(tail.take(raw_size, where))
            return
        if "data" in entry or raw_size is not None:
            raise InvalidArgument(
                "Input must set only one of the following fields: 'data', 'binary_data_size' in "
                "'parameters', 'shared_memory_region' in 'parameters'. But several are set: "
                f"{where}"
            )
        self.inputs.append(part)
        self._tail.append(None)
        entry["parameters"] = _without(parameters) | {"binary_data_size": part.byte_size}

    def _read_output(self, name: str, entry: dict[str, Any]) -> None:
        parameters = parameters_of(entry, f"output {quoted(name)}")
        part = _part(name, parameters)
        if part is None:
            return
        for other in ("classification", "binary_data"):
            if parameters.get(other):
                raise InvalidArgument(
                    f"Output can't set both 'shared_memory_region' and '{other}': {quoted(name)}"
                )
        self.outputs[name] = part
        entry["parameters"] = _without(parameters) | {"binary_data": True}

    def filled(self, contents: Iterable[Buffer]) -> tuple[Body, int | None]:
        """The request with the inputs' bytes in it, and the length of its JSON part."""
        try:
            text = write_json(self._document)
        except TypeError:
            raise InvalidArgument("an integer in the body has more than 64 bits") from None
        given = iter(contents)
        tail = [next(given) if each is None else each for each in self._tail]
        return (text, *(each for each in tail if len(each))), len(text)

    def split(
        self, body: bytes, json_length: int | None
    ) -> tuple[Sequence[tuple[RegionPart, Buffer]], Body, int | None]:
        """An answer's tensors for regions; the rest of it, and the length of its JSON part.

        Raises `InvalidArgument` when an output does not fit into its part of a region.
        """
        text, raw = split_body(body, json_length)
        try:
            check_json(text, self._max_elements)
        except PayloadTooLarge:
            raise PayloadTooLarge(
                f"the answer holds more than {self._max_elements} JSON values beside what goes to "
                "shared memory: ask for its other outputs as binary data"
            ) from None
        document = orjson.loads(text)
        tail, taken, rest = RawTail(raw), [], []
        for entry in document["outputs"]:
            size = entry.get("parameters", {}).get("binary_data_size")
            if size is None:
                continue
            content = tail.take(size, entry["name"])
            if (part := self.outputs.get(entry["name"])) is None:
                rest.append(content)
                continue
            taken.append((_fitting(part, len(content)), content))
            del entry["parameters"]["binary_data_size"]
            if not entry["parameters"]:
                del entry["parameters"]
        text = write_json(document)
        return taken, b"".join((text, *rest)), len(text) if rest else None


class ProtoRegions:
    """A ModelInferRequest with tensors in regions, as `JsonRegions`."""

    def __init__(self, request: Any) -> None:
        self._request = request
        self.inputs: list[RegionPart] = []
        self.outputs: dict[str, RegionPart] = {}
        raws = list(request.raw_input_contents)
        self._raws: list[bytes | None] = []  # None: the next input's bytes
        typed = not raws
        for each in request.inputs:
            if (part := _proto_part(each)) is not None:
                if each.HasField("contents"):
                    raise InvalidArgument(
                        "unexpected 'content' provided when using shared memory for input tensor "
                        f"{quoted(each.name)} for model {quoted(request.model_name)}"
                    )
                self.inputs.append(part)
                self._raws.append(None)
            elif typed:
                self._raws.append(raw_contents(each))
                each.ClearField("contents")
            elif raws:
                self._raws.append(raws.pop(0))
            else:
                raise InvalidArgument(f"raw_input_contents has no tensor for {quoted(each.name)}")
        if raws:
            raise InvalidArgument(f"{len(raws)} of raw_input_contents belong to no input")
        for each in request.outputs:
            if (part := _proto_part(each)) is None:
                continue
            if "classification" in each.parameters:
                raise InvalidArgument(
                    "output can't set both 'shared_memory_region' and 'classification': "
                    f"{quoted(each.name)}"
                )
            self.outputs[each.name] = part

    def filled(self, contents: Iterable[Buffer]) -> tuple[Body, int | None]:
        """The request with the inputs' bytes in it; no part of it is JSON."""
        given = iter(contents)
        raws = [bytes(next(given)) if each is None else each for each in self._raws]
        del self._request.raw_input_contents[:]
        self._request.raw_input_contents.extend(raws)
        return self._request.SerializeToString(), None

    def split(
        self, body: bytes, json_length: int | None
    ) -> tuple[Sequence[tuple[RegionPart, Buffer]], Body, int | None]:
        """An answer's tensors for regions, and the rest of it.

        Raises `InvalidArgument` when an output does not fit into its part of a region.
        """
        answer = parse("inference.ModelInferResponse", body)
        taken = []
        for index, each in enumerate(answer.outputs):
            if (part := self.outputs.get(each.name)) is not None:
                content = answer.raw_output_contents[index]
                taken.append((_fitting(part, len(content)), content))
                answer.raw_output_contents[index] = b""
        return taken, answer.SerializeToString(), None


RegionRequest = JsonRegions | ProtoRegions


def _part(name: str, parameters: Mapping[str, Any]) -> RegionPart | None:
    """The place of a tensor by its parameters; raises `InvalidArgument`."""
    region = parameters.get(_REGION)
    if region is None:
        for other in (_OFFSET, _SIZE):
            if other in parameters:
                raise InvalidArgument(
                    f"'{other}' can not be specified without '{_REGION}' parameter for tensor "
                    f"{quoted(name)}"
                )
        return None
    if not isinstance(region, str):
        raise InvalidArgument(
            f"invalid value type for '{_REGION}' parameter for tensor {quoted(name)}, "
            "expected a string"
        )
    if _SIZE not in parameters:
        raise InvalidArgument(
            f"'{_SIZE}' must be specified along with '{_REGION}' parameter for tensor "
            f"{quoted(name)}"
        )
    offset, byte_size = parameters.get(_OFFSET, 0), parameters[_SIZE]
    for parameter, value in ((_OFFSET, offset), (_SIZE, byte_size)):
        if type(value) is not int or not 0 <= value < 2**63:
            raise InvalidArgument(
                f"'{parameter}' of tensor {quoted(name)} must be a number of bytes of at least 0, "
                f"not {quoted(value)}"
            )
    return RegionPart(name, region, offset, byte_size)


def _proto_part(tensor: Any) -> RegionPart | None:
    """The place of a gRPC tensor, removed from its parameters; raises `InvalidArgument`."""
    values: dict[str, Any] = {}
    for parameter in (_REGION, _OFFSET, _SIZE):
        if parameter in tensor.parameters:
            found = tensor.parameters[parameter]
            kind = found.WhichOneof("parameter_choice")
            values[parameter] = "" if kind is None else getattr(found, kind)
            del tensor.parameters[parameter]
    return _part(tensor.name, values)


def _without(parameters: Mapping[str, Any]) -> dict[str, Any]:
    return {name: each for name, each in parameters.items() if not name.startswith(MARK.decode())}


def _fitting(part: RegionPart, length: int) -> RegionPart:
    if length > part.byte_size:
        raise InvalidArgument(
            f"shared memory size specified with the request for output {quoted(part.tensor)} "
            f"({part.byte_size} bytes) should be at least {length} bytes to hold the results"
        )
    return part
