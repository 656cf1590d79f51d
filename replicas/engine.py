"""A loaded model version in a slot: requests in, answers out, one batch at a time.

Decoding and encoding happen on the loop, so that they overlap with the run in the compute thread;
bodies over `INLINE_BYTES` are decoded and encoded in threads, and so are parts of media, so that
the link always answers. Of those that may be heavy the slot decodes one at a time.
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
from headrace.protocols.calls import call_of, codecs, form_of
from headrace.protocols.tensors import Codec, Encoded, InferenceRequest
from headrace.spec import BYTES, Tensor
from replicas.batcher import Batch, Batcher, Deadline, Pending
from replicas.compute import ComputeThread, Job
from replicas.media_codec import MediaCodec
from replicas.runtime import Runtime
from replicas.statistics import ModelStatistics, RunTotals

INLINE_BYTES = 256 * 1024
HEAVY_BYTES = 1024 * 1024
"""A body of so much, or a compressed one, may hold enough elements to fill the slot's memory."""
HEAVY_SHARE = 8
"""A request of more strings than this part of `max_elements` is held alone until it is answered."""
BRIEF_S = 0.2e-3
"""To wake a thread for shorter runs, and the loop after each, costs more than they do."""
LATEST = 32
"""So many runs count for the mean that is compared with it."""
TELL_S = 1.0
"""At most so often the log tells what a runtime said of a run that it refused."""
MEDIA_THREADS = 2
"""A stage sends a shard the next part while it computes one."""
log = structlog.get_logger()

Decoded = InferenceRequest | Encoded | HeadraceError
"""A request to run, or its answer already."""
RunResult = tuple[list[tuple[Pending, dict[str, Tensor]]], float, float]
"""The requests that a run finished, how many seconds it took, and its thread's processor time."""


@dataclass(slots=True, eq=False)
class Caller:
    """Where an answer goes, and the times it will carry.

    `waited_s` is the time in the gateway, `accepted_s` when the request came and `arrived_s` when
    it was decoded. `batch_wait_s` is set by its run and leaves out earlier runs of a cut request.
    """

    channel: Channel
    item_id: int
    codec: Codec
    meta: bytes
    accepted_s: float
    waited_s: float
    arrived_s: float
    decode_s: float = 0.0
    rows: int = 0
    megapixels: float = 0.0
    batch_wait_s: float | None = None
    compute_s: float = 0.0
    run: RunTotals | None = None
    encode_s: float = 0.0
    strings: int = 0
    large: bool = False
    holds: bool = False


