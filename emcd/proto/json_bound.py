"""A bound on how many things a JSON body is made of, before it is read: each costs what 30 bytes of text do. Pure.

A body of four megabytes of empty lists takes the reader a third of a second, and nothing else runs meanwhile;
one of text takes a millisecond. Numbers are cheap, and lists of a million tokens are usual: they don't count.
"""

from __future__ import annotations

from typing import Final

MAX_NESTED: Final = 65_536
"""Objects and lists in a body."""
MAX_STRINGS: Final = 262_144
"""Texts and names in a body."""
_SMALL_BYTES: Final = 2 * MAX_NESTED
"""A shorter body can't hold more."""


def is_too_fine(body: bytes) -> bool:
    """Whether a body holds more objects, lists, texts and names than a request has use for."""
    if len(body) < _SMALL_BYTES:
        return False
    if _count_nested(body) <= MAX_NESTED and body.count(b'"') <= 2 * MAX_STRINGS:
        return False
    plain = body.replace(rb"\\", b"").replace(rb"\"", b"")
    if plain.count(b'"') > 2 * MAX_STRINGS:
        return True
    return _count_nested(b"".join(plain.split(b'"')[::2])) > MAX_NESTED


def _count_nested(body: bytes) -> int:
    return body.count(b"[") + body.count(b"{")
