"""Keeps what was asked and answered, beside the calls: for whoever challenges a receipt later.

Invariants: a call never waits for this: what finds no room in the queue is dropped and counted; at most
`QUEUE_BYTES` wait in memory; compressing and writing are done in one thread beside the loop; nobody
but the challenges reads here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any, TypeVar

import trio

from emcd.metrics import counter, gauge
from emcd.types import Address
from emcd_node.transcript import MAX_TRANSCRIPT_BYTES, Transcript, pack
from emcd_node.transcript_folder import TranscriptFolder

T = TypeVar("T")

KEPT_ROUNDS = 12
QUEUE_CALLS = 1024
QUEUE_BYTES = 96 << 20
"""More than the largest transcript, or that would never be kept."""
_BATCH_CALLS = 128
_FRAME_BYTES = 1024
"""What a transcript takes beside request and answer."""
_KEPT = gauge("emcd_node_transcript_bytes", "Transcripts on disk.", ("node",))
_DROPPED = counter(
    "emcd_node_transcripts_dropped_total", "Calls whose transcript is not kept.", ("node", "why")
)


class TranscriptKeeper:
    """The transcripts of one node; `run` must be running for anything to reach the disk."""

    def __init__(self, node: Address, folder: TranscriptFolder, log: Any) -> None:
        self._node = node
        self._folder = folder
        self._log = log
        self._limiter = trio.CapacityLimiter(1)
        self._send, self._receive = trio.open_memory_channel[tuple[int, Transcript]](QUEUE_CALLS)
        self._waiting_bytes = 0
        self._evicted = self._unfit = 0
        self._is_open = False
        self.complaint = ""
        self.dropped = 0

    def offer(self, round_index: int, transcript: Transcript) -> bool:
        """Take a call to be kept, now or not at all. Returns: whether it was taken. Never waits."""
        size = _size(transcript)
        if size > MAX_TRANSCRIPT_BYTES:
            return self._drop("size")
        if self._waiting_bytes + size > QUEUE_BYTES:
            return self._drop("queue")
        try:
            self._send.send_nowait((round_index, transcript))
        except trio.WouldBlock:
            return self._drop("queue")
        self._waiting_bytes += size
        return True

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Write what is offered, until cancelled. What waits then is lost: no receipt depends on it."""
        await self._open()
        task_status.started()
        while True:
            batch = [await self._receive.receive()]
            while len(batch) < _BATCH_CALLS:
                try:
                    batch.append(self._receive.receive_nowait())
                except trio.WouldBlock:
                    break
            await self._write(batch)
            self._waiting_bytes -= sum(_size(transcript) for _, transcript in batch)

    async def find(self, round_index: int, call_id: bytes) -> Transcript | None:
        """The transcript of a call, as far as it is on disk."""
        try:
            return await self._in_thread(self._folder.find, round_index, call_id)
        except OSError as exc:
            self._complain(exc)
            return None

    async def prune(self, current_round: int) -> None:
        """Forget rounds that nobody may challenge any more."""
        if not self._is_open:
            return
        try:
            await self._in_thread(self._folder.prune, current_round - KEPT_ROUNDS)
        except OSError as exc:
            self._complain(exc)
        _KEPT.labels(self._node).set(self._folder.size_bytes)

    async def _open(self) -> None:
        try:
            await self._in_thread(self._folder.open)
            self._is_open = True
        except OSError as exc:
            self._complain(exc)
        _KEPT.labels(self._node).set(self._folder.size_bytes)

    async def _write(self, batch: list[tuple[int, Transcript]]) -> None:
        try:
            if not self._is_open:
                await self._in_thread(self._folder.open)
                self._is_open = True
            await self._in_thread(self._append, batch)
            self.complaint = ""
        except OSError as exc:
            for _ in batch:
                self._drop("disk")
            self._complain(exc)
        for _ in range(self._folder.dropped_segments - self._evicted):
            _DROPPED.labels(self._node, "old").inc()
        self._evicted = self._folder.dropped_segments
        for _ in range(self._folder.dropped_frames - self._unfit):
            self._drop("size")
        self._unfit = self._folder.dropped_frames
        _KEPT.labels(self._node).set(self._folder.size_bytes)

    def _append(self, batch: list[tuple[int, Transcript]]) -> None:
        frames: defaultdict[int, list[bytes]] = defaultdict(list)
        for round_index, transcript in batch:
            frames[round_index].append(pack(transcript))
        for round_index in sorted(frames):
            self._folder.append(round_index, frames[round_index])

    async def _in_thread(self, work: Callable[..., T], *args: Any) -> T:
        return await trio.to_thread.run_sync(work, *args, limiter=self._limiter)

    def _drop(self, why: str) -> bool:
        self.dropped += 1
        _DROPPED.labels(self._node, why).inc()
        return False

    def _complain(self, exc: OSError) -> None:
        complaint = f"EMC-2017: {exc}"
        if complaint != self.complaint:
            self._log.error("node.transcripts_not_kept", code="EMC-2017", detail=str(exc))
        self.complaint = complaint


def _size(transcript: Transcript) -> int:
    return len(transcript.request) + len(transcript.response) + _FRAME_BYTES
