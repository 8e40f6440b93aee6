"""Whether a call of a limited key may begin at all, before a node is looked for. Pure.

Asked once a client's request, whatever nodes are tried for it. What a call needs of credits and
tokens is taken by `AccountBook.reserve`, when its price is known.
"""

from __future__ import annotations

from enum import Enum

from emcd_hub.billing.key_limits import KeyLimits
from emcd_hub.billing.key_meter import KeyMeter


class Barred(Enum):
    """Why a call does not begin."""

    MODEL = "the model is not on the key's list"
    PARALLEL = "the key has too many calls in flight"
    REQUESTS = "the key's requests of this minute are used up"
    TOKENS = "the key's tokens of this minute are used up"


def admit(limits: KeyLimits, meter: KeyMeter, model: str, now_ms: int) -> Barred | None:
    """Count the call among the requests of this minute. Returns: why not; then nothing was counted."""
    if not limits.allows(model):
        return Barred.MODEL
    barred = find_bar(limits, meter, now_ms)
    if barred is None and meter.requests is not None:
        meter.requests.use(1, now_ms)
    return barred


def find_bar(limits: KeyLimits, meter: KeyMeter, now_ms: int) -> Barred | None:
    """Why no call of the key begins now, whatever its model. Counts nothing."""
    if limits.parallel_calls is not None and meter.calls >= limits.parallel_calls:
        return Barred.PARALLEL
    if meter.tokens is not None and meter.tokens.wait_ms(1, now_ms):
        return Barred.TOKENS
    if meter.requests is not None and meter.requests.wait_ms(1, now_ms):
        return Barred.REQUESTS
    return None
