"""Integer money: wei, micro-credits, basis points. Standard library only.

Invariants: no float ever; a rounding direction stands in the function's name; a split sums to
its whole.
"""

from __future__ import annotations

from decimal import Decimal, InvalidOperation

from emcd.types import Wei

WEI_PER_TOKEN = 10**18
MICRO_PER_CREDIT = 1_000_000
BPS = 10_000
WEI_BLOB_BYTES = 32
MAX_WEI = 2**256 - 1


def encode_wei(amount: int) -> bytes:
    """Encode wei as the ledger's 32-byte big-endian blob, which sorts like the number.

    Raises: OverflowError when negative or above 2**256 - 1.
    """
    return amount.to_bytes(WEI_BLOB_BYTES, "big")


def decode_wei(blob: bytes) -> Wei:
    """Decode a ledger blob. Raises: ValueError when it is not 32 bytes long."""
    if len(blob) != WEI_BLOB_BYTES:
        raise ValueError(f"an amount in wei is {WEI_BLOB_BYTES} bytes, not {len(blob)}")
    return Wei(int.from_bytes(blob, "big"))


def parse_token(text: str) -> Wei:
    """Parse a token amount typed by a person ("3000", "0.5") into wei, exactly.

    Raises: ValueError when it is not a plain non-negative decimal of at most 18 places.
    """
    try:
        value = Decimal(text)
    except InvalidOperation:
        raise ValueError(f"{text!r} is not a decimal number") from None
    if not value.is_finite() or value < 0:
        raise ValueError(f"{text!r} is not a non-negative amount")
    sign, digits, exponent = value.as_tuple()
    assert isinstance(exponent, int)
    if exponent < -18:
        raise ValueError(f"{text!r} has more than 18 decimal places")
    number = int("".join(map(str, digits)) or "0") * 10 ** (18 + exponent)
    if number > MAX_WEI:
        raise ValueError(f"{text!r} is larger than 2**256 - 1 wei")
    return Wei(number)


def format_token_floor(amount_wei: int, places: int = 4) -> str:
    """Print wei as token for people, cut (not rounded) to `places` decimals, with separators."""
    whole, rest = divmod(amount_wei, WEI_PER_TOKEN)
    if places == 0:
        return f"{whole:,}"
    return f"{whole:,}.{rest // 10 ** (18 - places):0{places}d}"


def format_credits_floor(amount_micro: int, places: int = 2) -> str:
    """Print micro-credits as credits for people, cut to `places` decimals (at most 6)."""
    sign = "-" if amount_micro < 0 else ""
    whole, rest = divmod(abs(amount_micro), MICRO_PER_CREDIT)
    if places == 0:
        return f"{sign}{whole:,}"
    return f"{sign}{whole:,}.{rest // 10 ** (6 - places):0{places}d}"
