"""What a node serves: the interface of a model, and how a call to it ends.

Pure. A model writes its answer through a `Reply` or refuses with a `Refused` before it wrote
anything; what it raises after that fails the call without a receipt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import trio

from emcd.accounting.event_stream import StreamMeter
from emcd.accounting.usage import Usage
from emcd.inference.manifest import Manifest
from emcd.proto.openai_shape import JSON, Endpoint, error_body


@dataclass(frozen=True)
class Refused:
    """A call that is not served, as its caller sees it.

    Args:
        status: 4xx: the request is at fault, and goes back to the client; 5xx: the hub may ask
            another node.
        kind: OpenAI's `error.type`; `code` and `param` likewise.
    """

    status: int
    emc_code: str
    message: str
    kind: str = "invalid_request_error"
    code: str | None = None
    param: str | None = None

    def body(self) -> bytes:
        """The answer in OpenAI's shape."""
        return error_body(self.emc_code, self.message, type=self.kind, code=self.code, param=self.param)


def unavailable(emc_code: str, message: str, status: int = 503) -> Refused:
    """A refusal that is the node's own fault."""
    return Refused(status, emc_code, message, "server_error", "node_unavailable")


@dataclass(frozen=True)
class CallRequest:
    """A call that was checked: who asks for what."""

    endpoint: Endpoint
    model: str
    body: bytes
    stream: bool
    content_type: str = JSON


class Reply(Protocol):
    """Where an answer goes; a head first, then pieces. It reads a stream's events as they are sent."""

    async def start(self, status: int, content_type: str) -> None: ...

    async def send(self, piece: bytes) -> None:
        """Cancellation: what was not sent by then is neither metered nor receipted."""
        ...

    def end_events(self) -> StreamMeter:
        """What an event stream said, once all of it was sent."""
        ...


class ServedModel(Protocol):
    """One model of a node."""

    @property
    def manifest(self) -> Manifest: ...

    def is_available(self) -> bool:
        """Whether calls make sense now; must not wait."""
        ...

    def complaint(self) -> str:
        """Why it is not available, for the operator; "" when it is."""
        ...

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Open it and keep it going; returns only by cancellation."""
        ...

    async def answer(self, request: CallRequest, reply: Reply) -> Usage | Refused:
        """Serve one call. Refused: nothing was written.

        Cancellation: the work is stopped; what the reply has sent by then is receipted by the caller.

        Raises: RecoverableError when it broke off after the head.
        """
        ...
