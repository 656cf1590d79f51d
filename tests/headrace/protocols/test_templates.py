"""Bodies read and answered together give what the codec gives for each of them alone."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import HeadraceError
from headrace.protocols.openinference_json import OpenInferenceCodec
from headrace.protocols.openinference_proto import OpenInferenceProtoCodec
from headrace.protocols.targets import parse
from headrace.protocols.tensors import Call, Codec, Encoded, InferenceRequest, Template
from headrace.protocols.tfserving_json import PredictCodec
from headrace.protocols.tfserving_proto import PredictProtoCodec
from headrace.spec import BFLOAT16, BYTES, ModelSpec, Signature, Tensor, TensorSpec
from tests.headrace.protocols.specs import F4, F8, I8, model, one_input, signature, spec
from tests.headrace.protocols.test_round_trips import (
    Client,
    InferenceBinary,
    InferenceJson,
    InferenceProto,
    ServingJson,
    ServingProto,
)

PREDICT = Call("predict")
PREDICT_RESPONSE = "tensorflow.serving.PredictResponse"


@cache
def corpus(*modules: str) -> list[bytes]:
    """The bodies that stand in these test modules: all literals of bytes that are not a piece."""
    found = set()
    for name in modules:
        text = Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Constant) and isinstance(node.value, bytes):
                found.add(node.value)
    return sorted(each for each in found if len(each) > 1)


def decode(codec: Codec, body: bytes, call: Call, model_: ModelSpec) -> InferenceRequest | None:
    """The request, None for a body that is refused."""
    try:
        return codec.decode(body, call, model_)
    except HeadraceError:
        return None


def encode(
    codec: Codec, request: InferenceRequest, outputs: dict[str, Tensor], model_: ModelSpec
) -> Encoded | str:
    try:
        return codec.encode(request, outputs, model_)
    except HeadraceError as error:
        return error.message


def learn(codec: Codec, body: bytes, call: Call, model_: ModelSpec) -> Template | None:
    request = decode(codec, body, call, model_)
    return None if request is None else codec.template(body, call, request, model_)


def check(
    codec: Codec, call: Call, model_: ModelSpec, template: Template, bodies: Sequence[bytes]
) -> list[InferenceRequest]:
    """Compare both ways for the bodies that fit; gives the requests that were read together."""
    fitting = [body for body in bodies if template.values.fits(body)]
    inputs, rows = template.values.read(fitting)
    assert len(rows) == len(fitting)
    requests, at = [], 0
    for body, count in zip(fitting, rows, strict=True):
        if not count:
            continue
        alone = decode(codec, body, call, model_)
        assert alone is not None, body
        assert alone.rows == count
        assert replace(alone, inputs={}, rows=None) == template.request
        assert alone.inputs.keys() == inputs.keys()
        for name, tensor in alone.inputs.items():
            mine = inputs[name][at : at + count]
            assert (mine.dtype, mine.shape) == (tensor.dtype, tensor.shape)
            assert mine.tobytes() == tensor.tobytes()
        at += count
        requests.append(alone)
    assert at == sum(rows)
    assert {len(each) for each in inputs.values()} <= {at}
    return requests


def check_answers(
    codec: Codec,
    model_: ModelSpec,
    template: Template,
    requests: Sequence[InferenceRequest],
    outputs: dict[str, Tensor],
) -> bool:
    """Compare the answers from outputs `[rows, ...]`; gives whether they were written together."""
    rows = [each.rows or 0 for each in requests]
    written = template.answers.write(outputs, rows)
    if written is None:
        return False
    bodies, json_length = written
    assert len(bodies) == len(requests)
    at = 0
    for request, count, body in zip(requests, rows, bodies, strict=True):
        own = {name: tensor[at : at + count] for name, tensor in outputs.items()}
        at += count
        alone = encode(codec, request, own, model_)
        assert isinstance(alone, Encoded)
        if isinstance(codec, PredictProtoCodec):
            # A map's entries come in no order.
            assert parse(PREDICT_RESPONSE, alone.body) == parse(PREDICT_RESPONSE, body)
            assert len(alone.body) == len(body)
        else:
            assert alone.body == body
        assert alone.json_length == json_length
        assert (alone.content_type, alone.content_encoding) == (template.content_type, "")
    return True


WIDE = TensorSpec("x", F4, (None, None))
ANY_RANK = TensorSpec("x", F4, None)
MODELS = {
    "pairs": one_input(),
    "scalars": one_input(F4, None),
    "integers": one_input(I8, None, 2),
    "bytes": one_input(np.dtype(np.uint8), None, 2),
    "doubles": one_input(F8, None, 2),
    "halves": one_input(np.dtype(np.float16), None, 2),
    "large integers": one_input(np.dtype(np.uint64), None, 1),
    "booleans": one_input(np.dtype(np.bool_), None, 2),
    "pictures": one_input(F4, None, 2, 1, 1),
    "wide": model(signature([WIDE])),
    "any rank": model(signature([ANY_RANK])),
    "one row": one_input(F4, 1, 2),
    "strings": one_input(BYTES, None),
    "two inputs": model(signature([spec("x", F4, None, 2), spec("z", F4, None)])),
    "two signatures": model(
        signature([spec("x", F4, None, 2)]), signature([spec("x", I8, None, 2)], name="integers")
    ),
}

NUMBERS = st.one_of(
    st.sampled_from(["0", "-0", "1", "2.5", "1e3", "16777215", "16777216", "16777215.4", "1E-50"]),
    st.sampled_from(["2047.5", "256", "-1", "65504", "9007199254740993", "18446744073709551615"]),
    st.sampled_from(["1e39", "1e400", "NaN", "-Infinity", "null", "true", '"1"', "[1]", "{}", ""]),
    st.integers(-300, 300).map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
)
SPACES = st.sampled_from(["", "", "", " ", "\n\t"])


@st.composite
def arrays(draw: st.DrawFn, rank: int, usual: st.SearchStrategy[str]) -> str:
    """JSON of nested lists, nearly always of two levels with two numbers in each list."""
    if not rank:
        return draw(usual)
    count = draw(st.integers(1, 3) if rank == 2 else st.sampled_from([2, 2, 2, 2, 1, 0, 3]))
    items = [draw(arrays(rank - 1, usual)) for _ in range(count)]
    return f"{draw(SPACES)}[{draw(SPACES)}{(',' + draw(SPACES)).join(items)}]"


PLAIN = st.sampled_from(["0", "1", "2.5", "-7", "0.1", "1e3"])
PREFIXES = (
    *('{"instances":', '{"instances": ', '{"inputs":', '{"signature_name":"serving_default",'),
    *('{"signature_name":"integers","instances":', '{"extra":1,"instances":', '{"instances":[],'),
    *('{"inputs":[[1,2]],"instances":', '{"instances":[[1,2]],"instances":', '{"inst\\u0061nces":'),
    *('{"signature_name":"a[b","instances":', "[", '{"inputs":{"x":'),
)
SUFFIXES = ("}", " }\n", ',"signature_name":"serving_default"}', ',"x":[1]}', "", "}}", "]}", '"}')


@st.composite
def texts(draw: st.DrawFn) -> bytes:
    """A body: mostly one of a template, often one that is nearly so."""
    usual = draw(st.sampled_from([PLAIN, PLAIN, NUMBERS]))
    prefix = draw(st.sampled_from(PREFIXES[:2]) | st.sampled_from(PREFIXES))
    suffix = draw(st.just("}") | st.sampled_from(SUFFIXES))
    rank = draw(st.sampled_from([2, 2, 2, 1, 3]))
    body = (prefix + draw(arrays(rank, usual)) + suffix).encode()
    if draw(st.integers(0, 9)) == 0 and body:
        at = draw(st.integers(0, len(body) - 1))
        body = body[:at] + draw(st.sampled_from([b"", b"[", b"]", b",", b'"'])) + body[at + 1 :]
    return body


@st.composite
def outputs_of(draw: st.DrawFn, template: Template, rows: int) -> dict[str, Tensor]:
    """Outputs `[rows, ...]` of several dtypes and ranks for all names that are wanted."""
    found = {}
    for name in template.request.output_names():
        kind = draw(st.sampled_from(["f4", "f8", "f2", "i8", "u1", "?", "O", "bfloat16", "nan"]))
        shape = (rows, *draw(st.sampled_from([(), (2,), (1,), (0,), (2, 2), (1, 2, 3), (2, 0)])))
        size = int(np.prod(shape))
        if kind == "O":
            tensor = np.full(size, b"text", BYTES)
        elif kind == "nan":
            tensor = np.full(size, np.nan, F4)
        else:
            dtype = BFLOAT16 if kind == "bfloat16" else np.dtype(kind)
            tensor = (np.arange(size) * 0.7).astype(dtype)
        tensor = tensor.reshape(shape)
        found[name] = tensor.astype(tensor.dtype, order=draw(st.sampled_from("CF")))
    return found


Sent = tuple[bytes, int | None]
"""A body and the length of its JSON part."""
SHAPES = ("[1,2]", "[2,2]", "[1, 2]", "[2]", "[1,3]", "[0,2]", "[-1,2]")
ENTRIES = (
    '{{"name":"x","shape":{shape},"datatype":"{datatype}","data":{data}}}',
    '{{"name":"x","datatype":"{datatype}","data": {data},"shape":{shape}}}',
    '{{"data":{data},"name":"x","datatype":"{datatype}","shape":{shape},"data":[1,2]}}',
    '{{"name":"data","parameters":{{"data":[3]}},"shape":{shape},"datatype":"{datatype}","data":{data}}}',
    '{{"d\\u0061ta":[3,4],"name":"x","shape":{shape},"datatype":"{datatype}","data":{data}}}',
)
DOCUMENTS = (
    *(
        '{{"inputs":[{entry}]}}',
        '{{"id":"7","inputs":[{entry}]}}',
        '{{"inputs":[{entry},{entry}]}}',
    ),
    '{{"inputs":[{entry}],"outputs":[{{"name":"y"}}]}}',
    '{{"inputs":[{entry}],"parameters":{{"timeout":5000}}}}',
    '{{"inputs":[{entry}],"parameters":{{"binary_data_output":true}}}}',
    '{{"inputs":[{entry}],"outputs":[{{"name":"y","parameters":{{"classification":1}}}}]}}',
    '{{"inputs":[],"inputs":[{entry}]}}',
    '{{"inputs":[{entry}]',
)
DATATYPE_NAMES = ("FP32", "FP32", "FP32", "INT64", "FP16", "BOOL", "UINT8", "BYTES", "FP64")


@st.composite
def inference_texts(draw: st.DrawFn) -> Sent:
    usual = draw(st.sampled_from([PLAIN, PLAIN, NUMBERS]))
    count = draw(st.sampled_from([2, 2, 4, 3, 0]))
    flat = "[" + ",".join(draw(usual) for _ in range(count)) + "]"
    data = draw(st.just(flat) | arrays(2, usual))
    entry = draw(st.sampled_from(ENTRIES[:1]) | st.sampled_from(ENTRIES)).format(
        shape=draw(st.sampled_from(SHAPES[:2]) | st.sampled_from(SHAPES)),
        datatype=draw(st.sampled_from(DATATYPE_NAMES)),
        data=data,
    )
    text = draw(st.sampled_from(DOCUMENTS[:1]) | st.sampled_from(DOCUMENTS)).format(entry=entry)
    return text.encode(), None


def mutated(draw: st.DrawFn, body: bytes) -> bytes:
    """The body, often with one byte changed, or one more or fewer."""
    if draw(st.booleans()):
        return body
    at = draw(st.integers(0, max(0, len(body) - 1)))
    put = draw(st.sampled_from([None, b"", b"ab"]))
    byte = bytes([draw(st.integers(0, 255))])
    return body[:at] + (byte if put is None else put) + body[at + 1 :]


@st.composite
def numbers(draw: st.DrawFn) -> Tensor:
    """Rows of two numbers, mostly of one dtype and not of many shapes."""
    dtype = np.dtype(draw(st.sampled_from(["f4", "f4", "f4", "i8", "f2", "?", "u1", "f8"])))
    shape = (draw(st.integers(1, 3)), draw(st.sampled_from([2, 2, 2, 3])))
    values = draw(st.lists(st.integers(0, 100), min_size=9, max_size=9))
    return np.array(values[: shape[0] * shape[1]]).reshape(shape).astype(dtype)


@st.composite
def sent_by(draw: st.DrawFn, client: Client) -> Sent:
    """What a client sends, or nearly so."""
    body, length = client.request(draw(numbers()), typed=draw(st.integers(0, 3)) == 0)
    if draw(st.integers(0, 5)) == 0 and isinstance(client, InferenceBinary):
        length = 0
        body = body[-8:]
    return mutated(draw, body), length


TFS, V2, V2_PROTO = PredictCodec(), OpenInferenceCodec(), OpenInferenceProtoCodec()
KINDS: dict[str, tuple[Codec, str, st.SearchStrategy[Sent]]] = {
    "tfserving json": (TFS, "predict", texts().map(lambda text: (text, None))),
    "v2 json": (V2, "infer", inference_texts()),
    "v2 binary": (V2, "infer", sent_by(InferenceBinary())),
    "v2 grpc": (V2_PROTO, "infer", sent_by(InferenceProto())),
    "tfserving grpc": (PredictProtoCodec(), "predict", sent_by(ServingProto())),
}
CLIENTS: dict[str, Client] = {
    **{"tfserving json": ServingJson(), "v2 json": InferenceJson()},
    **{"v2 binary": InferenceBinary(), "v2 grpc": InferenceProto()},
    **{"tfserving grpc": ServingProto()},
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_a_mixture_is_read_as_its_bodies_are(kind: str, name: str, data: st.DataObject) -> None:
    model_ = MODELS[name]
    codec, method, bodies = KINDS[kind]
    sent = data.draw(st.lists(bodies, min_size=1, max_size=8))
    for learned_from, length in sent:
        call = Call(method, length)
        template = learn(codec, learned_from, call, model_)
        if template is None:
            continue
        others = [body for body, its_length in sent if its_length == length]
        requests = check(codec, call, model_, template, others)
        assert requests, "the body that it was learned from was not read"
        rows = sum(each.rows or 0 for each in requests)
        outputs = data.draw(outputs_of(template, rows))
        check_answers(codec, model_, template, requests, outputs)


Y = [spec("y", F4, None, 2)]


@pytest.mark.parametrize("kind", KINDS)
def test_usual_bodies_have_a_template(kind: str) -> None:
    codec, method, _ = KINDS[kind]
    for rows in (1, 3):
        for outputs in (Y, [*Y, spec("%z", F8, None, 2, 2)]):
            model_ = model(signature([spec("x", F4, None, 2)], outputs))
            tensors = [np.full((rows, 2), value, F4) for value in (0.1, 2.5, 1e6)]
            sent = [CLIENTS[kind].request(tensor, typed=False) for tensor in tensors]
            call = Call(method, sent[0][1])
            template = learn(codec, sent[0][0], call, model_)
            assert template is not None
            requests = check(codec, call, model_, template, [body for body, _ in sent])
            assert len(requests) == 3
            answers = {
                each.name: np.arange(3 * rows * size)
                .reshape(-1, *each.shape[1:])
                .astype(each.dtype)
                for each, size in zip(outputs, (2, 4), strict=False)
                if each.shape is not None
            }
            assert check_answers(codec, model_, template, requests, answers)
            answers["y"][0] += 1  # another answer of the same shapes
            assert check_answers(codec, model_, template, requests, answers)
            wider = {name: np.concatenate([y, y], axis=1) for name, y in answers.items()}
            assert check_answers(codec, model_, template, requests, wider)


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_of_other_numbers_of_rows_are_not_written_together(kind: str) -> None:
    codec, method, _ = KINDS[kind]
    model_ = model(signature([spec("x", F4, None, 2)], Y))
    body, length = CLIENTS[kind].request(np.full((1, 2), 2.5, F4), typed=False)
    template = learn(codec, body, Call(method, length), model_)
    assert template is not None
    requests = 8  # more than a single float has bytes
    assert template.answers.write({"y": np.ones((requests, 2), F4)}, [1] * requests) is not None
    for shape in ((), (1,), (1, 2), (requests - 1, 2), (2 * requests, 2)):
        assert template.answers.write({"y": np.ones(shape, F4)}, [1] * requests) is None, shape


@pytest.mark.parametrize("kind", ["tfserving json", "v2 json"])
def test_the_corpus_is_read_as_its_bodies_are(kind: str) -> None:
    codec, method, _ = KINDS[kind]
    call = Call(method)
    modules = ("test_tfserving_json", "test_openinference_json", "test_round_trips")
    usual = [
        b'{"inputs":[{"name":"x","datatype":"%b","shape":[1,2],"data":[1,2]}]}' % datatype
        for datatype in (b"FP32", b"INT64", b"FP64")
    ]
    bodies, learned = [*corpus(*modules), *usual], 0
    for model_ in MODELS.values():
        for learned_from in bodies:
            template = learn(codec, learned_from, call, model_)
            if template is not None:
                learned += 1
                requests = check(codec, call, model_, template, bodies)
                assert requests
                rows = sum(each.rows or 0 for each in requests)
                y = np.arange(2 * rows, dtype=F4).reshape(rows, 2)
                check_answers(codec, model_, template, requests, {"y": y})
    assert learned >= 5


def test_answers_with_several_outputs_are_written_together() -> None:
    two: Signature = signature(
        [spec("x", F4, None, 2)], [spec('a"%b', F4, None, 2), spec("é", I8, None)]
    )
    model_ = model(two)
    for layout in (b"instances", b"inputs"):
        bodies = [b'{"%b":[[1,2]]}' % layout, b'{"%b":[[1,2],[3,4]]}' % layout]
        template = learn(TFS, bodies[0], PREDICT, model_)
        assert template is not None
        requests = check(TFS, PREDICT, model_, template, bodies)
        outputs = {
            'a"%b': np.arange(6, dtype=F4).reshape(3, 2) / 3,
            "é": np.array([1, 2, 3], I8),
        }
        assert check_answers(TFS, model_, template, requests, outputs)


def test_what_answers_are_compressed_or_cannot_be_together_has_no_template() -> None:
    body = b'{"instances":[[1,2]]}'
    compressed = Call("predict", reply_encoding="gzip")
    assert learn(TFS, body, compressed, one_input()) is None
    # So long a text may hold too many elements: it is not learned, and fits no template.
    assert learn(PredictCodec(max_elements=10), body, PREDICT, one_input()) is None
    template = learn(PredictCodec(max_elements=11), body, PREDICT, one_input())
    assert template is not None
    assert not template.values.fits(body[:-1] + b" }")
