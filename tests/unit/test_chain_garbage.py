"""Whatever a node sends, decoding ends in a value or in one of our own errors."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emcd.chain.abi import DecodeError, load_contract
from emcd.chain.blocks import parse_block
from emcd.chain.call import parse_log, parse_receipt
from emcd.chain.contracts import CONTRACT_NAMES
from emcd.chain.revert import decode_revert
from emcd.chain.rpc import error_from
from emcd.errors import EmcdError, RecoverableError

SELECTORS = [bytes(4), bytes.fromhex("08c379a0"), bytes.fromhex("4e487b71")] + [
    selector for name in CONTRACT_NAMES for selector in load_contract(name).errors
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20) | st.just("0x" + "ab" * 32),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
KEYS = (
    "address",
    "topics",
    "data",
    "blockNumber",
    "blockHash",
    "transactionHash",
    "logIndex",
    "status",
    "gasUsed",
)


@given(st.sampled_from(SELECTORS), st.binary(max_size=200))
def test_decode_revert_any_data_gives_a_reason(selector: bytes, rest: bytes) -> None:
    reason = decode_revert(selector + rest, "said the node")
    assert reason.data == selector + rest
    assert isinstance(reason.text, str)


@given(st.sampled_from(["eth_call", "eth_getLogs", "eth_sendRawTransaction"]), JSON)
def test_error_from_any_json_is_one_of_ours(method: str, error: Any) -> None:
    assert isinstance(error_from(method, error), EmcdError)


@given(st.fixed_dictionaries({"code": JSON, "message": JSON, "data": JSON}))
def test_error_from_any_error_object_is_one_of_ours(error: Any) -> None:
    assert isinstance(error_from("eth_call", error), EmcdError)


@given(JSON | st.dictionaries(st.sampled_from(KEYS), JSON))
def test_parse_log_receipt_and_block_refuse_with_what_callers_catch(raw: Any) -> None:
    for parse in (parse_log, parse_receipt):
        with pytest.raises((KeyError, TypeError, ValueError, AttributeError)):
            parse(raw)
    with pytest.raises(RecoverableError):
        parse_block(raw)


@given(st.sampled_from(CONTRACT_NAMES), st.data())
def test_decode_event_and_result_any_bytes_give_values_or_decode_error(
    name: str, data: st.DataObject
) -> None:
    contract = load_contract(name)
    event = data.draw(st.sampled_from(list(contract.events.values())))
    topics = [event.topic, *data.draw(st.lists(st.binary(min_size=32, max_size=32), max_size=3))]
    function = data.draw(st.sampled_from(sorted(contract.functions)))
    payload = data.draw(st.binary(max_size=300))
    for decode in (
        lambda: event.decode(topics, payload),
        lambda: contract.functions[function].decode(payload),
    ):
        try:
            decode()
        except DecodeError:
            continue
