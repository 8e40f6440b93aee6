"""What a request asks of routing. Pure data; `emcd.proto.openai_wish` reads it."""

from __future__ import annotations

from typing import Final

import msgspec

from emcd.types import Address


class Wish(msgspec.Struct, frozen=True):
    """A request's conditions on who does it.

    Attributes:
        only: the nodes that may; empty: any.
        max_price_micro: micro-credits per million tokens, neither way dearer; None: any price.
        quantization: as in the manifest, lower case; "": any.
        session: calls of one session go to one node where that is possible; "": none.
    """

    only: tuple[Address, ...] = ()
    max_price_micro: int | None = None
    quantization: str = ""
    session: str = ""


ANY: Final = Wish()
"""Asks nothing. Shared, so that a plain request makes none."""
