"""A loaded model version in a slot: requests in, answers out, one batch at a time.

    items → accept → *decode* → batcher → *run* → *encode* → replies

Requests of a bundle whose bodies have a template in common are decoded together, into one array
whose rows they share, and answered together from the outputs of their batch. All others, and what
does not fit after all, are decoded and answered one by one.

Both is done on the loop, so that it overlaps with the run in the compute thread; for bodies over
`INLINE_BYTES` and for parts of media threads do it, so that the link always answers. Bodies that
may fill the memory (`HEAVY_BYTES`) are decoded one at a time in a slot. An error of a step is the
answer of its request alone: a batch that fails is run again, each request by itself.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import structlog

from headrace.config.args import Batching, Limits
from headrace.errors import (
    DeadlineExceeded,
    HeadraceError,
    InternalError,
    InvalidArgument,
    Unimplemented,
)
from headrace.link.channel import Channel
from headrace.link.frames import OK, Body, Buffer, Flag, Item, Reply, encode_failure, pieces
from headrace.metrics import Recorder
from headrace.process import be_nice
from headrace.protocols.calls import CODING, call_number, call_of, form_of
from headrace.protocols.codecs import codecs
from headrace.protocols.tensors import Codec, Encoded, InferenceRequest, Template
from headrace.spec import BYTES, Signature, Tensor
from replicas.batch_wait import Cause
from replicas.batcher import Batch, Batcher, Finished, Pending, batch_key, own_outputs
from replicas.compute import ComputeJob, ComputeThread
from replicas.media_codec import MediaCodec
from replicas.runtime import Runtime
from replicas.statistics import ModelStatistics, RunTotals

INLINE_BYTES = 256 * 1024
HEAVY_BYTES = 1024 * 1024
"""Size from which a body may hold enough elements to fill the memory; a compressed one of any size
may too."""
HEAVY_DIVISOR = 8
"""A request with more than `max_elements` / 8 strings holds `heavy` until it is answered."""
BRIEF_S = 0.2e-3
"""Shorter runs are done on the loop: waking a thread and coming back costs more."""
AVERAGED_RUNS = 32
"""Exponential average over about this many runs."""
TELL_S = 1.0
"""Least time between log lines on runs that the runtime refused."""
WRITTEN_BYTES = 1024 * 1024
"""Limit on outputs whose answers are written together, for the memory's and the loop's sake."""
TEMPLATES = 16
"""Templates that are kept; the oldest goes for a new one."""
LEARN_EVERY = 16
"""Bodies without a template from one that is learned to the next: learning one costs as much as
decoding, and is in vain where all bodies differ around their values."""
MISTAKES = (ValueError, TypeError, KeyError, IndexError, RecursionError)
"""What a codec's own mistakes raise, which must cost only the requests that met them."""
MEDIA = call_number("media", "part")
MEDIA_THREADS = 2
"""One for the part that a shard computes and one for the next, which the stage sends ahead."""
log = structlog.get_logger()

Decoded = InferenceRequest | Encoded | HeadraceError
"""A request to run, or its answer already."""
RunResult = tuple[list[Finished["Work"]], float, float]
"""The requests that a run finished, its seconds, and its thread's processor seconds."""


@dataclass(frozen=True, slots=True, eq=False)
class Learned:
    """A template with what is the same for all its requests; `form` is that of their answers."""

    template: Template
    key: Hashable
    form: int
    row_bytes: float
    row_megapixels: float


_UNREAD = InferenceRequest(Signature("", (), ()), {}, None)
"""In place of the request of a body that is not decoded yet."""


