"""A hub's ledger that is filled call by call, its closer and its archivist, on a clock set by hand."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from emcd.accounting.price import charge_call_ceil, price_of
from emcd.accounting.receipt import CallReceipt
from emcd.bus import Bus
from emcd.clock import ManualClock
from emcd.keys import SigningKey
from emcd.ledger import Connection, Ledger, open_ledger
from emcd.log import get_logger
from emcd.proto.hashing import keccak
from emcd.proto.network import Deployment
from emcd.proto.records import (
    CallStatus,
    Delivery,
    Forward,
    Receipt,
    RecordBatch,
    RecordKind,
    batch_root,
)
from emcd.services import FixedParameters
from emcd.testing import make_key
from emcd.types import ZERO_ADDRESS, ZERO_HASH
from emcd_hub.bootstrap import create_account
from emcd_hub.records.batch_row import StoredBatch, insert_batches, insert_late_batch
from emcd_hub.records.call_row import CallRow, find_last_seq, insert_calls
from emcd_hub.rounds.archive_reader import ArchiveReader
from emcd_hub.rounds.archivist import Archivist
from emcd_hub.rounds.bundle_folder import BundleFolder
from emcd_hub.rounds.bundle_row import BundleFacts, find_bundle_file
from emcd_hub.rounds.chain_row import PublicationRow, insert_publication, void_publication
from emcd_hub.rounds.closer import Closer
from emcd_hub.rounds.retention import Retention
from emcd_hub.rounds.view import fetch_view
from emcd_hub.rounds.view_row import upsert_view
from emcd_hub.schema import MIGRATIONS
from tests.support.hub_rounds import StubChain
from tests.support.hub_world import DOMAIN, HUB_KEY, make_deployment

ROUND_S = 60
MODEL_HASH = keccak(b"model")
NODES = (make_key("node a"), make_key("node b"))
_encode = msgspec.msgpack.Encoder().encode


@dataclass
class FilledHub:
    """The parts of a hub that settle rounds."""

    ledger: Ledger
    chain: StubChain
    clock: ManualClock
    closer: Closer
    archivist: Archivist
    archive: ArchiveReader
    folder: BundleFolder
    accounts: list[str]
    _number: int = 0
    _unsigned: list[tuple[RecordKind, SigningKey, bytes, int]] = field(default_factory=list)

    @property
    def params(self) -> Any:
        return self.chain.deployment.params

    def set_round(self, index: int) -> None:
        """It is the middle of a round."""
        self.clock.at_ms = self.params.round_start_ms(index) + ROUND_S * 500

    async def pass_to(self, index: int) -> None:
        """It is the middle of a round, and all before it closed at their time: the last of them is there."""
        self.set_round(index)
        row = "(?, zeroblob(32), -1, zeroblob(32), zeroblob(32), zeroblob(32), x'90', x'80', 0, x'', 0)"

        def write(con: Connection) -> None:
            con.execute(f"INSERT INTO hub_bundles VALUES {row} ON CONFLICT DO NOTHING", (index - 2,))

        await self.ledger.write(write)

    async def add_calls(
        self,
        index: int,
        count: int = 1,
        *,
        node: SigningKey = NODES[0],
        account: int = 0,
        batched: bool = True,
        from_vault: bool = True,
    ) -> list[bytes]:
        """Calls that ended in a round, their records signed but for the receipts of those not batched."""
        ids = []
        for _ in range(count):
            self._number += 1
            at_ms = self.params.round_start_ms(index) + (self._number * 37) % (ROUND_S * 900)
            seed = keccak(b"call %d" % self._number)
            call_id = at_ms.to_bytes(6, "big") + seed[:10]
            charge = charge_call_ceil(price_of(self.chain.deployment.prices, MODEL_HASH), 100, 50)
            forward = Forward(
                call_id, HUB_KEY.address, ZERO_ADDRESS, node.address, seed, MODEL_HASH, 1, at_ms
            )
            receipt = Receipt(forward.struct_hash(), keccak(seed), 200, 100, 50, at_ms + 1, at_ms + 5)
            vault = charge if from_vault else 0
            delivery = Delivery(
                forward.struct_hash(), receipt.struct_hash(), keccak(seed), CallStatus.OK, charge, vault,
                self.params.round_at(at_ms + 10), at_ms + 10,
            )  # fmt: skip
            await self._record(forward, receipt, delivery, self.accounts[account])
            self._unsigned.append((RecordKind.FORWARD, HUB_KEY, forward.struct_hash(), at_ms))
            self._unsigned.append((RecordKind.DELIVERY, HUB_KEY, delivery.struct_hash(), at_ms))
            if batched:
                self._unsigned.append((RecordKind.RECEIPT, node, receipt.struct_hash(), at_ms))
            ids.append(call_id)
        await self.sign_all()
        return ids

    async def _record(self, forward: Forward, receipt: Receipt, delivery: Delivery, account: str) -> None:
        def write(con: Connection) -> None:
            row = CallRow(
                find_last_seq(con) + 1, forward.call_id, account, forward.node, "model", delivery.round,
                delivery.status, _encode(forward), _encode(receipt), _encode(delivery),
                delivery.credits_micro - delivery.vault_micro, delivery.vault_micro, "",
                delivery.finished_at_ms,
            )  # fmt: skip
            insert_calls(con, [row])

        await self.ledger.write(write)

    async def sign_all(self) -> None:
        """Sign what waits, kind by kind and signer by signer."""
        groups: dict[tuple[RecordKind, SigningKey], list[tuple[bytes, int]]] = {}
        for kind, key, record_hash, at_ms in self._unsigned:
            groups.setdefault((kind, key), []).append((record_hash, at_ms))
        self._unsigned.clear()
        for (kind, key), items in groups.items():
            await self.add_batch(key, kind, [item[0] for item in items], items[-1][1] + 300)

    async def add_batch(
        self, key: SigningKey, kind: RecordKind, hashes: Iterable[bytes], at_ms: int, *, late: bool = False
    ) -> None:
        records = tuple(hashes)
        batch = RecordBatch(key.address, kind, batch_root(records), len(records), at_ms)
        stored = StoredBatch(batch, key.sign(DOMAIN, batch), records, at_ms)
        if late:
            await self.ledger.write(lambda con: insert_late_batch(con, stored))
        else:
            await self.ledger.write(lambda con: insert_batches(con, [stored]))

    async def receipt_hash(self, call_id: bytes) -> bytes:
        rows = await self.rows("SELECT delivery FROM hub_calls WHERE call_id = ?", call_id)
        return msgspec.msgpack.decode(rows[0][0], type=Delivery).receipt_hash

    async def close(self, index: int) -> BundleFacts:
        """Close a round at its time."""
        self.set_round(index + 2)
        view = await fetch_view(self.chain, index, self.params)  # type: ignore[arg-type]
        await self.ledger.write(lambda con: upsert_view(con, view))
        return await self.closer.close(view)

    async def publish(self, facts: BundleFacts, *, void: bool = False) -> None:
        """The chain has a round's root, active since its closing."""
        row = PublicationRow(
            facts.round, facts.bundle_hash, facts.root, facts.cumulative_wei,
            self.clock.now_ms() // 1000, ZERO_HASH, void, facts.round + 1, 1,
        )  # fmt: skip
        await self.ledger.write(lambda con: insert_publication(con, row, ZERO_ADDRESS))
        if void:
            await self.ledger.write(lambda con: void_publication(con, facts.round, facts.round + 2))

    async def read_bundle(self, index: int) -> bytes:
        """The canonical bytes, however they are kept."""
        file = await self.ledger.read(lambda con: find_bundle_file(con, index))
        assert file is not None
        with self.folder.opened(file) as data:
            return data[:]

    async def find_receipt(self, call_id: bytes, account: int = 0) -> CallReceipt | None:
        return await self.archive.find_receipt(call_id, self.accounts[account])

    async def rows(self, sql: str, *args: object) -> list[Any]:
        return await self.ledger.read(lambda con: [tuple(row) for row in con.execute(sql, args)])

    async def count(self, table: str, where: str = "true") -> int:
        return int((await self.rows(f"SELECT count(*) FROM {table} WHERE {where}"))[0][0])


