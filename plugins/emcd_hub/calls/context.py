"""What one attempt at one node works with, and how it says that the node failed."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

import msgspec
import trio

from emcd.errors import FatalError
from emcd.proto.openai import UpstreamRequest
from emcd.proto.records import CallStatus, Receipt, format_call_id
from emcd_hub.api.rate_header import list_rate_headers
from emcd_hub.api.reply import Reply
from emcd_hub.calls.limits import CallLimits
from emcd_hub.calls.recorder import CallRecorder, OpenCall, Settled
from emcd_hub.metrics import CALLS
from emcd_hub.records.withheld import OVERCLAIM


class NodeFault(Exception):
    """The node failed the call; `kind` is for metrics, `detail` for people."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind
        self.detail = detail


class CallContext(msgspec.Struct, eq=False):
    """One attempt. `began_at`: when the client's request was whole, by `perf_counter`; `on_evidence`: told of
    a call whose answer names its tokens, when it is on disk.
    """

    request: UpstreamRequest
    call: OpenCall
    reply: Reply
    recorder: CallRecorder
    limits: CallLimits
    began_at: float
    on_evidence: Callable[[UpstreamRequest, Settled], None]

    async def settle(
        self, status: CallStatus, receipt: Receipt | None, body_hash: bytes, cost_micro: int, fault: str = ""
    ) -> Settled:
        """Charge a call and write its row; returns when that is on disk. Args as `CallRecorder.prepare`.

        Nothing cancels it. Raises: FatalError when the ledger fails; EMC-1781 when it takes too long: then
        the charge stands until the ledger says that the row is not written.
        """
        recorder = self.recorder
        settled = recorder.prepare(self.call, status, receipt, body_hash, cost_micro, fault)
        ended = trio.Event()
        failure: Exception | None = None

        def on_commit(error: Exception | None, _: None) -> None:
            nonlocal failure
            failure = error
            self.close(settled, error)
            ended.set()

        deadline = trio.current_time() + self.limits.record_timeout_s
        with trio.CancelScope(deadline=deadline, shield=True):
            await recorder.wait_room(settled)
            recorder.submit(settled, on_commit)
            await ended.wait()
            if failure is not None:
                raise failure
            return settled
        raise self.no_commit()

    def close(self, settled: Settled, error: Exception | None) -> None:
        """The row is on disk, or will never be (in the loop)."""
        if error is None:
            self.recorder.confirm(settled)
            self.count(settled)
            if self.call.held is not None:
                self.on_evidence(self.request, settled)
        else:
            self.recorder.undo(settled)

    def no_commit(self) -> FatalError:
        """The ledger's deadline passed."""
        return FatalError("EMC-1781", f"no commit within {self.limits.record_timeout_s} s")

    def count(self, settled: Settled) -> None:
        """The call is on disk."""
        seconds = perf_counter() - self.began_at
        CALLS.count(self.request.endpoint.path, settled.status, settled.charge, seconds)

    def price(self, receipt: Receipt) -> tuple[CallStatus, int, str]:
        """What a successful call with this receipt costs, how it ends by that, and what its row says of it.

        A sound or an image, whose tokens nobody knows before, costs no more than was reserved; of a model
        that can be verified no more tokens are paid than the answer names.
        """
        claimed = receipt.input_tokens, receipt.output_tokens
        proven = self.call.find_proven(claimed)
        cost = self.recorder.cost_of(self.call, *proven)
        if proven != claimed:
            return CallStatus.CAPPED, cost, f"{OVERCLAIM}: {claimed} claimed, {proven} named"
        held = self.call.reservation.amount_micro
        if cost > held and self.request.endpoint.is_media:
            return CallStatus.CAPPED, held, ""
        return CallStatus.OK, cost, ""

    def headers(
        self, content_type: bytes, credits_name: bytes, credits_micro: int
    ) -> list[tuple[bytes, bytes]]:
        """The head of an answer that came from a node."""
        forward = self.call.forward
        headers = [
            (b"content-type", content_type),
            (b"x-emc-call-id", format_call_id(forward.call_id).encode()),
            (b"x-emc-node", forward.node.encode()),
            (credits_name, b"%d.%06d" % divmod(credits_micro, 1_000_000)),
        ]
        key = self.call.reservation.key
        if key.limits is not None:
            headers += list_rate_headers(key.meter, self.recorder.now_ms())
        return headers