class Work(Pending):
    """A request from its arrival to its answer, with the times that the answer will carry.

    `arrived_s` is when it was decoded. `batch_wait_s` leaves out earlier runs of a request that was
    split over several batches. `totals` are of the run that finished it. `holds` tells that it has
    the slot's `heavy`, `ended` that nobody waits for it any more.
    """

    __slots__ = (
        "accepted_s", "batch_wait_s", "channel", "compute_s", "decode_s", "decoded", "encode_s",
        "ended", "holds", "item", "large", "learned", "megapixels", "strings", "totals",
    )  # fmt: skip

    def __init__(self, channel: Channel, item: Item, now_s: float) -> None:
        # All fields here and in order: a generated method for so many takes four times as long.
        self.request, self.key, self.rows = _UNREAD, None, 0
        self.deadline_s, self.arrived_s, self.priority = math.inf, now_s, item.priority
        self.first = self._taken = self._answered = 0
        self._pieces, self._ended = None, False
        self.channel, self.item, self.accepted_s = channel, item, now_s
        self.learned: Learned | None = None
        self.decoded = self.large = self.holds = self.ended = False
        self.decode_s = self.compute_s = self.encode_s = self.megapixels = 0.0
        self.batch_wait_s: float | None = None
        self.strings = 0
        self.totals: RunTotals | None = None