def fund(con: Connection, accounts: Iterable[str]) -> None:
    """Give accounts credits of the vault, as a purchase would."""
    for account in accounts:
        con.execute(
            "INSERT INTO hub_movements (account_id, kind, idempotency_key, granted_micro, vault_micro, note,"
            " at_ms) VALUES (?, 'deposit', ?, 0, ?, '', 1)",
            (account, f"test {account}", 10**12),
        )
        change = (10**12, account)
        con.execute("UPDATE hub_accounts SET vault_micro = vault_micro + ? WHERE account_id = ?", change)


@asynccontextmanager
async def filled_hub(
    folder: Path, terms: Retention | None = None, deployment: Deployment | None = None, **params: Any
) -> AsyncIterator[FilledHub]:
    """A hub with two accounts, two nodes and nobody who validates."""
    numbers = {"round_s": ROUND_S, "carry_rounds": 2, "void_after_rounds": 2, "challenge_delay_rounds": 1}
    made = deployment or make_deployment(**{**numbers, **params})
    clock = ManualClock(made.params.round_start_ms(0))
    chain = StubChain(made, clock)
    chain.nodes = [key.address for key in NODES]
    async with open_ledger(folder / "ledger.db", {"hub": MIGRATIONS}) as ledger:
        accounts = [
            (await create_account(ledger, name, 10**12))[0].account_id for name in ("first", "second")
        ]
        await ledger.write(partial(fund, accounts=accounts))
        parts = {"ledger": ledger, "folder": BundleFolder(folder), "clock": clock, "log": get_logger()}
        parameters = FixedParameters(made.params, made.prices)
        closer = Closer(key=HUB_KEY, deployment=made, parameters=parameters, bus=Bus(), **parts)  # type: ignore[arg-type]
        archivist = Archivist(
            params=made.params, parameters=parameters, terms=terms or Retention(), **parts  # type: ignore[arg-type]
        )  # fmt: skip
        archive = ArchiveReader(ledger, BundleFolder(folder))
        await closer.prepare()
        yield FilledHub(ledger, chain, clock, closer, archivist, archive, BundleFolder(folder), accounts)
