"""What a receipt may claim, and what becomes of a charge whose record can't be made."""

from __future__ import annotations

from typing import Any, cast

import msgspec
import pytest

from emcd.clock import SystemClock
from emcd.errors import EmcdError
from emcd.proto.openai import Endpoint, UpstreamRequest
from emcd.proto.params import ModelPrice, NetworkParams, PriceTable
from emcd.proto.records import CallStatus, Forward, Receipt
from emcd.services import FixedParameters
from emcd.testing import make_key
from emcd.types import ZERO_ADDRESS
from emcd_hub.billing.book import AccountBook, Reservation
from emcd_hub.billing.keys import ApiKey
from emcd_hub.calls.answer import make_seen
from emcd_hub.calls.context import CallContext
from emcd_hub.calls.limits import CallLimits
from emcd_hub.calls.receipt_check import find_receipt_fault
from emcd_hub.calls.recorder import CallRecorder, OpenCall
from emcd_hub.in_force import InForce
from emcd_hub.nodes.status import ModelInfo

PRICE = ModelPrice(1_000_000, 1_000_000, 1)
HASH = b"\1" * 32
FORWARD = Forward(
    bytes(16), make_key("hub").address, ZERO_ADDRESS, make_key("node").address, HASH, HASH, 1, 1_000
)
KEY = ApiKey("key", "a", HASH, "")
GOOD = Receipt(HASH, HASH, 200, 5, 3, 1, 2)


class Ledger:
    def __init__(self, fault: Exception | None = None) -> None:
        self.rows: list[Any] = []
        self.fault = fault

    async def wait_room(self) -> None: ...

    def submit_bulk(self, fn: Any, row: Any, ended: Any) -> None:
        if self.fault is None:
            self.rows.append(row)
        ended(self.fault, None)


class Sink:
    def add_delivery(self, *args: Any) -> None: ...
    def expect_receipt(self, *args: Any) -> None: ...


def make_recorder(book: AccountBook, ledger: Ledger, genesis_time_s: int = 0) -> CallRecorder:
    in_force = InForce(FixedParameters(NetworkParams(genesis_time_s), PriceTable()))
    return CallRecorder(
        hub=FORWARD.hub, in_force=in_force, ledger=cast("Any", ledger), clock=SystemClock(), book=book,
        sink=cast("Any", Sink()), random_bytes=bytes, last_seq=0,
    )  # fmt: skip


def make_call(book: AccountBook, limit: int | None = None) -> OpenCall:
    held = book.reserve(KEY, 100, 100, 0)
    assert isinstance(held, Reservation)
    info = ModelInfo(HASH, "m", frozenset({Endpoint.CHAT}), limit)
    return OpenCall(FORWARD, HASH, b"", info, held, PRICE)


def loaded_book() -> AccountBook:
    book = AccountBook()
    book.load("a", 1_000, 1_000)
    return book


def fault_of(
    receipt: Receipt, *, bound: int | None = None, answer_bytes: int = 1, choices: int = 1,
    limit: int | None = None, inputs: int = 1,
) -> str:  # fmt: skip
    book = loaded_book()
    request = UpstreamRequest(Endpoint.CHAT, "m", b"", False, False, inputs, choices, 20, bound)
    recorder = make_recorder(book, Ledger())
    limits = CallLimits(default_output_tokens=100)
    context = CallContext(
        request, make_call(book, limit), cast("Any", None), recorder, limits, 0, lambda *_: None
    )
    return find_receipt_fault(receipt, make_seen(context, 200, HASH, None, answer_bytes))


def make_context(call: OpenCall, recorder: CallRecorder) -> CallContext:
    request = UpstreamRequest(Endpoint.CHAT, "m", b"", False, False, 1, 1, 20, None)
    return CallContext(request, call, cast("Any", None), recorder, CallLimits(), 0, lambda *_: None)


def claim(**changes: Any) -> Receipt:
    return msgspec.structs.replace(GOOD, **changes)


def test_receipt_output_without_a_bound_is_bounded_by_the_answer_and_the_reservation() -> None:
    assert "came out" in fault_of(claim(output_tokens=2**53))
    assert fault_of(claim(output_tokens=100)) == ""
    assert "came out" in fault_of(claim(output_tokens=101))
    assert fault_of(claim(output_tokens=200), choices=2) == ""
    assert fault_of(claim(output_tokens=5_000), answer_bytes=5_000) == ""
    assert "came out" in fault_of(claim(output_tokens=5_001), answer_bytes=5_000)


def test_receipt_output_with_a_bound_is_held_to_it_whatever_the_answer() -> None:
    assert fault_of(claim(output_tokens=7), bound=7, answer_bytes=5_000) == ""
    assert "came out" in fault_of(claim(output_tokens=8), bound=7, answer_bytes=5_000)


def test_receipt_input_is_bounded_by_the_smaller_of_request_and_model() -> None:
    most = 20 + 1024
    assert fault_of(claim(input_tokens=most), limit=10**9, inputs=4) == ""
    assert "went in" in fault_of(claim(input_tokens=most + 1), limit=10**9, inputs=4)
    assert "went in" in fault_of(claim(input_tokens=most), limit=2, inputs=4)


@pytest.mark.parametrize("name", ["input_tokens", "output_tokens", "started_at_ms", "finished_at_ms"])
@pytest.mark.parametrize("number", [-1, -(2**63), 2**63, 2**64])
def test_receipt_number_out_of_range_is_a_fault(name: str, number: int) -> None:
    assert "can't be" in fault_of(claim(**{name: number}))


def test_settle_receipt_that_has_no_hash_charges_nothing() -> None:
    book, ledger = loaded_book(), Ledger()
    call = make_call(book)
    with pytest.raises(EmcdError):
        make_recorder(book, ledger).prepare(call, CallStatus.OK, claim(started_at_ms=-1), HASH, 50, "")
    book.release(call.reservation)
    account = book.find("a")
    assert account is not None
    assert (account.balance_micro, account.reserved_micro, ledger.rows) == (2_000, 0, [])


@pytest.mark.parametrize("fault", [RuntimeError("row"), EmcdError("EMC-1204", "full"), None])
async def test_settle_record_that_fails_gives_the_charge_back(fault: Exception | None) -> None:
    """Also when the delivery itself can't be made: here, before the network's genesis."""
    book = loaded_book()
    recorder = make_recorder(book, Ledger(fault), 2**40 if fault is None else 0)
    with pytest.raises((RuntimeError, EmcdError)):
        await make_context(make_call(book), recorder).settle(CallStatus.OK, GOOD, HASH, 50, "")
    account = book.find("a")
    assert account is not None
    assert (account.granted_micro, account.vault_micro, account.reserved_micro) == (1_000, 1_000, 0)