class Engine:
    """A model version's codecs, batcher and runtime; the runtime runs in the compute thread.

    The slot's `heavy` is held while a body that may fill the memory is decoded, and until the
    answer of a request with very many strings.
    """

    def __init__(
        self,
        runtime: Runtime,
        batcher: Batcher[Work],
        compute: ComputeThread,
        recorder: Recorder,
        limits: Limits,
        heavy: asyncio.Semaphore,
        statistics: ModelStatistics,
        media: MediaCodec | None = None,
    ) -> None:
        self._codecs: tuple[Codec, ...] = codecs(limits.max_body_bytes, limits.max_elements)
        if media is not None:
            self._codecs = (*self._codecs, media)
        self._heavy, self._heavy_strings = heavy, limits.max_elements // HEAVY_DIVISOR
        self._media = media
        self._media_threads = ThreadPoolExecutor(MEDIA_THREADS, "media", initializer=be_nice)
        self.runtime, self.spec = runtime, runtime.spec
        self._batcher, self._compute, self._recorder = batcher, compute, recorder
        self._statistics = statistics
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[tuple[Channel, int], Work] = {}
        self._batch: Batch[Work] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        self._outbox: dict[Channel, list[Reply]] = {}
        self._run_s = 10 * BRIEF_S
        self._told_s = -TELL_S
        self._learned: dict[tuple[int, int | None, int], list[Learned]] = {}
        self._until_learned = 0

    def __len__(self) -> int:
        """Requests that are not answered yet."""
        return len(self._waiting)

    def configure(self, batching: Batching) -> None:
        """Change the batching; a model whose rows cannot be batched stays as it is."""
        if self.spec.max_rows:
            limit = batching.row_limit or self.runtime.spec.row_limit
            max_rows = min(batching.max_rows, limit or batching.max_rows)
            self.spec = replace(self.spec, max_rows=max_rows, row_limit=limit)
            self._batcher.configure(max_rows, batching.wait_s, batching.latency_target_s)

    async def drained(self) -> None:
        while self._waiting:
            self._idle.clear()
            await self._idle.wait()

    def accept(self, channel: Channel, items: Sequence[Item]) -> None:
        """Take the requests of a bundle; `flush` must follow."""
        now_s = time.monotonic()
        together: dict[Learned, tuple[list[Work], list[bytes]]] = {}
        for item in items:
            work = self._waiting[channel, item.id] = Work(channel, item, now_s)
            # A segment of a video is a few bytes that say what to decode: that takes long.
            if item.length > INLINE_BYTES or item.encodings & CODING or item.call >= MEDIA:
                if item.call < len(self._codecs):
                    self._loop.create_task(self._accept_large(work))
                else:
                    # A newer gateway's call: refused alone, the link goes on.
                    self._answer(work, Unimplemented("this slot's release does not know that call"))
                continue
            body = b"".join(item.body) if isinstance(item.body, tuple) else bytes(item.body)
            for learned in self._learned.get((item.call, item.json_length, item.encodings), ()):
                if learned.template.values.fits(body):
                    if learned not in together:
                        together[learned] = ([], [])
                    together[learned][0].append(work)
                    together[learned][1].append(body)
                    break
            else:
                decoded = self._decode(work, body)
                if isinstance(decoded, InferenceRequest):
                    self._learn(item, body, decoded)
                self._decoded(work, decoded)
        for learned, (works, bodies) in together.items():
            self._decode_together(learned, works, bodies)

    def _decode_together(
        self, learned: Learned, works: Sequence[Work], bodies: Sequence[bytes]
    ) -> None:
        started_s = time.monotonic()
        template = learned.template
        try:
            inputs, rows = template.values.read(bodies)
        except MISTAKES:
            log.exception("decode_failed", model=self.spec.name)
            inputs, rows = {}, [0] * len(works)
        own = template.request
        request = InferenceRequest(
            own.signature, inputs, sum(rows), own.outputs, own.timeout_s, own.encoding
        )
        now_s = time.monotonic()
        decode_s = (now_s - started_s) / len(works)
        first, ready = 0, []
        for work, body, count in zip(works, bodies, rows, strict=True):
            if count:
                work.learned, work.decode_s = learned, decode_s
                work.first, work.rows = first, count
                work.megapixels = learned.row_megapixels * count
                work.large = learned.row_bytes * count > INLINE_BYTES
                first += count
                if self._is_ready(work, request, learned.key, now_s):
                    ready.append(work)
            else:
                self._decoded(work, self._decode(work, body))
        self._batcher.add(*ready)

    def _learn(self, item: Item, body: bytes, request: InferenceRequest) -> None:
        """Keep the template of a body that fits none, if it has one and it is time."""
        self._until_learned -= 1
        if self._until_learned > 0 or not request.rows:
            return
        call = call_of(item.call, item.json_length, item.encodings)
        try:
            template = self._codecs[item.call].template(body, call, request, self.spec)
        except MISTAKES:
            log.exception("template_failed", model=self.spec.name, **trace_of(item.meta))
            template = None
        if template is None:
            return
        self._until_learned = LEARN_EVERY
        if sum(map(len, self._learned.values())) == TEMPLATES:
            oldest = next(iter(self._learned))
            self._learned[oldest].pop()
            if not self._learned[oldest]:
                del self._learned[oldest]
        size = sum([tensor.nbytes for tensor in request.inputs.values()])
        learned = Learned(
            template,
            batch_key(request),
            form_of(template.content_type),
            size / request.rows,
            megapixels(request) / request.rows,
        )
        key = (item.call, item.json_length, item.encodings)
        # At the end: the first key is the one that has learned nothing for longest.
        self._learned[key] = [learned, *self._learned.pop(key, [])]

    async def _accept_large(self, work: Work) -> None:
        item = work.item
        threads = self._media_threads if item.call == MEDIA else None
        if threads is None and (item.length > HEAVY_BYTES or item.encodings & CODING):
            await self._heavy.acquire()
            work.holds = True
        try:
            if not work.ended:
                body = _joined(item.body)
                decoded = await self._loop.run_in_executor(threads, self._decode, work, body)
                self._decoded(work, decoded)
                self.flush()
        finally:
            if work.ended or work.strings <= self._heavy_strings:
                self._let_go(work)

    def _let_go(self, work: Work) -> None:
        if work.holds:
            work.holds = False
            self._heavy.release()

    def _decode(self, work: Work, body: bytes | memoryview) -> Decoded:
        started_s = time.monotonic()
        item, media = work.item, self._media
        call = call_of(item.call, item.json_length, item.encodings)
        try:
            if media is not None and item.call == MEDIA:
                return media.kept(body, call) or media.decode(body, call, self.spec)
            return self._codecs[item.call].decode(body, call, self.spec)
        except HeadraceError as error:
            return error
        except MISTAKES as error:
            log.exception("decode_failed", model=self.spec.name, **trace_of(item.meta))
            return InternalError(f"internal error ({type(error).__name__})")
        finally:
            work.decode_s = time.monotonic() - started_s

    def _decoded(self, work: Work, decoded: Decoded) -> None:
        if work.ended:
            return  # cancelled while it was decoded
        if not isinstance(decoded, InferenceRequest):
            work.arrived_s = time.monotonic()
            self._answer(work, decoded)
            return
        work.rows = 1 if decoded.rows is None else decoded.rows
        work.megapixels = megapixels(decoded)
        size = 0
        for tensor in decoded.inputs.values():
            size += tensor.nbytes
            if tensor.dtype == BYTES:
                work.strings += tensor.size
        work.large = size > INLINE_BYTES
        if self._is_ready(work, decoded, batch_key(decoded), time.monotonic()):
            self._batcher.add(work)

    def _is_ready(self, work: Work, request: InferenceRequest, key: Hashable, now_s: float) -> bool:
        """Take over what was decoded; gives whether it may wait for a batch."""
        item, limit = work.item, self.spec.row_limit
        item.body = b""
        work.arrived_s = now_s
        if limit and work.rows > limit:
            error = f"inference request batch-size must be <= {limit} for '{self.spec.name}'"
            self._answer(work, InvalidArgument(error))
            return False
        remaining_s = item.remaining_s
        if request.timeout_s is not None and request.timeout_s < remaining_s:
            remaining_s = request.timeout_s
        work.request, work.deadline_s, work.decoded = request, now_s + remaining_s, True
        if not item.flags & Flag.ALONE:
            work.key = key
        return True

    def cancel(self, channel: Channel, item_id: int) -> bool:
        """Drop a request that nobody waits for; one that is being computed is not answered."""
        work = self._waiting.pop((channel, item_id), None)
        if work is None:
            return False
        work.ended = True
        if work.decoded:
            self._batcher.cancel(work)
            self._let_go(work)
        if not self._waiting:
            self._idle.set()
        return True

    def gone(self, channel: Channel) -> None:
        """Drop all requests of a gateway that is gone."""
        for other, item_id in [key for key in self._waiting if key[0] is channel]:
            self.cancel(other, item_id)

    def out_of_memory(self, error: HeadraceError) -> None:
        """Answer the requests that are being decoded, run or encoded: one of them is the cause.

        Those that wait for their turn are left to be tried elsewhere.
        """
        running = set(self._batch.pendings) if self._batch is not None else ()
        for work in list(self._waiting.values()):
            if not work.decoded or work.totals is not None or work in running:
                self._answer(work, error)
        self._send()

    def flush(self) -> None:
        """Start the next batch if none is running, and send what has been answered."""
        if self._batch is None and self._batcher.queues:
            self._start()
        if self._outbox:
            self._send()

    def _start(self, cause: Cause = "idle") -> None:
        now_s = time.monotonic()
        taken = self._batcher.take(now_s, cause)
        for work in taken.late:
            self._answer(work, DeadlineExceeded("the deadline passed before inference"))
        if taken.batch is not None:
            self._run(taken.batch, now_s)
        elif (due_s := self._batcher.next_s(now_s)) is not None:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_later(max(0.0, due_s - now_s), self.flush)

    def _run(self, batch: Batch[Work], now_s: float) -> None:
        self._batch = batch
        media = self._media
        request = batch.parts[0][0].request
        names = request.outputs or request.signature.output_names
        # A slot whose memory a run fills must be able to say so, so its loop stays free.
        brief = self.runtime.single_threaded and self._run_s < BRIEF_S
        parts_of_media = 0
        for work, _, _ in batch.parts:
            work.batch_wait_s = now_s - work.arrived_s - work.compute_s
            if work.large:
                brief = False
            if work.item.call == MEDIA:
                parts_of_media += 1
        nice = parts_of_media == len(batch.parts)
        more = media is not None and nice and any(map(media.more_follow, batch.pendings))
        self._recorder.batch(self.spec.name, str(self.spec.version), batch.rows)

        def run() -> RunResult:
            started, worked = time.perf_counter(), time.thread_time()
            outputs = self.runtime.run(request.signature.name, batch.inputs(), names, more)
            finished = batch.deliver(outputs)
            return finished, time.perf_counter() - started, time.thread_time() - worked

        self._compute.submit(ComputeJob(run, partial(self._ran, batch), nice, brief))

    def _ran(self, batch: Batch[Work], result: RunResult | BaseException) -> None:
        self._batch = None
        if isinstance(result, BaseException):
            self._failed(batch, result)
            self.flush()
            return
        finished, took_s, worked_s = result
        # Processor time: waiting for a core or for the interpreter makes no run longer.
        self._run_s += (worked_s - self._run_s) / AVERAGED_RUNS
        input_s = 0.0
        for work, start, _ in batch.parts:
            work.compute_s += took_s
            if not start:
                input_s += work.decode_s
        if self._run_s >= BRIEF_S or not self.runtime.single_threaded or self._batcher.may_wait:
            self._batcher.ran(batch.rows, took_s)
        if self._batcher.queues:
            # The next batch computes while this one is encoded.
            self._start("ended")
        totals = self._statistics.ran(batch.rows, input_s, took_s)
        together: dict[Learned, list[Finished[Work]]] = {}
        for each in finished:
            work, _, _, stop = each
            work.totals = totals
            if work.ended:
                continue
            if work.learned is None or stop is None:
                self._answer_alone(each)
            elif work.learned in together:
                together[work.learned].append(each)
            else:
                together[work.learned] = [each]
        for learned, members in together.items():
            self._answer_together(learned, members, batch.rows, totals)
        self._send()

    def _answer_alone(self, finished: Finished[Work]) -> None:
        work, outputs = finished[0], own_outputs(finished)
        if sum([tensor.nbytes for tensor in outputs.values()]) > INLINE_BYTES:
            self._loop.create_task(self._encode_large(work, outputs))
        else:
            self._answer(work, self._encode(work, outputs))

    def _answer_together(
        self,
        learned: Learned,
        members: Sequence[Finished[Work]],
        batch_rows: int,
        totals: RunTotals,
    ) -> None:
        """Answer requests of one template from the outputs of their run."""
        started_s = time.monotonic()
        outputs = members[0][1]
        rows, total = [], 0
        for work, _, _, _ in members:
            rows.append(work.rows)
            total += work.rows
        if total < batch_rows:
            outputs = _rows_of(members, total)
        size = 0
        for tensor in outputs.values():
            size += tensor.nbytes
        written = None
        if size <= WRITTEN_BYTES:
            try:
                written = learned.template.answers.write(outputs, rows)
            except MISTAKES:
                log.exception("encode_failed", model=self.spec.name)
        if written is None:
            for each in members:
                self._answer_alone(each)
            return
        bodies, json_length = written
        now_s = time.monotonic()
        took_s = now_s - started_s
        whole_s = queue_s = input_s = infer_s = 0.0
        for (work, _, _, _), body in zip(members, bodies, strict=True):
            waited_s = work.item.waited_s
            whole_s += waited_s + now_s - work.accepted_s
            queue_s += waited_s + (work.batch_wait_s or 0.0)
            input_s += work.decode_s
            infer_s += work.compute_s
            self._reply(work, OK, body, learned.form, json_length, now_s)
        self._statistics.succeeded(
            totals, len(members), total, whole_s, queue_s, input_s, infer_s, took_s
        )

    def _failed(self, batch: Batch[Work], error: BaseException) -> None:
        if isinstance(error, HeadraceError):
            shown = error
            self._tell_cause(error)
        else:
            for work in batch.pendings:
                trace = trace_of(work.item.meta)
                log.error("run_failed", model=self.spec.name, exc_info=error, **trace)
            shown = InternalError(f"the model failed ({type(error).__name__})")
        together = len(batch.parts) > 1
        for work in batch.fail():
            if not together:
                self._answer(work, shown)
            elif not work.ended:
                # Each alone: neighbours must not share the mistake of one of them.
                work.run_alone()
                self._batcher.add(work)

    def _tell_cause(self, error: HeadraceError) -> None:
        """Log what the runtime said, at most each `TELL_S`: callers cause these refusals."""
        now_s = time.monotonic()
        if error.__cause__ is None or now_s - self._told_s < TELL_S:
            return
        self._told_s = now_s
        tell = log.warning if error.http_status >= 500 else log.info
        tell("run_failed", model=self.spec.name, reason=error.message, said=str(error.__cause__))

    async def _encode_large(self, work: Work, outputs: Mapping[str, Tensor]) -> None:
        encoded = await self._loop.run_in_executor(None, self._encode, work, outputs)
        self._answer(work, encoded)
        self._send()

    def _encode(self, work: Work, outputs: Mapping[str, Tensor]) -> Encoded | HeadraceError:
        started_s = time.monotonic()
        try:
            return self._codecs[work.item.call].encode(work.request, outputs, self.spec)
        except HeadraceError as error:
            return error
        except MISTAKES as error:
            log.exception("encode_failed", model=self.spec.name, **trace_of(work.item.meta))
            return InternalError(f"internal error ({type(error).__name__})")
        finally:
            work.encode_s = time.monotonic() - started_s

    def _answer(self, work: Work, answer: Encoded | HeadraceError) -> None:
        if work.ended:
            return
        now_s, waited_s = time.monotonic(), work.item.waited_s
        whole_s = waited_s + now_s - work.accepted_s
        if isinstance(answer, HeadraceError):
            self._statistics.failed(whole_s)
            self._reply(work, answer.http_status, encode_failure(answer), 0, None, now_s)
            return
        if work.totals is not None:
            self._statistics.succeeded(
                work.totals,
                1,
                work.rows,
                whole_s,
                waited_s + (work.batch_wait_s or 0.0),
                work.decode_s,
                work.compute_s,
                work.encode_s,
            )
        form = form_of(answer.content_type, answer.content_encoding)
        self._reply(work, OK, answer.body, form, answer.json_length, now_s)

    def _reply(
        self,
        work: Work,
        status: int,
        body: bytes,
        form: int,
        json_length: int | None,
        now_s: float,
    ) -> None:
        """Let the answer leave with the next `_send`."""
        work.ended = True
        item, channel = work.item, work.channel
        del self._waiting[channel, item.id]
        if work.holds:
            self._let_go(work)
        slot_s = now_s - work.arrived_s
        wait_s = slot_s if work.batch_wait_s is None else work.batch_wait_s
        encode_s = slot_s - wait_s - work.compute_s
        reply = Reply(
            item.id, len(body), status, 0, form, json_length, slot_s, wait_s, work.compute_s,
            max(0.0, encode_s), len(self._waiting), body, work.rows, work.megapixels,
        )  # fmt: skip
        replies = self._outbox.get(channel)
        if replies is None:
            self._outbox[channel] = [reply]
        else:
            replies.append(reply)
        if not self._waiting:
            self._idle.set()

    def _send(self) -> None:
        if self._outbox:
            outbox, self._outbox = self._outbox, {}
            for channel, replies in outbox.items():
                channel.send_replies(replies)


