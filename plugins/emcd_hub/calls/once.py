"""Requests with an Idempotency-Key: done once, and answered alike as long as the answer is kept.

Owns the keys in flight and the answers in memory. Invariants: of two requests with one key one at most is at
work, and that until the ledger has said what became of its row; a key that was charged for is never charged
for again while it is remembered, a restart included, since the ledger has the fact in the call's own
transaction; a call that failed, or that was left before it cost anything, frees its key; memory is bounded by
bytes and by time.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable

import trio

from emcd.clock import Clock
from emcd.ledger import Ledger
from emcd.net.http_response import Headers
from emcd.proto.openai_shape import Once
from emcd.proto.records import format_call_id
from emcd_hub.api.error import answer_gone, key_in_use, key_reused
from emcd_hub.api.reply import Reply
from emcd_hub.calls.once_writes import OnceWrites
from emcd_hub.records.once_row import REMEMBERED_MS, delete_once, find_once

_SWEPT_EACH_MS = 60_000
_SWEPT_AT_ONCE = 500
_ENTRY_BYTES = 1024
"""What an answer takes in memory beside its body."""
_LARGEST_SHARE = 8
"""An answer of more than an eighth of the memory is not kept."""
_KEPT_HEADERS = frozenset((b"content-type", b"x-emc-call-id", b"x-emc-node", b"x-emc-credits"))
_REPLAY = (b"x-emc-idempotent-replay", b"true")


class _Answer:
    """A whole answer that is kept."""

    __slots__ = ("at_ms", "body", "headers", "request_hash", "status")

    def __init__(self, request_hash: bytes, at_ms: int, status: int, headers: Headers, body: bytes) -> None:
        self.request_hash = request_hash
        self.at_ms = at_ms
        self.status = status
        self.headers = [*(item for item in headers if item[0] in _KEPT_HEADERS), _REPLAY]
        self.body = body

    @property
    def size(self) -> int:
        return len(self.body) + _ENTRY_BYTES


class _Work:
    """A request at work."""

    __slots__ = ("ended", "request_hash")

    def __init__(self, request_hash: bytes) -> None:
        self.request_hash = request_hash
        self.ended = trio.Event()


class _KeptReply:
    """Sends what it is given, and keeps a whole answer that is a success."""

    __slots__ = ("_reply", "kept")

    def __init__(self, reply: Reply) -> None:
        self._reply = reply
        self.kept: tuple[int, Headers, bytes] | None = None

    @property
    def begun(self) -> bool:
        return self._reply.begun

    def keep(self, status: int, headers: Headers, body: bytes) -> None:
        if 200 <= status < 300:
            self.kept = (status, headers, body)

    async def whole(self, status: int, headers: Headers, body: bytes) -> None:
        self.keep(status, headers, body)  # first: a client that left before its answer asks again
        await self._reply.whole(status, headers, body)

    async def begin(
        self, status: int, headers: Headers, body: bytes = b"", *, trailers: bool = False
    ) -> None:
        await self._reply.begin(status, headers, body, trailers=trailers)

    async def more(self, piece: bytes) -> None:
        await self._reply.more(piece)

    async def end(self, piece: bytes = b"", trailers: Headers = ()) -> None:
        await self._reply.end(piece, trailers)


class OnceDesk:
    """The keys of one hub."""

    def __init__(
        self, ledger: Ledger, clock: Clock, writes: OnceWrites, *, max_bytes: int, wait_s: float
    ) -> None:
        """
        Args:
            writes: the recorder's; max_bytes: of the answers that are kept.
            wait_s: for a request with the same key.
        """
        self._writes = writes
        self._ledger = ledger
        self._clock = clock
        self._max_bytes = max_bytes
        self._wait_s = wait_s
        self._at_work: dict[bytes, _Work] = {}
        self._answers: OrderedDict[bytes, _Answer] = OrderedDict()
        self._bytes = 0
        self._swept_at_ms = 0

    async def run(self, once: Once, reply: Reply, work: Callable[[Reply], Awaitable[None]]) -> None:
        """Do the work, or give the answer that it had.

        Raises: ApiError EMC-1718 (the key stands for another request), EMC-1719 (it is at work for too
        long), EMC-1717 (done, and the answer is not kept); what the work raises, which frees the key
        unless its call was charged for.
        """
        await self._wait_free(once)
        current = self._at_work[once.key_hash] = _Work(once.request_hash)

        def free() -> None:
            del self._at_work[once.key_hash]
            current.ended.set()

        try:
            if await self._answer_again(once, reply):
                return
            recording = _KeptReply(reply)
            try:
                await work(recording)
            finally:
                if recording.kept is not None:
                    self._keep(once, *recording.kept)
        finally:
            self._writes.after(once, free)

    async def sweep(self) -> None:
        """Forget what is older than a day; to be called now and then."""
        now_ms = self._clock.now_ms()
        before_ms = now_ms - REMEMBERED_MS
        while self._answers and next(iter(self._answers.values())).at_ms < before_ms:
            self._drop_oldest()
        if now_ms - self._swept_at_ms >= _SWEPT_EACH_MS:
            gone = await self._ledger.write(lambda con: delete_once(con, before_ms, _SWEPT_AT_ONCE))
            if gone < _SWEPT_AT_ONCE:
                self._swept_at_ms = now_ms

    async def _wait_free(self, once: Once) -> None:
        """Wait for a request with the same key; who then comes first goes on."""
        with trio.move_on_after(self._wait_s):
            while (other := self._at_work.get(once.key_hash)) is not None:
                if other.request_hash != once.request_hash:
                    raise key_reused()
                await other.ended.wait()
            return
        raise key_in_use()

    async def _answer_again(self, once: Once, reply: Reply) -> bool:
        since_ms = self._clock.now_ms() - REMEMBERED_MS
        kept = self._answers.get(once.key_hash)
        if kept is not None and kept.at_ms >= since_ms:
            if kept.request_hash != once.request_hash:
                raise key_reused()
            await reply.whole(kept.status, kept.headers, kept.body)
            return True
        fact = await self._ledger.read(lambda con: find_once(con, once.key_hash, since_ms))
        if fact is None:
            return False
        if fact.request_hash != once.request_hash:
            raise key_reused()
        raise answer_gone(format_call_id(fact.call_id))

    def _keep(self, once: Once, status: int, headers: Headers, body: bytes) -> None:
        answer = _Answer(once.request_hash, self._clock.now_ms(), status, headers, body)
        if answer.size > self._max_bytes // _LARGEST_SHARE:
            return
        old = self._answers.pop(once.key_hash, None)
        if old is not None:
            self._bytes -= old.size
        self._answers[once.key_hash] = answer
        self._bytes += answer.size
        while self._bytes > self._max_bytes:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        _, answer = self._answers.popitem(last=False)
        self._bytes -= answer.size
