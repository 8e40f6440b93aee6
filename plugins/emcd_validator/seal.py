"""The hub's seals as they were seen: one a round, or evidence against it."""

from __future__ import annotations

from functools import partial

from emcd_validator.queries.bundles import insert_bundle
from emcd_validator.validator import Validator


async def keep_seal(validator: Validator, round_index: int, bundle_hash: bytes, seal: bytes) -> list[bytes]:
    """Keep a seal whose signature was checked. Returns: all hashes the hub sealed, first seen first."""
    write = partial(
        insert_bundle,
        instance=validator.address,
        round_index=round_index,
        bundle_hash=bundle_hash,
        seal=seal,
        now_ms=validator.now_ms(),
    )
    hashes = await validator.write(write)
    if len(hashes) > 1:
        shown = ", ".join("0x" + item.hex() for item in hashes)
        validator.log.error(
            "the hub sealed several bundles", code="EMC-1808", round=round_index, hashes=shown
        )
    return hashes