def _joined(body: Body) -> bytes | memoryview:
    """The body in one buffer that does not change."""
    parts = pieces(body)
    whole: Buffer = parts[0] if len(parts) == 1 else b"".join(parts)
    return memoryview(whole) if isinstance(whole, bytearray) else whole


def _rows_of(members: Sequence[Finished[Work]], rows: int) -> Mapping[str, Tensor]:
    """The members' rows of the outputs of their run, `rows` in all; views where they adjoin."""
    _, outputs, start, _ = members[0]
    stop = members[-1][3]
    if stop is not None and stop - start == rows:
        return {name: output[start:stop] for name, output in outputs.items()}
    return {
        name: np.concatenate([output[start:stop] for _, _, start, stop in members])
        for name, output in outputs.items()
    }


def megapixels(request: InferenceRequest) -> float:
    """Picture elements of the inputs that look like pictures, in millions.

    Those are `[rows, height, width, channels]` or `[rows, channels, height, width]` with at most
    four channels; pictures in files count nothing, since their size is not known here.
    """
    count = 0
    for tensor in request.inputs.values():
        if len(tensor.shape) == 4:
            rows, first, second, last = tensor.shape
            if last <= 4:
                count += rows * first * second
            elif first <= 4:
                count += rows * second * last
    return count / 1e6


def trace_of(meta: bytes) -> dict[str, str]:
    """Request id and `traceparent` of an item's meta, for the slot's log lines."""
    request_id, _, traceparent = meta.decode("ascii", "replace").partition("\n")
    found = {"request_id": request_id, "traceparent": traceparent}
    return {name: value for name, value in found.items() if value}
