"""OpenAI's x-ratelimit headers, for keys that have such limits."""

from __future__ import annotations

from emcd_hub.billing.bucket import Bucket
from emcd_hub.billing.key_meter import KeyMeter


def list_rate_headers(meter: KeyMeter, now_ms: int) -> list[tuple[bytes, bytes]]:
    """What the limits are, what is left of them now, and how long until all of it is there again."""
    headers: list[tuple[bytes, bytes]] = []
    if meter.requests is not None:
        headers += _list_headers(b"requests", meter.requests, now_ms)
    if meter.tokens is not None:
        headers += _list_headers(b"tokens", meter.tokens, now_ms)
    return headers


def _list_headers(kind: bytes, bucket: Bucket, now_ms: int) -> list[tuple[bytes, bytes]]:
    return [
        (b"x-ratelimit-limit-" + kind, b"%d" % bucket.per_minute),
        (b"x-ratelimit-remaining-" + kind, b"%d" % bucket.left_floor(now_ms)),
        (b"x-ratelimit-reset-" + kind, format_duration(bucket.empty_in_ms(now_ms)).encode()),
    ]


def format_duration(duration_ms: int) -> str:
    """As OpenAI writes it: 0s, 17ms, 1s, 6m0s, 1.5s, 2h0m0s."""
    if 0 < duration_ms < 1000:
        return f"{duration_ms}ms"
    seconds, ms = divmod(duration_ms, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    text = f"{seconds}.{ms:03d}".rstrip("0") if ms else str(seconds)
    if hours:
        return f"{hours}h{minutes}m{text}s"
    return f"{minutes}m{text}s" if minutes else f"{text}s"
