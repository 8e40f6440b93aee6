"""What one attempt at one node works with, and how it says that the node failed."""

from __future__ import annotations

from dataclasses import dataclass

import trio

from emcd.errors import FatalError
from emcd.proto.openai import UpstreamRequest
from emcd.proto.records import CallStatus, Receipt, format_call_id
from emcd_hub.api.reply import Reply
from emcd_hub.calls.limits import CallLimits
from emcd_hub.calls.recorder import CallRecorder, OpenCall, Settled
from emcd_hub.metrics import CALLS


class NodeFault(Exception):
    """The node failed the call; `kind` is for metrics, `detail` for people."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind
        self.detail = detail


@dataclass(slots=True, eq=False)
class CallContext:
    """One attempt."""

    request: UpstreamRequest
    call: OpenCall
    reply: Reply
    recorder: CallRecorder
    limits: CallLimits
    began_at: float

    async def settle(
        self, status: CallStatus, receipt: Receipt | None, body_hash: bytes, cost_micro: int, fault: str = ""
    ) -> Settled:
        """`CallRecorder.settle`, which nothing may cancel, within the ledger's deadline."""
        now = trio.current_time()
        with trio.CancelScope(deadline=now + self.limits.record_timeout_s, shield=True):
            settled = await self.recorder.settle(self.call, status, receipt, body_hash, cost_micro, fault)
            granted, vault = settled.charge
            CALLS.count(self.request.endpoint.value, settled.status, granted, vault, now - self.began_at)
            return settled
        raise FatalError("EMC-1781", f"no commit within {self.limits.record_timeout_s} s")

    def headers(
        self, content_type: bytes, credits_name: bytes, credits_micro: int
    ) -> list[tuple[bytes, bytes]]:
        """The head of an answer that came from a node."""
        forward = self.call.forward
        return [
            (b"content-type", content_type),
            (b"x-emc-call-id", format_call_id(forward.call_id).encode()),
            (b"x-emc-node", forward.node.encode()),
            (credits_name, b"%d.%06d" % divmod(credits_micro, 1_000_000)),
        ]