class Engine:
    """See the module. `run` of the runtime is called from the slot's one compute thread.

    Who decodes what may be heavy, or has it, holds the slot's `heavy`.
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
        self._heavy, self._heavy_strings = heavy, limits.max_elements // HEAVY_SHARE
        self._media = media
        self._media_threads = ThreadPoolExecutor(MEDIA_THREADS, "media", initializer=be_nice)
        self.runtime, self.spec = runtime, runtime.spec
        self._batcher, self._compute, self._recorder = batcher, compute, recorder
        self._statistics = statistics
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[tuple[Channel, int], Pending | Caller] = {}
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
        """Batch so from now on; a model whose rows cannot be batched stays as it is."""
        if self.spec.max_rows:
            limit = batching.row_limit or self.runtime.spec.row_limit
            max_rows = min(batching.max_rows, limit or batching.max_rows)
            self.spec = replace(self.spec, max_rows=max_rows, row_limit=limit)
            self._batcher.configure(max_rows, batching.max_wait_s)

    async def drained(self) -> None:
        """Wait until nothing is left to answer."""
        while self._waiting:
            self._idle.clear()
            await self._idle.wait()

    # -- in -----------------------------------------------------------------------------------

    def accept(self, channel: Channel, item: Item) -> None:
        """Take a request; `flush` must follow the last one of a bundle."""
        known = item.call < len(self._codecs)
        codec = self._codecs[item.call if known else 0]
        now_s = time.monotonic()
        caller = Caller(channel, item.id, codec, item.meta, now_s, item.waited_s, now_s)
        self._waiting[channel, item.id] = caller
        if not known:
            # A newer gateway's call: refused alone, the link goes on.
            self._answer(caller, Unimplemented("this slot's release does not know that call"))
            return
        compressed = call_of(item.call, None, item.encodings).content_encoding
        # A segment of a video is a few bytes that say what to decode: that takes long.
        if item.length <= INLINE_BYTES and not compressed and codec is not self._media:
            self._decoded(caller, item, self._decode(caller, item))
        else:
            self._loop.create_task(self._accept_large(caller, item))

    async def _accept_large(self, caller: Caller, item: Item) -> None:
        threads = self._media_threads if caller.codec is self._media else None
        compressed = call_of(item.call, None, item.encodings).content_encoding
        if threads is None and (item.length > HEAVY_BYTES or compressed):
            await self._heavy.acquire()
            caller.holds = True
        try:
            if (caller.channel, item.id) in self._waiting:
                decoded = await self._loop.run_in_executor(threads, self._decode, caller, item)
                self._decoded(caller, item, decoded)
                self.flush()
        finally:
            kept = (caller.channel, item.id) in self._waiting
            if not kept or caller.strings <= self._heavy_strings:
                self._let_go(caller)

    def _let_go(self, caller: Caller) -> None:
        if caller.holds:
            caller.holds = False
            self._heavy.release()

    def _decode(self, caller: Caller, item: Item) -> Decoded:
        started_s = time.monotonic()
        parts = pieces(item.body)
        body: Buffer = parts[0] if len(parts) == 1 else b"".join(parts)
        try:
            if isinstance(body, bytearray):
                body = memoryview(body)
            call = call_of(item.call, item.json_length, item.encodings)
            if caller.codec is self._media and (kept := self._media.kept(body, call)) is not None:
                return kept
            decoded = caller.codec.decode(body, call, self.spec)
            limit = self.spec.row_limit
            own = caller.codec is not self._media
            if limit and own and decoded.rows is not None and decoded.rows > limit:
                raise InvalidArgument(
                    f"inference request batch-size must be <= {limit} for '{self.spec.name}'"
                )
            return decoded
        except HeadraceError as error:
            return error
        except (ValueError, TypeError, KeyError, IndexError, RecursionError) as error:
            # A codec's own mistake must cost only the request that met it.
            log.exception("decode_failed", model=self.spec.name, **trace_of(item.meta))
            return InternalError(f"internal error ({type(error).__name__})")
        finally:
            caller.decode_s = time.monotonic() - started_s

    def _decoded(self, caller: Caller, item: Item, decoded: Decoded) -> None:
        channel = caller.channel
        if (channel, item.id) not in self._waiting:
            return  # cancelled while it was decoded
        caller.arrived_s = now_s = time.monotonic()
        if not isinstance(decoded, InferenceRequest):
            self._answer(caller, decoded)
            return
        remaining_s = item.remaining_s
        if decoded.timeout_s is not None:
            remaining_s = min(remaining_s, decoded.timeout_s)
        pending = Pending.of(
            decoded,
            Deadline.after(remaining_s, now_s),
            now_s,
            token=caller,
            alone=bool(item.flags & Flag.ALONE),
            priority=item.priority,
        )
        caller.rows, caller.megapixels = pending.rows, megapixels(decoded)
        size = 0
        for tensor in decoded.inputs.values():
            size += tensor.nbytes
            if tensor.dtype == BYTES:
                caller.strings += tensor.size
        caller.large = size > INLINE_BYTES
        self._waiting[channel, item.id] = pending
        self._batcher.add(pending)

    def cancel(self, channel: Channel, item_id: int) -> bool:
        """Drop a request that nobody waits for; one that is being computed is not answered."""
        if (channel, item_id) not in self._waiting:
            return False
        pending = self._waiting.pop((channel, item_id))
        if isinstance(pending, Pending):
            self._batcher.cancel(pending)
            self._let_go(pending.token)
        self._check_idle()
        return True

    def gone(self, channel: Channel) -> None:
        """A gateway is gone: drop all its requests."""
        for other, item_id in [key for key in self._waiting if key[0] is channel]:
            self.cancel(other, item_id)

    def out_of_memory(self, error: HeadraceError) -> None:
        """Answer what is being decoded, run or encoded: one of it is the cause.

        What waits for its turn is left to be tried elsewhere.
        """
        running = self._batch.pendings if self._batch is not None else ()
        for found in list(self._waiting.values()):
            if not isinstance(found, Pending):
                self._answer(found, error)
            elif found.token.run is not None or any(found is each for each in running):
                self._answer(found.token, error)
        self._send()

    # -- compute ------------------------------------------------------------------------------

    def flush(self) -> None:
        """Start the next batch if none is running, and send what has been answered."""
        if self._batch is None:
            self._start()
        self._send()

    def _start(self) -> None:
        now_s = time.monotonic()
        taken = self._batcher.take(now_s)
        for pending in taken.late:
            error = DeadlineExceeded("the deadline passed before inference")
            self._answer(pending.token, error)
        if taken.batch is not None:
            self._run(taken.batch, now_s)
        elif (due_s := self._batcher.next_s(now_s)) is not None:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_later(max(0.0, due_s - now_s), self.flush)

    def _run(self, batch: Batch, now_s: float) -> None:
        self._batch = batch
        request = batch.parts[0].pending.request
        names = request.outputs or tuple(spec.name for spec in request.signature.outputs)
        # A slot whose memory a run fills must be able to say so, so its loop stays free.
        brief = self.runtime.single_threaded and self._run_s < BRIEF_S
        for part in batch.parts:
            caller: Caller = part.pending.token
            brief = brief and not caller.large
            caller.batch_wait_s = now_s - caller.arrived_s - caller.compute_s
        self._recorder.batch(self.spec.name, str(self.spec.version), batch.rows)

        media = self._media
        nice = all(part.pending.token.codec is media for part in batch.parts)
        more = media is not None and nice and any(map(media.more_follow, batch.pendings))

        def job() -> RunResult:
            started, worked = time.perf_counter(), time.thread_time()
            outputs = self.runtime.run(request.signature.name, batch.inputs(), names, more)
            finished = batch.deliver(outputs)
            return finished, time.perf_counter() - started, time.thread_time() - worked

        self._compute.submit(Job(job, lambda result: self._ran(batch, result), nice, brief))

    def _ran(self, batch: Batch, result: RunResult | BaseException) -> None:
        self._batch = None
        if isinstance(result, BaseException):
            self._failed(batch, result)
        else:
            finished, took_s, worked_s = result
            # Not the time it took: waiting for a core or for the interpreter makes no run longer.
            self._run_s += (worked_s - self._run_s) / LATEST
            for part in batch.parts:
                part.pending.token.compute_s += took_s
            # The next batch computes while this one is encoded.
            self._start()
            run = self._count(batch, took_s)
            for pending, outputs in finished:
                pending.token.run = run
                self._finish(pending, outputs)
        self.flush()

    def _count(self, batch: Batch, took_s: float) -> RunTotals:
        begun = [part.pending.token.decode_s for part in batch.parts if not part.start]
        return self._statistics.ran(batch.rows, sum(begun), took_s)

    def _failed(self, batch: Batch, error: BaseException) -> None:
        if isinstance(error, HeadraceError):
            shown = error
            self._tell_cause(error)
        else:
            for pending in batch.pendings:
                trace = trace_of(pending.token.meta)
                log.error("run_failed", model=self.spec.name, exc_info=error, **trace)
            shown = InternalError(f"the model failed ({type(error).__name__})")
        together = len(batch.parts) > 1
        for pending in batch.fail(shown):
            if together:
                self._again(pending)
            else:
                self._answer(pending.token, shown)

    def _tell_cause(self, error: HeadraceError) -> None:
        """Log all that the runtime said; callers cause what is refused, so only now and then."""
        now_s = time.monotonic()
        if error.__cause__ is None or now_s - self._told_s < TELL_S:
            return
        self._told_s = now_s
        tell = log.warning if error.http_status >= 500 else log.info
        tell("run_failed", model=self.spec.name, reason=error.message, said=str(error.__cause__))

    def _again(self, pending: Pending) -> None:
        """Its batch failed, so run it by itself: neighbours must not share one's mistake."""
        caller: Caller = pending.token
        if (caller.channel, caller.item_id) not in self._waiting:
            return
        again = Pending.of(
            pending.request,
            pending.deadline,
            pending.arrived_s,
            token=caller,
            alone=True,
            priority=pending.priority,
        )
        self._waiting[caller.channel, caller.item_id] = again
        self._batcher.add(again)

    # -- out ----------------------------------------------------------------------------------

    def _finish(self, pending: Pending, outputs: dict[str, Tensor]) -> None:
        caller: Caller = pending.token
        if (caller.channel, caller.item_id) not in self._waiting:
            return
        if sum(tensor.nbytes for tensor in outputs.values()) <= INLINE_BYTES:
            self._answer(caller, self._encode(pending, outputs))
        else:
            self._loop.create_task(self._finish_large(pending, outputs))

    async def _finish_large(self, pending: Pending, outputs: dict[str, Tensor]) -> None:
        encoded = await self._loop.run_in_executor(None, self._encode, pending, outputs)
        self._answer(pending.token, encoded)
        self._send()

    def _encode(self, pending: Pending, outputs: dict[str, Tensor]) -> Encoded | HeadraceError:
        caller: Caller = pending.token
        started_s = time.monotonic()
        try:
            return caller.codec.encode(pending.request, outputs, self.spec)
        except HeadraceError as error:
            return error
        except (ValueError, TypeError, KeyError, IndexError) as error:
            log.exception("encode_failed", model=self.spec.name, **trace_of(caller.meta))
            return InternalError(f"internal error ({type(error).__name__})")
        finally:
            caller.encode_s = time.monotonic() - started_s

    def _answer(self, caller: Caller, answer: Encoded | HeadraceError) -> None:
        if (caller.channel, caller.item_id) not in self._waiting:
            return
        del self._waiting[caller.channel, caller.item_id]
        if caller.holds:
            self._let_go(caller)
        now_s = time.monotonic()
        slot_s = now_s - caller.arrived_s
        wait_s = slot_s if caller.batch_wait_s is None else caller.batch_wait_s
        whole_s = caller.waited_s + now_s - caller.accepted_s
        status = 200
        if isinstance(answer, HeadraceError):
            status, answer = answer.http_status, Encoded(encode_failure(answer))
            self._statistics.failed(whole_s)
        elif caller.run is not None:
            self._statistics.succeeded(
                caller.run,
                caller.rows,
                whole_s,
                caller.waited_s + wait_s,
                caller.decode_s,
                caller.compute_s,
                caller.encode_s,
            )
        reply = Reply(
            id=caller.item_id,
            length=len(answer.body),
            status=status,
            flags=0,
            form=form_of(answer),
            json_length=answer.json_length,
            slot_s=slot_s,
            batch_wait_s=wait_s,
            compute_s=caller.compute_s,
            encode_s=max(0.0, slot_s - wait_s - caller.compute_s),
            depth=len(self._waiting),
            body=answer.body,
            rows=caller.rows,
            megapixels=caller.megapixels,
        )
        self._outbox.setdefault(caller.channel, []).append(reply)
        self._check_idle()

    def _send(self) -> None:
        if self._outbox:
            outbox, self._outbox = self._outbox, {}
            for channel, replies in outbox.items():
                channel.send_replies(replies)

    def _check_idle(self) -> None:
        if not self._waiting:
            self._idle.set()


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
