"""What one request costs without a server: decode, run and encode in this process."""

from __future__ import annotations

import time
from collections.abc import Sequence

from headrace.protocols.calls import call_number, codecs
from headrace.protocols.tensors import Call, Codec
from loadtests.bench.grpc_exchange import unframed
from loadtests.bench.mlp import NAME, V2_GRPC, Body
from loadtests.bench.outcome import DirectCall
from loadtests.bench.servers import Site
from loadtests.exchange import LENGTH_HEADER
from loadtests.samples import percentile
from replicas.onnx_runtime import load
from replicas.runtime import Runtime, RuntimeSettings

CALLS_MEASURED = 2000
WARM_CALLS = 200


def direct_calls(
    site: Site, bodies: Sequence[Body], calls: int = CALLS_MEASURED
) -> list[DirectCall]:
    """Each body, called `calls` times one after the other."""
    runtime = load(site.model.parent, NAME, 1, RuntimeSettings(cores=1.0, max_rows=64))
    try:
        return [_measure(body, _codec(body), runtime, calls) for body in bodies]
    finally:
        runtime.close()


def _content(body: Body) -> bytes:
    content = body.file.read_bytes()
    return unframed(content) if body.protocol == V2_GRPC else content


def _codec(body: Body) -> Codec:
    return codecs()[call_number(body.protocol, body.method)]


def _measure(body: Body, codec: Codec, runtime: Runtime, calls: int) -> DirectCall:
    content = _content(body)
    length = dict(body.headers).get(LENGTH_HEADER)
    call = Call(body.method, json_length=None if length is None else int(length))
    timings = [_once(content, call, codec, runtime) for _ in range(WARM_CALLS + calls)]
    decode, run, encode = zip(*timings[WARM_CALLS:], strict=True)
    totals = [sum(parts) for parts in timings[WARM_CALLS:]]
    parts = (percentile(part, 0.5) * 1e6 for part in (decode, run, encode, totals))
    return DirectCall(body.label, *parts)


def _once(content: bytes, call: Call, codec: Codec, runtime: Runtime) -> tuple[float, float, float]:
    spec = runtime.spec
    begin = time.perf_counter()
    request = codec.decode(content, call, spec)
    decoded = time.perf_counter()
    names = request.outputs or tuple(output.name for output in request.signature.outputs)
    outputs = runtime.run(request.signature.name, request.inputs, names)
    ran = time.perf_counter()
    codec.encode(request, outputs, spec)
    return decoded - begin, ran - decoded, time.perf_counter() - ran
