"""A purchase whose write commits after its deadline: its repetition takes it into memory, once."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import structlog
import trio

from emcd.bus import Bus
from emcd.chain import ChainEvent
from emcd.clock import SystemClock
from emcd.ledger import open_ledger
from emcd.proto.params import NetworkParams
from emcd.types import Hash
from emcd_hub.billing.book import AccountBook
from emcd_hub.billing.queries import insert_account, vault_account
from emcd_hub.role import SPEC
from emcd_hub.rounds import chain_events, chain_row
from emcd_hub.rounds.chain_events import HubEventSink


async def test_purchase_that_commits_too_late_is_credited_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = chain_row.credit_deposit

    def slow(*args: Any) -> Any:
        time.sleep(0.3)
        return inner(*args)

    monkeypatch.setattr(chain_events, "credit_deposit", slow)
    book = AccountBook()
    async with open_ledger(tmp_path / "ledger.db", {"hub": SPEC.migrations}) as ledger:
        row = await ledger.write(lambda con: insert_account(con, "acct_a", "a", 1))
        account = book.load(row.account_id, 0, 0)
        sink = HubEventSink(
            ledger=ledger, clock=SystemClock(), params=NetworkParams(0), book=book, bus=Bus(),
            log=structlog.get_logger(),
        )  # fmt: skip
        args = {
            "index": 0,
            "account": vault_account("acct_a"),
            "payer": "0xpayer",
            "amountWei": 1,
            "creditsMicro": 50,
        }
        event = ChainEvent("vault", "CreditsBought", args, 1, Hash(bytes(32)), 1, Hash(b"\1" * 32), 0)
        monkeypatch.setattr(chain_events, "WRITE_TIMEOUT_S", 0.1)
        with pytest.raises(trio.TooSlowError):
            await sink.apply([event], 1, bytes(32))
        await ledger.write(lambda con: None)  # behind the late one
        monkeypatch.setattr(chain_events, "WRITE_TIMEOUT_S", 10.0)
        for _ in range(2):
            await sink.apply([event], 1, bytes(32))
        assert account.vault_micro == 50
