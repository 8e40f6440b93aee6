"""Judging a router's heartbeat: who signed it, for whom, when. Pure."""

from __future__ import annotations

from emcd.errors import RemoteProtocolError
from emcd.proto.control import RouterStatusMessage
from emcd.proto.eip712 import Domain
from emcd.proto.messages import RouterStatus
from emcd.proto.params import MAX_CLOCK_SKEW_MS
from emcd.proto.signing import require_signer
from emcd.types import Address

MAX_TEXT = 100
_MAX_NUMBER = 2**63 - 1


def require_router_status(
    message: RouterStatusMessage,
    *,
    domain: Domain,
    hub: Address,
    router: Address,
    now_ms: int,
    last_sequence: int,
) -> RouterStatus:
    """Check a heartbeat against the tunnel it came on.

    Raises: RemoteProtocolError EMC-1494, EMC-1495 (signature), EMC-1734 (somebody else's, old, content).
    """
    status = message.status
    if status.router != router or status.hub != hub:
        raise RemoteProtocolError("EMC-1734", f"status of {status.router} for {status.hub}")
    numbers = (status.sequence, status.sent_at_ms)
    if len(status.version) > MAX_TEXT or len(status.region) > MAX_TEXT:
        raise RemoteProtocolError("EMC-1734", f"version or region is longer than {MAX_TEXT}")
    if not all(0 <= number <= _MAX_NUMBER for number in numbers) or not all(
        0 <= number < 2**32 for number in (status.nodes, status.in_flight)
    ):
        raise RemoteProtocolError("EMC-1734", "a number is negative or too large")
    require_signer(domain, status, message.signature, router)
    if status.sequence <= last_sequence:
        raise RemoteProtocolError("EMC-1734", f"sequence {status.sequence} after {last_sequence}")
    if abs(status.sent_at_ms - now_ms) > MAX_CLOCK_SKEW_MS:
        raise RemoteProtocolError("EMC-1734", f"it is {status.sent_at_ms - now_ms} ms off the hub's clock")
    return status
