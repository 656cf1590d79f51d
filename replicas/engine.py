"""A loaded model version in a slot: requests in, answers out, one batch at a time.

    item → accept → *decode* → batcher → *run* → *encode* → reply

`_decode` and `_encode` work on the loop, so that they overlap with the run in the compute thread;
for bodies over `INLINE_BYTES` and for parts of media they work in threads, so that the link always
answers. Bodies that may fill the memory (`HEAVY_BYTES`) are decoded one at a time in a slot. An
error of a step is the answer of its request alone: a batch that fails is run again, each request
by itself.
"""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

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
from headrace.link.frames import Buffer, Flag, Item, Reply, encode_failure, pieces
from headrace.metrics import Recorder
from headrace.process import be_nice
from headrace.protocols.calls import call_of, form_of
from headrace.protocols.codecs import codecs
from headrace.protocols.tensors import Call, Codec, Encoded, InferenceRequest
from headrace.spec import BYTES, Tensor
from replicas.batcher import Batch, Batcher, Pending
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
MEDIA_THREADS = 2
"""One for the part that a shard computes and one for the next, which the stage sends ahead."""
log = structlog.get_logger()

Decoded = InferenceRequest | Encoded | HeadraceError
"""A request to run, or its answer already."""
RunResult = tuple[list[tuple[Pending, dict[str, Tensor]]], float, float]
"""The requests that a run finished, its seconds, and its thread's processor seconds."""


@dataclass(slots=True, eq=False)
class Work:
    """A request from its arrival to its answer, with the times that the answer will carry.

    `batch_wait_s` leaves out earlier runs of a request that was split over
    several batches. `totals` are of the run that finished it. `holds` tells that it has the slot's
    `heavy`.
    """

    channel: Channel
    item: Item
    codec: Codec
    accepted_s: float
    decoded_s: float
    pending: Pending | None = None
    decode_s: float = 0.0
    batch_wait_s: float | None = None
    compute_s: float = 0.0
    encode_s: float = 0.0
    rows: int = 0
    megapixels: float = 0.0
    strings: int = 0
    totals: RunTotals | None = None
    large: bool = False
    holds: bool = False
    ended: bool = False


