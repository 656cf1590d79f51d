"""Processor time of a slot for one request, alone: a process that is sent bundles over the link.

The feeder keeps `in_flight` requests in the slot and sends, for those that a bundle of answers
ends, as many new ones, in bundles of at most `--bundle`. Time is of all the slot's threads.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import uvloop

from headrace.config.args import Batching, Limits
from headrace.link.frames import FrameReader, Item, Kind, decode_replies, encode_items
from headrace.link.handshake import ClientHandshake, Hello, Session
from headrace.metrics import Recorder
from headrace.process import PROC
from headrace.protocols.calls import call_number
from headrace.protocols.wire import message
from headrace.snapshot import State
from loadtests.bench.mlp import (
    INPUT,
    INPUTS,
    NAME,
    V2_GRPC,
    Body,
    mlp_graph,
    one_row,
    unframed,
    write_bodies,
    write_grpc_body,
    write_version,
)
from loadtests.messages import LENGTH_HEADER
from loadtests.processes import ROOT, Failed, running, wait_until
from loadtests.report import Table, terminal, workplace
from replicas.repository import Repository
from replicas.service import SlotService

FORMS = ("TFS JSON", "v2 JSON", "v2 binary", "v2 gRPC", "TFS gRPC")
SECRET = b"of this measurement"
SOCKET = "slot.sock"
READY = "ready"
START_S = 30.0
DEADLINE_S = 30.0
RECEIVED_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class Form:
    """What all requests of a form have in common on the link."""

    label: str
    call: int
    json_length: int | None
    body: bytes


def forms(folder: Path, labels: Sequence[str]) -> list[Form]:
    """The benchmark's row in each of these forms."""
    bodies = {each.label: each for each in (*write_bodies(folder), write_grpc_body(folder))}
    found = []
    for label in labels:
        if label == "TFS gRPC":
            found.append(Form(label, call_number("tfserving_grpc", "predict"), None, predict()))
            continue
        each = bodies[label]
        length = dict(each.headers).get(LENGTH_HEADER)
        number = call_number(each.protocol, each.method)
        found.append(Form(label, number, None if length is None else int(length), content(each)))
    return found


def content(body: Body) -> bytes:
    """The body as it travels on the link."""
    found = body.file.read_bytes()
    return unframed(found) if body.protocol == V2_GRPC else found


def predict() -> bytes:
    """A PredictRequest of the row, with its bytes as the tensor's content."""
    request = message("tensorflow.serving.PredictRequest")()
    request.model_spec.name = NAME
    tensor = request.inputs[INPUT]
    tensor.dtype = 1  # DT_FLOAT
    for size in (1, INPUTS):
        tensor.tensor_shape.dim.add(size=size)
    tensor.tensor_content = one_row().astype("<f4").tobytes()
    encoded: bytes = request.SerializeToString()
    return encoded


async def serve_slot(folder: Path) -> None:
    """Be the slot: load the model, tell its placement in the file `READY`, serve until killed."""
    repository = Repository(str(folder / "store"), folder / "cache")
    limits, recorder = Limits(), Recorder("slot")
    service = SlotService(repository, Hello("slot"), SECRET, limits, recorder, spool=folder)
    await service.start(folder / SOCKET, "127.0.0.1", 0)
    pool = Hello("pool", role="pool", epoch=1)
    batching = Batching(max_rows=64).model_dump()
    order = {"model": NAME, "version": 1, "runtime": None, "batching": batching}
    facts = await service.call(pool, "load", order)
    while facts["state"] not in (State.READY, State.FAILED):
        await asyncio.sleep(0.01)
        [facts] = (await service.call(pool, "report", {}))["placements"]
    (folder / READY).write_text(f"{facts['placement_id']} {facts['state']}", encoding="utf-8")
    await asyncio.Event().wait()


