"""Keeping the recursion limit where nested JSON from a peer can't overflow the C stack.

`py_ecc`, which eth-account imports, raises the interpreter's limit to 100,000. At that limit the
JSON decoders (msgspec's from 30,000 on, json's from 100,000 on) follow a body of nested brackets
until the process dies of a segmentation fault. At 10,240, which py-evm needs for its own calls, they
raise. Standard library only.
"""

from __future__ import annotations

import sys

SAFE_LIMIT = 10_240


def cap_recursion() -> None:
    """Lower the limit to what is safe; call it after importing what raises it."""
    if sys.getrecursionlimit() > SAFE_LIMIT:
        sys.setrecursionlimit(SAFE_LIMIT)
