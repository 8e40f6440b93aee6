"""Numbers that a node gives."""

from __future__ import annotations

from typing import Any

from emcd.chain.rpc import Rpc
from emcd.errors import RecoverableError


async def ask_quantity(rpc: Rpc, method: str, *params: Any, bits: int = 256) -> int:
    """A method whose result is one hex quantity of at most so many bits.

    Raises: RecoverableError EMC-1507 when it is none.
    """
    answer = await rpc.call(method, *params)
    if not isinstance(answer, str) or not answer.startswith("0x") or len(answer) > 66:
        raise RecoverableError("EMC-1507", f"{method} gave {answer!r:.60}, not a quantity")
    try:
        number = int(answer, 16)
    except ValueError:
        raise RecoverableError("EMC-1507", f"{method} gave {answer!r:.60}, not a quantity") from None
    if number >= 1 << bits:
        raise RecoverableError("EMC-1507", f"{method} gave {answer!r:.80}, which is out of range")
    return number
