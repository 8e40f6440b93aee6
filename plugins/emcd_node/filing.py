"""Filing calls that a bundle left out with the validators, who then sign no bundle without them.

Owns what is said to them. Invariants: what is filed proves itself by the hub's signatures on its
forward and delivery; the receipt is the one that was given with the call, signed in a batch of one
that is the same at every try; a validator that has it is not asked again by this process.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import trio

from emcd.accounting.receipt import CallReceipt
from emcd.errors import EmcdError
from emcd.net.http_client import request
from emcd.proto.eip712 import Domain
from emcd.proto.json_form import to_json
from emcd.proto.records import Delivery, Forward, Receipt, RecordBatch, RecordKind, RecordProof, batch_root
from emcd.proto.signing import Signer
from emcd.types import Address
from emcd_node.omission_row import Claim

MAX_PARALLEL = 8
MAX_ANSWER_BYTES = 1 << 16
_TAKEN, _REFUSED = 202, (400, 413)

_forward = msgspec.msgpack.Decoder(Forward).decode
_receipt = msgspec.msgpack.Decoder(Receipt).decode
_delivery = msgspec.msgpack.Decoder(Delivery).decode
_proof = msgspec.msgpack.Decoder(RecordProof).decode


def make_filing(claim: Claim, key: Signer, domain: Domain) -> bytes | None:
    """The body of POST /omissions; None where a proof of the hub never came."""
    if claim.forward_proof is None or claim.delivery_proof is None:
        return None
    receipt = _receipt(claim.receipt)
    root = batch_root((receipt.struct_hash(),))
    batch = RecordBatch(key.address, int(RecordKind.RECEIPT), root, 1, receipt.finished_at_ms)
    own = RecordProof(batch, key.sign(domain, batch), 0, ())
    call = CallReceipt(
        _forward(claim.forward),
        _proof(claim.forward_proof),
        receipt,
        own,
        _delivery(claim.delivery),
        _proof(claim.delivery_proof),
    )
    return msgspec.json.encode(to_json(call))


class Filer:
    """The filings of one node."""

    def __init__(self, key: Signer, domain: Domain, *, timeout_s: float) -> None:
        self._key = key
        self._domain = domain
        self._timeout_s = timeout_s
        self._answers: dict[tuple[bytes, Address], str] = {}

    async def file(self, claims: Sequence[Claim], validators: Mapping[Address, str]) -> dict[bytes, int]:
        """File calls with every validator that has not answered for good.

        Returns: by forward hash, how many validators have the call now.
        Cancellation: validators may have taken calls; filing again changes nothing there.
        """
        wanted = {claim.forward_hash for claim in claims}
        self._answers = {key: text for key, text in self._answers.items() if key[0] in wanted}
        limiter = trio.CapacityLimiter(MAX_PARALLEL)
        async with trio.open_nursery() as nursery:
            for claim in claims:
                body = make_filing(claim, self._key, self._domain)
                for validator, endpoint in validators.items():
                    if body is not None and (claim.forward_hash, validator) not in self._answers:
                        nursery.start_soon(
                            self._post, limiter, endpoint, body, (claim.forward_hash, validator)
                        )
        return {claim.forward_hash: self._count(claim.forward_hash) for claim in claims}

    def list_refusals(self) -> list[str]:
        """What validators said of filings that they do not take."""
        return sorted({text for text in self._answers.values() if text})

    def _count(self, forward_hash: bytes) -> int:
        return sum(key[0] == forward_hash and not text for key, text in self._answers.items())

    async def _post(
        self, limiter: trio.CapacityLimiter, endpoint: str, body: bytes, key: tuple[bytes, Address]
    ) -> None:
        url = f"{endpoint.rstrip('/')}/omissions"
        headers = {"content-type": "application/json"}
        async with limiter:
            try:
                answer = await request(
                    "POST", url, body=body, headers=headers, timeout_s=self._timeout_s,
                    max_bytes=MAX_ANSWER_BYTES,
                )  # fmt: skip
            except EmcdError:
                return  # asked again at the next look
        if answer.status == _TAKEN:
            self._answers[key] = ""
        elif answer.status in _REFUSED:
            self._answers[key] = answer.body[:200].decode("utf-8", "replace")
