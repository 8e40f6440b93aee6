"""Sign-once: new, same, conflict; and rows that can't be taken back."""

from __future__ import annotations

from pathlib import Path

import pytest

from emcd.ledger import Connection, IntegrityError, Ledger, SignOnce, sign_once
from emcd.ledger.sign_once import find_signed
from emcd.testing import make_key, temporary_ledger

SIGNER = make_key("validator").address
OTHER = make_key("other").address
DIGEST, ANOTHER = b"\x01" * 32, b"\x02" * 32


async def record(ledger: Ledger, digest: bytes, slot: str = "7", purpose: str = "root") -> SignOnce:
    return await ledger.write(lambda con: sign_once(con, SIGNER, purpose, slot, digest))


async def test_sign_once_first_digest_is_new_then_same_then_conflict(ledger: Ledger) -> None:
    assert await record(ledger, DIGEST) is SignOnce.NEW
    assert await record(ledger, DIGEST) is SignOnce.SAME
    assert await record(ledger, ANOTHER) is SignOnce.CONFLICT
    assert await ledger.read(lambda con: find_signed(con, SIGNER, "root", "7")) == DIGEST


async def test_sign_once_other_slot_purpose_or_signer_is_new(ledger: Ledger) -> None:
    await record(ledger, DIGEST)
    assert await record(ledger, ANOTHER, slot="8") is SignOnce.NEW
    assert await record(ledger, ANOTHER, purpose="receipt") is SignOnce.NEW
    assert await ledger.write(lambda con: sign_once(con, OTHER, "root", "7", ANOTHER)) is SignOnce.NEW


async def test_sign_once_survives_a_restart(tmp_path: Path) -> None:
    async with temporary_ledger(tmp_path) as ledger:
        await record(ledger, DIGEST)
    async with temporary_ledger(tmp_path) as ledger:
        assert await record(ledger, ANOTHER) is SignOnce.CONFLICT


@pytest.mark.parametrize("sql", ["DELETE FROM sign_once", "UPDATE sign_once SET slot = '9'"])
async def test_sign_once_rows_are_never_changed(ledger: Ledger, sql: str) -> None:
    await record(ledger, DIGEST)

    def tamper(con: Connection) -> None:
        con.execute(sql)

    with pytest.raises(IntegrityError, match="never"):
        await ledger.write(tamper)


async def test_sign_once_replace_can_not_overwrite(ledger: Ledger) -> None:
    await record(ledger, DIGEST)

    def tamper(con: Connection) -> None:
        con.execute("REPLACE INTO sign_once VALUES (?, 'root', '7', ?, 0)", (SIGNER, ANOTHER))

    with pytest.raises(IntegrityError):
        await ledger.write(tamper)
    assert await record(ledger, DIGEST) is SignOnce.SAME


async def test_sign_once_digest_of_another_length_is_refused(ledger: Ledger) -> None:
    with pytest.raises(IntegrityError):
        await record(ledger, b"short")