class Engine:
    """A model version's codecs, batcher and runtime; the runtime runs in the compute thread.

    The slot's `heavy` is held while a body that may fill the memory is decoded, and until the
    answer of a request with very many strings.
    """

    def __init__(
        self,
        runtime: Runtime,
        batcher: Batcher,
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
        self._batch: Batch | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        self._outbox: dict[Channel, list[Reply]] = {}
        self._run_s = 10 * BRIEF_S
        self._told_s = -TELL_S

    def __len__(self) -> int:
        """Requests that are not answered yet."""
        return len(self._waiting)

    def configure(self, batching: Batching) -> None:
        """Change the batching; a model whose rows cannot be batched stays as it is."""
        if self.spec.max_rows:
            limit = batching.row_limit or self.runtime.spec.row_limit
            max_rows = min(batching.max_rows, limit or batching.max_rows)
            self.spec = replace(self.spec, max_rows=max_rows, row_limit=limit)
            self._batcher.configure(max_rows, batching.max_wait_s)

    async def drained(self) -> None:
        while self._waiting:
            self._idle.clear()
            await self._idle.wait()

    def accept(self, channel: Channel, item: Item) -> None:
        """Take a request; `flush` must follow the last one of a bundle."""
        known = item.call < len(self._codecs)
        codec = self._codecs[item.call if known else 0]
        now_s = time.monotonic()
        work = self._waiting[channel, item.id] = Work(channel, item, codec, now_s, now_s)
        if not known:
            # A newer gateway's call: refused alone, the link goes on.
            self._answer(work, Unimplemented("this slot's release does not know that call"))
            return
        call = call_of(item.call, item.json_length, item.encodings)
        # A segment of a video is a few bytes that say what to decode: that takes long.
        if item.length > INLINE_BYTES or call.content_encoding or codec is self._media:
            self._loop.create_task(self._accept_large(work, call))
        else:
            self._decoded(work, self._decode(work, call))

    async def _accept_large(self, work: Work, call: Call) -> None:
        threads = self._media_threads if work.codec is self._media else None
        if threads is None and (work.item.length > HEAVY_BYTES or call.content_encoding):
            await self._heavy.acquire()
            work.holds = True
        try:
            if not work.ended:
                decoded = await self._loop.run_in_executor(threads, self._decode, work, call)
                self._decoded(work, decoded)
                self.flush()
        finally:
            if work.ended or work.strings <= self._heavy_strings:
                self._let_go(work)

    def _let_go(self, work: Work) -> None:
        if work.holds:
            work.holds = False
            self._heavy.release()

    def _decode(self, work: Work, call: Call) -> Decoded:
        started_s = time.monotonic()
        media, limit = self._media, self.spec.row_limit
        parts = pieces(work.item.body)
        body: Buffer = parts[0] if len(parts) == 1 else b"".join(parts)
        if isinstance(body, bytearray):
            body = memoryview(body)
        try:
            if media is not None and work.codec is media:
                return media.kept(body, call) or media.decode(body, call, self.spec)
            decoded = work.codec.decode(body, call, self.spec)
            if limit and decoded.rows is not None and decoded.rows > limit:
                raise InvalidArgument(
                    f"inference request batch-size must be <= {limit} for '{self.spec.name}'"
                )
            return decoded
        except HeadraceError as error:
            return error
        except (ValueError, TypeError, KeyError, IndexError, RecursionError) as error:
            # A codec's own mistake must cost only the request that met it.
            log.exception("decode_failed", model=self.spec.name, **trace_of(work.item.meta))
            return InternalError(f"internal error ({type(error).__name__})")
        finally:
            work.decode_s = time.monotonic() - started_s

    def _decoded(self, work: Work, decoded: Decoded) -> None:
        if work.ended:
            return  # cancelled while it was decoded
        item, work.decoded_s = work.item, time.monotonic()
        item.body = b""
        if not isinstance(decoded, InferenceRequest):
            self._answer(work, decoded)
            return
        remaining_s = item.remaining_s
        if decoded.timeout_s is not None:
            remaining_s = min(remaining_s, decoded.timeout_s)
        work.pending = Pending.of(
            decoded,
            work.decoded_s + remaining_s,
            work.decoded_s,
            token=work,
            alone=bool(item.flags & Flag.ALONE),
            priority=item.priority,
        )
        work.rows, work.megapixels = work.pending.rows, megapixels(decoded)
        size = 0
        for tensor in decoded.inputs.values():
            size += tensor.nbytes
            if tensor.dtype == BYTES:
                work.strings += tensor.size
        work.large = size > INLINE_BYTES
        self._batcher.add(work.pending)

    def cancel(self, channel: Channel, item_id: int) -> bool:
        """Drop a request that nobody waits for; one that is being computed is not answered."""
        work = self._waiting.pop((channel, item_id), None)
        if work is None:
            return False
        work.ended = True
        if work.pending is not None:
            self._batcher.cancel(work.pending)
            self._let_go(work)
            work.pending = None
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
        running = self._batch.pendings if self._batch is not None else ()
        for work in list(self._waiting.values()):
            decoding, encoding = work.pending is None, work.totals is not None
            if decoding or encoding or any(work.pending is each for each in running):
                self._answer(work, error)
        self._send()

    def flush(self) -> None:
        """Start the next batch if none is running, and send what has been answered."""
        if self._batch is None:
            self._start()
        self._send()

    def _start(self) -> None:
        now_s = time.monotonic()
        taken = self._batcher.take(now_s)
        for pending in taken.late:
            self._answer(pending.token, DeadlineExceeded("the deadline passed before inference"))
        if taken.batch is not None:
            self._run(taken.batch, now_s)
        elif (due_s := self._batcher.next_s(now_s)) is not None:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_later(max(0.0, due_s - now_s), self.flush)

    def _run(self, batch: Batch, now_s: float) -> None:
        self._batch = batch
        media = self._media
        request = batch.parts[0].pending.request
        names = request.outputs or tuple(spec.name for spec in request.signature.outputs)
        # A slot whose memory a run fills must be able to say so, so its loop stays free.
        brief = self.runtime.single_threaded and self._run_s < BRIEF_S
        nice = media is not None
        for part in batch.parts:
            work: Work = part.pending.token
            brief = brief and not work.large
            nice = nice and work.codec is media
            work.batch_wait_s = now_s - work.decoded_s - work.compute_s
        more = media is not None and nice and any(map(media.more_follow, batch.pendings))
        self._recorder.batch(self.spec.name, str(self.spec.version), batch.rows)

        def run() -> RunResult:
            started, worked = time.perf_counter(), time.thread_time()
            outputs = self.runtime.run(request.signature.name, batch.inputs(), names, more)
            finished = batch.deliver(outputs)
            return finished, time.perf_counter() - started, time.thread_time() - worked

        self._compute.submit(ComputeJob(run, lambda result: self._ran(batch, result), nice, brief))

    def _ran(self, batch: Batch, result: RunResult | BaseException) -> None:
        self._batch = None
        if isinstance(result, BaseException):
            self._failed(batch, result)
        else:
            finished, took_s, worked_s = result
            # Processor time: waiting for a core or for the interpreter makes no run longer.
            self._run_s += (worked_s - self._run_s) / AVERAGED_RUNS
            input_s = 0.0
            for part in batch.parts:
                work: Work = part.pending.token
                work.compute_s += took_s
                if not part.start:
                    input_s += work.decode_s
            # The next batch computes while this one is encoded.
            self._start()
            totals = self._statistics.ran(batch.rows, input_s, took_s)
            for pending, outputs in finished:
                work = pending.token
                work.totals = totals
                if work.ended:
                    continue
                if sum([tensor.nbytes for tensor in outputs.values()]) > INLINE_BYTES:
                    self._loop.create_task(self._encode_large(work, pending.request, outputs))
                else:
                    self._answer(work, self._encode(work, pending.request, outputs))
        self.flush()

    def _failed(self, batch: Batch, error: BaseException) -> None:
        if isinstance(error, HeadraceError):
            shown = error
            self._tell_cause(error)
        else:
            for pending in batch.pendings:
                trace = trace_of(pending.token.item.meta)
                log.error("run_failed", model=self.spec.name, exc_info=error, **trace)
            shown = InternalError(f"the model failed ({type(error).__name__})")
        together = len(batch.parts) > 1
        for pending in batch.fail(shown):
            work: Work = pending.token
            if not together:
                self._answer(work, shown)
            elif not work.ended:
                # Each alone (without a key): neighbours must not share the mistake of one of them.
                rest = (pending.rows, pending.deadline_s, pending.arrived_s, work)
                work.pending = Pending(pending.request, None, *rest, pending.priority)
                self._batcher.add(work.pending)

    def _tell_cause(self, error: HeadraceError) -> None:
        """Log what the runtime said, at most each `TELL_S`: callers cause these refusals."""
        now_s = time.monotonic()
        if error.__cause__ is None or now_s - self._told_s < TELL_S:
            return
        self._told_s = now_s
        tell = log.warning if error.http_status >= 500 else log.info
        tell("run_failed", model=self.spec.name, reason=error.message, said=str(error.__cause__))

    async def _encode_large(
        self, work: Work, request: InferenceRequest, outputs: dict[str, Tensor]
    ) -> None:
        encoded = await self._loop.run_in_executor(None, self._encode, work, request, outputs)
        self._answer(work, encoded)
        self._send()

    def _encode(
        self, work: Work, request: InferenceRequest, outputs: dict[str, Tensor]
    ) -> Encoded | HeadraceError:
        started_s = time.monotonic()
        try:
            return work.codec.encode(request, outputs, self.spec)
        except HeadraceError as error:
            return error
        except (ValueError, TypeError, KeyError, IndexError) as error:
            log.exception("encode_failed", model=self.spec.name, **trace_of(work.item.meta))
            return InternalError(f"internal error ({type(error).__name__})")
        finally:
            work.encode_s = time.monotonic() - started_s

    def _answer(self, work: Work, answer: Encoded | HeadraceError) -> None:
        if work.ended:
            return
        work.ended = True
        # Each holds the other: only the collector would free its tensors, and late.
        work.pending = None
        item = work.item
        del self._waiting[work.channel, item.id]
        if work.holds:
            self._let_go(work)
        now_s = time.monotonic()
        slot_s = now_s - work.decoded_s
        wait_s = slot_s if work.batch_wait_s is None else work.batch_wait_s
        whole_s = item.waited_s + now_s - work.accepted_s
        status = 200
        if isinstance(answer, HeadraceError):
            status, answer = answer.http_status, Encoded(encode_failure(answer))
            self._statistics.failed(whole_s)
        elif work.totals is not None:
            self._statistics.succeeded(
                work.totals,
                work.rows,
                whole_s,
                item.waited_s + wait_s,
                work.decode_s,
                work.compute_s,
                work.encode_s,
            )
        reply = Reply(
            id=item.id,
            length=len(answer.body),
            status=status,
            form=form_of(answer),
            json_length=answer.json_length,
            slot_s=slot_s,
            batch_wait_s=wait_s,
            compute_s=work.compute_s,
            encode_s=max(0.0, slot_s - wait_s - work.compute_s),
            depth=len(self._waiting),
            body=answer.body,
            rows=work.rows,
            megapixels=work.megapixels,
        )
        self._outbox.setdefault(work.channel, []).append(reply)
        if not self._waiting:
            self._idle.set()

    def _send(self) -> None:
        if self._outbox:
            outbox, self._outbox = self._outbox, {}
            for channel, replies in outbox.items():
                channel.send_replies(replies)


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
