"""The hub's word for what it forwarded and delivered: checked, and kept as the node's evidence.

Owns the rows of the hub's proofs, and how deliveries come in. A node that was left out of a round
shows these. Invariant: nothing is kept that the pinned hub did not sign.
"""

from __future__ import annotations

from collections import OrderedDict

import msgspec

from emcd.clock import Clock
from emcd.errors import LocalProtocolError, RemoteProtocolError
from emcd.ledger import Connection, Ledger
from emcd.proto.control import ProofMessage
from emcd.proto.eip712 import Domain
from emcd.proto.merkle import record_leaf, root_from_proof
from emcd.proto.params import NetworkParams
from emcd.proto.records import BATCH_RECORDS, CallStatus, Delivery, RecordKind, RecordProof
from emcd.proto.signing import require_signer
from emcd.types import ZERO_HASH, Address
from emcd_node import queries
from emcd_node.omission_row import DeliveryRow, insert_deliveries
from emcd_node.queries import ProofRow

MAX_PROOFS = 4 * BATCH_RECORDS
"""Of one message: more than a hub batches of both kinds in a second under one node's load."""
_CHECKED_BATCHES = 256
_KINDS = (RecordKind.FORWARD, RecordKind.DELIVERY)
_MAX_NUMBER = 2**62


class HubProofs:
    """Proofs by one hub for one node."""

    def __init__(
        self, ledger: Ledger, node: Address, hub: Address, domain: Domain, params: NetworkParams, clock: Clock
    ) -> None:
        self._ledger = ledger
        self._node = node
        self._hub = hub
        self._domain = domain
        self._params = params
        self._clock = clock
        self._checked: OrderedDict[tuple[bytes, bytes], None] = OrderedDict()

    async def take(self, message: ProofMessage) -> None:
        """Check a message's proofs and deliveries and keep them.

        Raises: RemoteProtocolError EMC-2009 (counts, or a delivery that is not the record proven),
        EMC-1496 (not in the batch, or not this hub's), EMC-1494, EMC-1495 (signature); nothing of the
        message is kept then.
        """
        count = len(message.record_hashes)
        if count != len(message.proofs) or count > MAX_PROOFS or len(message.deliveries) not in (0, count):
            raise RemoteProtocolError(
                "EMC-2009",
                f"{len(message.proofs)} proofs, {len(message.deliveries)} deliveries, {count} records",
            )
        round_index = self._params.round_at(self._clock.now_ms())
        rows = []
        for record_hash, proof in zip(message.record_hashes, message.proofs, strict=True):
            self._require_proven(record_hash, proof)
            data = msgspec.msgpack.encode(proof)
            rows.append(ProofRow(self._node, record_hash, proof.batch.kind, data, round_index))
        pairs = zip(message.record_hashes, message.deliveries, strict=False)
        deliveries = [self._read_delivery(record_hash, item) for record_hash, item in pairs]

        def keep(con: Connection) -> None:
            queries.insert_proofs(con, rows)
            insert_deliveries(con, deliveries)

        if rows:
            await self._ledger.write(keep)

    def _read_delivery(self, record_hash: bytes, delivery: Delivery) -> DeliveryRow:
        """A row of a delivery whose hash was proven."""
        try:
            actual = delivery.struct_hash()
            earns = CallStatus(delivery.status).is_success and delivery.receipt_hash != ZERO_HASH
        except (LocalProtocolError, ValueError) as exc:
            raise RemoteProtocolError("EMC-2009", f"a delivery that is none: {exc}") from exc
        if actual != record_hash or max(delivery.vault_micro, delivery.round) > _MAX_NUMBER:
            raise RemoteProtocolError("EMC-2009", f"a delivery that is not record {record_hash.hex()}")
        return DeliveryRow(
            instance=self._node,
            forward_hash=delivery.forward_hash,
            delivery_hash=record_hash,
            receipt_hash=delivery.receipt_hash,
            delivery=msgspec.msgpack.encode(delivery),
            round=delivery.round,
            vault_micro=delivery.vault_micro,
            earns=earns,
        )

    def _require_proven(self, record_hash: bytes, proof: RecordProof) -> None:
        batch = proof.batch
        if batch.signer != self._hub or batch.kind not in _KINDS or not 0 < batch.count <= BATCH_RECORDS:
            raise RemoteProtocolError(
                "EMC-1496", f"the batch is not one of forwards or deliveries by {self._hub}"
            )
        if len(record_hash) != 32 or any(len(sibling) != 32 for sibling in proof.siblings):
            raise RemoteProtocolError("EMC-1496", "a hash is not 32 bytes long")
        if root_from_proof(record_leaf(record_hash), proof.siblings) != batch.root:
            raise RemoteProtocolError("EMC-1496", f"record {record_hash.hex()} is not in its batch")
        key = (bytes(batch.struct_hash()), proof.signature)
        if key in self._checked:
            return
        require_signer(self._domain, batch, proof.signature, self._hub)
        self._checked[key] = None
        if len(self._checked) > _CHECKED_BATCHES:
            self._checked.popitem(last=False)