class Feeder:
    """A gateway's connection to the slot, as a blocking socket."""

    def __init__(self, path: Path, placement_id: int, bundle: int) -> None:
        self._placement_id, self._bundle = placement_id, bundle
        self._numbers = itertools.count(1)
        self._reader = FrameReader()
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(path))
        handshake = ClientHandshake(SECRET, Hello("feeder", role="data", link_id="1", features=()))
        self._socket.sendall(handshake.start())
        [welcome] = self._reader.feed(self._socket.recv(RECEIVED_BYTES))
        proof, session = handshake.receive(welcome)
        assert isinstance(session, Session)
        self._reader.limit_bytes = session.max_frame_bytes
        self._socket.sendall(proof)

    def run(self, form: Form, requests: int, in_flight: int) -> None:
        """Have `requests` answered; raises `Failed` for one that was refused."""
        self._send(form, min(in_flight, requests))
        sent, answered = min(in_flight, requests), 0
        while answered < requests:
            for frame in self._reader.feed(self._socket.recv(RECEIVED_BYTES)):
                if frame.kind != Kind.REPLIES:
                    continue
                if not answered:
                    first = decode_replies(frame)[0]
                    if first.status != 200:
                        raise Failed(f"{form.label}: {first.status}, {bytes(first.body)!r}")  # type: ignore[arg-type]
                answered += frame.count
                more = min(frame.count, requests - sent)
                sent += more
                self._send(form, more)

    def _send(self, form: Form, count: int) -> None:
        for start in range(0, count, self._bundle):
            items = [
                Item(
                    next(self._numbers) & 0xFFFFFFFF,
                    len(form.body),
                    self._placement_id,
                    form.call,
                    json_length=form.json_length,
                    remaining_s=DEADLINE_S,
                    meta=b"0123456789abcdef",
                    body=form.body,
                )
                for _ in range(min(self._bundle, count - start))
            ]
            self._socket.sendall(encode_items(items))


def processor_s(pid: int) -> float:
    """Seconds that all threads of a process have run."""
    total = 0
    for file in (PROC / str(pid) / "task").glob("*/schedstat"):
        total += int(file.read_text(encoding="ascii").split()[0])
    return total / 1e9


def measure(
    folder: Path, labels: Sequence[str], in_flights: Sequence[int], requests: int,
    rounds: int, bundle: int,
) -> dict[tuple[str, int], list[float]]:  # fmt: skip
    """Microseconds of a request in each round, by form and requests in flight."""
    write_version(folder / "store", NAME, mlp_graph())
    found: dict[tuple[str, int], list[float]] = {}
    command = [sys.executable, "-m", "loadtests.bench.slot", "--serve", str(folder)]
    with running(command, folder / "slot.log", {"PYTHONPATH": str(ROOT)}) as process:
        wait_until((folder / READY).is_file, process, START_S)
        time.sleep(0.1)
        placement_id, state = (folder / READY).read_text(encoding="utf-8").split()
        if state != State.READY:
            raise Failed(f"the model is {state}")
        feeder = Feeder(folder / SOCKET, int(placement_id), bundle)
        for form in forms(folder, labels):
            feeder.run(form, requests, max(in_flights))
        for _ in range(rounds):
            for form in forms(folder, labels):
                for in_flight in in_flights:
                    started = processor_s(process.pid)
                    feeder.run(form, requests, in_flight)
                    took_s = processor_s(process.pid) - started
                    found.setdefault((form.label, in_flight), []).append(took_s / requests * 1e6)
    return found


@click.command(help=__doc__, context_settings={"show_default": True})
@click.option("--requests", default=5000, help="Requests of each kind in a round.")
@click.option("--rounds", default=5, help="The median of them is shown.")
@click.option("--bundle", default=16, help="Most requests of a bundle.")
@click.option("--in-flight", multiple=True, default=(1, 64))
@click.option("--form", multiple=True, default=FORMS, type=click.Choice(FORMS))
@click.option("--serve", type=click.Path(path_type=Path), hidden=True)
def main(
    requests: int,
    rounds: int,
    bundle: int,
    in_flight: tuple[int, ...],
    form: tuple[str, ...],
    serve: Path | None,
) -> None:
    if serve is not None:
        uvloop.run(serve_slot(serve))
        return
    with workplace("slot") as folder:
        found = measure(folder, form, in_flight, requests, rounds, bundle)
    rows = [
        [label, str(count), f"{statistics.median(took):.1f}", f"{min(took):.1f}"]
        for (label, count), took in found.items()
    ]
    heads = ("form", "in flight", "median", "least")
    terminal().print(Table("Microseconds of processor time for one request", heads, rows).rich())


if __name__ == "__main__":
    main()
